"""What augmentation the anatomy, the modality and the labels allow, and who breaks it."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvol.core import (
    ConfigError,
    PatientAxis,
    PolicyError,
    anatomy_rule,
    array_axis,
    check_mirror,
    check_rotation,
    find_modality,
    label_values,
)
from medvol.core.anatomy import PATIENT_AXES
from medvol.transforms.strength import strength_faults

_AXIS_OF_CODE: dict[str, PatientAxis] = dict(
    zip("LRAPIS", (axis for axis in PATIENT_AXES for _ in "xx"), strict=True)
)
_ROTATIONS = {
    "RandRotate": ("range_x", "range_y", "range_z"),
    "Rotate": ("angle",),
    "Affine": ("rotate_params",),
    "RandAffine": ("rotate_range",),
    "Rand2DElastic": ("rotate_range",),
    "Rand3DElastic": ("rotate_range",),
    "RandSpatial": ("rotate_range", "rotate"),
    "RandSpatialBatch": ("rotate_range", "rotate"),
}
_ERASERS = {"RandCoarseDropout", "RandCoarseShuffle", "RandCoarseTransform", "RandomErasing"}
_SCALED = {"RandAffine", "Rand2DElastic", "Rand3DElastic"}
_MIRROR_ARGUMENTS = ("tta", "flip_axes", "mirror_axes", "tta_axes")


@dataclass(frozen=True)
class AugmentationPolicy:
    """What may be done to images of one modality and body part with these labels.

    Attributes:
        modality: Row of ``medvol.core.modality``.
        body_part: Row of ``medvol.core.anatomy``.
        labels: Label names, or value to name; a name with a side rejects the left-right mirror.
        swap_labels: Pairs of label values that trade places when left and right are mirrored.
    """

    modality: str
    body_part: str
    labels: Sequence[str] | Mapping[Any, str] = ()
    swap_labels: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        find_modality(self.modality)
        anatomy_rule(self.body_part)
        label_values(self.labels)

    @property
    def mirrors(self) -> tuple[PatientAxis, ...]:
        """Patient axes along which images may be mirrored."""
        return tuple(axis for axis in PATIENT_AXES if self.mirror_objection(axis) is None)

    def mirror_objection(self, axis: PatientAxis) -> str | None:
        """Why a mirror along a patient axis is rejected, or None."""
        try:
            check_mirror(self.body_part, axis, self.labels, self.swap_labels)
        except PolicyError as error:
            return str(error)
        return None

    def mirrored_axes(self, affine: Any, ndim: int) -> tuple[int, ...]:
        """Array axes along which an image with this affine may be mirrored.

        Asked through the affine, so that the answer is the same patient axis however the image is
        stored; an image tilted by more than half the largest legal rotation has none.
        """
        tilt_deg = anatomy_rule(self.body_part).max_rotation_deg / 2
        found = (array_axis(affine, ndim, axis, tilt_deg) for axis in self.mirrors)
        return tuple(sorted(axis for axis in found if axis is not None))

    def violations(self, transforms: Any) -> list[str]:
        """One line per transform that breaks the policy, naming it; empty when none does.

        Args:
            transforms: A config (a list or dict with ``_target_`` entries, nested or not),
                MONAI transform objects, or a ``Compose`` of them.
        """
        steps = [(path, name, _short(name), held) for path, name, held in _walk(transforms)]
        turned = [held.get("axcodes") for _, _, short, held in steps if short == "Orientation"]
        lines, axcodes = [], None
        for path, name, short, held in steps:
            if short == "Orientation":
                axcodes = held.get("axcodes")
            # what is not a random transform runs on prepared images, wherever the config names it
            known = axcodes if short.startswith("Rand") else (turned or [None])[-1]
            where = f"{name.rsplit('.', 1)[-1]} ({path})" if path else name.rsplit(".", 1)[-1]
            lines += [f"{where}: {fault}" for fault in self._faults(short, held, known)]
        return lines

    def _faults(
        self, name: str, arguments: Mapping[str, Any], axcodes: str | None
    ) -> Iterator[str]:
        yield from self._mirror_faults(name, arguments, axcodes)
        yield from self._rotation_faults(name, arguments)
        yield from self._intensity_faults(name, arguments)
        yield from strength_faults(name, arguments)
        if name in _ERASERS or str(arguments.get("name", "")) in _ERASERS:
            yield "erases part of the image while the label still marks it"

    def _mirror_faults(
        self, name: str, arguments: Mapping[str, Any], axcodes: str | None
    ) -> Iterator[str]:
        pairs = tuple(arguments.get("swap_labels") or ()) or self.swap_labels
        for axis in _mirrored(name, arguments, axcodes):
            if axis is None:
                if len(self.mirrors) < len(PATIENT_AXES):
                    yield (
                        "mirrors an array axis whose patient axis is unknown; put Orientationd "
                        "before it, or use RandSpatiald with flip_axes"
                    )
                continue
            try:
                check_mirror(self.body_part, axis, self.labels, pairs)
            except ConfigError as error:
                yield str(error)

    def _rotation_faults(self, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        if name in ("RandRotate90", "Rotate90"):
            yield from self._turn_fault(math.pi / 2)
        for argument in _ROTATIONS.get(name, ()):
            largest = _largest(arguments.get(argument))
            if largest is None:
                yield f"{argument} {arguments[argument]!r} is not a number, so it cannot be judged"
            else:
                yield from self._turn_fault(largest)
        if arguments.get("name") == "RandomRotation":
            yield from self._turn_fault(math.radians(_largest(arguments.get("degrees")) or 0.0))
        if name in _SCALED and (_largest(arguments.get("scale_range")) or 0.0) >= 1:
            yield f"scale_range {arguments['scale_range']!r} can mirror the image or shrink it away"

    def _turn_fault(self, angle_rad: float) -> Iterator[str]:
        try:
            check_rotation(self.body_part, angle_rad)
        except PolicyError as error:
            yield str(error)

    def _intensity_faults(self, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        limit = find_modality(self.modality).max_jitter
        for what, change in _jitters(name, arguments):
            if what == "hue" and change:
                yield "shifts hue, and colour carries the diagnosis"
            elif change > limit + 1e-9:
                yield (
                    f"{what} changes by up to {change:.0%}, {find_modality(self.modality).name} "
                    f"allows {limit:.0%}"
                )


def policy_violations(
    config_transforms: Any,
    modality: str,
    body_part: str,
    labels: Sequence[str] | Mapping[Any, str] = (),
) -> list[str]:
    """Lines that name every transform or test-time mirror of a config that its anatomy forbids.

    Args:
        config_transforms: The transforms, inferer or whole config, as JSON holds them.
        modality: Modality of the bundle.
        body_part: Body part of the bundle.
        labels: Label names, or value to name.

    >>> policy_violations([{"_target_": "RandFlipd", "keys": "image"}], "XR", "chest")[0][:24]
    'RandFlipd (0): mirrors a'
    """
    return AugmentationPolicy(modality, body_part, labels).violations(config_transforms)


def _walk(node: Any, path: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every configured or constructed transform below a node as (path, class name, arguments)."""
    below = f"{path}#" if path else ""
    if isinstance(node, Mapping):
        if node.get("_disabled_") in (True, "true"):
            return
        if "_target_" in node:
            yield path, str(node["_target_"]), node
        for key, value in node.items():
            yield from _walk(value, f"{below}{key}")
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _walk(value, f"{below}{number}")
    elif hasattr(node, "transforms"):
        yield from _walk(list(node.transforms), path)
    elif callable(node) and not isinstance(node, type):
        yield path, type(node).__name__, _constructed(node)


