"""Maps from output voxels to input voxels: an affine, and a B-spline displacement before it.

A point of the output, in voxels, is first displaced and then sent through the affine:
``input = matrix @ (output + displacement(output))``. The displacement is a uniform cubic
B-spline on a coarse lattice, so the whole map is a tensor product: one small matrix per axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medvol.core import GeometryError

#: A cubic B-spline displacement cannot fold while every control displacement stays below this
#: share of the control spacing. Choi & Lee 2000, Graphical Models 62(6):411, 1/K of equation 10.
FOLD_FREE_SHARE = {1: 0.5, 2: 1 / 2.046392675, 3: 1 / 2.479472335}


@dataclass(frozen=True)
class Warp:
    """Where every voxel of an output grid lies in an input grid.

    Attributes:
        matrix: Homogeneous map from output index to input index, shape (n + 1, n + 1).
        in_shape: Spatial shape of the input.
        out_shape: Spatial shape of the output.
        control: Displacement of the control points in output voxels, shape (n, k0, k1, ...);
            None for a pure affine.
        step: Distance between control points in output voxels along each axis.
    """

    matrix: NDArray[np.floating]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    control: NDArray[np.floating] | None = None
    step: tuple[float, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.in_shape)

    @cached_property
    def whole_voxels(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """(first input voxel, mirrored axes) when voxels are only cropped and mirrored."""
        n = self.ndim
        if self.control is not None:
            return None
        start, mirrored = [], []
        for axis, row in enumerate(self.matrix[:n].tolist()):  # plain numbers: this runs per sample
            sign, shift = row[axis], row[n]
            if abs(sign) != 1 or sum(map(abs, row[:n])) != 1 or shift != round(shift):
                return None
            start.append(int(shift) if sign > 0 else int(shift) - self.out_shape[axis] + 1)
            if sign < 0:
                mirrored.append(axis)
        return tuple(start), tuple(mirrored)


def control_shape(out_shape: Sequence[int], step: Sequence[float]) -> tuple[int, ...]:
    """Number of control points per axis that cover an output grid."""
    return tuple(int((n - 1) / s) + 4 for n, s in zip(out_shape, step, strict=True))


def sampling_grid(warp: Warp, device: torch.device | str = "cpu") -> torch.Tensor:
    """The map in the coordinates of ``grid_sample`` (``align_corners=False``).

    Returns:
        float32, shape (1, *out_shape, n), last axis in reversed axis order.
    """
    sizes = np.asarray(warp.in_shape, np.float64)
    nodes = ((2 * _nodes(warp) + 1) / sizes - 1)[..., ::-1]
    partial = _expand(nodes, warp, range(1, warp.ndim), device)
    return _expand(partial, warp, (0,), device)[None]


def partial_coordinates(warp: Warp) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Input index of every output voxel as a product: (basis, partial) of ``basis @ partial``.

    Returns:
        Shapes (X', K) and (K, Y', n, Z') in 3D, (K, n, Y') in 2D.
    """
    partial = _expand(_nodes(warp), warp, range(1, warp.ndim)).movedim(-1, -2)
    return _axis_basis(warp, 0).numpy(), partial.contiguous().numpy()


def displacement(warp: Warp) -> torch.Tensor:
    """Displacement at every output voxel, in output voxels, shape (*out_shape, n)."""
    if warp.control is None:
        return torch.zeros(*warp.out_shape, warp.ndim)
    return _expand(np.moveaxis(warp.control, 0, -1), warp, range(warp.ndim))


def folding_share(warp: Warp) -> float:
    """Share of output voxels whose Jacobian determinant is not positive, 0 to 1.

    The affine is left out: it mirrors on purpose or not at all. Derivatives are those of the
    spline itself, not differences.
    """
    if warp.control is None:
        return 0.0
    n = warp.ndim
    nodes = np.moveaxis(warp.control, 0, -1)
    slopes = [_expand(nodes, warp, range(n), slope_axis=axis) for axis in range(n)]
    jacobian = torch.stack(slopes, dim=-1) + torch.eye(n)
    return float((torch.linalg.det(jacobian) <= 0).double().mean())


def local_frame(affine: NDArray[np.floating], ndim: int) -> NDArray[np.floating]:
    """Voxel steps as millimetres along the array's own orthogonal axes, shape (n, n).

    The symmetric factor of the polar decomposition: diagonal spacings for an orthogonal grid
    however it is turned in the patient, with the shear of a tilted gantry kept.

    Raises:
        GeometryError: If two axes coincide or a spacing is not positive and finite.
    """
    columns = np.asarray(affine, np.float64)[:-1, :ndim]
    gram = columns.T @ columns
    if not np.isfinite(gram).all() or np.linalg.det(gram) <= 0:
        raise GeometryError("the affine is singular or not finite: spacing cannot be read from it")
    lengths = np.sqrt(np.diag(gram))
    if np.abs(gram / np.outer(lengths, lengths) - np.eye(ndim)).max() < 1e-6:
        return np.diag(lengths)
    values, vectors = np.linalg.eigh(gram)
    return (vectors * np.sqrt(values)) @ vectors.T


