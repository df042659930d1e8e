"""metadata.json: what a bundle is, takes and gives, by MONAI's schema 20240725."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.core.errors import MissingPackageError
from medvol.core.files import sha256_file
from medvol.core.labels import find_label
from medvol.core.shipped import shipped_root

SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_RUNTIME = ("nibabel", "pytorch-ignite", "scikit-learn", "SimpleITK", "pydicom")


def metadata_of(
    name: str,
    values: Mapping[str, Any],
    weights: Path,
    source: str,
    configs: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The whole of ``metadata.json``.

    Args:
        name: The bundle's folder name.
        values: Values as :func:`medvol.bundle.write.read_values` returns them.
        weights: The bundle's weights; their digest is recorded where they exist.
        source: The values file, as a path that means something beside the bundle.
        configs: Every task's config; the decision is read from the first that has one.
    """
    meta = dict(values["meta"])
    decision = next(filter(None, map(stated_decision, configs)), None)
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
            **facts_of(values),
            **({"decision": decision} if decision else {}),
            "source": source,
            "weights_sha256": sha256_file(weights) if weights.is_file() else None,
        },
        "network_data_format": network_data_format(values),
    }


def facts_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle is and does, as data: nobody has to read it out of the config's components.

    Returns:
        ``family``, ``modality`` and ``body_part``; ``field_of_view``: ``crop`` or ``whole``, what
        the network was trained on, None if unknown; ``spacing_mm`` of the network's grid, None for
        the image's own; ``patch_size`` in voxels; ``labels``, value to name. For segmentations
        also ``sides`` of the labels, ``regions`` and ``ignore_label``; and ``cleaning`` and
        ``postprocessing_basis`` where the bundle cleans its masks. ``locates`` where a bundle of
        crops states what finds its structures in a whole scan: ``bundle``, ``structures``,
        ``margin_mm``, and ``largest_mm``, from which an image is a whole scan.
    """
    labels = {str(value): str(name) for value, name in values["labels"].items()}
    facts = {
        "family": values["family"],
        "modality": values["modality"],
        "body_part": values["body_part"],
        "field_of_view": values.get("field_of_view"),
        "spacing_mm": values.get("spacing_mm"),
        "patch_size": [int(n) for n in values["roi_size"]][: int(values["spatial_dims"])],
        "labels": labels,
    }
    if values["family"] == "segmentation":
        facts |= {
            "sides": {value: find_label(name).laterality for value, name in labels.items()},
            "regions": values.get("regions") or {},
            "ignore_label": values.get("ignore_label"),
        }
    if values.get("locates"):
        facts["locates"] = values["locates"]
    if values.get("output") == "cleaned":
        facts["cleaning"] = {key: values[key] for key in ("largest", "fill_holes", "min_mm3")}
        facts["postprocessing_basis"] = str(values.get("postprocessing_basis", ""))
    return facts


def stated_decision(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The decision of a task's config as data, every field written out; None if it has none.

    See :class:`medvol.inferers.Decision` for what the fields mean.
    """
    given = config.get("decision")
    if not isinstance(given, Mapping):
        return None
    default = {"thresholds": None, "factors": None, "overlaps": False}
    return {**default, **{key: value for key, value in given.items() if key != "_target_"}}


def network_data_format(values: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of the network as the schema requires them."""
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
