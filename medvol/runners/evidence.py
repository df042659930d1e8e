"""Evidence of a cross-validation: every case predicted by a network that never saw it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvol.bundle import Bundle
from medvol.core.errors import MissingInputError
from medvol.core.files import atomic_path, sha256_file

if TYPE_CHECKING:
    from medvol.datasets import Case

Map = NDArray[np.uint8]
_DECISIONS = ("AsDiscreted", "ToLabelMapd", "RegionsToLabelMapd")


@dataclass(frozen=True)
class CaseMaps:
    """One case's prediction and reference, on the image's own grid.

    Attributes:
        case: Its name.
        fold: The fold that held it out; -1 for a case of a hold-out set.
        patient: Cases of one patient are resampled together.
        voxel_mm3: Volume of a voxel.
        pred: Predicted label map.
        ref: Reference label map.
        probs: File that keeps its probabilities, in steps of 1/255; None where they are not kept.
    """

    case: str
    fold: int
    patient: str
    voxel_mm3: float
    pred: Map = field(repr=False)
    ref: Map = field(repr=False)
    probs: Path | None = None


@dataclass(frozen=True)
class Choice:
    """A number that decided something.

    Attributes:
        what: The candidate.
        dice: Mean Dice over cases and labels, or what was gained in it.
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


def choice_of(what: str, dice: Sequence[float], pool: Sequence[CaseMaps]) -> Choice:
    """A candidate's Dice per case as a choice that is not taken yet."""
    found = _interval(dice, pool)
    return Choice(what, found.estimate, found.lower, found.upper, len(pool))


def gain_of(
    what: str, base: Sequence[float], dice: Sequence[float], pool: Sequence[CaseMaps]
) -> Choice:
    """What a step gains; taken where it gains and the 95% interval lies above 0."""
    row = choice_of(what, [b - a for a, b in zip(base, dice, strict=True)], pool)
    return replace(row, is_chosen=row.dice > 0 and row.lower > 0)


def label_dice(pred: NDArray[Any], ref: NDArray[Any], labels: Mapping[int, str]) -> list[float]:
    """Dice of each label; nan where it is in neither map."""
    found = []
    for value in labels:
        one, other = pred == value, ref == value
        size = int(one.sum()) + int(other.sum())
        found.append(2 * int((one & other).sum()) / size if size else math.nan)
    return found


