"""Which kernels a window takes on a CPU: oneDNN's, with channels last where it is big."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from medvol.inferers.channels_last import (
    WORTH_VOXELS,
    channels_last,
    group_norm,
    instance_norm,
    is_channels_last,
)


class _OneDnnConvolutions(TorchFunctionMode):
    """Send float32 CPU convolutions to oneDNN, big ones with the channels of a voxel together.

    ATen chooses by a size heuristic written for 2D: at batch 1 most 3D layers of a U-Net count
    as too small and fall into ``slow_conv3d``, which unfolds the volume and takes 1.5 to 2.5
    times as long. From batch 2 on ATen chooses oneDNN by itself.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv3d and not kwargs and len(args) == 7:
            return _convolve(*args)
        if func is torch.conv_transpose3d and _is_plain(*args[:3]) and _is_big(args[0]):
            return func(channels_last(args[0]), *args[1:], **kwargs)
        if func in _NORMS and isinstance(args[0], torch.Tensor) and is_channels_last(args[0]):
            return _NORMS[func](*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def onednn_convolutions() -> Iterator[None]:
    """Run 3D convolutions of windows through oneDNN inside the block.

    Results differ from the default path only by the order of float32 sums (1e-6 of the largest
    activation). Does nothing while gradients are recorded, on devices other than the CPU, or in
    builds of PyTorch without oneDNN. TorchScript modules keep their own kernels.
    """
    if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        yield
        return
    with _OneDnnConvolutions():
        yield


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, *rest: Any
) -> torch.Tensor:
    dilation, groups = rest
    is_big = isinstance(x, torch.Tensor) and _is_big(x)
    if not _is_plain(x, weight, bias) or isinstance(padding, str) or not (is_big or len(x) == 1):
        return torch.conv3d(x, weight, bias, stride, padding, dilation, groups)
    return torch.ops.aten.mkldnn_convolution(
        channels_last(x) if is_big else x, weight, bias, _triple(padding), _triple(stride),
        _triple(dilation), groups,
    )  # fmt: skip


def _is_plain(x: Any, weight: Any, bias: Any) -> bool:
    """Whether oneDNN computes this convolution of a batch as eager PyTorch would."""
    return (
        x.ndim == 5
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_big(x: torch.Tensor) -> bool:
    return x.ndim == 5 and (is_channels_last(x) or x[0, 0].numel() >= WORTH_VOXELS)


def _triple(value: int | tuple[int, ...]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 3 if len(values) == 1 else values


_NORMS: dict[Any, Callable[..., Any]] = {
    F.instance_norm: instance_norm,
    F.group_norm: group_norm,
}
