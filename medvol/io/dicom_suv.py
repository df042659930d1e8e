"""Standardised uptake values of PET from their headers.

Source:
    QIBA FDG-PET profile, "SUV calculation"; DICOM PS3.3 C.8.9.1 (PET Series) and C.8.9.2.
"""

from __future__ import annotations

import re
from datetime import datetime

from medvol.core import modality
from medvol.core.errors import InputError
from medvol.io.checks import shown
from medvol.io.dicom_header import DicomImage, Getter

_DAY_S = 86400.0
_RADIOPHARMACEUTICAL = 0x00540016


def suv_factor(image: DicomImage) -> float:
    """What one rescaled voxel is multiplied by to become SUV by body weight (g/ml).

    Raises:
        InputError: If the units are not a concentration, or a tag that the factor needs is missing.
    """
    units = image.texts.get("Units", "").upper()
    get = Getter(image.path, image.parsed.elements, image.parsed.order)
    if units == "GML":
        if get.text("SUVType").upper() not in ("", "BW"):
            raise _suv_error(image, "its SUV is not by body weight (SUVType)")
        return 1.0
    if units == "CNTS" and (factor := get.number("SUVScaleFactor")):
        return factor
    if units != "BQML":
        raise _suv_error(image, "PET units are neither BQML nor GML")
    source = (get.items(_RADIOPHARMACEUTICAL) or [get])[0]
    weight_kg = _needed(image, get, "PatientWeight")
    dose_bq = _needed(image, source, "RadionuclideTotalDose")
    correction = image.texts.get("DecayCorrection", "").upper()
    if correction == "ADMIN":
        return modality.suv_factor(weight_kg, dose_bq, _DAY_S, 0.0)
    if correction != "START":
        raise _suv_error(image, "DecayCorrection is neither START nor ADMIN")
    half_life_s = _needed(image, source, "RadionuclideHalfLife")
    elapsed_s = _elapsed(image, get, source, half_life_s)
    return modality.suv_factor(weight_kg, dose_bq, half_life_s, elapsed_s)


def _elapsed(image: DicomImage, get: Getter, source: Getter, half_life_s: float) -> float:
    """Seconds from injection to the time that the image is decay-corrected to."""
    injected_at = source.text("RadiopharmaceuticalStartDateTime")
    injected, started = _seconds(injected_at[8:]), _seconds(get.text("SeriesTime"))
    if injected is None:
        injected = _seconds(source.text("RadiopharmaceuticalStartTime"))
    if injected is None or started is None:
        raise _suv_error(image, "SeriesTime or RadiopharmaceuticalStartTime is missing")
    begun, series_day = get.text("SeriesDate"), _day(get.text("SeriesDate"))
    acquired = _seconds(get.text("AcquisitionTime"))
    if acquired is not None and acquired < started - 1 and begun == get.text("AcquisitionDate"):
        raise _suv_error(image, "SeriesTime is after AcquisitionTime (a derived series), so the "
                         "time of its decay correction is unknown")  # fmt: skip
    injection_day = _day(injected_at[:8])
    if series_day is not None and injection_day is not None:
        elapsed_s = (series_day - injection_day) * _DAY_S + started - injected
        if elapsed_s < 0:
            raise _suv_error(image, "the series begins before the injection")
        return elapsed_s
    if half_life_s > _DAY_S / 2:  # such a tracer is imaged days later
        raise _suv_error(image, "the day of injection (RadiopharmaceuticalStartDateTime) or "
                       "SeriesDate is missing")  # fmt: skip
    return (started - injected) % _DAY_S


def _needed(image: DicomImage, get: Getter, keyword: str) -> float:
    value = get.number(keyword)
    if value is None or value <= 0:
        raise _suv_error(image, f"{keyword} is missing or not positive")
    return value


def _suv_error(image: DicomImage, fault: str) -> InputError:
    return InputError(f"{shown(image.path)}: {fault}, so SUV cannot be computed; read it with "
                      "pet_suv=False")  # fmt: skip


def _seconds(text: str) -> float | None:
    found = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)?.*", text)
    if not found:
        return None
    return 3600.0 * int(found[1]) + 60.0 * int(found[2]) + float(found[3] or 0)


def _day(text: str) -> int | None:
    try:
        return datetime.strptime(text, "%Y%m%d").toordinal()
    except ValueError:
        return None
