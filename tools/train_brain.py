"""Train the whole-brain network on images synthesised from label maps, resumable.

    python tools/train_brain.py LABELS_FOLDER STATE_FOLDER [--head T1.nii.gz]

Everything lies in the state folder: ``state.pt`` (all that resuming needs, replaced atomically),
``model.pt`` (the moving average as a bare state dict), ``log.csv``, ``scores.csv`` (Dice per
structure on images of the held-out maps), ``head.png`` (the last look at a real scan) and
``schedule.json`` (steps and peak learning rate, read again every 50 steps: change it to end
sooner or later).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medvol.networks import SidedNetwork, SubpixelUNet
from medvol.transforms import RandSpatiald, RandSynthesised, Spacingd

#: FreeSurfer's number and name of every class; those with a right twin end the pairs below.
CLASSES = (0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28)
RIGHT_OF = {
    2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54,
    26: 58, 28: 60,
}  # fmt: skip
MIRRORED = tuple(CLASSES.index(left) for left in RIGHT_OF)
VALUES = (*CLASSES, *RIGHT_OF.values())
#: Finer labels that count as a structure: lesions, choroid plexus, fifth ventricle.
MERGED = {25: 2, 57: 41, 77: 2, 136: 4, 163: 43, 137: 5, 164: 44, 31: 4, 63: 43, 72: 24}
#: Labels of the maps that come in pairs beyond the structures themselves.
ALSO_PAIRED = {25: 57, 30: 62, 136: 163, 137: 164}
PAIRS = [*RIGHT_OF.items(), *ALSO_PAIRED.items()]
HELD_OUT = ("brain_17", "brain_18", "brain_19", "brain_20")
CHANNELS = (32, 64, 128, 160)
SIZE, MM = (80, 96, 80), 2.0
EXTRA_CEREBRAL = [0, *range(500, 531)]


def build_network() -> SidedNetwork:
    """The network of the bundle."""
    return SidedNetwork(SubpixelUNet(3, 1, len(CLASSES) + 1, CHANNELS), MIRRORED)


def read_maps(folder: Path) -> dict[str, MetaTensor]:
    """Every label map in RAS, cut or filled so that the brain lies in the middle."""
    return {p.name.split(".")[0]: read_map(p) for p in sorted(folder.glob("*.nii.gz"))}


def read_map(path: Path) -> MetaTensor:
    """One label map in RAS with the brain in the middle."""
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj).astype(np.int16)
    brain = np.isin(values, [v for v in VALUES if v not in (0, 24)])
    places = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    before, after = [], []
    for axis, place in enumerate(places):
        middle, size = int(place[0] + place[-1]) // 2, values.shape[axis]
        before.append(max(size - 2 * middle, 0))
        after.append(max(2 * middle - size, 0))
    values = np.ascontiguousarray(np.pad(values, list(zip(before, after, strict=True))))
    affine = image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.asarray(before)
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine))


@dataclass
class Synthesis:
    """Label map to image and label on the training grid; everything is drawn from one seed."""

    seed: int

    def __post_init__(self) -> None:
        common: dict[str, Any] = dict(
            keys="label", rotate_range=0.3, shear_range=0.03, elastic_magnitude_mm=(0.0, 9.0),
            elastic_spacing_mm=32.0, elastic_prob=0.9, flip_axes=["left-right"],
            scale_range=[0.17] * 3,
            body_part="brain", swap_labels=PAIRS, spatial_size=SIZE, random_center=False,
        )  # fmt: skip
        self.spacing = Spacingd(keys="label", pixdim=[MM] * 3, mode="nearest", lazy=True)
        self.near = RandSpatiald(**common, translate_range_mm=[14, 16, 18])
        self.far = RandSpatiald(**common, translate_range_mm=[50, 60, 80])
        self.render = RandSynthesised(
            tied_labels=PAIRS,
            removed_labels=[(0.3, EXTRA_CEREBRAL), (0.15, [24])],
        )
        self.reseed(self.seed)

    def reseed(self, seed: int) -> None:
        """Start every random stream at a seed."""
        self.random = np.random.RandomState(seed)
        for place, part in enumerate((self.near, self.far, self.render)):
            part.set_random_state(seed=(seed * 3 + place) % 2**32)

    def __call__(self, label: MetaTensor) -> tuple[Tensor, Tensor]:
        """Image (1, 1, ...) and label (1, ...), FreeSurfer's numbers."""
        move = self.near if self.random.rand() < 0.85 else self.far
        moved = self.render(move(self.spacing({"label": label})))
        return moved["image"].as_tensor()[None], moved["label"].as_tensor().long()


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """FreeSurfer's number to class, to side (0, 1, or -1 for none), and to output channel."""
    to_class, to_side = torch.zeros(600, dtype=torch.long), torch.full((600,), -1.0)
    to_output = torch.zeros(600, dtype=torch.long)
    for value in [*VALUES, *MERGED]:
        target = MERGED.get(value, value)
        to_output[value] = VALUES.index(target)
        left = next((k for k, v in RIGHT_OF.items() if v == target), target)
        to_class[value] = CLASSES.index(left)
        if left in RIGHT_OF:
            to_side[value] = float(target != left)
    return to_class, to_side, to_output


