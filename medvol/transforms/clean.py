"""Clean-up of a label map: largest component, holes, specks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, InputError


class CleanLabelMapd(MapTransform):
    """Drop what no organ looks like, per label: specks, then all but the largest part, then holes.

    Components touch by face, edge or corner; a hole is background that no path of faces joins to
    the outside, and only background is filled. Labels are cleaned in ascending order.

    Args:
        keys: Label maps (1, X, Y[, Z]).
        largest: Labels of which only the largest component stays.
        fill_holes: Labels whose holes are filled.
        min_mm3: Label to the volume under which a component is dropped; one number serves every
            label. Needs an affine.

    Raises:
        ConfigError: If a volume is negative.
        InputError: If ``min_mm3`` is asked of a map without an affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        largest: Sequence[int] = (),
        fill_holes: Sequence[int] = (),
        min_mm3: Mapping[Any, float] | float = 0.0,
    ) -> None:
        super().__init__(keys)
        self.largest, self.fill_holes = _labels(largest), _labels(fill_holes)
        self.for_all = 0.0 if isinstance(min_mm3, Mapping) else float(min_mm3)
        by_label = min_mm3 if isinstance(min_mm3, Mapping) else {}
        self.min_mm3 = {int(label): float(volume) for label, volume in by_label.items()}
        if min([self.for_all, *self.min_mm3.values()]) < 0:
            raise ConfigError(f"min_mm3 {min_mm3} must not be below 0")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            case[key] = self._cleaned(case[key])
        return case

    def _cleaned(self, label_map: Any) -> Any:
        plain = torch.as_tensor(label_map).detach().cpu().as_subclass(torch.Tensor).numpy()
        voxel_mm3 = self._voxel_mm3(label_map)
        out = plain[0].copy()
        for value in sorted({int(v) for v in np.unique(out)} - {0}):
            mask = out == value
            least = self.min_mm3.get(value, self.for_all) / voxel_mm3
            kept = _kept(mask, least, value in self.largest)
            out[mask & ~kept] = 0
            if value in self.fill_holes:
                out[_holes(kept) & (out == 0)] = value
        cleaned = torch.from_numpy(out[None]).to(label_map.device)
        if isinstance(label_map, MetaTensor):
            return MetaTensor(cleaned).copy_meta_from(label_map, copy_attr=False)
        return cleaned

    def _voxel_mm3(self, label_map: Any) -> float:
        if not self.for_all and not self.min_mm3:
            return 1.0
        if not isinstance(label_map, MetaTensor):
            raise InputError("min_mm3 needs a label map with an affine (a MetaTensor)")
        return float(np.prod(np.asarray(label_map.pixdim)[: label_map.ndim - 1]))


def _labels(given: Iterable[int]) -> frozenset[int]:
    return frozenset(int(value) for value in given)


def _kept(mask: NDArray[np.bool_], least: float, only_largest: bool) -> NDArray[np.bool_]:
    """The components of a mask that reach ``least`` voxels, or the largest of them."""
    from scipy.ndimage import generate_binary_structure, label

    if least <= 1 and not only_largest:
        return mask
    found: Any = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    parts = found[0]
    sizes = np.bincount(parts.ravel(), minlength=2)
    wanted = sizes >= least
    wanted[0] = False
    if only_largest and wanted.any():
        biggest = int(np.where(wanted, sizes, 0).argmax())
        wanted[:] = False
        wanted[biggest] = True
    return wanted[parts]


def _holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    filled: Any = binary_fill_holes(mask)
    return filled & ~mask
