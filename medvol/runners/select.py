"""Which trained folds to ship and how to clean their masks, by what validation shows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.bundle import Bundle, fork, load
from medvol.core.errors import ConfigError
from medvol.core.files import sha256_file, write_json, write_text
from medvol.runners.evidence import CaseMaps, ensemble_config, fold_weights, predict_cases
from medvol.runners.train import Say

#: Least volumes that are tried, as shares of the smallest volume that the label has in any case.
_SHARES = (0.05, 0.2, 0.5)
Cleaning = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A number that decided something.

    Attributes:
        what: The candidate.
        dice: Mean Dice over cases and labels.
        lower: Lower bound of its 95% interval, patients resampled whole.
        upper: Upper bound.
        n: Cases.
        is_chosen: Whether it was taken.
    """

    what: str
    dice: float
    lower: float
    upper: float
    n: int
    is_chosen: bool = False


@dataclass(frozen=True)
class Selection:
    """What was chosen and why; written into the bundle as ``docs/selection.json``.

    Attributes:
        folder: The exported bundle.
        members: Weights files that it averages.
        networks: Candidates of networks with their evidence.
        cleaning: Arguments of ``CleanLabelMapd``; empty for none.
        steps: Candidates of cleaning with their gain in Dice, in the order tried.
        crossfitted: Mean Dice of the cases of each fold, cleaned by what the others chose.
        evidence: What the numbers rest on.
    """

    folder: str
    members: tuple[str, ...]
    networks: tuple[Choice, ...]
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
    *,
    holdout: str | None = None,
    single: bool = False,
    is_trusted: bool = False,
    say: Say = lambda line: None,
) -> Selection:
    """Choose networks and cleaning by validation and export them as one bundle.

    Every case is predicted by the fold that never saw it. Runs of one bundle (seeds, settings)
    compete with each other and with their ensembles; what wins is exported with all its folds as
    one averaging network. Whether folds beat their best one can only be seen on cases that none
    of them trained on: a hold-out set decides it where given. Cleaning steps are taken where they
    raise Dice and the 95% interval of the gain lies above 0.

    Args:
        bundle: Whose folds they are.
        runs: Folders of ``medvol train --folds all``.
        data: The data set that they were trained on.
        output: The new bundle's folder.
        holdout: Data set that nothing was trained on.
        single: Export the best fold instead of all.
        is_trusted: Run the code of a bundle that is not shipped.
        say: Receives a line a step.

    Raises:
        MissingInputError: If a fold is missing.
        ConfigError: If the output exists.
    """
    if Path(output).exists():
        raise ConfigError(f"{output}: exists; choose another folder")
    source = load(bundle, is_trusted=True if is_trusted else None)
    count = int(source.config("train").get("folds", 1))
    weights = [fold_weights(Path(run), count) for run in runs]
    pools = {}
    for chosen in _groups(len(runs)):
        name = " + ".join(Path(runs[i]).name for i in chosen)
        say(f"predicting every case by the fold that did not see it: {name}")
        cache = Path(runs[chosen[0]]) / "select" / "-".join(map(str, chosen))
        pools[chosen] = [
            maps
            for fold in range(count)
            for maps in predict_cases(source, data, [weights[i][fold] for i in chosen],
                                      cache / f"fold_{fold}", fold)
        ]  # fmt: skip
    labels = source.labels
    rows = [_choice(" + ".join(Path(runs[i]).name for i in g), pool, labels)
            for g, pool in pools.items()]  # fmt: skip
    best = max(range(len(rows)), key=lambda i: rows[i].dice)
    chosen = list(pools)[best]
    pool = pools[chosen]
    networks = [_marked(row, index == best) for index, row in enumerate(rows)]
    folds = [path for i in chosen for path in weights[i]]
    members, more, evidence = _members(source, folds, pool, labels, holdout, single, Path(runs[0]))
    cleaning, steps = choose_cleaning(pool, labels)
    kept = Selection(
        str(output), tuple(str(path) for path in members), (*networks, *more), cleaning,
        tuple(steps), _crossfitted(pool, labels, count), evidence, labels,
    )  # fmt: skip
    export(source, members, kept, Path(output))
    return kept