def class_weights(maps: Mapping[str, MetaTensor], to_class: Tensor) -> Tensor:
    """Cube root of rarity, 1 for the mean voxel of a brain."""
    counts = torch.zeros(len(CLASSES))
    for label in maps.values():
        counts += torch.bincount(to_class[label.as_tensor().flatten().long()],
                                 minlength=len(CLASSES))  # fmt: skip
    share = counts / counts.sum()
    weights = share.pow(-1 / 3)
    return weights / (weights * share).sum()


def loss_of(out: Tensor, y: Tensor, side: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the class, Dice of the classes in sight, and the side."""
    n = len(CLASSES)
    classes, right = out[0, :n].float().reshape(n, -1), out[0, n].float().reshape(-1)
    y, side = y.reshape(-1), side.reshape(-1)
    log_p = classes.log_softmax(0)
    true = log_p.gather(0, y[None])[0]
    w = weights[y]
    entropy = -(w * true).sum() / w.sum()
    both = torch.zeros(n).index_add(0, y, true.exp())
    count = torch.bincount(y, minlength=n).float()
    dice = (2 * both + 1) / (log_p.exp().sum(1) + count + 1)
    seen = (count > 0).nonzero()[:, 0]
    is_paired = side >= 0
    sides = F.binary_cross_entropy_with_logits(right[is_paired], side[is_paired])
    if not bool(is_paired.any()):
        sides = right.sum() * 0
    return entropy + 1 - dice[seen[seen > 0]].mean() + sides, dice.detach()


def dice_of(prediction: Tensor, truth: Tensor) -> NDArray[np.floating]:
    """Dice of every output channel; nan where the truth has none."""
    n = len(VALUES)
    both = torch.bincount(truth[prediction == truth], minlength=n).double()
    one, two = (torch.bincount(v.flatten(), minlength=n).double() for v in (prediction, truth))
    return torch.where(two > 0, 2 * both / (one + two), torch.nan).numpy()


@torch.no_grad()
def evaluate(network: nn.Module, maps: Mapping[str, MetaTensor], to_output: Tensor,
             images: int = 3) -> NDArray[np.floating]:  # fmt: skip
    """Mean Dice per output channel over fixed synthetic images of the held-out maps."""
    synthesis, rows = Synthesis(0), []
    for number, name in enumerate(HELD_OUT):
        for image in range(images):
            synthesis.reseed(1000 + 10 * number + image)
            x, label = synthesis(maps[name])
            with torch.autocast("cpu", torch.bfloat16):
                out = network(x.to(memory_format=torch.channels_last_3d))
            rows.append(dice_of(out[0].float().argmax(0), to_output[label[0]]))
    return np.nanmean(np.asarray(rows), axis=0)


@torch.no_grad()
def look(network: nn.Module, head: Path, target: Path) -> str:
    """Segment a real scan at the training grid, draw it, and give some volumes in ml."""
    from monai.inferers import sliding_window_inference
    from monai.transforms import ScaleIntensityRangePercentiles

    image = nib.as_closest_canonical(nib.load(head))
    scan = MetaTensor(torch.from_numpy(image.get_fdata(dtype=np.float32))[None],
                      affine=torch.from_numpy(image.affine))  # fmt: skip
    x = Spacingd(keys="image", pixdim=[MM] * 3, mode="bilinear")({"image": scan})["image"]
    x = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(x).as_tensor().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = sliding_window_inference(x[None], SIZE, 1, network, 0.5, mode="gaussian")
    label = out[0].float().argmax(0)
    draw(x[0].numpy(), label.numpy(), target)
    volumes = torch.bincount(label.flatten(), minlength=len(VALUES)) * MM**3 / 1000
    return " ".join(f"{VALUES[i]}:{float(volumes[i]):.1f}" for i in range(1, len(VALUES)))


def draw(image: NDArray[Any], label: NDArray[Any], target: Path) -> None:
    """Three planes through the middle of the brain, with colours."""
    from PIL import Image

    colours = np.random.RandomState(1).randint(40, 256, (len(VALUES), 3))
    brain = np.argwhere((label > 0) & (np.asarray(VALUES)[label] != 24))
    middle = brain.mean(0).astype(int) if len(brain) else np.asarray(label.shape) // 2
    rows = []
    for axis in range(3):
        grey = np.take(image, middle[axis], axis)[..., None].repeat(3, -1) * 255
        mask = np.take(label, middle[axis], axis)
        mixed = np.where((mask > 0)[..., None], 0.5 * grey + 0.5 * colours[mask], grey)
        pair = np.concatenate([np.rot90(grey), np.rot90(mixed)], 1).clip(0, 255).astype(np.uint8)
        rows.append(Image.fromarray(pair).resize((pair.shape[1] * 3, pair.shape[0] * 3)))
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)))
    for place, row in enumerate(rows):
        sheet.paste(row, (0, sum(r.height for r in rows[:place])))
    sheet.save(target)


class Run:
    """The state of one training, saved and restored as a whole."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.step, self.seconds = folder, 0, 0.0
        torch.manual_seed(seed)
        self.network = build_network().to(memory_format=torch.channels_last_3d)
        self.average = build_network().to(memory_format=torch.channels_last_3d).eval()
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 1e-3, weight_decay=0.01)
        self.dice = torch.zeros(len(CLASSES))
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds, self.dice = state["step"], state["seconds"], state["dice"]

    def save(self) -> None:
        """Replace ``state.pt`` and ``model.pt`` atomically."""
        state = {name: getattr(self, name).state_dict() for name in
                 ("network", "average", "optimiser")}  # fmt: skip
        replace(state | {"step": self.step, "seconds": self.seconds, "dice": self.dice},
                self.folder / "state.pt")  # fmt: skip
        replace({k: v.contiguous() for k, v in self.average.state_dict().items()},
                self.folder / "model.pt")  # fmt: skip

    def follow(self, decay: float) -> None:
        """Let the moving average follow the network."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        for mean, new in pairs:
            mean.data.lerp_(new.data, 1 - decay)


def replace(state: Any, target: Path) -> None:
    """Write beside the target, then take its place."""
    part = target.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, target)


def learning_rate(step: int, schedule: Mapping[str, float]) -> float:
    """Warm-up, a constant stretch, then a linear way down to zero at the last step."""
    last, cooldown = schedule["steps"], schedule["cooldown"]
    down = (last - step) / max(cooldown, 1)
    return schedule["peak"] * max(min(1.0, (step + 1) / schedule["warmup"], down), 0.0)


def append(path: Path, row: Sequence[Any]) -> None:
    """One more row of a table."""
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)


def train(labels: Path, folder: Path, head: Path | None, minutes: float) -> None:
    """Train until the last step of the schedule; look at the result every ``minutes``."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "schedule.json"
    if not plan.exists():
        plan.write_text(json.dumps({"steps": 11000, "cooldown": 4500, "warmup": 200,
                                    "peak": 2e-3, "decay": 0.998}))  # fmt: skip
    schedule = json.loads(plan.read_text())
    run, maps = Run(folder, 0), read_maps(labels)
    to_class, to_side, to_output = tables()
    kept = [name for name in maps if name not in HELD_OUT]
    weights = class_weights({name: maps[name] for name in kept}, to_class)
    synthesis, spent = Synthesis(run.step), 0.0
    saved = looked = time.monotonic()
    while run.step < schedule["steps"]:
        start = time.monotonic()
        if run.step % 50 == 0:
            schedule = json.loads(plan.read_text())
        synthesis.reseed(10_000 + run.step)  # a resumed run draws what the first would have drawn
        x, label = synthesis(maps[kept[synthesis.random.randint(len(kept))]])
        spent += time.monotonic() - start
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(run.step, schedule)
        with torch.autocast("cpu", torch.bfloat16):
            out = run.network.network(x.to(memory_format=torch.channels_last_3d))
        loss, dice = loss_of(out, to_class[label], to_side[label], weights)
        run.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(run.network.parameters(), 5.0)
        if math.isfinite(float(norm)):
            run.optimiser.step()
        run.step += 1
        run.follow(schedule["decay"])
        run.dice = dice if run.step == 1 else run.dice.lerp(dice, 0.02)
        run.seconds += time.monotonic() - start
        if run.step % 50 == 0:
            append(folder / "log.csv", [run.step, f"{run.seconds:.0f}", f"{float(loss):.4f}",
                   f"{float(run.dice[1:].mean()):.4f}", f"{float(norm):.2f}",
                   f"{learning_rate(run.step, schedule):.6f}", f"{spent / 50:.3f}"])  # fmt: skip
            spent = 0.0
        now = time.monotonic()
        if now - saved > 180:
            run.save()
            saved = now
        if now - looked > minutes * 60 or run.step == schedule["steps"]:
            report(run, maps, to_output, head)
            run.save()
            looked = saved = time.monotonic()


def report(run: Run, maps: Mapping[str, MetaTensor], to_output: Tensor, head: Path | None) -> None:
    """Score the moving average on held-out maps and look at the real scan."""
    scores = evaluate(run.average, maps, to_output)
    table = run.folder / "scores.csv"
    if not table.exists():
        append(table, ["step", "seconds", "mean", *VALUES[1:]])
    append(table, [run.step, f"{run.seconds:.0f}", f"{np.nanmean(scores[1:]):.4f}",
                   *(f"{s:.3f}" for s in scores[1:])])  # fmt: skip
    if head is not None:
        volumes = look(run.average, head, run.folder / "head.png")
        with (run.folder / "head.txt").open("a") as file:
            file.write(f"{run.step} {volumes}\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train(args.labels, args.folder, args.head, args.minutes)


if __name__ == "__main__":
    main()
