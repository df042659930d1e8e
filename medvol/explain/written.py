"""Explanations on disk: the raw map, an overlay image, and the map in numbers."""

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
from medvol.io import formats

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
        modality: Decides how the body is separated from air.
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
            path = Path(str(case["source"]))
            name = str(case.get("case") or file_name(path))
            self._write_case(row, item, path, unused_name(name, self.names))

    def _write_case(self, row: int, item: Mapping[str, Any], path: Path, name: str) -> None:
        chosen = self.inferer.class_index
        probabilities = self.inferer.probabilities[row].tolist()
        number = int(np.argmax(probabilities)) if chosen is None else int(chosen)  # pyright: ignore[reportArgumentType]
        facts = {
            "class": self.classes[number],
            "probability": probabilities[number],
            "method": self.inferer.method,
        }
        raw = {layer: maps[row, 0] for layer, maps in self.inferer.raw.items()}
        write_explanation(
            output_path(self.folder, name),
            path, item["pred"], {layer: (m, item["image"]) for layer, m in raw.items()},
            facts, self.threshold,
        )  # fmt: skip


def file_name(path: Path) -> str:
    """The name without its image suffix; a folder's stays, and so do numbers after a dot.

    >>> file_name(Path("case.01.nii.gz")), file_name(Path("1.2.840.113"))
    ('case.01', '1.2.840.113')
    """
    return path.name if path.is_dir() else formats.split_name(path.name)[0]


def unused_name(base: str, names: set[str]) -> str:
    """A case's name, numbered where another case has it; added to ``names``."""
    name, number = base, 1
    while name in names:
        number += 1
        name = f"{base}_{number}"
    names.add(name)
    return name


def write_explanation(
    folder: Path,
    source: Path,
    cam: Any,
    raw: Mapping[str, tuple[Any, Any]],
    facts: Mapping[str, Any],
    threshold: float | None = None,
) -> dict[str, Any]:
    """Write one case's ``explanation.json``, ``overlay.png`` and raw maps.

    Args:
        folder: The case's own folder; its name is the case's.
        source: The image file.
        cam: Map on the image's grid, shape (1, ...), 0 to 1.
        raw: Layer to (unnormalised map, the network's input that it covers).
        facts: What else is known: class, probability, method.
        threshold: As for :func:`describe`.

    Returns:
        The content of ``explanation.json``.
    """
    from medvol.io import read_image, write_nifti

    image = read_image(source)
    unit = np.clip(_numpy(cam)[0].astype(np.float64), 0, 1)
    shown = _numpy(image).astype(np.float64).mean(0).reshape(unit.shape)
    layers = {}
    for layer, (values, covered) in raw.items():
        array = _numpy(values).astype(np.float32)
        affine = layer_affine(covered.affine, covered.shape[1:], array.shape)
        cube = array.reshape(*array.shape, *[1] * (3 - array.ndim))
        write_nifti(output_path(folder, f"raw_{layer}.nii.gz"), cube, affine)
        layers[layer] = list(array.shape)
    numbers = describe(unit, shown, np.asarray(image.affine, np.float64), threshold)
    content = {"case": folder.name, **facts, "layers": layers, **numbers}
    write_json(output_path(folder, "explanation.json"), content)
    write_overlay(shown, unit, output_path(folder, "overlay.png"))
    return content


def describe(
    cam: NDArray[np.float64],
    image: NDArray[np.float64],
    affine: NDArray[np.float64],
    threshold: float | None = None,
) -> dict[str, Any]:
    """A map in numbers.

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
    """Write the image with its map as a PNG: one image, or three planes through the peak.

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


def _numpy(value: Any) -> NDArray[Any]:
    plain = value.as_tensor() if hasattr(value, "as_tensor") else value
    return np.asarray(plain.detach().cpu() if hasattr(plain, "detach") else plain)
