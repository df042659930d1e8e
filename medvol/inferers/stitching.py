"""Cutting an image into batches of windows, and blending what a network predicts for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from medvol.inferers.channels_last import channels_first
from medvol.inferers.emptiness import is_empty
from medvol.inferers.windows import Box, WindowGrid

Network = Callable[..., Any]
#: Called with weighted sums (C, n, ...) of each output, weights (n, ...) and the first plane's
#: index. All are without padding, the axis of the layers first, and may be overwritten.
Receive = Callable[[list[torch.Tensor], torch.Tensor, int], None]


class OtherSizeError(Exception):
    """The network's output is not of the window's size."""


@dataclass(frozen=True)
class WindowSource:
    """Batches of windows from one image.

    Attributes:
        image: (C, spatial...), already padded to the grid.
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

    def layers(self, axis: int) -> list[list[Box]]:
        """The windows to predict, layer by layer along ``axis``.

        Empty windows are left out, but for the very first one: its output tells the channels.
        """
        boxes = self.grid.boxes(axis)
        kept = boxes if self.background is None else [b for b in boxes if not self._is_empty(b)]
        layers = [[b for b in kept if b[axis].start == start] for start in self.grid.starts[axis]]
        layers[0] = layers[0] or boxes[:1]
        return layers

    def predict(
        self, boxes: Sequence[Box], network: Network, *, to: torch.device, shown: bool = False
    ) -> Iterator[list[torch.Tensor]]:
        """Yield the outputs (C, roi...) of each window, on device ``to``.

        On CUDA the copy of one batch and the gathering of the next run while the device computes.
        """
        steps: Iterable[int] = range(0, len(boxes), self.batch)
        waiting: tuple[list[torch.Tensor], torch.cuda.Event] | None = None
        for start in _shown(steps) if shown else steps:
            with self._precision():
                parts = outputs_of(network(self._gather(boxes[start : start + self.batch])))[1]
            if any(tuple(part.shape[2:]) != self.grid.roi for part in parts):
                raise OtherSizeError
            if self.device.type != "cuda" or to.type == "cuda":
                values = [list(channels_first(part).to(to)) for part in parts]
                del parts  # here and below: no window is held while the next is predicted
                yield from _by_window(values)
                continue
            started = _copy_out(parts)
            if waiting is not None:
                yield from _arrived(waiting, to)
            waiting = started
        if waiting is not None:
            yield from _arrived(waiting, to)

    def _is_empty(self, box: Box) -> bool:
        return is_empty(self.image[(slice(None), *box)], float(self.background or 0))

    def _gather(self, boxes: Sequence[Box]) -> torch.Tensor:
        windows = torch.stack([self.image[(slice(None), *box)] for box in boxes])
        if self.device.type == "cuda" and windows.device.type == "cpu":
            return windows.pin_memory().to(self.device, non_blocking=True)
        return windows.to(self.device)

    def _precision(self) -> Any:
        if not self.amp or self.device.type != "cuda":
            return nullcontext()
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=half)


def blend(
    source: WindowSource,
    network: Network,
    weight: torch.Tensor,
    receive: Receive,
    *,
    whole: bool = False,
    shown: bool = False,
) -> None:
    """Blend windows layer by layer and hand over planes as they are finished.

    Every sum takes the same terms in the same order whether planes are handed over one window's
    depth at a time or all at the end, so that both give the same bits.

    Args:
        source: The image and its windows.
        network: Called with (windows, C, roi...).
        weight: Weight of each voxel of a window; the sums have its type and device.
        receive: Takes the finished planes.
        whole: Hand over all planes at once, at the end; else memory is one window's depth.
        shown: Show a progress bar.
    """
    grid = source.grid
    axis, skips = grid.shallow_axis, source.background is not None
    across = [n for a, n in enumerate(grid.padded) if a != axis]
    depth, starts = grid.padded[axis] if whole else grid.roi[axis], grid.starts[axis]
    layers = source.layers(axis)
    share = weight.new_zeros((depth, *across))
    plain_share = None if skips else _layer_share(grid, weight, axis)
    weight = weight.movedim(axis, 0)
    sums: list[torch.Tensor] = []
    boxes = [box for layer in layers for box in layer]
    outputs = source.predict(boxes, network, to=weight.device, shown=shown)
    for index, start in enumerate(starts):
        first = start if whole else 0
        place = slice(first, first + grid.roi[axis])
        for box in layers[index]:
            parts = next(outputs)
            sums = sums or [_zeros(part, share, weight) for part in parts]
            inner = (place, *(s for a, s in enumerate(box) if a != axis))
            for total in sums:
                part = parts.pop(0).movedim(axis + 1, 1)
                total[(slice(None), *inner)].addcmul_(part.to(total), weight)
                del part
            if skips:
                share[inner].add_(weight)
        if plain_share is not None:
            share[place].add_(plain_share)
        if whole:
            continue
        done = (starts[index + 1] if index + 1 < len(starts) else start + depth) - start
        _hand_over(grid, axis, start, done, sums, share, receive)
        for buffer in (*(total.movedim(1, 0) for total in sums), share):
            _shift(buffer, done)
    if whole:
        _hand_over(grid, axis, 0, depth, sums, share, receive)