def _constructed(transform: Any) -> dict[str, Any]:
    """The arguments that matter here, read back from a transform object."""
    found: dict[str, Any] = {}
    for part in (transform, *(v for v in vars(transform).values() if hasattr(v, "__dict__"))):
        inner = [v for v in vars(part).values() if hasattr(v, "__dict__")]
        for holder in (part, *inner):
            for name, value in vars(holder).items():
                if not name.startswith("_") and not callable(value):
                    found.setdefault(name, value)
    return found


def _short(name: str) -> str:
    """Class name without module, without the ``d``, ``D`` or ``Dict`` of dictionary transforms."""
    name = name.rsplit(".", 1)[-1]
    for ending in ("Dict", "d", "D"):
        if name.endswith(ending) and len(name) > len(ending) + 3 and name != "RandomHorizontal":
            return name[: -len(ending)]
    return name


def _mirrored(
    name: str, arguments: Mapping[str, Any], axcodes: str | None
) -> list[PatientAxis | None]:
    """Patient axes that a transform may mirror; None for one that the config leaves open."""
    every: list[int] = list(range(len(axcodes))) if axcodes else [0, 1, 2]
    axes: list[Any] = []
    is_flip = name in ("RandFlip", "Flip")
    if name == "RandAxisFlip" or (is_flip and arguments.get("spatial_axis") is None):
        axes = list(every)
    elif is_flip:
        axes = _listed(arguments["spatial_axis"])
    elif name == "Affine":
        scales = enumerate(_listed(arguments.get("scale_params")))
        axes = [axis for axis, scale in scales if isinstance(scale, (int, float)) and scale < 0]
    elif arguments.get("name") in ("RandomHorizontalFlip", "RandomVerticalFlip"):
        axes = [None]
    for argument in _MIRROR_ARGUMENTS:
        if name != "Orientation" and not isinstance(arguments.get(argument), (bool, Mapping)):
            axes += _listed(arguments.get(argument))
    return list(dict.fromkeys(_patient_axis(axis, axcodes) for axis in axes))


