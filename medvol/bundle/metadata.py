"""metadata.json: what a bundle is, takes and gives, by MONAI's schema 20240725."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.bundle.places import shipped_root
from medvol.core.errors import MissingPackageError
from medvol.core.files import sha256_file

SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_RUNTIME = ("nibabel", "pytorch-ignite", "scikit-learn", "SimpleITK", "pydicom")


def metadata_of(name: str, values: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """The whole of ``metadata.json``.

    Args:
        name: The bundle's folder name.
        values: Values as :func:`medvol.bundle.write.read_values` returns them.
        weights: The bundle's weights; their digest is recorded where they exist.
    """
    meta, regions = dict(values["meta"]), values.get("regions")
    known = {
        "schema": SCHEMA_URL,
        "version": meta.pop("version"),
        "changelog": meta.pop("changelog"),
        "monai_version": package_version("monai"),
        "pytorch_version": package_version("torch"),
        "numpy_version": package_version("numpy"),
        "required_packages_version": {
            "medvol": __version__,
            **{package: package_version(package) for package in _RUNTIME},
        },
        "supported_apps": {"monai-label": ""},
        "name": meta.pop("title"),
        "task": meta.pop("task"),
        "description": meta.pop("description"),
        "authors": "medvol contributors",
        "copyright": "Copyright (c) medvol contributors",
    }
    return {
        **known,
        **meta,
        "medvol": {
            "name": name,
            "family": values["family"],
            "modality": values["modality"],
            "body_part": values["body_part"],
            "spacing_mm": values.get("spacing_mm"),
            "weights_sha256": sha256_file(weights) if weights.is_file() else None,
            **_basis(values),
            **({"labels": {str(k): v for k, v in values["labels"].items()}} if regions else {}),
        },
        "network_data_format": network_data_format(values),
    }


def _basis(values: Mapping[str, Any]) -> dict[str, str]:
    """What thresholds and clean-up were chosen on, where the bundle has any."""
    basis = values.get("postprocessing_basis")
    return {"postprocessing_basis": str(basis)} if basis else {}


def network_data_format(values: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of the network as the schema wants them."""
    labels = {int(key): str(label).lower() for key, label in values["labels"].items()}
    is_segmentation = values["family"] == "segmentation"
    names = [str(name).lower() for name in values.get("regions") or ()]
    names = names or [labels[key] for key in sorted(labels)]
    has_background = values.get("output") not in ("sigmoid", "regions")
    channels = {"0": "background"} if has_background else {}
    channels |= {str(len(channels) + i): name for i, name in enumerate(names)}
    if not is_segmentation:
        channels = {str(key): labels[key] for key in sorted(labels)}
    shape = [int(n) for n in values["roi_size"]][: int(values["spatial_dims"])]
    image = {
        "type": "image",
        "format": "hounsfield" if values["modality"] == "CT" else "magnitude",
        "modality": values["modality"],
        "num_channels": values["in_channels"],
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1] if values.get("normalisation") in ("window", "unit") else [],
        "is_patch_data": is_segmentation,
        "channel_def": {str(i): f"image {i}" if i else "image"
                        for i in range(values["in_channels"])},
    }  # fmt: skip
    pred = {
        "type": "image" if is_segmentation else "probabilities",
        "format": "segmentation" if is_segmentation else "classes",
        "num_channels": len(channels),
        "spatial_shape": shape if is_segmentation else [1],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": is_segmentation,
        "channel_def": channels,
    }
    return {"inputs": {"image": image}, "outputs": {"pred": pred}}


def package_version(package: str) -> str:
    """The version that this project is tested with: its lock's, else the installed one's.

    Raises:
        MissingPackageError: If it is neither locked nor installed.
    """
    lock = shipped_root() / "tools" / "constraints.txt"
    if lock.is_file():
        found = re.search(rf"(?im)^{re.escape(package)}==([\w.]+)", lock.read_text("utf-8"))
        if found:
            return found.group(1)
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackageError(f"{package} is not installed; pip install {package}") from error
