"""Standardised uptake values of PET from their headers.

Source:
    QIBA FDG-PET profile, "SUV calculation"; DICOM PS3.3 C.8.9.1 (PET Series) and C.8.9.2.
"""

from __future__ import annotations

import math
import re

from medvol.core.errors import InputError
from medvol.io.dicom_header import DicomImage, Getter
from medvol.io.door import shown

_DAY_S = 86400.0
_RADIOPHARMACEUTICAL = 0x00540016


def suv_factor(image: DicomImage) -> float:
    """What one rescaled voxel is multiplied by to become SUV by body weight (g/ml).

    Raises:
        InputError: If the units are no concentration, or a tag that the factor needs is missing.
    """
    units = image.texts.get("Units", "").upper()
    get = Getter(image.path, image.parsed.elements, image.parsed.order)
    if units == "GML":
        return 1.0
    if units == "CNTS" and (factor := get.number("SUVScaleFactor")):
        return factor
    if units != "BQML":
        raise InputError(f"{shown(image.path)}: PET units are neither BQML nor GML, so SUV cannot "
                         "be computed; read it with pet_suv=False")  # fmt: skip
    source = (get.items(_RADIOPHARMACEUTICAL) or [get])[0]
    weight_kg = _needed(image, get, "PatientWeight")
    dose_bq = _needed(image, source, "RadionuclideTotalDose")
    return 1000.0 * weight_kg / (dose_bq * _decay(image, get, source))


def _decay(image: DicomImage, get: Getter, source: Getter) -> float:
    correction = image.texts.get("DecayCorrection", "").upper()
    if correction == "ADMIN":
        return 1.0
    if correction != "START":
        raise InputError(f"{shown(image.path)}: DecayCorrection is neither START nor ADMIN, so "
                         "SUV cannot be computed; read it with pet_suv=False")  # fmt: skip
    half_life_s = _needed(image, source, "RadionuclideHalfLife")
    injected = _seconds(source.text("RadiopharmaceuticalStartDateTime")[8:]) or _seconds(
        source.text("RadiopharmaceuticalStartTime")
    )
    started = _seconds(get.text("SeriesTime"))
    if injected is None or started is None:
        raise InputError(f"{shown(image.path)}: SeriesTime or RadiopharmaceuticalStartTime is "
                         "missing, so SUV cannot be computed; read it with "
                         "pet_suv=False")  # fmt: skip
    return math.pow(2.0, -((started - injected) % _DAY_S) / half_life_s)


def _needed(image: DicomImage, get: Getter, keyword: str) -> float:
    value = get.number(keyword)
    if value is None or value <= 0:
        raise InputError(f"{shown(image.path)}: {keyword} is missing or not positive, so SUV "
                         "cannot be computed; read it with pet_suv=False")  # fmt: skip
    return value


def _seconds(text: str) -> float | None:
    found = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)?.*", text)
    if not found:
        return None
    return 3600.0 * int(found[1]) + 60.0 * int(found[2]) + float(found[3] or 0)