def _patient_axis(axis: Any, axcodes: str | None) -> PatientAxis | None:
    if isinstance(axis, str) and axis in PATIENT_AXES:
        return axis
    if not isinstance(axis, int) or not axcodes or not -len(axcodes) <= axis < len(axcodes):
        return None
    return _AXIS_OF_CODE.get(str(axcodes)[axis].upper())


def _jitters(name: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(what, largest share of change) of transforms that change brightness, contrast or hue."""
    if name == "RandScaleIntensity":
        yield "brightness", _largest(arguments.get("factors")) or 0.0
    if "ColorJitter" in (name, arguments.get("name")):
        for what in ("brightness", "contrast", "saturation", "hue"):
            value = arguments.get(what)
            yield what, (_largest(value) or 0.0) - (1.0 if isinstance(value, (list, tuple)) else 0)
    if name == "RandIntensity":
        for what in ("brightness", "contrast"):
            row = (arguments.get("effects") or {}).get(what)
            if row:
                yield what, max(abs(1 - row[1]), abs(row[2] - 1))


def _largest(value: Any) -> float | None:
    """Largest absolute number in a nested range; 0 for nothing; None if it cannot be read."""
    if value is None:
        return 0.0
    if isinstance(value, str):
        try:
            return abs(_arithmetic(ast.parse(value.lstrip("$ "), mode="eval").body))
        except (ValueError, SyntaxError):
            return None
    if isinstance(value, (int, float)):
        return abs(float(value))
    if not isinstance(value, Sequence):
        return None
    found = [_largest(item) for item in value]
    return None if None in found else max((item for item in found if item is not None), default=0.0)


_OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def _arithmetic(node: ast.AST) -> float:
    """The value of plain arithmetic such as ``np.pi / 12``; nothing is executed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_arithmetic(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))
    if isinstance(node, ast.Attribute) and node.attr == "pi":
        return math.pi
    raise ValueError("no plain arithmetic")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