def outputs_of(predicted: Any) -> tuple[Any, list[torch.Tensor]]:
    """A network's output as its keys (None for one tensor, () for a sequence) and its tensors."""
    if isinstance(predicted, torch.Tensor):
        return None, [predicted]
    if isinstance(predicted, Mapping):
        return list(predicted), list(predicted.values())
    return (), list(predicted)


def packed(keys: Any, parts: Sequence[Any]) -> Any:
    """The tensors in the form that :func:`outputs_of` took apart."""
    if keys is None:
        return parts[0]
    return dict(zip(keys, parts, strict=True)) if keys else tuple(parts)


def padded(image: torch.Tensor, grid: WindowGrid, mode: str, value: float) -> torch.Tensor:
    """The image (C, spatial...) enlarged to at least one window."""
    if not grid.is_padded:
        return image
    fill = value if mode == "constant" else None
    return F.pad(image[None], grid.pad_argument(), mode=mode, value=fill)[0]


def _hand_over(
    grid: WindowGrid,
    axis: int,
    start: int,
    done: int,
    sums: list[torch.Tensor],
    share: torch.Tensor,
    receive: Receive,
) -> None:
    """Hand over the image's part of ``done`` planes of the buffers, whose first is ``start``."""
    inner = grid.inner
    low, high = max(start, inner[axis].start), min(start + done, inner[axis].stop)
    if low >= high:
        return
    box = (slice(low - start, high - start), *(s for a, s in enumerate(inner) if a != axis))
    parts = [total[(slice(None), *box)] for total in sums]
    receive(parts, share[box], low - inner[axis].start)


def _zeros(part: torch.Tensor, share: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight.new_zeros((len(part), *share.shape))


def _layer_share(grid: WindowGrid, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The summed weights of one layer of windows, (depth, ...), one axis after the other."""
    total = weight
    for across, length in enumerate(grid.padded):
        if across == axis:
            continue
        shape = list(total.shape)
        shape[across] = length
        wider = total.new_zeros(shape)
        for start in grid.starts[across]:
            wider.narrow(across, start, grid.roi[across]).add_(total)
        total = wider
    return total.movedim(axis, 0).contiguous()


def _shift(buffer: torch.Tensor, by: int) -> None:
    """Move planes towards the front by ``by`` and zero the rest, without a second buffer."""
    depth = len(buffer)
    for low in range(0, depth - by, by):
        count = min(by, depth - by - low)
        buffer.narrow(0, low, count).copy_(buffer.narrow(0, low + by, count))
    buffer.narrow(0, max(0, depth - by), min(by, depth)).zero_()


def _by_window(values: list[list[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    while values[0]:
        yield [part.pop(0) for part in values]


def _shown(steps: Iterable[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(steps)


def _copy_out(parts: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.cuda.Event]:
    copies = []
    for part in parts:
        copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        copies.append(copy.copy_(part, non_blocking=True))
    event = torch.cuda.Event()
    event.record()
    return copies, event


def _arrived(
    waiting: tuple[list[torch.Tensor], torch.cuda.Event], to: torch.device
) -> Iterator[list[torch.Tensor]]:
    copies, event = waiting
    event.synchronize()
    yield from _by_window([list(part.to(to)) for part in copies])
