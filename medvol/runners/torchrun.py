"""torchrun: every rank takes its share of the cases; rank 0 reports for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from medvol.core.errors import ConfigError
from medvol.runners.cases import CaseInput
from medvol.runners.local import Report, run_local
from medvol.runners.record import PredictOptions, Record


def run_torchrun(
    cases: Sequence[CaseInput], options: PredictOptions, report: Report = lambda record: None
) -> list[Record]:
    """Predict this rank's cases; returns every rank's records on rank 0 and nothing elsewhere.

    Started as ``torchrun --nproc-per-node N -m medvol predict ... --runner torchrun``. Each rank
    uses the GPU of its local rank where there is one.

    Raises:
        ConfigError: Outside torchrun.
    """
    if not dist.is_torchelastic_launched():
        raise ConfigError(
            "--runner torchrun must be started by torchrun: "
            "torchrun --nproc-per-node 2 -m medvol predict ... --runner torchrun"
        )
    dist.init_process_group("gloo")  # only records cross; networks never talk
    rank, world = dist.get_rank(), dist.get_world_size()
    try:
        records = run_local(cases[rank::world], _on_own_gpu(options), report)
        gathered: list[list[Record]] = [[] for _ in range(world)]
        dist.all_gather_object(gathered, records)
    finally:
        dist.destroy_process_group()
    if rank:
        return []
    found = {record.case: record for part in gathered for record in part}
    return [found[case.name] for case in cases]


def _on_own_gpu(options: PredictOptions) -> PredictOptions:
    if options.device in ("", "cuda") and torch.cuda.is_available():
        local = dist.get_node_local_rank(fallback_rank=0) % torch.cuda.device_count()
        return replace(options, device=f"cuda:{local}")
    return options
