"""One contender of the bench row `predict`: ``python -m tools.bench.whole_case NAME IMAGE``."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvol.bundle.lean import import_monai
from medvol.core.pages import ask_for_huge_pages

SPACING_MM = (1.5, 1.5, 1.5)
CLASSES = 14


def main() -> None:
    """Run one contender on one image and print its figures as JSON."""
    name, image = sys.argv[1], sys.argv[2]
    if name != "MONAI":  # as the verb does
        ask_for_huge_pages()
        import_monai()
    from tools.bench.inference import network

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = network(CLASSES)
    run = {
        "MONAI": by_monai,
        "medvol": by_medvol,
        "medvol, slack": lambda *given: by_medvol(*given, slack=0.03),
        "medvol, OpenVINO": lambda *given: by_medvol(*given, engine="openvino"),
    }[name]
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            labels = run(image, net, Path(folder))
        row: dict[str, Any] = {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
        }
    row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row["voxels"] = np.bincount(labels.ravel(), minlength=CLASSES).tolist()
    print(json.dumps(row))


def by_monai(image: str, net: torch.nn.Module, folder: Path) -> Any:
    """A model-zoo bundle's way: MONAI's own transforms, inferer, inverse and writer."""
    from monai.inferers.inferer import SlidingWindowInferer
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.io.dictionary import LoadImaged, SaveImaged
    from monai.transforms.post.dictionary import Activationsd, AsDiscreted, Invertd
    from monai.transforms.spatial.dictionary import Orientationd, Spacingd

    from tools.bench.inference import WINDOW

    before = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", SPACING_MM, mode="bilinear"),
            ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
        ]
    )
    after = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", before, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=folder, output_dtype=np.uint8, print_log=False),
        ]
    )
    data: Any = before({"image": image})
    out: Any = SlidingWindowInferer(WINDOW, 1, 0.5, "gaussian")(data["image"][None], net)
    data["pred"] = out[0]
    result: Any = after(data)
    return np.asarray(result["pred"]).astype(np.uint8)


def by_medvol(
    image: str, net: torch.nn.Module, folder: Path, *, slack: float = 0.0, engine: str = "torch"
) -> Any:
    """The way of ``medvol predict``, with the same network and numbers."""
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.spatial.dictionary import Orientationd

    from medvol.inferers import (
        Decision,
        PredictionPipeline,
        SlidingWindowInferer,
        compiled_openvino,
        convert_openvino,
    )
    from medvol.io import MedvolReader, write_nifti
    from medvol.transforms import Spacingd
    from tools.bench.inference import WINDOW

    before = Compose(
        [
            LoadImaged("image", reader=MedvolReader, ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", SPACING_MM, mode="bilinear"),
            ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
        ]
    )
    data: Any = before({"image": image})
    inferer = SlidingWindowInferer(WINDOW, 1, 0.5, "gaussian", background=0.0, overlap_slack=slack)
    predictor: Any = net
    if engine == "openvino":
        predictor = compiled_openvino(convert_openvino(net, (1, *WINDOW)), threads=1)
    found = PredictionPipeline(inferer, Decision()).predict(data["image"], predictor)
    write_nifti(folder / "seg.nii.gz", found.labels, found.source.affine, dtype=np.uint8)
    return found.labels


if __name__ == "__main__":
    main()
