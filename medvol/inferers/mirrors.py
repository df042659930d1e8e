"""Test-time augmentation by mirrors that the anatomy and the labels allow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, cast

import torch
from monai.data.meta_tensor import MetaTensor

from medvol.core.anatomy import PATIENT_AXES, PatientAxis, anatomy_rule, flip_objection
from medvol.core.errors import ConfigError, InputError, PolicyError
from medvol.core.geometry import Geometry

_Axes = tuple[PatientAxis | int, ...]
_AXIS_OF_CODE = dict(zip("LRAPIS", (a for a in PATIENT_AXES for _ in "xx"), strict=True))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mirrors:
    """Which mirror images of a window are predicted as well and averaged.

    Attributes:
        axes: Patient axes, resolved through each image's affine, or array axes (0 is the first
            spatial axis). All combinations of them are run: n axes cost 2**n predictions.
        body_part: Asked for the anatomy rule; None only with array axes, which are then the
            caller's responsibility.
        labels: Structure names; one that names a side forbids the left-right mirror.
    """

    axes: tuple[PatientAxis | int, ...]
    body_part: str | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for axis in self.axes:
            if isinstance(axis, int):
                continue
            if self.body_part is None:
                raise ConfigError(f"tta along {axis!r} needs body_part, to ask the anatomy rule")
            if objection := flip_objection(self.body_part, axis, self.labels):
                raise PolicyError(
                    f"tta along {axis!r} is not supported for {self.body_part}: {objection}"
                )

    @classmethod
    def parse(
        cls,
        tta: bool | str | int | Sequence[str | int] | None,
        body_part: str | None = None,
        labels: Iterable[str] | Mapping[Any, str] = (),
    ) -> Mirrors | None:
        """Read a bundle's ``tta`` value: axes, True for all that the anatomy allows, or nothing.

        Raises:
            ConfigError: If an axis is unknown or the body part is missing.
            PolicyError: If the anatomy or a label forbids an axis.
        """
        names = tuple(labels.values()) if isinstance(labels, Mapping) else tuple(labels)
        if tta is None or tta is False:
            return None
        if tta is True:
            if body_part is None:
                raise ConfigError("tta: true needs body_part, to ask which mirrors are allowed")
            anatomy_rule(body_part)
            allowed = (a for a in PATIENT_AXES if not flip_objection(body_part, a, names))
            return cls(cast(_Axes, tuple(allowed)), body_part, names)
        axes = (tta,) if isinstance(tta, str | int) else tuple(tta)
        return cls(cast(_Axes, axes), body_part, names) if axes else None

    def combinations(self, inputs: torch.Tensor) -> list[tuple[int, ...]]:
        """The dims of (B, C, spatial...) to flip for each prediction; the first flips none.

        Raises:
            InputError: If patient axes are asked for but ``inputs`` has no affine, or the items
                of a batch lie differently.
            PolicyError: If an array axis turns out to be a patient axis that may not be mirrored.
        """
        dims = self._dims(inputs)
        sizes = range(len(dims) + 1)
        return list(chain.from_iterable(combinations(dims, size) for size in sizes))

    def _dims(self, inputs: torch.Tensor) -> tuple[int, ...]:
        spatial = inputs.ndim - 2
        if any(isinstance(a, int) and not 0 <= a < spatial for a in self.axes):
            raise ConfigError(f"tta {list(self.axes)} names an axis that {spatial}D images lack")
        codes = _patient_axes(inputs, self.body_part)
        if codes is None:
            if any(isinstance(axis, str) for axis in self.axes):
                raise InputError(
                    "tta along patient axes needs an image with an affine (a MetaTensor); "
                    "keep track_meta on, or name array axes"
                )
            return tuple(sorted({2 + axis for axis in self.axes if isinstance(axis, int)}))
        found = set()
        for axis in self.axes:
            patient_axis = codes[axis] if isinstance(axis, int) else axis
            if self.body_part and patient_axis is not None:
                Mirrors((patient_axis,), self.body_part, self.labels)
            array_axis = axis if isinstance(axis, int) else _index(codes, axis)
            if array_axis is None:
                _log.warning("tta along %s is left out: the image lies too obliquely", axis)
            else:
                found.add(2 + array_axis)
        return tuple(sorted(found))


def _patient_axes(
    inputs: torch.Tensor, body_part: str | None
) -> tuple[PatientAxis | None, ...] | None:
    """The patient axis along each array axis; None without an affine.

    A mirror about an axis that lies off the patient's by an angle is a mirror about the patient's
    axis and a turn by twice that angle, so that the anatomy's largest rotation bounds it.
    """
    if not isinstance(inputs, MetaTensor):
        return None
    affine = torch.as_tensor(inputs.affine).detach().cpu().double().reshape(-1, 4, 4).numpy()
    size = (*inputs.shape[2:], 1)[:3]
    largest_deg = anatomy_rule(body_part).max_rotation_deg if body_part else 180.0
    found = set()
    for item in affine:
        geometry = Geometry((size[0], size[1], size[2]), item)
        upright = 2 * geometry.obliqueness_deg <= largest_deg
        found.add(tuple(_AXIS_OF_CODE[c] if upright else None for c in geometry.axis_codes))
    if len(found) > 1:
        raise InputError("the images of one batch lie differently; mirror them one by one")
    return found.pop()[: inputs.ndim - 2]


def _index(codes: tuple[PatientAxis | None, ...], axis: PatientAxis) -> int | None:
    return codes.index(axis) if axis in codes else None
