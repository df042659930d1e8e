"""Cutting an image into window batches, and blending what a network says of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import _flatten_struct, _pack_struct
from monai.utils.type_conversion import convert_to_dst_type

from medvol.inferers.channels_last import channels_first
from medvol.inferers.emptiness import fill_unseen, is_empty
from medvol.inferers.windows import Box, WindowGrid

Place = tuple[int, Box]
Network = Callable[..., Any]
#: Output per channel where nothing is, from the number of channels and a tensor of their type.
Outside = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class WindowSource:
    """Batches of windows from one image batch.

    Attributes:
        image: (B, C, spatial...), already padded to the grid.
        grid: Where the windows lie.
        batch: Windows per forward pass.
        device: Where the network runs.
        background: Windows without a value above it are skipped; None skips none.
        amp: Let CUDA compute in half precision (bfloat16 where the device has it).
    """

    image: torch.Tensor
    grid: WindowGrid
    batch: int
    device: torch.device
    background: float | None = None
    amp: bool = False

    def places(self) -> list[Place]:
        """Every (item, window) that is to be predicted."""
        boxes = self.grid.boxes()
        return self.filled([(b, box) for b in range(len(self.image)) for box in boxes])

    def filled(self, places: Sequence[Place]) -> list[Place]:
        """Those of ``places`` that hold something."""
        if self.background is None:
            return list(places)
        return [p for p in places if not is_empty(self._view(p), self.background)]

    def predict(
        self, places: Sequence[Place], network: Network, *, to: torch.device, shown: bool = False
    ) -> Iterator[tuple[Sequence[Place], Any]]:
        """Yield batches of places with the network's output, one batch behind on CUDA.

        There the copy of one output and the gathering of the next windows run while the device
        computes.
        """
        steps: Iterable[int] = range(0, len(places), self.batch)
        waiting: tuple[Sequence[Place], Any, torch.cuda.Event | None] | None = None
        for start in _shown(steps) if shown else steps:
            some = places[start : start + self.batch]
            with self._precision():
                out = network(self._gather(some))
            if self.device.type != "cuda" or to.type == "cuda":
                yield some, out
                del out  # the next batch needs the room
                continue
            started = _copy_out(out)
            if waiting is not None:
                yield _arrived(waiting)
            waiting = (some, *started)
        if waiting is not None:
            yield _arrived(waiting)

    def _view(self, place: Place) -> torch.Tensor:
        item, box = place
        return self.image[(slice(item, item + 1), slice(None), *box)]

    def _gather(self, places: Sequence[Place]) -> torch.Tensor:
        views = [self._view(place) for place in places]
        windows = views[0] if len(views) == 1 else torch.cat(views)
        if self.device.type == "cuda" and windows.device.type == "cpu":
            return windows.contiguous().pin_memory().to(self.device, non_blocking=True)
        return windows.to(self.device)

    def _precision(self) -> Any:
        if not self.amp or self.device.type != "cuda":
            return nullcontext()
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=half)


class Stitcher:
    """Weighted sums of window predictions over a whole image, one per network output.

    Args:
        grid: The windows.
        weight: Weight of each voxel of a window; its type and device are those of the sums.
        batch: Items of the image batch.
        skips: Whether windows may be missing.
        scratch_dir: Folder for sums that are mapped from disk instead of held in memory; the
            file has no name there and vanishes with the process.
    """

    def __init__(
        self,
        grid: WindowGrid,
        weight: torch.Tensor,
        batch: int,
        *,
        skips: bool = False,
        scratch_dir: str | None = None,
    ) -> None:
        self.grid, self.weight, self.batch, self.scratch_dir = grid, weight, batch, scratch_dir
        self.sums: list[torch.Tensor] = []
        self.keys: list[Any] | None = None
        self.share = [weight.new_zeros(grid.padded) for _ in range(batch)] if skips else None

    def add(self, places: Sequence[Place], predicted: Any) -> bool:
        """Add one batch of predictions; False if they are not of the window's size."""
        self.keys, parts = _flatten_struct(predicted)
        if any(tuple(part.shape[2:]) != self.grid.roi for part in parts):
            return False
        if not self.sums:
            self.sums = [self._zeros(part.shape[1]) for part in parts]
        for total, part in zip(self.sums, parts, strict=True):
            planes = channels_first(part).to(self.weight)
            for (item, box), value in zip(places, planes, strict=True):
                total[(item, slice(None), *box)].addcmul_(value, self.weight)
        for item, box in places if self.share is not None else ():
            self.share[item][box].add_(self.weight)  # pyright: ignore[reportOptionalSubscript]
        return True

    def finish(self, outside: Outside) -> None:
        """Divide the sums by their weights; what no window covered becomes ``outside``."""
        shares = self.share or [self.grid.weight_sum(self.weight)] * self.batch
        for total in self.sums:
            values = outside(total.shape[1], total)
            for item, share in enumerate(shares):
                if self.share is not None:
                    fill_unseen(total[item], share, values)
                total[item].div_(share)

    def result(self, like: torch.Tensor, box: Box | None, outside: Outside) -> Any:
        """The blended outputs on the grid of ``like``, typed as ``like``.

        Args:
            like: The image batch as it came.
            box: Where in it the predicted image lies, if it was cropped.
            outside: See ``finish``.
        """
        inner = (slice(None), slice(None), *self.grid.inner)
        parts = [total[inner] for total in self.sums]
        if box is not None:
            parts = [self._uncrop(part, like, box, outside) for part in parts]
        target = like
        if isinstance(like, MetaTensor):
            target = MetaTensor([]).copy_meta_from(like, copy_attr=False)
        out = _pack_struct(parts, self.keys)
        return convert_to_dst_type(out, target, device=self.weight.device)[0]

    def _uncrop(
        self, part: torch.Tensor, like: torch.Tensor, box: Box, outside: Outside
    ) -> torch.Tensor:
        whole = part.new_empty((*part.shape[:2], *like.shape[2:]))
        whole[:] = outside(part.shape[1], part).reshape(1, -1, *[1] * (part.ndim - 2))
        whole[(slice(None), slice(None), *box)] = part
        return whole

    def _zeros(self, channels: int) -> torch.Tensor:
        shape = (self.batch, channels, *self.grid.padded)
        if self.scratch_dir is None:
            return self.weight.new_zeros(shape)
        with tempfile.TemporaryFile(dir=self.scratch_dir) as file:
            kind = torch.empty(0, dtype=self.weight.dtype).numpy().dtype
            mapped = np.memmap(file, dtype=kind, mode="w+", shape=shape)
        return torch.from_numpy(mapped)


def padded(image: torch.Tensor, grid: WindowGrid, mode: str, value: float) -> torch.Tensor:
    """The image enlarged to at least one window."""
    if not grid.is_padded:
        return image
    fill = value if mode == "constant" else None
    return F.pad(image, grid.pad_argument(), mode=mode, value=fill)


def _shown(steps: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(steps)


def _copy_out(out: Any) -> tuple[Any, torch.cuda.Event]:
    keys, parts = _flatten_struct(out)
    copies = []
    for part in parts:
        copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        copies.append(copy.copy_(part, non_blocking=True))
    event = torch.cuda.Event()
    event.record()
    return _pack_struct(copies, keys), event


def _arrived(waiting: tuple[Sequence[Place], Any, Any]) -> tuple[Sequence[Place], Any]:
    places, out, event = waiting
    event.synchronize()
    return places, out
