"""Reading what nnU-Net v2 leaves behind, without running code that a checkpoint holds."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import ConfigError, MissingInputError, UnsafeFileError, WeightsError


@dataclass(frozen=True)
class Model:
    """One trained configuration of nnU-Net.

    Attributes:
        name: Data set and configuration.
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: The plan of the configuration, what it inherits filled in.
        axes: For each of our spatial axes (x, y, z of the file) nnU-Net's axis.
        weights: Fold to ``network_weights``.
        mirror_axes: nnU-Net's axes that are mirrored at inference.
    """

    name: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: dict[str, Any]
    axes: tuple[int, ...]
    weights: dict[str, dict[str, Any]]
    mirror_axes: tuple[int, ...]


def read_model(source: Path, folds: Sequence[int] | None, checkpoint: str) -> Model:
    """Read a trained folder.

    Raises:
        MissingInputError: If there is no such folder, plan, or checkpoint.
        ConfigError: If it is a 2D or cascade configuration.
        WeightsError: If a checkpoint is damaged or holds no weights.
        UnsafeFileError: If a checkpoint would run code.
    """
    folder = _trained_folder(source)
    plans, dataset = (_json(folder / name) for name in ("plans.json", "dataset.json"))
    wanted = None if folds is None else {f"fold_{fold}" for fold in folds}
    paths = {path.parent.name: path for path in sorted(folder.glob(f"fold_*/{checkpoint}"))
             if wanted is None or path.parent.name in wanted}  # fmt: skip
    if not paths or (wanted and set(paths) != wanted):
        lacking = sorted(wanted - set(paths))[0] if wanted and paths else "fold_*"
        raise MissingInputError(f"{folder / lacking / checkpoint}: no such checkpoint")
    states = {name.removeprefix("fold_"): read_checkpoint(path) for name, path in paths.items()}
    first = next(iter(states.values()))
    kind = str(first["init_args"].get("configuration") or folder.name.rpartition("__")[2])
    configuration = _configuration(plans, kind)
    order = [int(axis) for axis in plans["transpose_forward"]]
    if len(configuration["patch_size"]) != len(order) or configuration.get("previous_stage"):
        raise ConfigError(f"{folder}: the configuration {kind} (2D or cascade) cannot be imported; "
                          "3d_fullres and 3d_lowres can")  # fmt: skip
    # Their arrays are z, y, x, then transposed; ours are x, y, z.
    axes = tuple(order.index(len(order) - 1 - axis) for axis in range(len(order)))
    return Model(
        f"{plans.get('dataset_name', folder.parent.name)} {kind}", plans, dataset, configuration,
        axes, {name: state["network_weights"] for name, state in states.items()},
        tuple(int(axis) for axis in first.get("inference_allowed_mirroring_axes") or ()),
    )  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net's trainer; of code, only NumPy's numbers are let through.

    Raises:
        UnsafeFileError: If reading it would run anything else.
        WeightsError: If it is damaged or holds no network.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_values()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        line = str(error).partition("\n")[0]
        raise UnsafeFileError(f"{path}: cannot be read without running code: {line}") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: is not a whole checkpoint: {line}") from error
    if not isinstance(state, dict) or not {"network_weights", "init_args"} <= set(state):
        raise WeightsError(f"{path}: is not a checkpoint of nnU-Net v2's trainer")
    from medvol.networks import check_state

    check_state(state["network_weights"], path)
    return state


def _numpy_values() -> list[Any]:
    """What makes a NumPy scalar or array, under today's names and those before NumPy 2."""
    import numpy as np
    from numpy._core import multiarray

    kinds = (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8,
             np.bool_)  # fmt: skip
    made = [getattr(multiarray, name) for name in ("scalar", "_reconstruct")]
    old = [(one, f"numpy.core.multiarray.{one.__name__}") for one in made]
    return [*made, *old, np.ndarray, np.dtype, *sorted({type(np.dtype(k)) for k in kinds}, key=str)]


def _trained_folder(source: Path) -> Path:
    if (source / "plans.json").is_file():
        return source
    found = sorted(path.parent for path in source.glob("*/plans.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise MissingInputError(
            f"{source}: holds no plans.json; give the folder of one trained configuration, such as "
            "nnUNetTrainer__nnUNetPlans__3d_fullres"
        )
    names = ", ".join(path.name for path in found)
    raise ConfigError(f"{source}: holds several trained configurations, name one: {names}")


def _configuration(plans: dict[str, Any], kind: str) -> dict[str, Any]:
    known = plans["configurations"]
    if kind not in known:
        raise ConfigError(f"plans.json has no configuration {kind!r}")
    own = dict(known[kind])
    while parent := own.pop("inherits_from", None):
        own = {**known[parent], **own}
    if "architecture" not in own:
        raise ConfigError("plans.json is of nnU-Net before 2.4, whose plans name no network; "
                          "plan again with a newer one")  # fmt: skip
    return own


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; is this a folder that nnU-Net v2 trained?")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no plan")
    return content
