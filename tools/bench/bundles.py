"""A bundle with random weights and any number of classes, so that benches run real verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvol.core.files import write_text

MODEL_CARD = "# Bench\n\nRandom weights; it measures time and memory and nothing else.\n"


def bench_bundle(
    folder: Path,
    *,
    classes: int = 14,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    residual_units: int = 2,
    roi_size: Sequence[int] = (96, 96, 96),
    overlap: float = 0.5,
    spacing_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> Path:
    """Write a CT segmentation bundle through the bundle writer, weights included.

    Args:
        folder: Scratch folder.
        classes: Output channels, background included.
        channels: Widths of the U-Net.
        residual_units: Of each level.
        roi_size: Window.
        overlap: Of windows.
        spacing_mm: Of the network's grid; 0 keeps the image's.
    """
    import torch
    import yaml
    from monai.bundle import ConfigParser

    from medvol.bundle.write import write
    from medvol.core.shipped import configs_dir

    name, configs = "bench_ct_segmentation", folder / "configs"
    values: dict[str, Any] = yaml.safe_load(
        (configs_dir() / "bundles" / "phantom_ct_segmentation.yaml").read_text("utf-8")
    )
    values |= {
        "labels": {n: f"structure {n}" for n in range(1, classes)},
        "channels": list(channels), "strides": [2] * (len(channels) - 1),
        "residual_units": residual_units, "roi_size": list(roi_size), "overlap": overlap,
        "spacing_mm": list(spacing_mm), "sw_batch_size": 1,
    }  # fmt: skip
    write_text(configs / "bundles" / f"{name}.yaml", yaml.safe_dump(values))
    write_text(configs / "bundles" / f"{name}.md", MODEL_CARD)
    for shared in ("parts", "LICENSE"):
        place = configs_dir() / shared
        if place.exists():
            (configs / shared).symlink_to(place)
    bundle = write(name, folder / name, configs)
    torch.manual_seed(0)
    parser = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))
    network: Any = ConfigParser({"network": parser["network_def"]}).get_parsed_content("network")
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return bundle


def phantom_ct(path: Path, size: Sequence[int], spacing_mm: Sequence[float]) -> Path:
    """Write medvol's CT phantom as 16-bit NIfTI, drawn coarsely and enlarged to ``size``."""
    from medvol.datasets.phantoms import ct_phantom
    from medvol.io import write_nifti

    step = max(1, min(size) // 96)
    coarse = [-(-n // step) for n in size]
    drawn: Any = ct_phantom(0, shape=tuple(coarse), spacing_mm=(3.0, 3.0, 3.0))  # pyright: ignore[reportArgumentType]
    values = np.asarray(drawn.image).astype(np.int16)
    for axis in range(3):
        values = values.repeat(step, axis=axis)
    x, y, z = size
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, values[:x, :y, :z], np.diag([*spacing_mm, 1.0]), dtype=np.int16)
    return path
