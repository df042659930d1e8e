"""Whatever a 2D image was stored as becomes one grey plane."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from medvol.core import InputError


class ToGreyImaged(MapTransform):
    """Bring images to shape (1, X, Y): colours averaged, a volume of one slice flattened.

    X-rays arrive as (1, X, Y), as colour images (3, X, Y) and as DICOM of one slice
    (1, X, Y, 1). The affine stays.

    Args:
        keys: Keys of channel-first images.
        allow_missing_keys: Skip keys that are absent.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with grey images.

        Raises:
            InputError: If an image has more than one slice.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = _grey(out[key])
        return out


def _grey(image: torch.Tensor) -> torch.Tensor:
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    if plain.ndim == 4 and plain.shape[-1] == 1:
        plain = plain[..., 0]
    if plain.ndim != 3:
        raise InputError(
            f"{_name(image)}: has shape {tuple(image.shape[1:])}; this bundle takes single images"
        )
    if plain.shape[0] > 1:
        plain = plain.float().mean(0, keepdim=True)
    return MetaTensor(plain).copy_meta_from(image) if isinstance(image, MetaTensor) else plain


def _name(image: torch.Tensor) -> str:
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(meta.get("filename_or_obj", "image"))
