"""Weights from a file into a network: safe, finite, complete, and fitting, or rejected."""

from __future__ import annotations

import fnmatch
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvol.core import UnsafeFileError, WeightsError
from medvol.networks.safetensors import read_safetensors

#: Names under which training programs nest the state dict, tried in this order.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "ema")
_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
#: A counter that BatchNorm only uses where its momentum is None; old files lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class KeyReport:
    """Which tensors of a network were filled from a file, and which were not.

    Attributes:
        loaded: Names that were found with the right shape.
        missing: Names of the network that the state lacks.
        unexpected: Names of the state that the network lacks.
        mismatched: Name to (shape in the state, shape in the network).
        skipped: Names left as they were on purpose, such as a replaced head.
        adapted: Name to what was done to make it fit, such as ``3 to 1 channels``.
        source: What the state was recognised as.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    source: str = "same network"

    @property
    def share(self) -> float:
        """Loaded tensors over all the network's tensors but the skipped ones; 0 to 1."""
        wanted = len(self.loaded) + len(self.missing) + len(self.mismatched)
        return len(self.loaded) / wanted if wanted else 0.0

    def __str__(self) -> str:
        shapes = [f"{name} {a} against {b}" for name, (a, b) in self.mismatched.items()]
        parts = (
            ("adapted", [f"{name} {what}" for name, what in self.adapted.items()]),
            ("missing", list(self.missing)),
            ("unexpected", list(self.unexpected)),
            ("of another shape", shapes),
            ("skipped", list(self.skipped)),
        )
        details = [f"{len(names)} {what} ({_some(names)})" for what, names in parts if names]
        return "; ".join([f"{len(self.loaded)} loaded as {self.source}", *details])


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a bare state dict that runs no code, on the CPU.

    A state dict nested under a usual name (``state_dict``, ``model`` ...) is taken out, and the
    ``module.`` that parallel training puts before every name is removed. The checksums that torch
    writes for each tensor are verified, which ``torch.load`` does not do.

    Args:
        path: A ``.pt``, ``.pth`` or ``.bin`` file of ``torch.save``, or a ``.safetensors`` file.

    Returns:
        Name to tensor; at least one, all dense and finite.

    Raises:
        UnsafeFileError: If the file needs code to be read, or claims more values than it holds.
        WeightsError: If it is absent, damaged, empty, or holds NaN, infinity or anything else
            than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unnest(content)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds {type(state).__name__}, not a state dict")
    check_state(state, path)
    return _without_prefix({name: value.detach() for name, value in state.items()}, "module.")


def check_state(state: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Reject a state dict that is empty or holds anything but dense finite tensors.

    Args:
        state: Name to tensor.
        source: The file or network to name in the error.

    Raises:
        UnsafeFileError: If a tensor claims more values than its storage holds.
        WeightsError: For every other fault.
    """
    if not state:
        raise WeightsError(f"{source}: holds no weights")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{source}: {name!r} is {type(value).__name__}, not a tensor")
        if value.is_sparse or value.is_quantized or value.is_meta:
            raise WeightsError(f"{source}: {name} is not a dense tensor with values")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UnsafeFileError(f"{source}: {name} claims more values than the file holds")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{source}: {name} holds NaN or infinity")


def apply_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, allow_missing: Iterable[str] = ()
) -> KeyReport:
    """Copy a state dict into a network, or raise and leave the network as it was.

    Args:
        network: The network to fill, in place.
        state: Name to tensor, for example from :func:`load_weights`.
        allow_missing: Names or patterns (``fc.*``) of tensors that may keep the network's own
            values: a replaced head. They are reported as skipped where the state lacks them or
            has another shape.

    Returns:
        What was loaded and what was skipped.

    Raises:
        WeightsError: If any other name is missing, unexpected or of another shape.
    """
    report = compare_keys(network, state, allow_missing)
    if report.missing or report.unexpected or report.mismatched:
        raise WeightsError(f"weights do not fit {type(network).__name__}: {report}")
    copy_weights(network, state, report.loaded)
    return report


def compare_keys(
    network: nn.Module, state: Mapping[str, Tensor], allow_missing: Iterable[str] = ()
) -> KeyReport:
    """Report what :func:`apply_weights` would do, without doing it."""
    patterns = tuple(allow_missing)
    wanted = network.state_dict()
    loaded, missing, skipped, mismatched = [], [], [], {}
    for name, value in wanted.items():
        found = state.get(name)
        if found is not None and found.shape == value.shape:
            loaded.append(name)
        elif any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) or (
            found is None and name.endswith(_COUNTER)
        ):
            skipped.append(name)
        elif found is None:
            missing.append(name)
        else:
            mismatched[name] = (tuple(found.shape), tuple(value.shape))
    unexpected = tuple(
        name
        for name in state
        if name not in wanted and not any(fnmatch.fnmatchcase(name, p) for p in patterns)
    )
    return KeyReport(tuple(loaded), tuple(missing), unexpected, mismatched, tuple(skipped))


def copy_weights(network: nn.Module, state: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Copy the named tensors into a network in place, whatever their device or precision."""
    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in names:
            own[name].copy_(state[name])


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _pickle_error(path, str(error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError,
            IndexError, AssertionError) as error:  # fmt: skip
        line = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise WeightsError(f"{path}: is not a whole checkpoint: {line}") from error


def _check_archive(path: Path) -> None:
    """Reject compressed members (a bomb) and members whose checksum does not match."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise UnsafeFileError(
                    f"{path}: is a TorchScript program, not a state dict; save network.state_dict()"
                )
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise UnsafeFileError(f"{path}: holds compressed members, torch writes none")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        if isinstance(error, UnsafeFileError):
            raise
        raise WeightsError(f"{path}: is not a whole checkpoint: {error}") from error
    if damaged is not None:
        raise WeightsError(f"{path}: member {damaged} is damaged (its checksum differs)")


def _pickle_error(path: Path, text: str) -> Exception:
    with path.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(f"{path}: is a Git LFS pointer; run git lfs pull")
    if found := _GLOBAL.search(text):
        return UnsafeFileError(
            f"{path}: needs {found[1]} to be read, which could run code; "
            "save a bare network.state_dict()"
        )
    if start[:1] == b"\x80" and b"torch" not in start and "operand" in text:
        return UnsafeFileError(f"{path}: is a pickle that torch did not write; it could run code")
    return WeightsError(f"{path}: is not a torch checkpoint")


def _unnest(content: Any) -> Any:
    for _ in range(2):
        inner = [content[k] for k in _WRAPPERS if isinstance(content, Mapping) and k in content]
        if not inner or not isinstance(inner[0], Mapping):
            return content
        content = inner[0]
    return content


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
