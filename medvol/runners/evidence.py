"""What cross-validation says of a run: predictions of every case by a network that never saw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.bundle import Bundle
from medvol.core.errors import MissingInputError
from medvol.core.files import atomic_path

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
    """

    case: str
    fold: int
    patient: str
    voxel_mm3: float
    pred: Map = field(repr=False)
    ref: Map = field(repr=False)


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


def predict_cases(
    bundle: Bundle,
    data: str,
    members: Sequence[Path],
    cache: Path,
    fold: int | None = None,
) -> list[CaseMaps]:
    """Predict a data set, or the cases that one fold held out, with the mean of some members.

    Args:
        bundle: Whose evaluation is run.
        data: Data set.
        members: Weights files; several are averaged.
        cache: Folder of label maps that are there already and need no prediction.
        fold: Only the cases that this fold held out.
    """
    import torch

    from medvol.datasets import read_dataset

    parser = bundle.parser(
        "evaluate", dataset_dir=data, fold=fold, output_dir=str(cache / "scores"),
        checkpoint=str(_joined(members, cache)),
        network_def=ensemble_config(bundle, len(members)), **{"handlers": []},
    )  # fmt: skip
    patients = {case.case: case.group for case in read_dataset(data).cases}
    names = [str(row["case"]) for row in parser.get_parsed_content("cases")]
    if any(not (cache / f"{name}.npz").is_file() for name in names):
        engine = parser.get_parsed_content("evaluator")
        place = iter(names)

        def keep(engine: Any) -> None:
            for row in engine.state.output:
                ref, pred = row["label"], row["pred"]
                voxel = math.prod(float(v) for v in ref.pixdim[: ref.ndim - 1])
                maps = [np.asarray(torch.as_tensor(v).cpu())[0].astype(np.uint8)
                        for v in (pred, ref)]  # fmt: skip
                with atomic_path(cache / f"{next(place)}.npz") as scratch:
                    np.savez_compressed(scratch, pred=maps[0], ref=maps[1], voxel_mm3=voxel)

        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, keep)
        engine.run()
    return [_read(cache / f"{name}.npz", name, -1 if fold is None else fold, patients[name])
            for name in names]  # fmt: skip


def _joined(members: Sequence[Path], cache: Path) -> Path:
    if len(members) == 1:
        return members[0]
    from medvol.engines import save_checkpoint
    from medvol.networks import join_states, load_weights

    path = cache / "members.pt"
    save_checkpoint(path, join_states([load_weights(member) for member in members]))
    return path


def _read(path: Path, case: str, fold: int, patient: str) -> CaseMaps:
    with np.load(path) as found:
        return CaseMaps(case, fold, patient, float(found["voxel_mm3"]), found["pred"], found["ref"])
