"""What cross-validation shows: predictions of every case by a network that never saw it."""

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
from medvol.io import read_label, read_scan
from medvol.runners.record import PredictOptions
from medvol.runners.session import Session

if TYPE_CHECKING:
    from medvol.datasets import Case

Map = NDArray[np.uint8]


@dataclass(frozen=True)
class CaseMaps:
    """One case's prediction and reference, on the image's own grid.

    Attributes:
        case: Its name.
        fold: The fold that held it out; -1 for a case of a hold-out set.
        patient: What must not be torn apart when cases are resampled.
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
        raise MissingInputError(f"{missing[0]}: no such weights; train every fold first: "
                                "medvol train BUNDLE --data DATASET --folds all")  # fmt: skip
    return paths


def ensemble_config(bundle: Bundle, count: int) -> dict[str, Any]:
    """The network definition of ``count`` members of what a bundle trains, averaged."""
    member = bundle.member_def
    if count == 1:
        return member
    return {
        "_target_": "medvol.networks.Ensemble",
        "networks": member,
        "activation": bundle.config("inference")["decision"]["activation"],
        "count": count,
    }


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
        bundle: Whose pipeline predicts.
        data: Data set.
        members: Weights files; several are averaged.
        cache: Folder of label maps; those of the same members and files are not predicted again.
        fold: Only the cases that this fold held out.
        keeps_probs: Keep probabilities beside the label maps.
    """
    from medvol.datasets import read_dataset

    found = read_dataset(data).cases
    cache = cache / _key(bundle, members, found)
    listed = bundle.parser("evaluate", dataset_dir=data, fold=fold).get_parsed_content("cases")
    patients = {case.case: case.group for case in found}
    places = [cache / f"{row['case']}.npz" for row in listed]
    if not all(_holds(path, keeps_probs) for path in places):
        formats = ("nifti", "probabilities") if keeps_probs else ("nifti",)
        options = PredictOptions(
            str(bundle.path), str(cache), formats, ensemble=tuple(map(str, members)),
            trust_bundle=bool(bundle.is_trusted),
        )  # fmt: skip
        session = Session(options)
        for row, place in zip(listed, places, strict=True):
            _keep(session, row, place)
    number = -1 if fold is None else fold
    names = [str(row["case"]) for row in listed]
    return [_read(path, name, number, patients[name], keeps_probs)
            for path, name in zip(places, names, strict=True)]  # fmt: skip


def _keep(session: Session, row: Mapping[str, Any], place: Path) -> None:
    """Predict one case and write its maps."""
    data: Any = session.preprocessing({"image": row["image"]})
    prediction = session.predict(data)
    label = read_label(row["label"], session.labels, reference=read_scan(row["image"]))
    ref = np.asarray(label.array)[0].reshape(prediction.source.shape)
    maps = {"pred": prediction.labels, "ref": np.rint(ref).astype(np.uint8)}
    if prediction.probabilities is not None:
        maps["probs"] = np.round(255 * np.moveaxis(prediction.probabilities, -1, 0)).astype(
            np.uint8
        )
    with atomic_path(place) as scratch:
        np.savez_compressed(scratch, voxel_mm3=math.prod(prediction.source.spacing_mm), **maps)


def _key(bundle: Bundle, members: Sequence[Path], cases: Sequence[Case]) -> str:
    """A folder's name that changes with the weights, the bundle's evaluation and the data."""
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    facts = [sha256_file(path) for path in (*members, bundle.config_path("evaluate"))]
    facts += [f"{path} {(stat := path.stat()).st_size} {stat.st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _holds(path: Path, has_probs: bool) -> bool:
    if not path.is_file():
        return False
    with np.load(path) as found:
        return not has_probs or "probs" in found.files


def _read(path: Path, case: str, fold: int, patient: str, has_probs: bool) -> CaseMaps:
    with np.load(path) as found:
        voxel, maps = float(found["voxel_mm3"]), (found["pred"], found["ref"])
    return CaseMaps(case, fold, patient, voxel, *maps, path if has_probs else None)
