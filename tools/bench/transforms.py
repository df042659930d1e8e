"""Transforms against their peers: ``python -m tools.bench.transforms [--rounds 5] [--only NAME]``.

CPU time of this process on one thread, all contenders interleaved, median of the rounds. A peer
that is not installed is left out (torchio and batchgeneratorsv2 are not dependencies of medvol).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import monai.transforms as mt
import SimpleITK as sitk
import torch
from monai.data.dataset import CacheDataset, PersistentDataset
from monai.data.meta_tensor import MetaTensor
from scipy.ndimage import zoom
from torch.nn.functional import grid_sample

from medvol.engines import CaseDataset
from medvol.transforms import RandSpatiald, Spacingd
from medvol.transforms import sample as sample_module

Contenders = dict[str, Callable[[], Any]]
KEYS = ("image", "label")
MODES = ("bilinear", "nearest")
SHAPE = (128, 128, 128)
CT_SHAPE, CT_SPACING_MM = (244, 202, 134), 1.5
#: row -> (reference, [(contender, largest allowed ratio to it)])
TARGETS: dict[str, tuple[str, dict[str, float]]] = {
    "elastic + affine": ("MONAI Rand3DElasticd", {"medvol torch": 0.20, "medvol numba": 0.08}),
    "affine": ("MONAI RandAffined", {"medvol torch": 0.5, "medvol numba": 0.5}),
    "spacing linear": ("MONAI Spacingd", {"medvol": 0.20}),
    "spacing cubic": ("MONAI Spacingd order 3", {"medvol": 0.06}),
    "cached sample": ("MONAI CacheDataset", {"medvol CaseDataset": 0.4}),
}


def main() -> None:
    """Print one table per row of ``TARGETS``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    report = {}
    for row, build in ROWS.items():
        if options.only in (None, row):
            with tempfile.TemporaryDirectory() as scratch:
                report[row] = measure(build(scratch), options.rounds)
            if not options.json:
                print_row(row, report[row])
    if options.json:
        print(json.dumps(report))


