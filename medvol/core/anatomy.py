"""Which flips and rotations the anatomy and the labels allow.

Transforms, test-time augmentation and ``bundle verify`` ask here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from medvol.core.errors import ConfigError, PolicyError
from medvol.core.labels import are_two_sides, side_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

PatientAxis = Literal["left-right", "anterior-posterior", "superior-inferior"]
PATIENT_AXES: tuple[PatientAxis, ...] = get_args(PatientAxis)

#: Largest rotation that augmentation draws where the anatomy would allow more.
USUAL_ROTATION_RAD = 0.3


@dataclass(frozen=True)
class AnatomyRule:
    """What may be done to images of one body part.

    Attributes:
        mirrors: Patient axes along which a mirror image is still a possible patient.
        max_rotation_deg: Largest rotation that a scan of this part can plausibly show.
        reason: Why the other mirrors are rejected; quoted to the user.
    """

    mirrors: frozenset[PatientAxis]
    max_rotation_deg: float
    reason: str


_LR: frozenset[PatientAxis] = frozenset({"left-right"})
_NONE: frozenset[PatientAxis] = frozenset()
_ALL: frozenset[PatientAxis] = frozenset(PATIENT_AXES)

_RULES: dict[str, AnatomyRule] = {
    "abdomen": AnatomyRule(_NONE, 30, "liver, spleen and stomach each lie on one side"),
    "brain": AnatomyRule(_LR, 30, "the brain is mirror symmetric only about its midline"),
    "breast": AnatomyRule(_LR, 30, "a breast has an upper and a front side"),
    "chest": AnatomyRule(_NONE, 15, "the heart lies left: a mirrored chest shows dextrocardia"),
    "eye": AnatomyRule(_LR, 30, "a mirrored right eye is a left eye, an inverted one is not"),
    "head": AnatomyRule(_LR, 30, "the head is mirror symmetric only about its midline"),
    "heart": AnatomyRule(_NONE, 30, "the ventricles differ by their side only"),
    "hippocampus": AnatomyRule(_LR, 30, "a mirrored left hippocampus is a right one; front, back, "
                               "top and bottom differ"),
    "knee": AnatomyRule(_LR, 30, "a mirrored left knee is a right one"),
    "lung": AnatomyRule(_NONE, 15, "right and left lung differ in lobes, and the heart lies left"),
    "neck": AnatomyRule(_LR, 30, "the neck is mirror symmetric only about its midline"),
    "pelvis": AnatomyRule(_LR, 30, "the pelvis is mirror symmetric only about its midline"),
    "phantom": AnatomyRule(_NONE, 30, "the phantom's organs each lie on one side"),
    "prostate": AnatomyRule(_LR, 30, "the prostate is mirror symmetric only about its midline"),
    "skin": AnatomyRule(_ALL, 180, ""),
    "spine": AnatomyRule(_LR, 30, "the spine is mirror symmetric only about its midline"),
    "tissue": AnatomyRule(_ALL, 180, ""),
    "unknown": AnatomyRule(_NONE, 15, "it is not known which part of the body this is"),
}  # fmt: skip


def anatomy_rule(body_part: str) -> AnatomyRule:
    """The rule for a body part.

    Raises:
        ConfigError: If the body part has no row.
    """
    if body_part not in _RULES:
        raise ConfigError(f"body_part {body_part!r} is unknown; known: {', '.join(sorted(_RULES))}")
    return _RULES[body_part]


def flip_objection(body_part: str, axis: PatientAxis, labels: Iterable[str] = ()) -> str | None:
    """Why a mirror along a patient axis is rejected, or None where it is allowed.

    Lateral labels forbid the left-right mirror whatever the body part: the mirrored image would
    carry the wrong side's name.

    >>> flip_objection("hippocampus", "left-right", ["anterior", "posterior"])
    >>> flip_objection("brain", "left-right", ["left_hippocampus"])
    "label 'left_hippocampus' names a side"
    """
    rule = anatomy_rule(body_part)
    if axis not in PATIENT_AXES:
        raise ConfigError(
            f"axis {axis!r} is not a patient axis; choose from {', '.join(PATIENT_AXES)}"
        )
    if axis == "left-right":
        for name in labels:
            if side_of(name) in ("left", "right"):
                return f"label {name!r} names a side"
    return None if axis in rule.mirrors else rule.reason


def check_mirror(
    body_part: str,
    axis: PatientAxis,
    labels: Sequence[str] | Mapping[Any, str] = (),
    swapped: Sequence[tuple[int, int]] = (),
) -> None:
    """Reject a mirror along a patient axis that the anatomy or a label forbids.

    Args:
        body_part: A row of this table.
        axis: The patient axis along which the image would be mirrored.
        labels: Label names in order of their value (from 0 if the first is ``background``, else
            from 1), or value to name.
        swapped: Pairs of label values that trade places with the mirror; a lateral label in a pair
            stays true.

    Raises:
        PolicyError: If the mirror is rejected, with the reason, or a pair is not the two sides of
            one structure.
    """
    known = label_values(labels)
    for a, b in swapped:
        if a in known and b in known and not are_two_sides(known[a], known[b]):
            raise PolicyError(
                f"swapping {known[a]!r} and {known[b]!r} is not allowed: they are not the two "
                "sides of one structure"
            )
    paired = {value for pair in swapped for value in pair}
    names = [name for value, name in known.items() if value not in paired]
    if reason := flip_objection(body_part, axis, names):
        raise PolicyError(f"mirroring {axis} is not allowed for {body_part}: {reason}")


def label_values(labels: Sequence[str] | Mapping[Any, str]) -> dict[int, str]:
    """Label names by value, whichever way they are written.

    >>> label_values(["background", "spleen"]), label_values({"1": "spleen"})
    ({0: 'background', 1: 'spleen'}, {1: 'spleen'})
    """
    if isinstance(labels, Mapping):
        return {int(value): name for value, name in labels.items()}
    first = 0 if labels and labels[0].lower() == "background" else 1
    return dict(enumerate(labels, first))


def check_rotation(
    body_part: str | None, limit_rad: float | Sequence[float] | None
) -> float | Sequence[float]:
    """The rotation range to use: as asked, or the usual one where nothing is asked.

    Raises:
        PolicyError: If the range goes beyond what a scan of the body part can show.
    """
    legal = math.pi if body_part is None else math.radians(anatomy_rule(body_part).max_rotation_deg)
    if limit_rad is None:
        return min(USUAL_ROTATION_RAD, legal)
    largest = max(map(abs, limit_rad)) if isinstance(limit_rad, Sequence) else abs(limit_rad)
    if largest > legal + 1e-9:
        raise PolicyError(
            f"a rotation of {math.degrees(largest):.0f} degrees is not allowed for {body_part}: "
            f"scans of it turn by at most {math.degrees(legal):.0f}"
        )
    return limit_rad


def array_axis(
    affine: ArrayLike, ndim: int, axis: PatientAxis, max_tilt_deg: float = 80.0
) -> int | None:
    """The array axis that lies closest to a patient axis.

    A mirror about an axis tilted by an angle is a mirror about the patient's axis and a turn by
    twice that angle, which is why a caller that mirrors bounds the tilt.

    Args:
        affine: Voxel index to RAS millimetres, shape (n + 1, n + 1) or 4x4.
        ndim: Number of spatial axes of the array.
        axis: A patient axis.
        max_tilt_deg: Largest angle between the two axes.

    Returns:
        The axis, or None where none runs that way, as across an image of one plane.

    >>> sagittal = [[0, 0, 2, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    >>> array_axis(sagittal, 3, "left-right"), array_axis(sagittal, 2, "left-right")
    (2, None)
    """
    import numpy as np

    columns = np.asarray(affine, dtype=np.float64)[:-1, :ndim]
    strength = np.abs(columns / np.linalg.norm(columns, axis=0))
    taken: dict[int, int] = {}
    for place in np.argsort(-strength, axis=None, kind="stable"):
        world, column = divmod(int(place), ndim)
        if world not in taken and column not in taken.values():
            taken[world] = column
    wanted = PATIENT_AXES.index(axis)
    if wanted not in taken:
        return None
    tilt_deg = math.degrees(math.acos(min(1.0, float(strength[wanted, taken[wanted]]))))
    return taken[wanted] if tilt_deg <= max_tilt_deg else None
