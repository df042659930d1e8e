"""Several processes, one training: what `torchrun` started, as components of a config."""

from __future__ import annotations

import os

import torch
from torch import nn

from medvol.core.errors import ConfigError


def start_process_group() -> torch.device:
    """Join the group that ``torchrun`` described, once, and return this process's device.

    NCCL where every process has a GPU of its own, gloo otherwise.

    Raises:
        ConfigError: If the process was not started by ``torchrun``.
    """
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            "multi_gpu_train runs under torchrun: torchrun --nproc_per_node=2 -m monai.bundle run "
            "--config_file .../multi_gpu_train.json"
        )
    local = int(os.environ["LOCAL_RANK"])
    has_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if has_gpus else "gloo")
    if not has_gpus:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def distributed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes."""
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids)
