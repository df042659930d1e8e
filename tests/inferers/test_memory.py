"""The memory plan before a run, and the fallback when the plan was too hopeful."""

from __future__ import annotations

import pytest
import torch

from medvol.core.errors import ConfigError, TooLargeError
from medvol.inferers import Footprint, WindowGrid, parse_bytes, window_footprint
from medvol.inferers.fallback import Attempt, with_fallback
from medvol.inferers.memory import Job, plan_job

GIB = 2**30


def job(**changes) -> Job:
    footprint = Footprint(10_000_000, 400_000_000, 200_000_000, 10**10, 14)
    options = {
        "source_size": (512, 512, 600),
        "network_size": (512, 512, 600),
        "footprint": footprint,
        "batch": 4,
        "base_bytes": 500_000_000,
        "window_s": 0.5,
    }
    options |= changes
    return Job(grid=WindowGrid.over(options["network_size"], (96, 96, 96), 0.5), **options)


def test_footprint_of_two_convolutions_has_a_closed_form():
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.Conv3d(8, 2, 1))
    found = window_footprint(net, (10, 10, 10), batch=3)
    voxel = 4 * 3 * 1000
    assert found.out_channels == 2
    assert found.weight_bytes == 4 * (8 * 27 + 8 + 8 * 2 + 2)
    # The largest moment is the second layer: input still held by the caller, 8 and 2 channels.
    assert found.activation_bytes == (1 + 8 + 2) * voxel
    assert found.workspace_bytes == (8 + 8) * voxel
    assert found.flops == 2 * 3 * 1000 * (8 * 27 + 8 * 2)


def test_a_network_that_depends_on_values_is_rejected():
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ConfigError, match="estimated"):
        window_footprint(Looks(), (4, 4, 4))


def test_label_mode_does_not_grow_with_classes_times_volume():
    few = plan_job(job()).ram_bytes
    many = plan_job(
        job(footprint=Footprint(10_000_000, 400_000_000, 200_000_000, 10**10, 28))
    ).ram_bytes
    volume = 512 * 512 * 600 * 4
    # A window's depth, not the volume; and the planes that are being resampled.
    assert many - few == 14 * 512 * 512 * (96 + 4) * 4
    assert few < 6e9 < 14 * volume


def test_batches_shrink_before_anything_is_rejected():
    free = plan_job(job(network_size=(96, 96, 96), source_size=(96, 96, 96)))
    tight = plan_job(
        job(network_size=(96, 96, 96), source_size=(96, 96, 96)), max_ram=free.ram_bytes - 1
    )
    assert (free.batch, tight.batch) == (4, 2)
    assert tight.ram_bytes < free.ram_bytes


def test_a_ceiling_that_cannot_be_kept_is_rejected_beforehand():
    with pytest.raises(TooLargeError, match="at least"):
        plan_job(job(), max_ram=GIB)


def test_stitching_leaves_a_small_gpu_for_the_cpu():
    assert plan_job(job(on_gpu=True)).stitch_on == "gpu"
    plan = plan_job(job(on_gpu=True), max_gpu=GIB)
    assert plan.stitch_on == "cpu"
    assert plan.gpu_bytes <= GIB


def test_all_probabilities_go_to_a_mapped_file_where_memory_is_short():
    size = {"network_size": (300, 300, 300), "source_size": (150, 150, 150)}
    size["source_size"] = (600, 600, 600)
    held = plan_job(job(**size), keeps_probabilities=True)
    mapped = plan_job(job(**size), keeps_probabilities=True, max_ram=held.ram_bytes * 2 // 3)
    assert (held.mode, mapped.mode) == ("slabs", "mapped")


def test_seconds_count_windows_and_passes():
    plan = plan_job(job(network_size=(96, 96, 144), passes=2))
    assert plan.windows == 2
    assert plan.seconds == pytest.approx(2 * 2 * 0.5)


@pytest.mark.parametrize("text", ["", "many", "-3G", "0"])
def test_sizes_that_are_none_are_rejected(text):
    with pytest.raises(ConfigError, match="memory"):
        parse_bytes(text)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_attempts_take_ever_less_until_one_fits(error):
    seen = []

    def run(attempt):
        seen.append((attempt.batch, attempt.stitch_on.type, attempt.network_on.type))
        if attempt.network_on.type == "cuda":
            raise error
        return "done"

    found, attempt = with_fallback(Attempt(4, GPU, GPU), run)
    assert found == "done"
    assert attempt.name == "network on the CPU"
    assert seen == [(4, "cuda", "cuda"), (2, "cuda", "cuda"), (1, "cuda", "cuda"),
                    (1, "cpu", "cuda"), (1, "cpu", "cpu")]  # fmt: skip


def test_other_errors_are_not_tried_again():
    seen = []

    def run(attempt):
        seen.append(attempt)
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        with_fallback(Attempt(4, CPU, CPU), run)
    assert len(seen) == 1


def test_when_nothing_helps_the_error_says_so():
    def run(attempt):
        raise MemoryError("no more")

    with pytest.raises(TooLargeError, match="one window at a time on the CPU: no more"):
        with_fallback(Attempt(2, CPU, CPU), run)
