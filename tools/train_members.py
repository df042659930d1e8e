"""Cross-validate a classification bundle and ship its members as one ensemble.

``python -m tools.train_members BUNDLE --data DATASET --output OUT`` trains a member per fold and
seed with the bundle's own cases, preprocessing, augmentation, network and loss. To fit one core in
minutes, every case is augmented ``--pool`` times once and all members share these copies, through
the part of the network that has no parameters where there is one. ``OUT`` receives
``fold<k>.csv`` (out-of-fold scores, the mean over seeds) and ``model.pt`` (all members).
Afterwards ``tools.fit_operating`` fixes the operating point on the fold tables.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvol.bundle import load
from medvol.core import atomic_path, write_text
from medvol.engines.data import CaseDataset
from medvol.metrics import auc_roc
from medvol.networks import apply_weights, join_states, load_weights


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        bundle: Name or folder.
        data: Data set.
        output: Where tables and weights go.
        epochs: Passes over the training cases per member.
        seeds: Members per fold.
        pool: Augmented copies per case.
        folds: Folds to hold out in turn.
        start: An earlier ``model.pt`` of all folds and as many seeds, whose members train on.
    """

    bundle: str
    data: str
    output: Path
    epochs: int
    seeds: int
    pool: int
    folds: tuple[int, ...]
    start: Path | None = None


@dataclass
class Pool:
    """Augmented copies of every case, and its plain form, as the learnt part takes them."""

    copies: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)


