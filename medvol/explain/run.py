"""Explaining a classifier's answers for files, and checking whether to believe the maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medvol.core import ConfigError, GridMismatchError, MissingInputError, output_path
from medvol.explain.cam import Explainer
from medvol.explain.capture import class_scores, undisturbed
from medvol.explain.inferer import Method, make_explainer
from medvol.explain.masking import deletion, insertion
from medvol.explain.pointing import energy_inside, energy_lift, points_into
from medvol.explain.sanity import RANDOMISED_LIMIT, cascading_randomisation
from medvol.explain.written import file_name, unused_name, write_explanation

_BODY_HU = -500.0


@dataclass(frozen=True)
class Classifier:
    """What an explanation needs of a bundle.

    Attributes:
        network: With weights.
        preprocessing: Invertible MONAI transforms from ``{"image": path}`` to the network's input.
        labels: Class number to name.
        modality: Decides how the body is separated from air.
    """

    network: nn.Module
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]]
    labels: Mapping[Any, str]
    modality: str = ""

    def name_of(self, number: int) -> str:
        """A class's name."""
        return {int(key): str(name) for key, name in self.labels.items()}[number]

    def number_of(self, name: str | None) -> int | None:
        """A class's number from its name or digits; None stays None.

        Raises:
            ConfigError: If there is no such class.
        """
        if name is None:
            return None
        for key, known in self.labels.items():
            if name in (str(known), str(key)):
                return int(key)
        raise ConfigError(f"class {name!r} is unknown; known: {', '.join(self.labels.values())}")


@dataclass(frozen=True)
class ExplainOptions:
    """How to explain.

    Attributes:
        method: As for :func:`medvol.explain.make_explainer`.
        layer: Layer for the activation maps; empty takes the last one with a grid.
        class_index: Class to explain; None explains each image's highest.
        masks: Folder of masks with the images' names, for the pointing game.
        checks: Whether to run deletion, insertion and randomisation.
    """

    method: Method = "gradcam"
    layer: str = ""
    class_index: int | None = None
    masks: Path | None = None
    checks: bool = False


def explain_files(
    classifier: Classifier, paths: Sequence[Path], output_dir: Path, options: ExplainOptions
) -> list[dict[str, Any]]:
    """Write a map for every image, see :class:`medvol.explain.ExplanationWriter`.

    Returns:
        The content of every ``explanation.json``.
    """
    if options.masks is not None and not any(
        (options.masks / path.name).is_file() for path in paths
    ):
        raise MissingInputError(f"{options.masks}: holds no mask named like an image")
    rows, names = [], set()
    for path in paths:
        case = classifier.preprocessing({"image": str(path), "source": str(path)})
        folder = output_path(output_dir, unused_name(file_name(path), names))
        rows.append(_explain_case(classifier, path, case, folder, options))
    return rows


def last_spatial_layer(network: nn.Module, x: Tensor) -> str:
    """The last module whose output still has a grid of more than one cell: Grad-CAM's usual layer.

    Raises:
        ConfigError: If no module of the network keeps a grid.
    """
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == x.ndim and max(output.shape[2:]) > 1:
                found.append(name)

        return hook

    leaves = [(n, m) for n, m in network.named_modules() if n and not list(m.children())]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with undisturbed(network):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ConfigError(f"{type(network).__name__}: no layer keeps a grid; name one with --layer")
    return found[-1]


def check_randomisation(
    classifier: Classifier,
    inputs: Tensor,
    build: Callable[[nn.Module], Explainer],
    class_index: int,
) -> dict[str, Any]:
    """Whether maps depend on the learned weights, as JSON.

    Returns:
        Median |rank correlation| at each stage; ``is_passed`` if it is below 0.3 with every layer
        random, None where the maps have no variance to judge by.
    """
    steps = cascading_randomisation(classifier.network, build, inputs, class_index)
    medians = [None if math.isnan(s.median) else round(s.median, 4) for s in steps]
    last = medians[-1]
    return {
        "random_layers": [step.layers for step in steps],
        "median_correlation": medians,
        "is_passed": None if last is None else last < RANDOMISED_LIMIT,
    }


def _explain_case(
    classifier: Classifier, path: Path, case: dict[str, Any], folder: Path, options: ExplainOptions
) -> dict[str, Any]:
    from monai.transforms.post.dictionary import Invertd

    network, x = classifier.network, case["image"][None]
    with undisturbed(network):
        probabilities = class_scores(network(x.as_tensor())).softmax(1)[0].tolist()
    number = int(np.argmax(probabilities)) if options.class_index is None else options.class_index
    needs_layer = options.method not in ("occlusion", "rollout")
    layer = options.layer or (last_spatial_layer(network, x.as_tensor()) if needs_layer else "")

    def build(net: nn.Module) -> Explainer:
        return make_explainer(net, options.method, layer)

    found = build(network).explain(x, number)
    invert = Invertd("pred", classifier.preprocessing, "image", nearest_interp=False)  # pyright: ignore[reportArgumentType]
    inverted = invert({"image": case["image"], "pred": found.unit[0]})
    facts: dict[str, Any] = {
        "class": classifier.name_of(number),
        "probability": probabilities[number],
        "method": options.method,
    }
    unit = np.clip(np.asarray(inverted["pred"].as_tensor())[0], 0, 1)
    if options.masks is not None:
        cells = next(iter(found.raw.values())).shape[2:]
        facts["mask"] = _against_mask(unit, path, options.masks, cells)
    if options.checks:
        plain = x.as_tensor()
        hidden = deletion(network, plain, torch.as_tensor(found.unit), number)
        shown = insertion(network, plain, torch.as_tensor(found.unit), number)
        facts["deletion"] = {"area": hidden.area, "random": hidden.random_area}
        facts["insertion"] = {"area": shown.area, "random": shown.random_area}
        facts["randomisation"] = check_randomisation(classifier, plain, build, number)
    _write_map(inverted["pred"], unit, output_path(folder, "cam.nii.gz"))
    raw = {name: (maps[0, 0], case["image"]) for name, maps in found.raw.items()}
    threshold = _BODY_HU if classifier.modality == "CT" else None
    return write_explanation(folder, path, inverted["pred"], raw, facts, threshold)


def _write_map(cam: Any, unit: np.ndarray, target: Path) -> None:
    from medvol.io import write_nifti

    cube = unit.astype(np.float32).reshape(*unit.shape, *[1] * (3 - unit.ndim))
    write_nifti(target, cube, np.asarray(cam.affine, np.float64))


def _against_mask(
    unit: np.ndarray, path: Path, folder: Path, cells: Sequence[int]
) -> dict[str, Any] | None:
    from medvol.io import read_image

    if not (folder / path.name).is_file():
        return None
    found = np.asarray(read_image(folder / path.name).as_tensor())[0]
    if found.size != unit.size or found.shape[: unit.ndim] != unit.shape:
        raise GridMismatchError(f"{folder / path.name}: has shape {found.shape} but its image has "
                                f"{unit.shape}")  # fmt: skip
    mask = found.reshape(unit.shape) > 0
    if not mask.any():
        return None
    cell = [n / max(1, c) for n, c in zip(unit.shape, cells, strict=True)]
    return {
        "points_into": points_into(unit, mask, cell),
        "energy_inside": energy_inside(unit, mask),
        "energy_lift": energy_lift(unit, mask),
    }
