"""How much memory a network takes for one batch of windows, without running it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medvol.core.errors import ConfigError
from medvol.inferers.channels_last import WORTH_VOXELS

_BLOCK = 8
_CONVOLUTIONS = ("convolution", "mkldnn_convolution")


@dataclass(frozen=True)
class Footprint:
    """What one forward pass needs.

    Attributes:
        weight_bytes: Parameters and buffers.
        activation_bytes: Largest sum of tensors alive at once, the input included.
        workspace_bytes: Copies that a convolution makes of its input and output to bring them
            into the layout of its kernel, at the moment of the largest sum.
        flops: Multiply-adds of convolutions, counted twice.
        out_channels: Channels of the (first) output.
    """

    weight_bytes: int
    activation_bytes: int
    workspace_bytes: int
    flops: int
    out_channels: int

    @property
    def peak_bytes(self) -> int:
        """Everything but the weights."""
        return self.activation_bytes + self.workspace_bytes


def window_footprint(
    network: torch.nn.Module, roi: Sequence[int], *, in_channels: int = 1, batch: int = 1
) -> Footprint:
    """Follow one batch of windows through the network on the ``meta`` device.

    Nothing is computed: tensors without storage are created and dropped as in a real run, and
    their sizes are added up.

    Args:
        network: A module whose layers know the ``meta`` device, as PyTorch's and MONAI's do.
        roi: Window size.
        in_channels: Channels of the image.
        batch: Windows per pass.

    Raises:
        ConfigError: If the network cannot be followed, for example because it is compiled or
            depends on values.
    """
    try:
        shadow = copy.deepcopy(network).to("meta").eval()
        window = torch.empty((batch, in_channels, *roi), device="meta")
        with torch.no_grad(), _LiveBytes(window) as live:
            out = shadow(window)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the memory of this network for windows {tuple(roi)} cannot be estimated: {error}"
        ) from error
    tensors = [*network.parameters(), *network.buffers()]
    first = out if isinstance(out, torch.Tensor) else next(iter(_tensors(out)))
    return Footprint(
        sum(t.numel() * t.element_size() for t in tensors),
        live.peak - live.peak_workspace,
        live.peak_workspace,
        live.flops,
        first.shape[1],
    )


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators create and drop."""

    def __init__(self, *alive: torch.Tensor) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = self.peak_workspace = self.flops = 0
        for tensor in alive:
            self._count(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._count(tensor)
        workspace = 0
        name = getattr(func, "overloadpacket", func).__name__
        if name in _CONVOLUTIONS and isinstance(out, torch.Tensor):
            workspace = _blocked(args[0]) + _blocked(out)
            self.flops += 2 * _macs(args[1], args[0], out)
        if (now := sum(self.alive.values()) + workspace) > self.peak:
            self.peak, self.peak_workspace = now, workspace
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)


def _macs(weight: torch.Tensor, source: torch.Tensor, out: torch.Tensor) -> int:
    places = out if out.shape[1] == weight.shape[0] else source  # the latter when transposed
    return weight.numel() * places.shape[0] * places[0, 0].numel()


def _blocked(tensor: torch.Tensor) -> int:
    """Bytes in oneDNN's layout, which pads channels to blocks; a single channel stays plain.

    Big windows are kept with channels last, which oneDNN reads as they are.
    """
    if tensor.shape[2:].numel() >= WORTH_VOXELS:
        return 0
    channels = tensor.shape[1]
    padded = -(-channels // _BLOCK) * _BLOCK if channels > 1 else 0
    return tensor.numel() // channels * padded * tensor.element_size()


def _tensors(out: Any) -> list[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