def main() -> int:
    """Train, write, and print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=12)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--start", type=Path, help="model.pt whose members train on")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    train(Plan(given.bundle, given.data, given.output, given.epochs, given.seeds, given.pool,
               tuple(given.folds), given.start))  # fmt: skip
    return 0


def train(plan: Plan) -> None:
    """Every member in turn; tables are written fold by fold, weights at the end."""
    started, states = time.process_time(), []
    pool = make_pool(plan)
    logging.info("pool of %d cases: %.0f s CPU", len(pool.plain), time.process_time() - started)
    held = {k: _parser(plan, k).get_parsed_content("cases")["validate"] for k in plan.folds}
    sums: dict[int, Tensor] = {}
    for seed in range(plan.seeds):
        alone: dict[int, Tensor] = {}
        for fold in plan.folds:
            member = train_member(plan, pool, fold, seed)
            states.append({name: value.clone() for name, value in member.state_dict().items()})
            alone[fold] = _score(member, [pool.plain[c["case"]] for c in held[fold]]).softmax(1)
            sums[fold] = sums.get(fold, 0) + alone[fold]
            mean = (sums[fold] / (seed + 1)).clamp_min(1e-12).log()
            _write_table(plan, fold, held[fold], mean)
            logging.info("seed %d fold %d: AUC of the seed so far %.4f, of the seeds' mean %.4f, "
                         "%.0f s CPU", seed, fold, _auc(alone, held), _auc(sums, held),
                         time.process_time() - started)  # fmt: skip
        with atomic_path(plan.output / "model.pt") as scratch:
            torch.save(join_states(states), scratch)


def _auc(scores: Mapping[int, Tensor], held: Mapping[int, Sequence[Mapping[str, Any]]]) -> float:
    truths = [case["label"] for fold in scores for case in held[fold]]
    ratio = [(p[:, -1] / p.sum(1)).tolist() for p in scores.values()]
    return auc_roc(np.asarray(truths), np.concatenate(ratio))


def make_pool(plan: Plan) -> Pool:
    """Read every case once, augment it ``plan.pool`` times, and keep what the members take."""
    parser, pool = _parser(plan, plan.folds[0]), Pool()
    cases = parser.get_parsed_content("cases")
    entries = sorted(cases["train"] + cases["validate"], key=lambda entry: entry["case"])
    stem = getattr(parser.get_parsed_content("trained_network"), "stem", None)
    steps = [parser.get_parsed_content(i) for i in ("train#preprocessing", "train#augmentation")]
    plain = CaseDataset(entries, parser.get_parsed_content("preprocessing"), cache_rate=0)
    drawn = CaseDataset(entries, *steps, seed=0, cache_rate=1, num_workers=1)
    for index, entry in enumerate(entries):
        shown = [drawn[epoch * len(entries) + index] for epoch in range(plan.pool)]
        images = torch.stack([_plain(item["image"]) for item in shown])
        pool.copies[entry["case"]] = _through(stem, images).half()
        pool.plain[entry["case"]] = _through(stem, _plain(plain[index]["image"])[None]).half()[0]
        if "mask" in shown[0]:
            masks = torch.stack([_plain(item["mask"]) for item in shown])
            pool.masks[entry["case"]] = (masks > 0).to(torch.uint8)
    return pool


def train_member(plan: Plan, pool: Pool, fold: int, seed: int) -> nn.Module:
    """One network from scratch on the training cases of one fold."""
    from monai.optimizers.lr_scheduler import WarmupCosineSchedule

    torch.manual_seed(1000 * fold + seed)
    parser = _parser(plan, fold)
    cases = parser.get_parsed_content("cases")["train"]
    network, loss_of = (parser.get_parsed_content(i) for i in ("trained_network", "loss"))
    if plan.start is not None:
        prefix = f"networks.{seed * int(parser['folds']) + fold}."
        state = load_weights(plan.start)
        apply_weights(network, {name.removeprefix(prefix): value for name, value in state.items()
                                if name.startswith(prefix)})  # fmt: skip
    size = int(parser["batch_size"])
    steps = plan.epochs * (len(cases) // size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=parser["learning_rate"],
                                  weight_decay=parser["optimizer"]["weight_decay"])  # fmt: skip
    schedule = WarmupCosineSchedule(optimizer, max(1, steps // 10), steps)
    average, order = copy.deepcopy(network), list(range(len(cases)))
    network.train()
    for step in range(steps):
        if step % (len(cases) // size) == 0:
            order = torch.randperm(len(cases)).tolist()
        chosen = [cases[order[(step * size + i) % len(order)]] for i in range(size)]
        inputs, target = _batch(pool, chosen)
        optimizer.zero_grad()
        loss_of(_learnt(network)(inputs), target).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        _average(average, network, min(0.99, (1 + step) / (10 + step)))
    return average.eval()


def _batch(pool: Pool, cases: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Any]:
    names = [case["case"] for case in cases]
    draws = [int(torch.randint(len(pool.copies[name]), ())) for name in names]
    inputs = torch.stack([pool.copies[n][d] for n, d in zip(names, draws, strict=True)]).float()
    classes = torch.tensor([case["label"] for case in cases])
    if not pool.masks:
        return inputs, classes
    masks = torch.stack([pool.masks[n][d] for n, d in zip(names, draws, strict=True)])
    return inputs, (classes, masks)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, past: float) -> None:
    new = network.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(new[name], 1 - past)
        else:
            value.copy_(new[name])


@torch.no_grad()
def _score(network: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    learnt = _learnt(network)
    return torch.cat([learnt(part.float()) for part in torch.stack(list(inputs)).split(16)])


def _learnt(network: nn.Module) -> Any:
    return getattr(network, "rest", network)


@torch.no_grad()
def _through(stem: nn.Module | None, images: Tensor) -> Tensor:
    return images if stem is None else stem(images)


def _plain(value: Any) -> Tensor:
    return value.as_tensor() if hasattr(value, "as_tensor") else value


def _parser(plan: Plan, fold: int) -> Any:
    return load(plan.bundle).parser("train", dataset_dir=plan.data, fold=fold)


def _write_table(plan: Plan, fold: int, cases: Sequence[Mapping[str, Any]], logits: Tensor) -> None:
    labels = load(plan.bundle).config("train")["labels"]
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    lines = [",".join(["case", *(f"logit_{name}" for name in names), "truth"])]
    for case, row in zip(cases, logits.tolist(), strict=True):
        lines.append(",".join([case["case"], *(f"{v:.6f}" for v in row), names[case["label"]]]))
    write_text(plan.output / f"fold{fold}.csv", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
