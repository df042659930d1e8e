"""Inference tasks: label maps on the image's own grid; scores with a Grad-CAM mask."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Invertd
from monailabel.tasks.infer.bundle import BundleInferTask  # pyright: ignore[reportMissingImports]

from medvol.core.errors import ConfigError, NonFiniteError
from medvol.explain import GradCAM
from medvol.explain.run import last_spatial_layer
from medvol.io import formats, write_itk, write_nifti, write_png16
from medvol.networks import Ensemble

_CAM_THRESHOLD = 0.5


class InferTask(BundleInferTask):
    """A bundle as an inference task.

    What differs from MONAI Label's own: the task comes from the metadata, weights must fit the
    network, the mask is written through medvol's writers with the image's affine in full
    precision, and a classifier's mask is the Grad-CAM of the class it chose.

    Args:
        path: The bundle's folder inside the app.
        conf: The app's configuration.
        family: ``segmentation`` or ``classification``.
    """

    def __init__(self, path: Path, conf: Mapping[str, str], family: str) -> None:
        self.bundle, self.family = path, family
        super().__init__(
            str(path), dict(conf), type=family, load_strict=True, add_post_restore=False
        )

    def is_valid(self) -> bool:
        """Whether the bundle could be loaded, weights and all."""
        return self.valid

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The bundle's ``metadata.json``."""
        return json.loads((self.bundle / "configs" / "metadata.json").read_text("utf-8"))

    @property
    def is_ensemble(self) -> bool:
        """Whether the network has members that can disagree."""
        return isinstance(self.network, Ensemble) and len(self.network.networks) > 1

    def prepared(self, image: str, device: str) -> tuple[torch.Tensor, torch.nn.Module, Any]:
        """The preprocessed image (1, C, ...), the network and the inferer: what scoring needs."""
        data: Any = {"image": image, "image_path": image, "device": device}
        for transform in self.pre_transforms(data):
            data = transform(data)
        network = self._get_network(device, None)
        return data["image"][None].to(device), network, self.pipeline.inferer

    @cached_property
    def pipeline(self) -> Any:
        """The bundle's :class:`medvol.inferers.PredictionPipeline`."""
        return self.bundle_config.get_parsed_content("pipeline", instantiate=True)

    def inferer(self, data: Any = None) -> Any:
        """The bundle's pipeline, so that a mask is the one that every other way gives."""
        return self.pipeline if self.family == "segmentation" else super().inferer(data)

    def run_inferer(
        self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cuda"
    ) -> dict[str, Any]:
        """The network's output as ``pred``; for a classifier also its map as ``cam``."""
        data = super().run_inferer(data, convert_to_batch, device)
        pred = data[self.output_label_key]
        if not bool(torch.isfinite(torch.as_tensor(pred)).all()):
            raise NonFiniteError(f"{self.bundle.name}: the network's output is not finite")
        if self.family == "classification":
            data["cam"], data["cam_class"] = self._explain(data, torch.as_tensor(pred), device)
        return data

    def writer(
        self, data: dict[str, Any], extension: str | None = None, dtype: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """The mask's file and the parameters returned with it."""
        if self.family == "classification":
            return self._write_scores(data)
        pred = data[self.output_label_key]
        labels = np.asarray(torch.as_tensor(pred).cpu())[0].round().astype(np.uint8)
        found = dict(data.get(self.output_json_key) or {})
        affine = _affine(pred)
        if labels.ndim == 3:
            voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
            found["volume_ml"] = {
                name: round(float((labels == value).sum()) * voxel_ml, 4)
                for name, value in dict(self.labels).items()
            }
        return _write(data, labels, affine, extension), found

    def _explain(
        self, data: Mapping[str, Any], logits: torch.Tensor, device: str
    ) -> tuple[Any, int]:
        chosen = self._class_number(data.get("class"), int(logits.argmax()))
        network, x = self._get_network(device, None), data[self.input_key][None].to(device)
        layer = last_spatial_layer(network, torch.as_tensor(x).as_subclass(torch.Tensor))
        cam = GradCAM(network, layer)(x, chosen)[0].cpu()
        image = data[self.input_key]
        inverse = Invertd("pred", self._pre, "image", nearest_interp=False)  # pyright: ignore[reportArgumentType]
        return inverse({"image": image, "pred": cam})["pred"], chosen

    def pre_transforms(self, data: Any = None) -> Sequence[Any]:
        """MONAI Label's list, kept so that the map can be brought back to the image's grid."""
        from monai.transforms import Compose

        found = super().pre_transforms(data)
        self._pre = Compose(list(found))
        return found

    def _class_number(self, wanted: Any, default: int) -> int:
        if wanted is None:
            return default
        known = dict(self.labels)
        if wanted not in known:
            raise ConfigError(f"class {wanted!r} is unknown; known: {', '.join(known)}")
        return int(known[wanted])

    def _write_scores(self, data: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        scores = torch.as_tensor(data[self.output_label_key]).flatten().tolist()
        names = {int(number): name for name, number in dict(self.labels).items()}
        rows = [{"idx": i, "label": names.get(i, f"label_{i}"), "score": float(score)}
                for i, score in enumerate(scores)]  # fmt: skip
        threshold = float(data.get("cam_threshold", _CAM_THRESHOLD))
        unit = np.clip(np.asarray(torch.as_tensor(data["cam"]))[0], 0, 1)
        mask = (unit >= threshold).astype(np.uint8) if unit.any() else np.zeros_like(unit, np.uint8)
        found = {
            "prediction": rows,
            "mask": {
                "method": "Grad-CAM",
                "class": names.get(data["cam_class"], str(data["cam_class"])),
                "threshold": threshold,
            },
        }
        return _write(data, mask, _affine(data["cam"]), None), found


class GradCamTask(InferTask):
    """A classifier's map as a segmentation: 3D Slicer lists no classifiers, but shows this."""

    def __init__(self, path: Path, conf: Mapping[str, str], family: str = "classification") -> None:
        super().__init__(path, conf, family)
        if self.valid:
            self.description = f"Where the classifier looked (Grad-CAM): {self.description}"

    def info(self) -> dict[str, Any]:
        """A segmentation of one label to every client."""
        return {**super().info(), "type": "segmentation", "labels": {"evidence": 1}}


def _affine(volume: Any) -> np.ndarray:
    affine = getattr(volume, "affine", None)
    return np.eye(4) if affine is None else np.asarray(torch.as_tensor(affine).cpu(), np.float64)


def _write(
    data: Mapping[str, Any], mask: np.ndarray, affine: np.ndarray, extension: str | None
) -> str | None:
    """Write a mask where MONAI Label expects it; None where the client asks for none."""
    if not data.get("result_write_to_file", True):
        return None
    wanted = extension or data.get("result_extension") or _suffix(str(data.get("image_path", "")))
    suffix = wanted if wanted.startswith(".") else f".{wanted}"
    if mask.ndim == 2 and suffix in formats.FLAT:
        return str(write_png16(_scratch(".png"), mask))
    mask = mask.reshape(*mask.shape, *[1] * (3 - mask.ndim))
    affine = affine if affine.shape == (4, 4) else np.eye(4)
    if formats.ends_like(suffix, formats.ITK_FILES):
        return str(write_itk(_scratch(suffix), mask, affine, dtype=np.uint8))
    path = _scratch(suffix if suffix in formats.NIFTI_FILES else ".nii.gz")
    return str(write_nifti(path, mask, affine, dtype=np.uint8))


def _scratch(suffix: str) -> Path:
    """A file of ours in the system's folder for such, which MONAI Label removes after sending."""
    handle, name = tempfile.mkstemp(prefix="medvol_label_", suffix=suffix)
    os.close(handle)
    return Path(name)


def _suffix(name: str) -> str:
    written = (*formats.NIFTI_FILES, *formats.ITK_FILES, *formats.FLAT)
    suffix = formats.split_name(name)[1].lower()
    return suffix if suffix in written else ".nii.gz"
