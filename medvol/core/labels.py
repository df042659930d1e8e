"""What a label is: name, side, DICOM coded concept and colour, one row each."""

from __future__ import annotations

import colorsys
import hashlib
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

Laterality = Literal["left", "right", "midline", "unsided"]
Code = tuple[str, str, str]

_TISSUE: Code = ("85756007", "SCT", "Tissue")
_ORGAN: Code = ("123037004", "SCT", "Anatomical Structure")
_LESION: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
# A digit behind a letter makes it another word: L1 is a vertebra.
#: A side that is glued to its structure, as in "lungleft"; three letters or more are a structure.
_GLUED = re.compile(r"\b(left|right)([a-z]{3,})\b|\b([a-z]{3,})(left|right)\b")
_NO_SIDE = {"birth", "copy", "down", "forth", "out"} | {"eous", "most", "ness", "over", "ward"}
_EYE = {"OD": "right", "OS": "left", "od": "right", "os": "left"}
_SIDE_WORD = re.compile(r"(?<![a-z])(left|right|(?:lt|rt|lh|rh|l|r)(?![0-9]))(?![a-z])")


@dataclass(frozen=True)
class Label:
    """A named structure.

    Attributes:
        name: Lower-case, words separated by underscores.
        laterality: ``left`` or ``right`` for one side of a pair, ``midline`` for unpaired
            structures, ``unsided`` where either side carries the same label.
        category: DICOM segmented property category (value, scheme, meaning).
        code: DICOM segmented property type (value, scheme, meaning).
        colour: RGB, 0 to 255.
    """

    name: str
    laterality: Laterality
    category: Code
    code: Code
    colour: tuple[int, int, int]


# SNOMED CT concepts as listed in DICOM PS3.16 CID 7140, 7192, 7159 and their relatives.
_ROWS: tuple[tuple[str, Laterality, Code, str, str, tuple[int, int, int]], ...] = (
    ("hippocampus", "unsided", _ORGAN, "5366008", "Hippocampus", (230, 159, 0)),
    ("anterior", "unsided", _ORGAN, "5366008", "Hippocampus", (230, 159, 0)),
    ("posterior", "unsided", _ORGAN, "5366008", "Hippocampus", (86, 180, 233)),
    # Brain structures of CID 7140, named and coloured as FreeSurfer has them.
    (
        "cerebral_white_matter",
        "unsided",
        _ORGAN,
        "68523003",
        "Cerebral White Matter",
        (245, 245, 245),
    ),
    ("cerebral_cortex", "unsided", _ORGAN, "40146001", "Cerebral Cortex", (205, 62, 78)),
    ("lateral_ventricle", "unsided", _ORGAN, "66720007", "Lateral Ventricle", (120, 18, 134)),
    (
        "inferior_lateral_ventricle",
        "unsided",
        _ORGAN,
        "53118009",
        "Inferior Horn of Lateral Ventricle",
        (196, 58, 250),
    ),
    (
        "cerebellum_white_matter",
        "unsided",
        _ORGAN,
        "33060004",
        "Cerebellar White Matter",
        (220, 248, 164),
    ),
    ("cerebellum_cortex", "unsided", _ORGAN, "25991003", "Cerebellar Cortex", (230, 148, 34)),
    ("thalamus", "unsided", _ORGAN, "42695009", "Thalamus", (0, 118, 14)),
    ("caudate", "unsided", _ORGAN, "11000004", "Caudate Nucleus", (122, 186, 220)),
    ("putamen", "unsided", _ORGAN, "89278009", "Putamen", (236, 13, 176)),
    ("pallidum", "unsided", _ORGAN, "14738005", "Globus Pallidus", (12, 48, 255)),
    ("third_ventricle", "midline", _ORGAN, "49841001", "Third Ventricle", (204, 182, 142)),
    ("fourth_ventricle", "midline", _ORGAN, "35918002", "Fourth Ventricle", (42, 204, 164)),
    ("brain_stem", "midline", _ORGAN, "119238007", "Brain Stem", (119, 159, 176)),
    ("amygdala", "unsided", _ORGAN, "4958002", "Amygdala", (103, 255, 255)),
    ("accumbens_area", "unsided", _ORGAN, "427667007", "Nucleus Accumbens", (255, 165, 0)),
    ("spleen", "midline", _ORGAN, "78961009", "Spleen", (157, 108, 162)),
    ("liver", "midline", _ORGAN, "10200004", "Liver", (221, 130, 101)),
    ("pancreas", "midline", _ORGAN, "15776009", "Pancreas", (249, 180, 111)),
    ("kidney", "unsided", _ORGAN, "64033007", "Kidney", (185, 102, 83)),
    ("left_kidney", "left", _ORGAN, "64033007", "Kidney", (185, 102, 83)),
    ("right_kidney", "right", _ORGAN, "64033007", "Kidney", (201, 122, 99)),
    ("stomach", "midline", _ORGAN, "69695003", "Stomach", (216, 132, 105)),
    ("heart", "midline", _ORGAN, "80891009", "Heart", (206, 110, 84)),
    ("brain", "midline", _ORGAN, "12738006", "Brain", (250, 250, 225)),
    ("lung", "unsided", _ORGAN, "39607008", "Lung", (197, 165, 145)),
    ("left_lung", "left", _ORGAN, "39607008", "Lung", (197, 165, 145)),
    ("right_lung", "right", _ORGAN, "39607008", "Lung", (172, 138, 115)),
    ("aorta", "midline", _ORGAN, "15825003", "Aorta", (224, 97, 76)),
    ("urinary_bladder", "midline", _ORGAN, "89837001", "Urinary bladder", (222, 154, 132)),
    ("body", "midline", _ORGAN, "123037004", "Anatomical Structure", (177, 122, 101)),
    ("bone", "unsided", _TISSUE, "272673000", "Bone", (241, 214, 145)),
    ("tumor", "unsided", _LESION, "108369006", "Neoplasm", (144, 238, 144)),
    ("tumour", "unsided", _LESION, "108369006", "Neoplasm", (144, 238, 144)),
    ("lesion", "unsided", _LESION, "52988006", "Lesion", (213, 94, 0)),
    ("nodule", "unsided", _LESION, "27925004", "Nodule", (213, 94, 0)),
    ("edema", "unsided", _LESION, "79654002", "Edema", (140, 224, 228)),
    ("necrosis", "unsided", _LESION, "6574001", "Necrosis", (216, 191, 216)),
)


