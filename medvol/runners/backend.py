"""The network that a session runs: in PyTorch, or exported to another engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from medvol.bundle import Bundle
from medvol.core.errors import ConfigError, MissingInputError, WeightsError
from medvol.core.files import write_json
from medvol.inferers import compiled_openvino, convert_openvino, export, open_engine
from medvol.inferers.backends import FILES
from medvol.inferers.ensemble import is_mean


class EnginePredictor(torch.nn.Module):
    """An exported network as a predictor of windows, in the place of the original.

    Attributes:
        is_mean: Whether its outputs are the mean of several networks, as an ensemble's are.
    """

    def __init__(
        self, run: Callable[[torch.Tensor], torch.Tensor], original: torch.nn.Module
    ) -> None:
        super().__init__()
        self.run, self.is_mean = run, is_mean(original)
        self._original = (original,)  # in a tuple, so that its weights are not this module's

    @property
    def original(self) -> torch.nn.Module:
        """The same network in PyTorch, whose memory can be estimated."""
        return self._original[0]

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Outputs of windows (B, C, ...)."""
        return self.run(window)


def open_backend(
    bundle: Bundle,
    network: torch.nn.Module,
    engine: str,
    window: tuple[int, ...],
    weights_sha256: str,
    threads: int,
) -> EnginePredictor:
    """The bundle's network in another engine.

    OpenVINO is converted in memory unless the bundle holds an export; ONNX and TorchScript need
    one, and an export of other weights is rejected.

    Args:
        bundle: Whose export is looked for.
        network: Its network in PyTorch.
        engine: ``openvino``, ``onnx``, ``torchscript`` or ``tensorrt``.
        window: Channels and window, (C, spatial...).
        weights_sha256: Digest of the weights that the export must hold.
        threads: Threads to use; 0 leaves the engine's choice.

    Raises:
        MissingInputError: If the bundle was not exported.
        WeightsError: If the export was made from other weights.
        ConfigError: If the engine is unknown.
    """
    if engine not in FILES:
        raise ConfigError(f"engine {engine!r} is unknown; choose torch, {', '.join(FILES)}")
    path = bundle.path / "models" / FILES[engine]
    if path.is_file():
        note = _note(path)
        found = json.loads(note.read_text("utf-8")) if note.is_file() else {}
        if found.get("weights_sha256") != weights_sha256:
            raise WeightsError(f"{path}: was exported from other weights; run medvol export again")
        return EnginePredictor(open_engine(engine, path, threads), network)
    if engine != "openvino":
        raise MissingInputError(
            f"{path}: is absent; make it with: medvol export {bundle.name} --to {engine}"
        )
    model = convert_openvino(network.cpu(), window)
    return EnginePredictor(compiled_openvino(model, threads), network)


def export_network(
    network: torch.nn.Module, to: str, folder: Path, window: tuple[int, ...], weights_sha256: str
) -> Path:
    """Export a network into ``folder``, with a note of the weights that it holds."""
    if to not in FILES:
        raise ConfigError(f"engine {to!r} is unknown; choose from {', '.join(FILES)}")
    path = export(network.cpu().eval(), to, folder / FILES[to], window)
    write_json(_note(path), {"weights_sha256": weights_sha256})
    return path


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
