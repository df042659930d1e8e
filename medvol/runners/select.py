"""Which trained folds to ship, and how to draw and clean masks, by what validation shows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medvol.bundle import Bundle, fork, load
from medvol.bundle.metadata import stated_decision
from medvol.core.errors import ConfigError
from medvol.core.files import sha256_file, write_json, write_text
from medvol.runners.cleaning import Cleaning, choose_cleaning, insert_cleaning, mean_dice
from medvol.runners.evidence import (
    CaseMaps,
    Choice,
    choice_of,
    ensemble_config,
    fold_weights,
    predict_cases,
)
from medvol.runners.thresholds import (
    ThresholdRule,
    Thresholds,
    choose_thresholds,
    insert_thresholds,
    redrawn,
    rule_of,
)
from medvol.runners.train import RECORD, Log


@dataclass(frozen=True)
class SelectOptions:
    """How to choose.

    Attributes:
        holdout: Data set that nothing was trained on.
        single: Export the best fold instead of all.
        thresholds: Also search the least probability of each structure; every case's
            probabilities are kept on disk for that.
        trust_bundle: Run the code of a bundle that is not shipped.
    """

    holdout: str | None = None
    single: bool = False
    thresholds: bool = False
    trust_bundle: bool = False


@dataclass(frozen=True)
class Selection:
    """What was chosen and why; written into the bundle as ``docs/selection.json``.

    Attributes:
        folder: The exported bundle.
        members: Weights files that it averages.
        networks: Candidates of networks with their evidence.
        thresholds: Channel to threshold; channels that are not named keep the usual one.
        cleaning: Arguments of ``CleanLabelMapd``; empty for none.
        steps: Candidates of thresholds and cleaning with their gain in Dice, in the order tried.
        crossfitted: Mean Dice of the cases of each fold, with what the others chose.
        evidence: What the numbers rest on.
    """

    folder: str
    members: tuple[str, ...]
    networks: tuple[Choice, ...]
    thresholds: Thresholds
    cleaning: Cleaning
    steps: tuple[Choice, ...]
    crossfitted: float
    evidence: str
    labels: dict[int, str] = field(default_factory=dict)


def select(
    bundle: str,
    runs: Sequence[str | os.PathLike[str]],
    data: str,
    output: str | os.PathLike[str],
    options: SelectOptions | None = None,
    show: Log = lambda line: None,
) -> Selection:
    """Choose networks, thresholds and cleaning by validation and export them as one bundle.

    Every case is predicted by the fold that never saw it. Runs of one bundle (seeds, settings)
    compete with each other and with their ensembles; what wins is exported with all its folds as
    one averaging network. Whether folds beat their best one can only be seen on cases that none
    of them trained on: a hold-out set decides it where given. Thresholds and cleaning steps are
    taken where they raise Dice and the 95% interval of the gain lies above 0.

    Args:
        bundle: Whose folds they are.
        runs: Folders of ``medvol train --folds all``.
        data: The data set that they were trained on.
        output: The new bundle's folder.
        options: How to choose.
        show: Receives a line a step.

    Raises:
        MissingInputError: If a fold is missing.
        ConfigError: If the output exists.
    """
    options = options or SelectOptions()
    if Path(output).exists():
        raise ConfigError(f"{output}: exists; choose another folder with -o")
    if options.holdout is not None:
        _require_no_lock(options.holdout)
    source = load(bundle, is_trusted=True if options.trust_bundle else None)
    rule = rule_of(source) if options.thresholds else None
    pools = _pools(source, [Path(run) for run in runs], data, rule is not None, show)
    rows = [choice_of(pool.name, [mean_dice(maps, source.labels) for maps in pool.cases],
                      pool.cases) for pool in pools]  # fmt: skip
    best = max(range(len(rows)), key=lambda i: rows[i].dice)
    pool = pools[best]
    members, more, evidence = _members(source, pool, options, Path(runs[0]))
    thresholds, cleaning, steps = _refined(pool.cases, source.labels, rule)
    kept = Selection(
        str(output), tuple(str(path) for path in members),
        (*(_marked(row, index == best) for index, row in enumerate(rows)), *more),
        thresholds, cleaning, tuple(steps), _crossfitted(pool.cases, source.labels, rule),
        evidence, source.labels,
    )  # fmt: skip
    export(source, members, kept, Path(output), rule)
    return kept


@dataclass(frozen=True)
class _Pool:
    """One or more runs whose folds predict together: every case by a network that never saw it."""

    name: str
    folds: list[Path]
    cases: list[CaseMaps]


def _pools(
    source: Bundle, runs: Sequence[Path], data: str, keeps_probs: bool, show: Log
) -> list[_Pool]:
    count = int(source.config("train").get("folds", 1))
    for run in runs:
        _require_same_split(source, run)
    weights = [fold_weights(run, count) for run in runs]
    pools = []
    for chosen in _groups(len(runs)):
        name = " + ".join(runs[i].name for i in chosen)
        show(f"predicting every case by the fold that did not see it: {name}")
        cache = runs[chosen[0]] / "select" / "-".join(map(str, chosen))
        cases = [
            maps
            for fold in range(count)
            for maps in predict_cases(source, data, [weights[i][fold] for i in chosen],
                                      cache / f"fold_{fold}", fold, keeps_probs)
        ]  # fmt: skip
        pools.append(_Pool(name, [path for i in chosen for path in weights[i]], cases))
    return pools


def _require_no_lock(holdout: str) -> None:
    from medvol.datasets import locked_cases

    if (found := locked_cases(holdout)).names:
        raise ConfigError(f"{holdout}: {found}; a choice made on them would spend the test set; "
                          "give another hold-out set")  # fmt: skip


def _require_same_split(source: Bundle, run: Path) -> None:
    """Reject folds of another split: their networks saw what they would be scored on."""
    config = source.config("train")
    for record in sorted(run.glob(f"fold_*/{RECORD}")):
        given = json.loads(record.read_text("utf-8")).get("settings", {})
        for name in ("folds", "split_seed", "split"):
            if given.get(name, str(config.get(name))) != str(config.get(name)):
                raise ConfigError(
                    f"{record.parent}: was trained with {name}={given[name]}, but the bundle "
                    f"splits cases by {name}={config.get(name)}; train it without that setting"
                )


def _refined(
    pool: Sequence[CaseMaps], labels: Mapping[int, str], rule: ThresholdRule | None
) -> tuple[Thresholds, Cleaning, list[Choice]]:
    """Thresholds first, then cleaning of what they draw."""
    chosen: Thresholds = {}
    steps: list[Choice] = []
    if rule is not None:
        chosen, steps = choose_thresholds(pool, labels, rule)
        pool = redrawn(pool, chosen, rule)
    cleaning, more = choose_cleaning(pool, labels)
    return chosen, cleaning, [*steps, *more]


def export(
    source: Bundle,
    members: Sequence[Path],
    chosen: Selection,
    output: Path,
    rule: ThresholdRule | None = None,
) -> None:
    """Write the bundle: averaging network, joined weights, thresholds, cleaning, its evidence."""
    from medvol.datasets import trained_on, write_trained_on
    from medvol.engines import save_checkpoint
    from medvol.networks import join_states, load_weights

    fork(source.path, output)
    states = [load_weights(path) for path in members]
    if all(seen := [trained_on(path) for path in members]):
        write_trained_on([part for part in seen if part is not None], output / "models")
    state = states[0] if len(states) == 1 else join_states(states)
    save_checkpoint(output / "models" / "model.pt", state)
    channels = len(source.metadata["network_data_format"]["outputs"]["pred"]["channel_def"])
    path = output / "configs" / "metadata.json"
    facts = json.loads(path.read_text("utf-8"))
    stated = facts.setdefault("medvol", {})
    for task in source.tasks:
        config_path = output / "configs" / f"{task}.json"
        config = json.loads(config_path.read_text("utf-8"))
        config["network_def"] = ensemble_config(source, len(members))
        if chosen.thresholds and rule is not None and "decision" in config:
            insert_thresholds(config, rule, chosen.thresholds, channels)
            stated["decision"] = stated_decision(config)
        if chosen.cleaning and task in ("inference", "evaluate"):
            insert_cleaning(config["postprocessing"]["transforms"], chosen.cleaning)
        write_text(config_path, json.dumps(config, indent=4, ensure_ascii=False) + "\n")
    stated["weights_sha256"] = sha256_file(output / "models" / "model.pt")
    write_text(path, json.dumps(facts, indent=4, ensure_ascii=False) + "\n")
    write_json(output / "docs" / "selection.json", _plain(asdict(chosen)))
    card = output / "docs" / "README.md"
    write_text(card, card.read_text("utf-8") + selection_text(chosen))


def selection_text(chosen: Selection) -> str:
    """The card's section on what was chosen and why."""
    rows = [f"| {row.what} | {row.dice:.4f} ({row.lower:.4f} to {row.upper:.4f}) | {row.n} | "
            f"{'yes' if row.is_chosen else ''} |" for row in chosen.networks]  # fmt: skip
    steps = [f"| {row.what} | {row.dice:+.4f} ({row.lower:+.4f} to {row.upper:+.4f}) | "
             f"{'yes' if row.is_chosen else ''} |" for row in chosen.steps]  # fmt: skip
    head = "mean Dice (95% interval)"
    table = "\n".join([f"| network | {head} | cases | chosen |", "|---|---|---|---|", *rows])
    cleaned = "\n".join([f"| step | gain in {head} | chosen |", "|---|---|---|", *steps])
    return f"""
## Selection

{len(chosen.members)} network(s) in one, by `medvol select`. {chosen.evidence}

{table}

{cleaned}

With thresholds and cleaning chosen on the other folds alone, mean Dice of all cases:
{chosen.crossfitted:.4f}.
"""


