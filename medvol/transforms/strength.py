"""Strengths of augmentation at which an image is no longer one that a scanner could have made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: Mid grey 0.5 becomes 0.25 to 0.71; nnU-Net uses 0.7 to 1.5.
GAMMA = (0.5, 2.0)
#: Of a normalised image: half the window, or half a standard deviation.
SHIFT = 0.5
NOISE_SD = 0.5
#: Standard deviation of a deformation's gradient above which it folds: -1 lies at 3 of them.
FOLDING = 1 / 3
_SPATIAL_WORDS = re.compile(
    r"flip|rot|transpose|permute|swapaxes|swapdims|moveaxis|movedim|roll|::\s*-1|\.T\b|\.mT\b"
)


def strength_faults(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What is too strong or cannot be judged in one transform.

    Args:
        name: Its class without the ending of dictionary transforms, such as ``RandGaussianNoise``.
        arguments: Of its config, or read back from the transform.
    """
    if name in ("Lambda", "RandLambda"):
        yield from _function_faults(name, arguments)
    if name == "Transpose":
        indices = [int(i) for i in arguments.get("indices") or ()]
        if indices != sorted(indices) or not indices:
            yield f"reorders axes ({indices}), so that image and patient axes no longer agree"
    if name in ("RandAdjustContrast", "AdjustContrast"):
        low, high = _range(arguments.get("gamma", (0.5, 4.5)), single=lambda g: (0.5, g))
        if low < GAMMA[0] - 1e-9 or high > GAMMA[1] + 1e-9:
            yield f"gamma {low:g} to {high:g} exceeds {GAMMA[0]:g} to {GAMMA[1]:g}"
    if name in ("RandShiftIntensity", "ShiftIntensity"):
        offsets = arguments.get("offsets", arguments.get("offset", 0.0))
        size = max(abs(bound) for bound in _range(offsets))
        if size > SHIFT + 1e-9:
            yield f"shifts intensity by up to {size:g}; {SHIFT:g} of a normalised image is allowed"
    if name in ("RandGaussianNoise", "RandRicianNoise"):
        size = max(abs(bound) for bound in _range(arguments.get("std", 0.1)))
        if size > NOISE_SD + 1e-9:
            yield f"adds noise of SD {size:g}; {NOISE_SD:g} of a normalised image is allowed"
    gradient = _deformation_gradient(name, arguments)
    if gradient > FOLDING:
        yield (
            f"deforms with a gradient of SD {gradient:.2f}, so that the image folds over itself; "
            f"{FOLDING:.2f} is allowed"
        )


def _function_faults(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    function = arguments.get("func", arguments.get("lambd"))
    text = function.lstrip("$ ") if isinstance(function, str) else ""
    if name == "Lambda" and text.startswith("lambda") and not _SPATIAL_WORDS.search(text):
        return
    yield "runs a function whose effect on sides cannot be judged; use a named transform"


def _deformation_gradient(name: str, arguments: Mapping[str, Any]) -> float:
    """Standard deviation of a random deformation's derivative along an axis.

    Uniform noise in -1 to 1, smoothed by a Gaussian of ``sigma`` voxels, has the standard deviation
    (2 sqrt(pi) sigma)^(-3/2) / sqrt(3), and its derivative that divided by sqrt(2) sigma. Between
    control points that are ``spacing`` apart and move by normal noise, it is about
    sqrt(2) magnitude / spacing.
    """
    magnitude = max(abs(bound) for bound in _range(arguments.get("magnitude_range", 0.0)))
    if name == "Rand3DElastic":
        sigma = max(_range(arguments.get("sigma_range", 1.0))[0], 0.5)
        spread = (2 * math.sqrt(math.pi) * sigma) ** -1.5 / math.sqrt(3)
        return magnitude * spread / (math.sqrt(2) * sigma)
    if name == "Rand2DElastic":
        return math.sqrt(2) * magnitude / max(_range(arguments.get("spacing", 1.0))[0], 1e-6)
    if name == "RandGridDistortion":
        limit = max(abs(b) for b in _range(arguments.get("distort_limit", 0.0)))
        return 0.0 if limit < 1 else limit
    return 0.0


def _range(value: Any, single: Any = None) -> tuple[float, float]:
    """Lower and upper bound of a number or a range; infinite where it cannot be read."""
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            numbers = [float(item) for item in value]
            return min(numbers), max(numbers)
        number = float(value)
    except (TypeError, ValueError):
        return -math.inf, math.inf
    low, high = single(number) if single else (number, number)
    return min(low, high), max(low, high)
