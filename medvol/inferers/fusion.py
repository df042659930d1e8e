"""One network, compiled for one window on a CPU: oneDNN fuses what PyTorch runs layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from medvol.core.errors import ConfigError

#: Passes from which compiling pays: it takes about as long as so many windows save.
WORTH_PASSES = 32
_SAME = 1e-3


class FusedNetwork:
    """A frozen trace of a network whose convolutions, norms and activations run as one.

    Windows go through it one at a time, whatever the batch, so that an answer depends neither on
    the batch nor on the windows before it. Outputs differ from the network's own by the order of
    float32 sums.

    Args:
        network: In evaluation mode, on the CPU, with a single tensor as output; unchanged.
        window: Channels and size of a window, (C, spatial...).

    Raises:
        ConfigError: If the network cannot be traced or its trace answers otherwise.

    Source:
        oneDNN Graph, https://docs.pytorch.org/docs/stable/jit.html; 0.54 of the time of eager
        PyTorch for the U-Net of ``tools.bench.inference``.
    """

    def __init__(self, network: torch.nn.Module, window: Sequence[int]) -> None:
        draw = torch.Generator().manual_seed(0)
        example = torch.randn((1, *window), generator=draw)
        # recording under inference mode would keep tensors that later training refuses
        with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants in the trace, and of TorchScript's age
            try:
                traced: Any = torch.jit.trace(network, example, check_trace=False)
                self._traced: Any = torch.jit.freeze(traced.eval())
                self._settle(example, network(example))
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                raise ConfigError(f"this network cannot be fused: {error}") from error

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        """Predict (B, C, spatial...) windows."""
        with _onednn_graph():
            parts = [self._traced(one) for one in window.split(1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _settle(self, example: torch.Tensor, wanted: torch.Tensor) -> None:
        """Run until the executor has specialised, so that the first answers equal later ones."""
        for _ in range(2):
            self(example)
        got = self(example)
        if got.shape != wanted.shape or not torch.allclose(got, wanted, rtol=_SAME, atol=_SAME):
            raise ValueError("its trace answers otherwise than itself")


@contextmanager
def _onednn_graph() -> Iterator[None]:
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        yield
    finally:
        torch.jit.enable_onednn_fusion(before)
