"""Explanations on disk: the raw map, an overlay picture, and what the map says in numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from medvol.core import atomic_path, output_path, write_json
from medvol.explain.grid import layer_affine
from medvol.explain.inferer import CAMInferer
from medvol.explain.pointing import body_mask, energy_inside

_BODY_HU = -500.0


class ExplanationWriter:
    """Ignite handler of a Grad-CAM bundle's evaluator.

    For each case, in ``<output_dir>/<case>/``: ``explanation.json`` (class, probability, method,
    layer, where the map peaks, the share of its energy outside the body), ``overlay.png`` on the
    input's grid, and ``raw_<layer>.nii.gz``, the unnormalised map at the layer's resolution.

    Args:
        output_dir: Where to write.
        inferer: The bundle's :class:`medvol.explain.CAMInferer`.
        labels: Class number to name.
        modality: Decides how the body is told from air.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        inferer: CAMInferer,
        labels: Mapping[Any, str],
        modality: str = "",
    ) -> None:
        self.folder, self.inferer = Path(output_dir), inferer
        self.classes = [str(labels[key]) for key in sorted(labels, key=int)]
        self.threshold = _BODY_HU if modality == "CT" else None
        self.names: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Write after every batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        output: Any = engine.state.output
        cases: Any = engine.state.batch
        for row, (item, case) in enumerate(zip(output, cases, strict=True)):
            self._write_case(row, item, Path(str(case["source"])))

    def _write_case(self, row: int, item: Mapping[str, Any], path: Path) -> None:
        from medvol.io import read_image

        image = read_image(path)
        cam = np.asarray(item["pred"].detach().cpu().as_subclass(type(item["pred"])))[0]
        cam = np.clip(cam.astype(np.float64), 0, 1)
        shown = np.asarray(image.as_tensor(), np.float64).mean(0).reshape(cam.shape)
        name = self._name(path)
        probabilities = self.inferer.probabilities[row].tolist()
        chosen = self.inferer.class_index
        number = int(np.argmax(probabilities)) if chosen is None else int(chosen)  # pyright: ignore[reportArgumentType]
        affine = np.asarray(image.affine, np.float64)
        facts = {
            "case": name,
            "class": self.classes[number],
            "probability": probabilities[number],
            "method": self.inferer.method,
            "layers": self._write_raw(row, name, item),
            **describe(cam, shown, affine, self.threshold),
        }
        write_json(output_path(self.folder, name, "explanation.json"), facts)
        write_overlay(shown, cam, output_path(self.folder, name, "overlay.png"))

    def _write_raw(self, row: int, name: str, item: Mapping[str, Any]) -> dict[str, list[int]]:
        from medvol.io import write_nifti

        shapes = {}
        for layer, maps in self.inferer.raw.items():
            raw = maps[row, 0].cpu().numpy().astype(np.float32)
            source = item["image"]
            affine = layer_affine(source.affine, source.shape[1:], raw.shape)
            target = output_path(self.folder, name, f"raw_{layer}.nii.gz")
            write_nifti(target, raw.reshape(*raw.shape, *[1] * (3 - raw.ndim)), affine)
            shapes[layer] = list(raw.shape)
        return shapes

    def _name(self, path: Path) -> str:
        base, number = path.name.partition(".")[0], 1
        name = base
        while name in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        return name


def describe(
    cam: NDArray[np.float64],
    image: NDArray[np.float64],
    affine: NDArray[np.float64],
    threshold: float | None = None,
) -> dict[str, Any]:
    """What a map says in numbers.

    Args:
        cam: On the image's grid, 0 to 1.
        image: One channel, same shape.
        affine: Voxel index to RAS mm.
        threshold: What counts as body; see :func:`medvol.explain.body_mask`.

    Returns:
        ``peak_voxel``, ``peak_mm`` (RAS) and ``energy_outside_body`` (None for an empty map);
        ``is_empty`` where the class has no evidence at all.
    """
    if not cam.max() > 0:
        return {"is_empty": True, "peak_voxel": None, "peak_mm": None, "energy_outside_body": None}
    peak = np.unravel_index(int(np.argmax(cam)), cam.shape)
    index = np.array([*peak, *[0] * (3 - len(peak)), 1.0])
    outside = energy_inside(cam, ~body_mask(image, threshold=threshold))
    return {
        "is_empty": False,
        "peak_voxel": [int(i) for i in peak],
        "peak_mm": [round(float(v), 3) for v in (affine @ index)[:3]],
        "energy_outside_body": None if math.isnan(outside) else round(outside, 4),
    }


def write_overlay(
    image: NDArray[np.float64], cam: NDArray[np.float64], target: str | os.PathLike[str]
) -> None:
    """Write the image with its map as a PNG: one picture, or three planes through the peak.

    Args:
        image: (X, Y) or (X, Y, Z).
        cam: Same shape, 0 to 1; transparent where 0.
        target: The PNG file.
    """
    from PIL import Image

    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    tiles = [_blend(g, c) for g, c in zip(_planes(grey, cam), _planes(cam, cam), strict=True)]
    tall = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(t, ((0, tall - t.shape[0]), (0, 4), (0, 0))) for t in tiles]
    pixels = np.round(255 * np.concatenate(padded, axis=1)).astype(np.uint8)
    with atomic_path(target) as scratch:
        Image.fromarray(pixels).save(scratch)


def _planes(volume: NDArray[np.float64], cam: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    """Rows run downwards: an image as stored, a volume with superior (or anterior) up."""
    if volume.ndim == 2:
        return [volume.T]
    x, y, z = np.unravel_index(int(np.argmax(cam)), cam.shape)
    return [plane.T[::-1] for plane in (volume[x], volume[:, y], volume[:, :, z])]


def _blend(grey: NDArray[np.float64], cam: NDArray[np.float64]) -> NDArray[np.float64]:
    heat = np.stack(
        [np.clip(3 * cam - k, 0, 1) for k in (0, 1, 2)], -1
    )  # black, red, yellow, white
    alpha = 0.6 * np.clip(cam, 0, 1)[..., None]
    return (1 - alpha) * grey[..., None] + alpha * heat