def _groups(count: int) -> list[tuple[int, ...]]:
    return [group for size in range(1, count + 1) for group in combinations(range(count), size)]


def _members(
    source: Bundle, pool: _Pool, options: SelectOptions, cache: Path
) -> tuple[list[Path], list[Choice], str]:
    """All folds or the best one, and what that rests on."""
    scores: dict[int, list[float]] = {}
    for maps in pool.cases:
        scores.setdefault(maps.fold, []).append(mean_dice(maps, source.labels))
    means = {fold: float(np.nanmean(values)) for fold, values in scores.items()}
    best = pool.folds[max(means, key=lambda fold: means[fold])]
    if options.holdout is None:
        basis = "Each case was scored by the fold that did not see it. "
        if options.single or len(pool.folds) == 1:
            return [best], [], basis + "The fold with the highest validation is exported."
        unknown = "Whether the folds' mean beats one of them was not measured: no hold-out set."
        return pool.folds, [], basis + unknown
    rows = []
    for what, members in (("best fold alone", [best]), ("all folds", pool.folds)):
        place = cache / "select" / "holdout" / what.replace(" ", "_")
        found = predict_cases(source, options.holdout, members, place)
        dice = [mean_dice(maps, source.labels) for maps in found]
        rows.append(choice_of(f"hold-out set: {what}", dice, found))
    is_single = options.single or rows[0].dice >= rows[1].dice
    more = [_marked(row, index == (0 if is_single else 1)) for index, row in enumerate(rows)]
    basis = f"Folds against the best one: {rows[0].n} hold-out cases."
    return ([best] if is_single else pool.folds), more, basis


def _crossfitted(
    pool: Sequence[CaseMaps], labels: Mapping[int, str], rule: ThresholdRule | None
) -> float:
    found = []
    for fold in sorted({maps.fold for maps in pool}):
        others = [maps for maps in pool if maps.fold != fold]
        own = [maps for maps in pool if maps.fold == fold]
        thresholds, cleaning, _ = _refined(others, labels, rule) if others else ({}, {}, [])
        if rule is not None:
            own = redrawn(own, thresholds, rule)
        found += [mean_dice(maps, labels, cleaning) for maps in own]
    return float(np.nanmean(found))


def _marked(row: Choice, is_chosen: bool) -> Choice:
    return replace(row, is_chosen=is_chosen)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
