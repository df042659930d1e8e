"""Which convolution kernel a window takes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _OneDnnConvolutions(TorchFunctionMode):
    """Send float32 CPU convolutions of a single item to oneDNN.

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
        if func is torch.conv3d and not kwargs and len(args) == 7 and _suits(*args[:3], args[4]):
            x, weight, bias, stride, padding, dilation, groups = args
            return torch.ops.aten.mkldnn_convolution(
                x, weight, bias, _triple(padding), _triple(stride), _triple(dilation), groups
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def onednn_convolutions() -> Iterator[None]:
    """Run 3D convolutions of single items through oneDNN inside the block.

    Results differ from the default path only by the order of float32 sums (1e-6 of the largest
    activation). Does nothing while gradients are recorded, on devices other than the CPU, or in
    builds of PyTorch without oneDNN. TorchScript modules keep their own kernels.
    """
    if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        yield
        return
    with _OneDnnConvolutions():
        yield


def _suits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Any) -> bool:
    return (
        x.ndim == 5
        and x.shape[0] == 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
        and not isinstance(padding, str)
        and not torch.is_autocast_enabled("cpu")
    )


def _triple(value: int | tuple[int, ...]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 3 if len(values) == 1 else values
