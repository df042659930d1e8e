"""Which flips and rotations the anatomy and the labels allow.

Transforms, test-time augmentation and ``bundle verify`` ask here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from medvol.core.errors import ConfigError
from medvol.core.labels import side_of

BodyPart = Literal[
    "abdomen", "brain", "breast", "chest", "head", "heart", "hippocampus", "knee",
    "lung", "neck", "pelvis", "phantom", "prostate", "skin", "spine", "tissue", "eye",
]  # fmt: skip
PatientAxis = Literal["left-right", "anterior-posterior", "superior-inferior"]
PATIENT_AXES: tuple[PatientAxis, ...] = get_args(PatientAxis)


@dataclass(frozen=True)
class AnatomyRule:
    """What may be done to images of one body part.

    Attributes:
        mirrors: Patient axes along which a mirror image is still a possible patient.
        max_rotation_deg: Largest rotation that a scan of this part can plausibly show.
        reason: Why the other mirrors are refused; quoted to the user.
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
    "heart": AnatomyRule(_NONE, 30, "the ventricles are told apart by their side"),
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
}  # fmt: skip


def anatomy_rule(body_part: str) -> AnatomyRule:
    """The rule for a body part.

    Raises:
        ConfigError: If the body part has no row.
    """
    if body_part not in _RULES:
        raise ConfigError(f"body_part {body_part!r} is unknown; known: {', '.join(sorted(_RULES))}")
    return _RULES[body_part]


def flip_refusal(body_part: str, axis: PatientAxis, labels: Iterable[str] = ()) -> str | None:
    """Why a mirror along a patient axis is refused, or None where it is allowed.

    Lateral labels forbid the left-right mirror whatever the body part: the mirrored image would
    carry the wrong side's name.

    >>> flip_refusal("hippocampus", "left-right", ["anterior", "posterior"])
    >>> flip_refusal("brain", "left-right", ["left_hippocampus"])
    "label 'left_hippocampus' names a side"
    """
    rule = anatomy_rule(body_part)
    if axis not in PATIENT_AXES:
        raise ConfigError(
            f"axis {axis!r} is no patient axis; choose from {', '.join(PATIENT_AXES)}"
        )
    if axis == "left-right":
        for name in labels:
            if side_of(name) in ("left", "right"):
                return f"label {name!r} names a side"
    return None if axis in rule.mirrors else rule.reason
