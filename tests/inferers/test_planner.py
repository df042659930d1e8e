"""The plan before the run, and the ladder when the plan was too hopeful."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from medvol.core.errors import ConfigError, TooLargeError
from medvol.inferers import (
    Footprint,
    Job,
    SlidingWindowInferer,
    parse_bytes,
    plan_job,
    run_ladder,
    window_footprint,
)

GIB = 2**30


def job(**changes) -> Job:
    footprint = Footprint(10_000_000, 400_000_000, 200_000_000, 10**10, 14)
    options = {
        "source_size": (512, 512, 600),
        "network_size": (512, 512, 600),
        "roi_size": (96, 96, 96),
        "overlap": 0.5,
        "footprint": footprint,
        "batch": 4,
        "base_bytes": 500_000_000,
        "window_s": 0.5,
    }
    return Job(**{**options, **changes})


def test_a_footprint_loads_no_compiler_and_leaves_it_usable():
    text = """
import sys, torch
from medvol.inferers import window_footprint
window_footprint(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.LeakyReLU()), (8, 8, 8))
print("torch._dynamo" in sys.modules, torch._dynamo.is_compiling())
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


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


def test_a_network_that_looks_at_values_is_refused():
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ConfigError, match="foretold"):
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


def test_batches_shrink_before_anything_is_refused():
    free = plan_job(job(network_size=(96, 96, 96), source_size=(96, 96, 96)))
    tight = plan_job(
        job(network_size=(96, 96, 96), source_size=(96, 96, 96)), max_ram=free.ram_bytes - 1
    )
    assert (free.batch, tight.batch) == (4, 2)
    assert tight.ram_bytes < free.ram_bytes


def test_a_ceiling_that_cannot_be_kept_is_refused_beforehand():
    with pytest.raises(TooLargeError, match="at least"):
        plan_job(job(), max_ram=GIB)


def test_stitching_leaves_a_small_gpu_for_the_cpu():
    assert plan_job(job(on_gpu=True)).stitch_on == "gpu"
    plan = plan_job(job(on_gpu=True), max_gpu=GIB)
    assert plan.stitch_on == "cpu"
    assert plan.gpu_bytes <= GIB


def test_all_probabilities_go_to_a_mapped_file_where_memory_is_short():
    size = {"network_size": (300, 300, 300), "source_size": (150, 150, 150)}
    whole = plan_job(job(**size), wants_probabilities=True)
    mapped = plan_job(job(**size), wants_probabilities=True, max_ram=whole.ram_bytes // 2)
    assert (whole.mode, mapped.mode) == ("whole", "mapped")


def test_seconds_count_windows_and_passes():
    plan = plan_job(job(network_size=(96, 96, 144), passes=2))
    assert plan.windows == 2
    assert plan.seconds == pytest.approx(2 * 2 * 0.5)


@pytest.mark.parametrize("text", ["", "many", "-3G", "0"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="memory"):
        parse_bytes(text)


class Greedy:
    """Runs out of memory above a batch size, like a small GPU."""

    def __init__(self, limit: int, error: Exception) -> None:
        self.limit, self.error, self.seen = limit, error, []

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(window))
        if len(window) > self.limit:
            raise self.error
        return torch.cat([window, -window], 1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_the_ladder_ends_with_the_same_answer(error):
    x, inferer = torch.randn(1, 1, 20, 20, 20), SlidingWindowInferer((8, 8, 8), 8, 0.5, "gaussian")
    want = inferer(x, Greedy(8, error))
    net = Greedy(2, error)
    got, rung = run_ladder(inferer, lambda attempt: attempt(x, net))
    assert rung == "batch 2"
    assert inferer.sw_batch_size == 8
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_the_ladder_moves_the_network_last():
    moved = []

    def run(inferer):
        if not moved:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inferer.sw_device

    inferer = SlidingWindowInferer((8, 8, 8), 2)
    assert run_ladder(inferer, run, lambda: moved.append(1)) == ("cpu", "network on the CPU")


def test_other_errors_climb_no_ladder():
    with pytest.raises(RuntimeError, match="shape"):
        run_ladder(
            SlidingWindowInferer((8, 8, 8), 2),
            lambda i: (_ for _ in ()).throw(RuntimeError("shape")),
        )


def test_when_nothing_helps_the_refusal_says_so():
    net = Greedy(0, MemoryError("no more"))
    x = torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(TooLargeError, match="one window"):
        run_ladder(SlidingWindowInferer((8, 8, 8), 2), lambda attempt: attempt(x, net))