def measure(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Median CPU seconds of every contender, each run once a round in turning order."""
    for run in contenders.values():
        run()
    names, seconds = list(contenders), {name: [] for name in contenders}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            contenders[name]()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_row(row: str, seconds: dict[str, float]) -> None:
    """A Markdown table of one row, with the verdict on its targets."""
    reference, targets = TARGETS[row]
    print(
        f"\n### {row}\n\n| contender | CPU ms | ratio to {reference} | target |\n|---|---|---|---|"
    )
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        ratio = value / seconds[reference]
        target = f"<= {targets[name]:g}" if name in targets else ""
        print(f"| {name} | {1e3 * value:.1f} | {ratio:.3f} | {target} |", flush=True)


def elastic(scratch: str) -> Contenders:
    """One image and label, deformed elastically and moved affinely in one step."""
    del scratch
    data = pair()
    theirs = mt.Rand3DElasticd(
        KEYS, (5, 8), (50, 150), prob=1, rotate_range=(0.3,) * 3, scale_range=(0.2,) * 3,
        mode=MODES, padding_mode="zeros",
    )  # fmt: skip
    found: Contenders = {"MONAI Rand3DElasticd": lambda: theirs(dict(data))}
    found |= ours(data, elastic=True) | bound(data)
    if find_spec("batchgeneratorsv2"):
        found["batchgeneratorsv2 SpatialTransform"] = batchgenerators(data, 1.0)
    if find_spec("torchio"):
        found["TorchIO affine, then elastic"] = torchio(data, is_elastic=True)
    return found


def affine(scratch: str) -> Contenders:
    """One image and label, rotated and scaled."""
    del scratch
    data = pair()
    theirs = mt.RandAffined(
        KEYS, prob=1, rotate_range=(0.3,) * 3, scale_range=(0.2,) * 3,
        mode=MODES, padding_mode="zeros",
    )  # fmt: skip
    found: Contenders = {"MONAI RandAffined": lambda: theirs(dict(data))}
    found |= ours(data, elastic=False) | bound(data)
    if find_spec("batchgeneratorsv2"):
        found["batchgeneratorsv2 SpatialTransform"] = batchgenerators(data, 0.0)
    if find_spec("torchio"):
        found["TorchIO affine"] = torchio(data, is_elastic=False)
    return found


def spacing_linear(scratch: str) -> Contenders:
    """A CT volume to 1 mm, linear."""
    del scratch
    image = ct()
    mine, theirs = Spacingd("image", 1.0), mt.Spacingd("image", 1.0)
    return {
        "MONAI Spacingd": lambda: theirs({"image": image}),
        "medvol": lambda: mine({"image": image}),
        "SimpleITK": simple_itk(image, sitk.sitkLinear),
        "bound: write of the output": lambda: torch.empty(366, 302, 200).fill_(0),
    }


def spacing_cubic(scratch: str) -> Contenders:
    """A CT volume to 1 mm, cubic B-spline."""
    del scratch
    image = ct()
    mine, theirs = (
        Spacingd("image", 1.0, mode="cubic"),
        mt.Spacingd("image", 1.0, mode=[3], padding_mode="mirror"),  # pyright: ignore[reportArgumentType]
    )
    volume = image[0].numpy()
    return {
        "MONAI Spacingd order 3": lambda: theirs({"image": image}),
        "medvol": lambda: mine({"image": image}),
        "scipy zoom order 3": lambda: zoom(volume, 1.5, order=3, mode="mirror", grid_mode=False),
        "SimpleITK B-spline": simple_itk(image, sitk.sitkBSpline),
    }


def cached(scratch: str) -> Contenders:
    """One 96^3 crop of a cached image and label."""
    case, crop = pair(), (96, 96, 96)
    theirs = mt.Compose([mt.RandSpatialCropd(KEYS, crop, random_size=False)])
    in_memory = CacheDataset([case], theirs, progress=False)
    on_disk = PersistentDataset([case], theirs, cache_dir=scratch)
    move = mt.Compose([RandSpatiald(KEYS, prob=0, spatial_size=crop)])
    mine = CaseDataset([case], mt.Compose([]), move)
    return {
        "MONAI CacheDataset": lambda: [in_memory[0] for _ in range(5)],
        "MONAI PersistentDataset": lambda: [on_disk[0] for _ in range(5)],
        "medvol CaseDataset": lambda: [mine[0] for _ in range(5)],
    }


ROWS: dict[str, Callable[[str], Contenders]] = {
    "elastic + affine": elastic,
    "affine": affine,
    "spacing linear": spacing_linear,
    "spacing cubic": spacing_cubic,
    "cached sample": cached,
}


def pair() -> dict[Any, Any]:
    """A smooth image with noise and a label of the same shape."""
    axes = torch.meshgrid(*[torch.linspace(0, 6, n) for n in SHAPE], indexing="ij")
    image = sum(a.sin() for a in axes) + 0.1 * torch.randn(SHAPE)
    label = (torch.stack(axes).cos().prod(0) > 0.1).to(torch.uint8)
    return {"image": MetaTensor(image[None]), "label": MetaTensor(label[None])}


def ct() -> MetaTensor:
    """Noise in Hounsfield units on an isotropic 1.5 mm grid."""
    return MetaTensor(
        torch.randn(1, *CT_SHAPE) * 300, torch.diag(torch.tensor([*[CT_SPACING_MM] * 3, 1.0]))
    )


def ours(data: dict[Any, Any], elastic: bool) -> Contenders:
    """``RandSpatiald`` by torch and, where numba is installed, by the compiled path."""
    move = RandSpatiald(KEYS, elastic=elastic)

    def run(use_kernel: bool) -> Any:
        defaults: dict[str, Any] = sample_module.Resampler.__init__.__kwdefaults__ or {}
        defaults["use_kernel"] = use_kernel
        try:
            return move(data)
        finally:
            defaults["use_kernel"] = True

    found: Contenders = {"medvol torch": lambda: run(False)}
    if find_spec("numba"):
        found["medvol numba"] = lambda: run(True)
    return found


def bound(data: dict[Any, Any]) -> Contenders:
    """What no grid-based resampling can undercut: two lookups in a grid that is already there."""
    grid = torch.rand(1, *SHAPE, 3) * 2 - 1
    grid = grid * 0.001 + torch.stack(
        torch.meshgrid(*[torch.linspace(-0.9, 0.9, n) for n in SHAPE], indexing="ij")[::-1], -1
    )
    image, label = data["image"].as_tensor(), data["label"].as_tensor().float()
    return {
        "bound: two grid_sample calls": lambda: [
            grid_sample(image[None], grid, "bilinear", "zeros", False),
            grid_sample(label[None], grid, "nearest", "zeros", False),
        ],
        "bound: write of the output": lambda: (image.clone(), data["label"].as_tensor().clone()),
    }


def batchgenerators(data: dict[Any, Any], elastic_prob: float) -> Callable[[], Any]:
    """nnU-Net's spatial transform with the same ranges."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform  # pyright: ignore[reportMissingImports]

    move = SpatialTransform(
        patch_size=SHAPE, patch_center_dist_from_border=0, random_crop=False,
        p_elastic_deform=elastic_prob, elastic_deform_scale=(0.05, 0.1),
        p_rotation=1, rotation=(-0.3, 0.3), p_scaling=1, scaling=(0.8, 1.2),
        p_synchronize_scaling_across_axes=1,
    )  # fmt: skip
    image, label = data["image"].as_tensor(), data["label"].as_tensor().to(torch.int16)
    return lambda: move(image=image, segmentation=label)


def torchio(data: dict[Any, Any], is_elastic: bool) -> Callable[[], Any]:
    """TorchIO's transforms with the same ranges."""
    import torchio as tio  # pyright: ignore[reportMissingImports]

    steps: list[Any] = [tio.RandomAffine(scales=0.2, degrees=17)]
    if is_elastic:
        steps.append(tio.RandomElasticDeformation(num_control_points=8, max_displacement=6))
    chain = tio.Compose(steps)
    image, label = (data[key].as_tensor() for key in KEYS)
    return lambda: chain(
        tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))
    )


def simple_itk(image: MetaTensor, interpolator: int) -> Callable[[], Any]:
    """SimpleITK's resampler to 1 mm on the same grid."""
    source = sitk.GetImageFromArray(image[0].numpy().transpose(2, 1, 0))
    source.SetSpacing([CT_SPACING_MM] * 3)
    size = [round((n - 1) * CT_SPACING_MM + 1) for n in CT_SHAPE]
    resample = sitk.ResampleImageFilter()
    resample.SetSize(size)
    resample.SetOutputSpacing([1.0] * 3)
    resample.SetInterpolator(interpolator)
    return lambda: sitk.GetArrayFromImage(resample.Execute(source))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