def inverse_grid(warp: Warp, device: torch.device | str = "cpu", rounds: int = 30) -> torch.Tensor:
    """Sampling grid that undoes a map: for every input voxel, where it lies in the output.

    The displacement is undone by fixed-point iteration, whose error shrinks each round because
    a fold-free displacement varies slower than position.

    Returns:
        float32, shape (1, *in_shape, n), for ``grid_sample`` with ``align_corners=False``.
    """
    affine = Warp(np.linalg.inv(warp.matrix), warp.out_shape, warp.in_shape)
    target = sampling_grid(affine, device)
    if warp.control is None:
        return target
    scale = 2.0 / np.asarray(warp.out_shape[::-1], np.float32)
    field = displacement(warp).flip(-1) * torch.from_numpy(scale)
    moved = field.movedim(-1, 0)[None].to(device)
    guess = target
    for _ in range(rounds):
        at = torch.nn.functional.grid_sample(
            moved, guess, mode="bilinear", padding_mode="border", align_corners=False
        ).movedim(1, -1)
        change = float((target - at - guess).abs().max())
        guess = target - at
        if change < 1e-3 * float(scale.min()):
            break
    return guess


def find_output(warp: Warp, place: ArrayLike) -> tuple[int, ...] | None:
    """The output voxel that one input voxel moves to, or None if it leaves the output."""
    target = np.linalg.solve(warp.matrix, np.append(np.asarray(place, np.float64), 1.0))[:-1]
    found = target
    for _ in range(30 if warp.control is not None else 0):
        found = target - _displacement_at(warp, found)
    voxel = tuple(int(v) for v in np.round(found))
    is_inside = all(0 <= v < size for v, size in zip(voxel, warp.out_shape, strict=True))
    return voxel if is_inside else None


def _displacement_at(warp: Warp, place: NDArray[np.floating]) -> NDArray[np.floating]:
    field = np.asarray(warp.control)
    for step, size, at in zip(warp.step, warp.out_shape, place, strict=True):
        count = field.shape[1]
        t = np.clip((at - (size - 1) / 2) / step + (count - 3) / 2, 0, count - 3)
        first = min(int(t), count - 4)
        field = np.tensordot(field[:, first : first + 4], _cubic(t - first), (1, 0))
    return field


def _nodes(warp: Warp) -> NDArray[np.floating]:
    """Input index at every node of the basis, shape (k0, k1, ..., n).

    A cubic B-spline reproduces linear functions, so that the affine of the control points'
    own places, plus their displacements, is the whole map.
    """
    n = warp.ndim
    if warp.control is None:
        places = [np.array([0.0, max(size - 1.0, 1.0)]) for size in warp.out_shape]
    else:
        places = [
            (np.arange(k) - 1 - (k - 3) / 2) * step + (size - 1) / 2
            for k, step, size in zip(warp.control.shape[1:], warp.step, warp.out_shape, strict=True)
        ]
    points = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    if warp.control is not None:
        points = points + np.moveaxis(warp.control, 0, -1)
    return points @ warp.matrix[:n, :n].T + warp.matrix[:n, n]


def _expand(
    nodes: NDArray[np.floating] | torch.Tensor,
    warp: Warp,
    axes: Iterable[int],
    device: torch.device | str = "cpu",
    slope_axis: int | None = None,
) -> torch.Tensor:
    """Turn node values into voxel values along some axes; float32, values last."""
    if isinstance(nodes, np.ndarray):
        nodes = torch.from_numpy(np.ascontiguousarray(nodes, np.float32)).to(device)
    for axis in sorted(axes, reverse=True):  # the last axis first, while the rest is still coarse
        basis = _axis_basis(warp, axis, axis == slope_axis).to(device)
        kept = nodes.shape
        nodes = torch.matmul(basis, nodes.reshape(*kept[: axis + 1], -1))
        nodes = nodes.reshape(*kept[:axis], basis.shape[0], *kept[axis + 1 :])
    return nodes


def _axis_basis(warp: Warp, axis: int, slope: bool = False) -> torch.Tensor:
    size = warp.out_shape[axis]
    if warp.control is None:
        return _linear_basis(size)
    return _spline_basis(size, warp.step[axis], warp.control.shape[axis + 1], slope)


@lru_cache(maxsize=256)
def _linear_basis(size: int) -> torch.Tensor:
    along = np.arange(size) / max(size - 1.0, 1.0)
    return torch.from_numpy(np.stack([1 - along, along], axis=1).astype(np.float32))


@lru_cache(maxsize=256)
def _spline_basis(size: int, step: float, count: int, slope: bool) -> torch.Tensor:
    """Cubic B-spline weights (or their slopes per voxel) of every voxel, shape (size, count)."""
    place = (np.arange(size) - (size - 1) / 2) / step + (count - 3) / 2
    first = np.clip(np.floor(place), 0, count - 4).astype(int)
    u = place - first
    if slope:
        weights = [
            -((1 - u) ** 2) / 2,
            (3 * u**2 - 4 * u) / 2,
            (-3 * u**2 + 2 * u + 1) / 2,
            u**2 / 2,
        ]
        weights = [w / step for w in weights]
    else:
        weights = _cubic(u)
    basis = np.zeros((size, count), np.float32)
    for offset, weight in enumerate(weights):
        basis[np.arange(size), first + offset] = weight
    return torch.from_numpy(basis)


def _cubic(u: ArrayLike) -> list[NDArray[np.floating]]:
    u = np.asarray(u, np.float64)
    return [
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    ]