def mean_dice(maps: CaseMaps, labels: Mapping[int, str], cleaning: Cleaning | None = None) -> float:
    """Mean Dice over the labels of a case, those in neither map left out; nan if there is none."""
    pred = _cleaned(maps, cleaning) if cleaning else maps.pred
    found = []
    for value in labels:
        one, other = pred == value, maps.ref == value
        size = int(one.sum()) + int(other.sum())
        if size:
            found.append(2 * int((one & other).sum()) / size)
    return math.fsum(found) / len(found) if found else math.nan


def _cleaned(maps: CaseMaps, cleaning: Cleaning) -> NDArray[Any]:
    import torch
    from monai.data.meta_tensor import MetaTensor

    from medvol.transforms import CleanLabelMapd

    edge_mm = maps.voxel_mm3 ** (1 / maps.pred.ndim)
    affine = torch.diag(torch.tensor([edge_mm] * 3 + [1.0], dtype=torch.float64))
    label = MetaTensor(torch.from_numpy(maps.pred)[None], affine=affine)
    return CleanLabelMapd("pred", **cleaning)({"pred": label})["pred"].numpy()[0]


def choose_cleaning(
    pool: Sequence[CaseMaps], labels: Mapping[int, str]
) -> tuple[Cleaning, list[Choice]]:
    """Cleaning steps that validation is for, label by label, each upon those taken before.

    Args:
        pool: Cases that their network never saw.
        labels: Label value to name.

    Returns:
        Arguments of :class:`medvol.transforms.CleanLabelMapd`, and what every step tried gained.
    """
    chosen: Cleaning = {}
    steps = []
    base = [mean_dice(maps, labels) for maps in pool]
    for value, name in labels.items():
        for what, option in _options(pool, value):
            trial = _with(chosen, value, option)
            dice = [mean_dice(maps, labels, trial) for maps in pool]
            gain = _interval([b - a for a, b in zip(base, dice, strict=True)], pool)
            is_better = gain.estimate > 0 and gain.lower > 0
            steps.append(Choice(f"{name}: {what}", gain.estimate, gain.lower, gain.upper,
                                len(pool), is_better))  # fmt: skip
            if is_better:
                chosen, base = trial, dice
    return chosen, steps


def export(source: Bundle, members: Sequence[Path], chosen: Selection, output: Path) -> None:
    """Write the bundle: averaging network, joined weights, cleaning, evidence in its card."""
    from medvol.engines import save_checkpoint
    from medvol.networks import join_states, load_weights

    fork(source.path, output)
    states = [load_weights(path) for path in members]
    state = states[0] if len(states) == 1 else join_states(states)
    save_checkpoint(output / "models" / "model.pt", state)
    for task in ("inference", "evaluate"):
        path = output / "configs" / f"{task}.json"
        if not path.is_file():
            continue
        config = json.loads(path.read_text("utf-8"))
        config["network_def"] = ensemble_config(source, len(members))
        if chosen.cleaning:
            _insert_cleaning(config["postprocessing"]["transforms"], chosen.cleaning)
        write_text(path, json.dumps(config, indent=4, ensure_ascii=False) + "\n")
    path = output / "configs" / "metadata.json"
    facts = json.loads(path.read_text("utf-8"))
    facts.setdefault("medvol", {})["weights_sha256"] = sha256_file(output / "models" / "model.pt")
    facts["medvol"]["name"] = output.name
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
    cleaned = "\n".join([f"| cleaning | gain in {head} | chosen |", "|---|---|---|", *steps])
    return f"""
## Selection

{len(chosen.members)} network(s) in one, by `medvol select`. {chosen.evidence}

{table}

{cleaned}

With cleaning chosen on the other folds alone, mean Dice of all cases: {chosen.crossfitted:.4f}.
"""


def _groups(count: int) -> list[tuple[int, ...]]:
    return [group for size in range(1, count + 1) for group in combinations(range(count), size)]