@cache
def _table() -> dict[str, Label]:
    return {
        name: Label(name, side, category, (value, "SCT", meaning), colour)
        for name, side, category, value, meaning, colour in _ROWS
    }


def find_label(name: str) -> Label:
    """Look a label up by name; a name without a row becomes a generic structure.

    A side's name in front of a known structure keeps that structure's concept and colour. The side
    of an unknown name is read from its words (``left_femur``, ``Kidney (R)``), so that
    a flip is rejected for lateral labels nobody listed. Its colour is derived from the name and
    therefore stable.

    >>> find_label("Left Kidney").laterality
    'left'
    >>> find_label("femur_right").laterality
    'right'
    >>> find_label("left hippocampus").code[2], find_label("left hippocampus").laterality
    ('Hippocampus', 'left')
    """
    key = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if found := _table().get(key):
        return found
    side = side_of(name)
    base = _table().get("_".join(re.findall(r"\w+", _SIDE_WORD.sub("", _spaced(name)))))
    if base is not None and side in ("left", "right") and base.laterality == "unsided":
        return replace(base, name=key, laterality=side)
    return Label(key, side, _TISSUE, _TISSUE, _stable_colour(key))


def side_of(name: str) -> Laterality:
    """The side that a label's words name, or ``unsided``.

    >>> side_of("KidneyLeft"), side_of("lung_r"), side_of("vertebrae_L1")
    ('left', 'right', 'unsided')
    >>> side_of("lungleft"), side_of("OD"), side_of("cleft_palate")
    ('left', 'right', 'unsided')
    """
    sides = {word[0] for word in _SIDE_WORD.findall(_spaced(name))}
    if len(sides) != 1:
        return "unsided"
    return "left" if sides == {"l"} else "right"


def are_two_sides(first: str, second: str) -> bool:
    """Whether two labels are the left and the right one of the same structure.

    >>> are_two_sides("left_kidney", "Kidney (R)"), are_two_sides("left_kidney", "right_lung")
    (True, False)
    """
    bare = {" ".join(re.findall(r"\w+", _SIDE_WORD.sub("", _spaced(n)))) for n in (first, second)}
    return len(bare) == 1 and {side_of(first), side_of(second)} == {"left", "right"}


def _spaced(name: str) -> str:
    """Lower-case words, sides as words of their own; an eye's Latin sides spelt out."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip()).replace("_", " ")
    # In lower case and beside other words, "os" is a bone.
    words = re.sub(r"\bO[DS]\b", lambda found: _EYE[found.group()], _EYE.get(words, words))
    return _GLUED.sub(_unglued, words.lower())


def _unglued(found: re.Match[str]) -> str:
    before, after, first, last = found.groups()
    if (after or first) in _NO_SIDE:
        return found.group()
    return f"{before} {after}" if before else f"{first} {last}"


def _stable_colour(name: str) -> tuple[int, int, int]:
    hue = hashlib.sha256(name.encode()).digest()[0] / 255
    r, g, b = colorsys.hsv_to_rgb(hue, 0.55, 0.9)
    return round(255 * r), round(255 * g), round(255 * b)
