"""Is an augmented image still an image of this patient? Signal, sides and folding, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, rotate, zoom

from medvol.core import PatientAxis, array_axis, find_modality
from medvol.core.anatomy import PATIENT_AXES
from medvol.transforms.grid import Warp
from medvol.transforms.policy import AugmentationPolicy
from medvol.transforms.sample import Resampler
from medvol.transforms.spatial import measured_folding

Image = torch.Tensor | NDArray[Any]

#: An image whose mirror image correlates more than this has no side to get wrong.
_SYMMETRIC = 0.995
#: Sides and signal are judged at the scale of organs: smoothing as a share of the image's size.
_SMOOTHING = 0.02
#: Small turns that are undone before images are compared, and the images' size by then.
_TURNS_DEG = (-20, -15, -10, -5, 0, 5, 10, 15, 20)
_COARSE = 40


@dataclass(frozen=True)
class AugmentationScore:
    """What one augmented image kept of the original.

    Attributes:
        signal: Correlation with the original at the scale of organs, -1 to 1, once the recorded
            move, the best small turn and legal mirrors are undone.
        sides: For each patient axis that may not be mirrored: 1 when the image's asymmetry points
            the way it did, -1 when it is mirrored, ``nan`` when the image has none.
        folding: Share of voxels where the deformation folds, 0 to 1.
        faults: Why it failed; empty when it passed.
    """

    signal: float
    sides: Mapping[str, float]
    folding: float
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


class AugmentationValidator:
    """Scores augmented images against the original.

    Args:
        policy: States which mirrors are legal; None judges the left-right and vertical mirror.
        min_signal: Smallest correlation that still counts as the same content.
        min_side: Smallest side consistency; 0 is the middle between original and mirror image.
    """

    def __init__(
        self,
        policy: AugmentationPolicy | None = None,
        *,
        min_signal: float = 0.6,
        min_side: float = 0.2,
    ) -> None:
        self.policy = policy
        self.min_signal = min_signal
        self.min_side = min_side

    def score(self, image: Image, augmented: Image) -> AugmentationScore:
        """Compare an augmented image with its original.

        Args:
            image: A channel-first tensor, (C, X, Y) or (C, X, Y, Z), or an array without a channel.
            augmented: The same after augmentation. Its affine, where it has one, states how it was
                turned, scaled and cropped.
        """
        before, after = (_coarse(part) for part in _on_one_grid(image, augmented))
        axes = self._axes(image)
        legal = () if self.policy is None else self.policy.mirrors
        mirrored = [np.flip(before, place) for name, place in axes.items() if name in legal]
        versions = {_aligned(version, after): version for version in (before, *mirrored)}
        signal = max(versions)
        before = versions[signal]
        sides = {
            name: _side(before, after, place) for name, place in axes.items() if name not in legal
        }
        folding = measured_folding(augmented) if isinstance(augmented, MetaTensor) else 0.0
        faults = [f"{name} is mirrored ({v:.2f})" for name, v in sides.items() if v < self.min_side]
        if not signal >= self.min_signal:
            faults.insert(0, f"signal {signal:.2f} is under {self.min_signal:.2f}")
        if folding > 0:
            faults.append(f"{folding:.1%} of the voxels fold")
        return AugmentationScore(signal, sides, folding, tuple(faults))

    def validate(
        self,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        data: Mapping[str, Any],
        *,
        key: str = "image",
        samples: int = 16,
        seed: int = 0,
    ) -> list[AugmentationScore]:
        """Scores of several draws of a random dictionary transform, reproducible from ``seed``."""
        scores = []
        for number in range(samples):
            if hasattr(transform, "set_random_state"):
                transform.set_random_state(seed=seed + number)  # pyright: ignore[reportFunctionMemberAccess]
            scores.append(self.score(data[key], transform(dict(data))[key]))
        return scores

    def _axes(self, image: Image) -> dict[PatientAxis, int]:
        """The array axis that lies along each patient axis."""
        n = image.ndim - 1 if isinstance(image, torch.Tensor) else image.ndim
        affine = np.asarray(image.affine) if isinstance(image, MetaTensor) else np.eye(4)
        if n == 2 and (self.policy is None or find_modality(self.policy.modality).name == "XR"):
            upright: dict[PatientAxis, int] = {"left-right": 0, "superior-inferior": 1}
            return upright
        found: dict[PatientAxis, int | None] = {
            axis: array_axis(affine, n, axis) for axis in PATIENT_AXES
        }
        return {axis: place for axis, place in found.items() if place is not None}


def _array(image: Image) -> NDArray[np.floating]:
    if isinstance(image, torch.Tensor):
        return image.detach().cpu().numpy().astype(np.float64).mean(axis=0)
    return np.asarray(image, np.float64)


def _coarse(image: NDArray[np.floating]) -> NDArray[np.floating]:
    smooth = gaussian_filter(image, [_SMOOTHING * size for size in image.shape])
    return np.asarray(zoom(smooth, [min(1.0, _COARSE / size) for size in image.shape], order=1))


def _on_one_grid(
    image: Image, augmented: Image
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Both images on the grid of the augmented one, alike outside the original.

    Turns, scales and crops that the two affines record are repeated on the original; a mirror is
    not, so that it stays visible.
    """
    after = _array(augmented)
    if not isinstance(image, MetaTensor) or not isinstance(augmented, MetaTensor):
        return _array(image), after
    n = image.ndim - 1
    full = np.linalg.solve(np.asarray(image.affine), np.asarray(augmented.affine))
    matrix = np.asarray(to_affine_nd(n, full), np.float64)
    out_shape = tuple(int(size) for size in augmented.shape[1:])
    if np.linalg.det(matrix[:n, :n]) < 0:
        matrix = matrix @ _mirror_matrix(matrix[:n, :n], out_shape)
    warp = Warp(matrix, tuple(int(size) for size in image.shape[1:]), out_shape)
    read = Resampler(warp)
    plain = image.as_tensor().to(torch.float32)
    before = _array(read(plain, "bilinear", "border"))
    covered = _array(read(torch.ones_like(plain[:1]), "bilinear", "zeros")) > 0.5
    if not covered.any():
        return before, after
    before = np.where(covered, before, before[covered].mean())
    return before, np.where(covered, after, after[covered].mean())


def _mirror_matrix(linear: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.floating]:
    """The mirror about the grid's middle, along the axis that ``linear`` reverses most."""
    axis = int(np.argmin(np.diag(linear)))
    matrix = np.eye(len(shape) + 1)
    matrix[axis, axis], matrix[axis, -1] = -1.0, shape[axis] - 1.0
    return matrix


def _correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else float(np.array_equal(a, b))


def _side(before: NDArray[np.floating], after: NDArray[np.floating], axis: int) -> float:
    """How much closer ``after`` is to the original than to its mirror image, -1 to 1."""
    mirrored = np.flip(before, axis)
    own = _aligned(before, mirrored)
    if own > _SYMMETRIC:
        return math.nan
    closer = _aligned(before, after) - _aligned(mirrored, after)
    return float(np.clip(closer / (1 - own), -1, 1))


def _aligned(moving: NDArray[np.floating], fixed: NDArray[np.floating]) -> float:
    """Correlation after the small turn in each plane that fits best."""
    best = moving
    for plane in combinations([axis for axis, size in enumerate(moving.shape) if size > 1], 2):
        turned = [
            rotate(best, d, plane, reshape=False, order=1, mode="nearest") for d in _TURNS_DEG
        ]
        best = max(turned, key=lambda image: _correlation(image, fixed))
    return _correlation(best, fixed)
