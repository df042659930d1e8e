"""Several processes, one training: what `torchrun` started, as components of a config."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def start_process_group() -> torch.device:
    """Join the group that ``torchrun`` described, once, and return this process's device.

    NCCL where every process has a GPU of its own, gloo otherwise; without ``torchrun`` there is
    one process and no group.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    has_gpus = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "LOCAL_RANK" in os.environ and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if has_gpus else "gloo")
    if not has_gpus:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def distributed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes, if there is a group of them."""
    if not _is_group():
        return network
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids)


def process_rank() -> int:
    """Number of this process in its group; 0 without one."""
    return torch.distributed.get_rank() if _is_group() else 0


def bare(network: nn.Module) -> nn.Module:
    """The network without the wrapper of data-parallel training."""
    return network.module if hasattr(network, "module") else network  # pyright: ignore[reportReturnType]


def summed(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each tensor summed over all processes, with gradients; unchanged without a group.

    What a loss takes over the whole batch, such as batch Dice's overlap, must be taken over every
    process's share of it. The gradient of the sum reaches each share once per process, which the
    averaging of :func:`distributed` undoes.
    """
    if not _is_group() or torch.distributed.get_world_size() == 1:
        return parts
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(torch.stack(parts)).unbind(0)


def process_mean(value: float) -> float:
    """Mean of a number over all processes; each of them must ask."""
    if not _is_group():
        return value
    found = torch.tensor(value, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(found)
    return float(found) / torch.distributed.get_world_size()


def agreed(values: Sequence[float]) -> list[float]:
    """The first process' value, so that clocks that differ lead to one decision."""
    if not _is_group():
        return [float(value) for value in values]
    found = torch.tensor(list(values), dtype=torch.float64, device=_device())
    torch.distributed.broadcast(found, 0)
    return found.tolist()


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