def _members(
    source: Bundle,
    folds: list[Path],
    pool: Sequence[CaseMaps],
    labels: Mapping[int, str],
    holdout: str | None,
    single: bool,
    cache: Path,
) -> tuple[list[Path], list[Choice], str]:
    """All folds or the best one, and what that rests on."""
    scores: dict[int, list[float]] = {}
    for maps in pool:
        scores.setdefault(maps.fold, []).append(mean_dice(maps, labels))
    means = {fold: float(np.nanmean(values)) for fold, values in scores.items()}
    best = folds[max(means, key=lambda fold: means[fold])]
    if holdout is None:
        told = "Each case was scored by the fold that did not see it. "
        if single or len(folds) == 1:
            return [best], [], told + "The fold with the highest validation is exported."
        unknown = "Whether the folds' mean beats one of them was not measured: no hold-out set."
        return folds, [], told + unknown
    rows = []
    for what, members in (("best fold alone", [best]), ("all folds", folds)):
        place = cache / "select" / "holdout" / what.replace(" ", "_")
        found = predict_cases(source, holdout, members, place)
        rows.append(_choice(f"hold-out set: {what}", found, labels))
    is_single = single or rows[0].dice >= rows[1].dice
    more = [_marked(row, index == (0 if is_single else 1)) for index, row in enumerate(rows)]
    told = f"Folds against the best one: {rows[0].n} hold-out cases."
    return ([best] if is_single else folds), more, told


def _options(pool: Sequence[CaseMaps], value: int) -> list[tuple[str, Cleaning]]:
    volumes = [float((maps.ref == value).sum()) * maps.voxel_mm3 for maps in pool]
    least = min((v for v in volumes if v > 0), default=0.0)
    sizes = [float(f"{share * least:.3g}") for share in _SHARES if least]
    return [
        ("largest piece only", {"largest": True}),
        *((f"pieces of {size:g} mm3 or more", {"min_mm3": size}) for size in sizes),
        ("holes filled", {"fill_holes": True}),
    ]


def _with(chosen: Cleaning, value: int, option: Cleaning) -> Cleaning:
    trial: Cleaning = {"largest": list(chosen.get("largest", [])),
                       "fill_holes": list(chosen.get("fill_holes", [])),
                       "min_mm3": dict(chosen.get("min_mm3", {}))}  # fmt: skip
    for name in ("largest", "fill_holes"):
        if option.get(name):
            trial[name].append(value)
    if "min_mm3" in option:
        trial["min_mm3"][value] = option["min_mm3"]
    return trial


def _crossfitted(pool: Sequence[CaseMaps], labels: Mapping[int, str], count: int) -> float:
    found = []
    for fold in range(count):
        others = [maps for maps in pool if maps.fold != fold]
        own = [maps for maps in pool if maps.fold == fold]
        cleaning = choose_cleaning(others, labels)[0] if others else {}
        found += [mean_dice(maps, labels, cleaning) for maps in own]
    return float(np.nanmean(found))


def _choice(what: str, pool: Sequence[CaseMaps], labels: Mapping[int, str]) -> Choice:
    found = _interval([mean_dice(maps, labels) for maps in pool], pool)
    return Choice(what, found.estimate, found.lower, found.upper, len(pool))


def _marked(row: Choice, is_chosen: bool) -> Choice:
    return Choice(row.what, row.dice, row.lower, row.upper, row.n, is_chosen)


def _interval(values: Sequence[float], pool: Sequence[CaseMaps]) -> Any:
    from medvol.metrics import bootstrap_ci, weighted_mean

    known = [(v, maps.patient) for v, maps in zip(values, pool, strict=True) if math.isfinite(v)]
    column, patients = [v for v, _ in known], [p for _, p in known]
    method = "percentile" if len(set(column)) < 3 else "bca"
    return bootstrap_ci(weighted_mean(column), len(column), groups=patients, method=method,
                        resamples=2000)  # fmt: skip


def _insert_cleaning(steps: list[Any], cleaning: Cleaning) -> None:
    """Right after the decision, before the writer."""
    step = {"_target_": "medvol.transforms.CleanLabelMapd", "keys": "pred",
            **{k: ({str(v): n for v, n in a.items()} if isinstance(a, dict) else a)
               for k, a in cleaning.items()}}  # fmt: skip
    names = [str(s.get("_target_", "")).rpartition(".")[2] if isinstance(s, dict) else ""
             for s in steps]  # fmt: skip
    at = names.index("SaveImaged") if "SaveImaged" in names else len(steps)
    steps.insert(at, step)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
