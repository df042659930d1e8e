"""How large a patch a budget or a GPU can afford: a few timed steps, or arithmetic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from medvol.core.errors import ConfigError
from medvol.inferers.footprint import window_footprint
from medvol.networks.ensemble import first_member
from medvol.planning.fingerprint import Fingerprint
from medvol.planning.footprint import training_footprint
from medvol.planning.forecast import Costs
from medvol.planning.request import Request

_BATCH = 2
_TRIAL = {2: (256, 256), 3: (40, 40, 40)}
_LEAST_STEPS, _MOST_STEPS, _STEPS_PER_S = 300, 5000, 2.5
#: Share of a budget that goes into steps.
_TRAINING = 0.8
_USABLE = 0.85
_ASSUMED_FLOPS = 1e13
_LOAD_S_PER_VOXEL = 5e-8
_LEAST_VOXELS = {2: 64**2, 3: 32**3}
_MOST_VOXELS = {2: 1024**2, 3: 192**3}


def affordable_voxels(fingerprint: Fingerprint, request: Request, outputs: int) -> float:
    """Voxels of a patch so that the budget holds enough steps on this machine's CPU.

    Two and a half steps for every second of the budget are wanted, 300 to 5000: fewer steps of
    larger patches learn less in short runs.
    """
    rate = _seconds_per_voxel(fingerprint, outputs)
    steps = float(np.clip(_STEPS_PER_S * request.budget_s, _LEAST_STEPS, _MOST_STEPS))
    voxels = _TRAINING * request.budget_s / (steps * _BATCH * rate)
    dims = fingerprint.dims
    return float(np.clip(voxels, _LEAST_VOXELS[dims], _MOST_VOXELS[dims]))


def gpu_voxels(fingerprint: Fingerprint, request: Request, outputs: int) -> float:
    """Voxels of a patch so that a full-resolution residual U-Net fits the GPU, by arithmetic.

    Raises:
        ConfigError: If the memory holds no sensible patch.
    """
    dims = fingerprint.dims
    small, large = ((96,) * dims, (128,) * dims)
    sizes = [
        training_footprint(
            _full_resolution(fingerprint, outputs), (_BATCH, fingerprint.channels, *size), outputs
        ).cuda_bytes
        for size in (small, large)
    ]
    voxels = [float(np.prod(size)) for size in (small, large)]
    slope = (sizes[1] - sizes[0]) / (voxels[1] - voxels[0])
    available = _USABLE * request.gpu_mem_gb * 1e9 - (sizes[0] - slope * voxels[0])
    if available < slope * _LEAST_VOXELS[dims]:
        raise ConfigError(f"{request.gpu_mem_gb:g} GB hold no sensible patch; allow more memory")
    return float(np.clip(available / slope, _LEAST_VOXELS[dims], _MOST_VOXELS[dims]))


def gpu_excess(bundle: Path, fingerprint: Fingerprint, request: Request) -> float:
    """What a step of a written bundle takes of the GPU memory it may take, by arithmetic.

    Flat patches of thick slices are halved late and need more than :func:`gpu_voxels` expects.

    Returns:
        More than 1 where it does not fit; 0 where the plan is for a CPU.
    """
    if request.device != "cuda":
        return 0.0
    config, network = _network(bundle)
    shape, outputs = _batch_shape(config, fingerprint)
    available = _USABLE * request.gpu_mem_gb * 1e9
    return training_footprint(network, shape, outputs).cuda_bytes / available


def assumed_costs(bundle: Path, fingerprint: Fingerprint) -> Costs:
    """Costs of a CUDA run where there is no GPU: operations at a stated rate, memory by arithmetic.

    The rate, 10 TFLOP/s of convolutions under mixed precision, is an assumption and not measured.
    """
    config, made = _network(bundle)
    shape, outputs = _batch_shape(config, fingerprint)
    forward = window_footprint(made, shape[2:], in_channels=shape[1], batch=shape[0])
    memory = training_footprint(made, shape, outputs)
    size = [np.prod(row.shape) for row in fingerprint.cases]
    return Costs(
        startup_s=30.0,
        case_s=float(np.mean(size)) * _LOAD_S_PER_VOXEL,
        step_s=3.0 * forward.flops / _ASSUMED_FLOPS,
        epoch_s=1.0,
        validation_case_s=float(np.mean(size)) * _LOAD_S_PER_VOXEL,
        peak_bytes=memory.cuda_bytes,
        case_bytes=0,
        cached=0,
    )


def _network(bundle: Path) -> tuple[dict[str, Any], torch.nn.Module]:
    config = ConfigParser.load_config_file(str(bundle / "configs" / "train.json"))
    network = ConfigParser({"network": config["network_def"]}).get_parsed_content("network")
    return config, first_member(network)


def _batch_shape(config: dict[str, Any], fingerprint: Fingerprint) -> tuple[tuple[int, ...], int]:
    outputs = len(config["loss"]["members"]) + int(config["loss"]["is_exclusive"])
    patch = config["inferer"]["roi_size"]
    return (int(config["batch_size"]), fingerprint.channels, *patch), outputs


def _seconds_per_voxel(fingerprint: Fingerprint, outputs: int) -> float:
    from medvol.networks import SubpixelUNet

    dims = fingerprint.dims
    network = SubpixelUNet(dims, fingerprint.channels, outputs, [32, 64, 128]).train()
    batch = torch.zeros(_BATCH, fingerprint.channels, *_TRIAL[dims])
    seconds = []
    for _ in range(3):  # processor time: what a shape affords shall not hang on other programs
        started = time.process_time()
        network(batch).square().mean().backward()
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    return min(seconds[1:]) / float(_BATCH * np.prod(_TRIAL[dims]))


def _full_resolution(fingerprint: Fingerprint, outputs: int) -> torch.nn.Module:
    from monai.networks.nets import DynUNet

    dims = fingerprint.dims
    levels = 6
    return DynUNet(
        dims, fingerprint.channels, outputs, [3] * levels, [1] + [2] * (levels - 1),
        [2] * (levels - 1), filters=[min(320, 32 * 2**k) for k in range(levels)], res_block=True,
        deep_supervision=True, deep_supr_num=3,
    )  # fmt: skip
