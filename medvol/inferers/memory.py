"""The memory that a prediction takes, and which way of computing it stays under a ceiling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from medvol.core.errors import ConfigError, TooLargeError
from medvol.inferers.footprint import Footprint
from medvol.inferers.windows import WindowGrid

_FLOAT = 4
#: Bytes per source voxel at the peak of loading: the decoded file beside its float32 copy.
LOAD_BYTES_PER_VOXEL = 8
#: Bytes per voxel of the network's grid while it is prepared: result, operand and one temporary.
PREPARE_BYTES_PER_VOXEL = 12


@dataclass(frozen=True)
class Job:
    """One image and the network that will label it.

    Attributes:
        source_size: Shape of the image as stored.
        network_size: Its shape on the network's grid, before padding.
        grid: The windows over it.
        footprint: Of ``batch`` windows.
        batch: Windows per forward pass.
        in_channels: Channels of the image.
        passes: Forward passes per window: mirrors times ensemble members.
        base_bytes: Memory of the process before the first image.
        window_s: Seconds for one window and pass.
        on_gpu: Whether the network runs on a GPU.
    """

    source_size: tuple[int, ...]
    network_size: tuple[int, ...]
    grid: WindowGrid
    footprint: Footprint
    batch: int = 1
    in_channels: int = 1
    passes: int = 1
    base_bytes: int = 0
    window_s: float = 0.0
    on_gpu: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """One way to run a job.

    Attributes:
        mode: ``slabs``, or ``mapped``: slabs whose probabilities are collected in a file that is
            mapped into memory.
        stitch_on: ``gpu`` or ``cpu``.
        batch: Windows per forward pass.
        ram_bytes: Predicted peak of the process.
        gpu_bytes: Predicted peak on the GPU, without what the driver keeps.
        windows: Number of windows.
        seconds: Predicted time in the network.
        phases: Predicted peak of each phase, to show what bounds it.
    """

    mode: str
    stitch_on: str
    batch: int
    ram_bytes: int
    gpu_bytes: int
    windows: int
    seconds: float
    phases: dict[str, int]

    def line(self) -> str:
        """The plan in one line for people."""
        gpu = f", {self.gpu_bytes / 2**30:.2f} GiB GPU memory" if self.gpu_bytes else ""
        return (
            f"{self.ram_bytes / 2**30:.2f} GiB RAM{gpu}, about {self.seconds:.0f} s in the network "
            f"({self.windows} windows, batch {self.batch}, {self.mode}, blended on "
            f"{self.stitch_on})"
        )


def plan_job(
    job: Job,
    *,
    keeps_probabilities: bool = False,
    max_ram: int | None = None,
    max_gpu: int | None = None,
) -> MemoryPlan:
    """The fastest way to run ``job`` that is predicted to stay under both ceilings.

    Raises:
        TooLargeError: If none does; the text states what the smallest one needs.
    """
    options = _options(job, keeps_probabilities)
    for option in options:
        if (max_ram is None or option.ram_bytes <= max_ram) and (
            max_gpu is None or option.gpu_bytes <= max_gpu
        ):
            return option
    least = min(options, key=lambda option: (option.gpu_bytes, option.ram_bytes))
    asked = f"{(max_ram or 0) / 2**30:.2f} GiB RAM" if max_ram else "the GPU ceiling"
    raise TooLargeError(
        f"an image of {'x'.join(map(str, job.source_size))} voxels needs at least "
        f"{least.ram_bytes / 2**30:.2f} GiB RAM and {least.gpu_bytes / 2**30:.2f} GiB GPU memory "
        f"with this bundle; {asked} was allowed"
    )


def parse_bytes(text: str) -> int:
    """Read a size such as ``6GB``, ``512MiB`` or ``1.5G``; plain numbers are bytes.

    Decimal units are powers of 1000, binary ones (``GiB``) and bare letters powers of 1024.

    Raises:
        ConfigError: If it is not a size.

    >>> parse_bytes("6GB"), parse_bytes("1.5G"), parse_bytes("512MiB")
    (6000000000, 1610612736, 536870912)
    """
    cleaned = text.strip().lower()
    for power, letter in enumerate("kmgt", start=1):
        for suffix, base in ((f"{letter}ib", 1024), (f"{letter}b", 1000), (letter, 1024)):
            if cleaned.endswith(suffix):
                return _number(cleaned.removesuffix(suffix), text, base**power)
    return _number(cleaned.removesuffix("b"), text, 1)


def _number(digits: str, text: str, unit: int) -> int:
    try:
        value = int(float(digits) * unit)
    except ValueError:
        value = 0
    if value <= 0:
        raise ConfigError(f"{text!r} is not an amount of memory; write for example 6GB or 512MiB")
    return value


def _options(job: Job, keeps_probabilities: bool) -> list[MemoryPlan]:
    """From fastest to most frugal."""
    modes = ("slabs", "mapped") if keeps_probabilities else ("slabs",)
    devices = ("gpu", "cpu") if job.on_gpu else ("cpu",)
    batches = [job.batch >> shift for shift in range(job.batch.bit_length())]
    return [
        _cost(
            replace(job, footprint=_of_batch(job, batch), batch=batch),
            mode,
            device,
            keeps_probabilities,
        )
        for mode in modes
        for device in devices
        for batch in batches
    ]


def _of_batch(job: Job, batch: int) -> Footprint:
    share = batch / job.batch
    print_ = job.footprint
    return replace(
        print_,
        activation_bytes=int(print_.activation_bytes * share),
        workspace_bytes=int(print_.workspace_bytes * share),
    )


def _cost(job: Job, mode: str, device: str, keeps_probabilities: bool) -> MemoryPlan:
    grid, source = job.grid, prod(job.source_size)
    image = prod(grid.padded) * job.in_channels * _FLOAT
    stitching, labels = _stitching(job), source
    window = job.footprint.peak_bytes
    gpu = 0
    if job.on_gpu:
        gpu = window + job.footprint.weight_bytes + (stitching if device == "gpu" else 0)
        window = 0
    on_cpu = 0 if device == "gpu" else stitching
    all_classes = job.footprint.out_channels * source * _FLOAT if keeps_probabilities else 0
    held = 0 if mode == "mapped" else all_classes
    phases = {
        "load": source * job.in_channels * LOAD_BYTES_PER_VOXEL,
        "prepare": source * job.in_channels * _FLOAT
        + prod(job.network_size) * job.in_channels * PREPARE_BYTES_PER_VOXEL,
        "infer": image + on_cpu + window + labels + held,
        "write": image + 2 * labels + held + all_classes,  # the file is read back and compared
    }
    return MemoryPlan(
        mode,
        device,
        job.batch,
        job.base_bytes + max(phases.values()),
        gpu,
        len(grid),
        len(grid) * job.passes * job.window_s,
        phases,
    )


def _stitching(job: Job) -> int:
    """Weighted sums and weights of one window's depth of the grid."""
    grid, channels = job.grid, job.footprint.out_channels
    axis = grid.shallow_axis
    plane = prod(grid.padded) // grid.padded[axis]
    source_plane = prod(job.source_size) // job.source_size[axis]
    planes = (channels + 2) * plane * grid.roi[axis]  # sums, their weights and one layer's
    passing = 2 * channels * (plane + source_plane)  # kept for the next slab, and resampled
    return (planes + passing + prod(grid.roi)) * _FLOAT