def mean_of(dice: Sequence[float]) -> float:
    """Mean over what is defined; nan if nothing is."""
    known = [value for value in dice if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _interval(values: Sequence[float], pool: Sequence[CaseMaps]) -> Any:
    from medvol.metrics import bootstrap_ci, weighted_mean

    known = [(v, maps.patient) for v, maps in zip(values, pool, strict=True) if math.isfinite(v)]
    column, patients = [v for v, _ in known], [p for _, p in known]
    method = "percentile" if len(set(column)) < 3 else "bca"
    return bootstrap_ci(weighted_mean(column), len(column), groups=patients, method=method,
                        resamples=2000)  # fmt: skip


def fold_weights(runs: Path, count: int) -> list[Path]:
    """``model.pt`` of every fold of a run.

    Raises:
        MissingInputError: Naming the first fold that has none.
    """
    paths = [runs / f"fold_{fold}" / "model.pt" for fold in range(count)]
    if missing := [path for path in paths if not path.is_file()]:
        raise MissingInputError(f"{missing[0]}: these weights are missing; train every fold first: "
                                "medvol train BUNDLE --data DATASET --folds all")  # fmt: skip
    return paths


def ensemble_config(bundle: Bundle, count: int) -> dict[str, Any]:
    """The network definition of ``count`` members of what a bundle trains, averaged."""
    member = bundle.config("train")["network_def"]
    if count == 1:
        return member
    steps = bundle.config("inference")["postprocessing"]["transforms"]
    is_sigmoid = any(step.get("sigmoid") is True for step in steps if isinstance(step, dict))
    return {
        "_target_": "medvol.networks.Ensemble",
        "networks": member,
        "activation": "sigmoid" if is_sigmoid else "softmax",
        "count": count,
    }


def decision_place(steps: Sequence[Any]) -> int | None:
    """Where in the postprocessing the decision stands."""
    for place, step in enumerate(steps):
        name = str(step.get("_target_", "")) if isinstance(step, dict) else ""
        if name.rpartition(".")[2] in _DECISIONS:
            return place
    return None


def predict_cases(
    bundle: Bundle,
    data: str,
    members: Sequence[Path],
    cache: Path,
    fold: int | None = None,
    keeps_probs: bool = False,
) -> list[CaseMaps]:
    """Predict a data set, or the cases that one fold held out, with the mean of some members.

    Args:
        bundle: Whose evaluation is run.
        data: Data set.
        members: Weights files; several are averaged.
        cache: Folder of label maps; what the same members gave for the same files before is there
            already and needs no prediction.
        fold: Only the cases that this fold held out.
        keeps_probs: Keep probabilities beside the label maps.
    """
    from ignite.engine import Events

    from medvol.datasets import read_dataset

    found = read_dataset(data).cases
    cache = cache / _key(bundle, members, found)
    parser = bundle.parser(
        "evaluate", dataset_dir=data, fold=fold, output_dir=str(cache / "scores"),
        checkpoint=str(_joined(members, cache)),
        network_def=ensemble_config(bundle, len(members)), **{"handlers": []},
        **({"postprocessing": _with_copy(bundle)} if keeps_probs else {}),
    )  # fmt: skip
    patients = {case.case: case.group for case in found}
    names = [str(row["case"]) for row in parser.get_parsed_content("cases")]
    places = [cache / f"{name}.npz" for name in names]
    if not all(_holds(path, keeps_probs) for path in places):
        engine = parser.get_parsed_content("evaluator")
        engine.add_event_handler(Events.ITERATION_COMPLETED, _Keeper(places))
        engine.run()
    number = -1 if fold is None else fold
    return [_read(path, name, number, patients[name], keeps_probs)
            for path, name in zip(places, names, strict=True)]  # fmt: skip


def _key(bundle: Bundle, members: Sequence[Path], cases: Sequence[Case]) -> str:
    """A folder's name that changes with the weights, the bundle's evaluation and the data."""
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    facts = [sha256_file(path) for path in (*members, bundle.config_path("evaluate"))]
    facts += [f"{path} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


class _Keeper:
    """Ignite handler that writes each case's maps to its place."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = iter(places)

    def __call__(self, engine: Any) -> None:
        import torch

        for row in engine.state.output:
            ref, pred = row["label"], row["pred"]
            voxel = math.prod(float(v) for v in ref.pixdim[: ref.ndim - 1])
            maps = {name: np.asarray(torch.as_tensor(v).cpu())[0].astype(np.uint8)
                    for name, v in (("pred", pred), ("ref", ref))}  # fmt: skip
            if "probs" in row:
                probs = np.asarray(torch.as_tensor(row["probs"]).cpu(), np.float32)
                maps["probs"] = np.round(255 * probs).astype(np.uint8)
            with atomic_path(next(self.places)) as scratch:
                np.savez_compressed(scratch, voxel_mm3=voxel, **maps)


def _with_copy(bundle: Bundle) -> dict[str, Any]:
    """The bundle's postprocessing, which copies the probabilities before it decides."""
    found = bundle.config("evaluate")["postprocessing"]
    steps = list(found["transforms"])
    step = {"_target_": "CopyItemsd", "keys": "pred", "names": "probs"}
    steps.insert(decision_place(steps) or 0, step)
    return {**found, "transforms": steps}


def _holds(path: Path, has_probs: bool) -> bool:
    if not path.is_file():
        return False
    with np.load(path) as found:
        return not has_probs or "probs" in found.files


def _joined(members: Sequence[Path], cache: Path) -> Path:
    if len(members) == 1:
        return members[0]
    from medvol.engines import save_checkpoint
    from medvol.networks import join_states, load_weights

    path = cache / "members.pt"
    save_checkpoint(path, join_states([load_weights(member) for member in members]))
    return path


def _read(path: Path, case: str, fold: int, patient: str, has_probs: bool) -> CaseMaps:
    with np.load(path) as found:
        voxel, maps = float(found["voxel_mm3"]), (found["pred"], found["ref"])
    return CaseMaps(case, fold, patient, voxel, *maps, path if has_probs else None)
