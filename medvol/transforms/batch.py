"""The same random moves for a whole batch on its device, one sampling call per key."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, GridMismatchError
from medvol.transforms.draw import about
from medvol.transforms.grid import Warp, sampling_grid
from medvol.transforms.sample import sample
from medvol.transforms.spatial import RandSpatiald, output_size, swap_labels


class RandSpatialBatchd(RandSpatiald):
    """``RandSpatiald`` for batches (B, C, X, Y[, Z]), after the data loader, on CPU or GPU.

    Every item gets its own draw. Takes the same arguments; ``cubic`` and ``onehot`` modes, crops
    around foreground and the inverse belong to ``RandSpatiald``. The affine of a batched
    ``MetaTensor`` gives the spacing; plain tensors count as 1 mm.

    Raises:
        ConfigError: If asked for what belongs to ``RandSpatiald``, or for what that refuses.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if {"cubic", "onehot"} & set(self.mode) or self.foreground_key is not None:
            raise ConfigError(
                f"RandSpatialBatchd reads by bilinear or nearest, not {list(self.mode)}, and does "
                "not crop around foreground; use RandSpatiald"
            )

    def __call__(
        self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None
    ) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every item of every key moved."""
        del lazy
        out = dict(data)
        first = self.first_key(out)
        if first == ():
            return out
        count, shape = out[first].shape[0], tuple(int(v) for v in out[first].shape[2:])
        out_shape = output_size(self.spatial_size, shape)
        moves = [self._move(_affine(out[first], item), shape, out_shape) for item in range(count)]
        grids: dict[torch.device, torch.Tensor] = {}
        for key, mode, padding in self.key_iterator(out, self.mode, self.padding_mode):
            batch = out[key]
            plain = batch.as_tensor() if isinstance(batch, MetaTensor) else batch
            if (len(plain), *plain.shape[2:]) != (count, *shape):
                raise GridMismatchError(
                    f"{key!r} has shape {tuple(plain.shape)}, {first!r} {tuple(out[first].shape)}"
                )
            if plain.device not in grids:
                grids[plain.device] = torch.cat([sampling_grid(w, plain.device) for w, _ in moves])
            moved = sample(plain, grids[plain.device], *self._how(key, plain, mode, padding))
            if key in self.label_keys:
                pairs = [self.swap_labels if mirrored else () for _, mirrored in moves]
                swapped = [swap_labels(m, p) for m, p in zip(moved, pairs, strict=True)]
                moved = torch.stack(swapped)
            out[key] = moved
        return out

    def _move(
        self, affine: np.ndarray, shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> tuple[Warp, bool]:
        self.randomize()
        room = [size - length for size, length in zip(shape, out_shape, strict=True)]
        start = [
            int(self.R.randint(r + 1)) if r > 0 and self.random_center else r // 2 for r in room
        ]
        if not self._do_transform:
            return Warp(about(np.eye(len(shape)), start, out_shape), shape, out_shape), False
        return self.ranges.draw(self.R, start, shape, out_shape, affine)


def _affine(batch: torch.Tensor, item: int) -> np.ndarray:
    if not isinstance(batch, MetaTensor):
        return np.eye(batch.ndim - 1)
    affine = np.asarray(batch.affine, np.float64)
    return affine[item] if affine.ndim == 3 else affine
