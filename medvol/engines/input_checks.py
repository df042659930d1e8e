"""Input checks that bundles name: a run stops at its beginning, or in a step, with a reason."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import set_determinism

from medvol.core.errors import (
    ConfigError,
    GridMismatchError,
    InputError,
    LabelError,
    MissingInputError,
    NonFiniteError,
    WeightsError,
)
from medvol.core.geometry import SAME_GRID_MM, grid_distance_mm
from medvol.engines.workflow import install_excepthook, reject_unknown_overrides


def begin_run(
    seed: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    is_distributed: bool = False,
) -> None:
    """First step of every bundle run: options, weights and processes are checked, then the seed.

    Args:
        seed: Seeds Python, NumPy and torch, and makes cuDNN deterministic.
        weights: The file that the run needs, if any.
        is_distributed: Whether ``torchrun`` must have started the process.

    Raises:
        ConfigError: If the command line names an option that the bundle does not have, or
            ``torchrun`` is needed and absent.
        WeightsError: If the weights do not exist.
    """
    install_excepthook()
    reject_unknown_overrides()
    if is_distributed and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            "multi_gpu_train runs under torchrun: torchrun --nproc_per_node=2 -m monai.bundle run "
            "--config_file .../multi_gpu_train.json"
        )
    if weights is not None and not Path(weights).is_file():
        raise WeightsError(f"{weights}: no such weights file")
    if seed is not None:
        set_determinism(seed)


def require_cases(cases: Sequence[Any]) -> None:
    """Second step of every bundle run: there must be cases, from a data set or an override.

    Raises:
        MissingInputError: If there is none.
    """
    if not len(cases):
        raise MissingInputError("no data: pass --dataset_dir FOLDER")


class ValidateInputd(MapTransform):
    """Reject a case that would train or predict nonsense; sits right after ``LoadImaged``.

    Images must hold voxels, all finite; a label must lie on its image's grid
    and hold only integers of the class list.

    Args:
        keys: Image keys.
        label_key: Key of the label map, checked against the first image when present.
        labels: Legal label values; background 0 is always legal.
        allow_missing_keys: Ignore absent image keys.

    Raises:
        NonFiniteError: If an image holds NaN or infinity.
        LabelError: If a label value is not an integer or not in the class list.
        GridMismatchError: If image and label differ in shape, or a corner lies over 1e-3 mm apart.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str | None = None,
        labels: Sequence[int] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.legal = {0, *(int(value) for value in labels)}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            _require_finite(case[key], _name(case, key))
        if self.label_key in case:
            label, name = case[self.label_key], _name(case, self.label_key)
            self._require_legal(label, name)
            if self.keys:
                _require_same_grid(case[self.first_key(case)], label, name)
        return case

    def _require_legal(self, label: torch.Tensor, name: str) -> None:
        values = torch.unique(torch.as_tensor(label)).cpu().numpy()
        if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)):
            raise LabelError(f"{name}: the label map holds values that are not integers")
        if unknown := sorted({int(v) for v in values} - self.legal):
            legal = ", ".join(map(str, sorted(self.legal)))
            raise LabelError(f"{name}: label {unknown[0]} is not in the class list ({legal})")


class ValidateSized(MapTransform):
    """Reject a volume so small that most of what the network sees would be padding.

    Args:
        keys: Image keys, already at the bundle's spacing.
        min_size: Fewest legal voxels per axis; 0 for no limit along that axis.
        largest_mm: Extent along left-right, back-front and foot-head above which an image is a
            whole scan, of which a bundle of crops makes nothing; None for no limit.

    Raises:
        InputError: Naming the file, its size and the limit.
    """

    def __init__(
        self,
        keys: KeysCollection,
        min_size: Sequence[int],
        largest_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.min_size = tuple(int(n) for n in min_size)
        self.largest_mm = None if largest_mm is None else tuple(int(n) for n in largest_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            shape = tuple(int(n) for n in case[key].shape[1:])
            if any(n < least for n, least in zip(shape, self.min_size, strict=True)):
                raise InputError(
                    f"{_name(case, key)}: the volume of {_by(shape)} voxels at the network's "
                    f"spacing is smaller than {_by(self.min_size)}, half of its patch"
                )
            if self.largest_mm is not None and isinstance(case[key], MetaTensor):
                _require_crop(case[key], self.largest_mm, _name(case, key))
        return case


class StopOnNonFinite:
    """Ignite handler: stop training in the step whose loss is NaN or infinite, naming its cases."""

    def attach(self, engine: Engine) -> None:
        """Check after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output[0]["loss"] if isinstance(output, list) else output["loss"]
        loss = torch.as_tensor(loss).detach()
        if not torch.isfinite(loss).all():
            names = _suspects(batch_names(engine.state.batch), output)
            raise NonFiniteError(
                f"{', '.join(names)}: the loss is {float(loss)} in step "
                f"{engine.state.iteration} (epoch {engine.state.epoch}); the last good checkpoint "
                "is kept; lower the learning rate or look at these cases"
            )


def batch_names(batch: Any) -> list[str]:
    """File names of a batch's images, for messages."""
    image = batch["image"] if isinstance(batch, Mapping) else batch
    if isinstance(image, MetaTensor):
        name = image.meta.get("filename_or_obj", "a case")
        return [str(n) for n in name] if isinstance(name, (list, tuple)) else [str(name)]
    return ["a case"]


def _suspects(names: list[str], output: Any) -> list[str]:
    """Of a batch's names those whose own prediction is not finite, if that tells them apart."""
    pred = None if isinstance(output, list) else output.get("pred")
    if not isinstance(pred, torch.Tensor) or len(pred) != len(names):
        return names
    bad = [n for n, one in zip(names, pred, strict=True) if not torch.isfinite(one).all()]
    return bad or names


def _require_finite(image: torch.Tensor, name: str) -> None:
    if image.numel() == 0:
        raise InputError(f"{name}: the image holds no voxels")
    if not bool(torch.isfinite(torch.as_tensor(image)).all()):
        raise NonFiniteError(f"{name}: the image holds NaN or infinite voxels")


def _require_crop(image: MetaTensor, largest_mm: Sequence[int], name: str) -> None:
    shape = [int(n) for n in (*image.shape[1:], 1)[:3]]
    extent_mm = np.abs(np.asarray(image.affine, np.float64)[:3, :3]) @ shape
    if (extent_mm > largest_mm).any():
        raise InputError(
            f"{name}: reaches over {_by(extent_mm.round().tolist())} mm, a whole scan; this bundle "
            f"expects a crop around one structure, of at most {_by(largest_mm)} mm: crop it, or "
            "use medvol predict, which locates and crops by itself"
        )


def _require_same_grid(image: torch.Tensor, label: torch.Tensor, name: str) -> None:
    if image.shape[1:] != label.shape[1:]:
        raise GridMismatchError(
            f"{name}: label is {_by(label.shape[1:])} voxels, its image {_by(image.shape[1:])}"
        )
    if isinstance(image, MetaTensor) and isinstance(label, MetaTensor):
        gap = grid_distance_mm(image.shape[1:], image.affine, label.affine)
        if gap > SAME_GRID_MM:
            raise GridMismatchError(f"{name}: the grids of label and image lie {gap:.4g} mm apart")


def _name(case: Mapping[Hashable, Any], key: Hashable) -> str:
    value = case[key]
    if isinstance(value, MetaTensor):
        return str(value.meta.get("filename_or_obj", key))
    return str(key)


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(int(n)) for n in shape)
