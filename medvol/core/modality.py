"""What a modality is: the unit of its voxels, how they are normalised, and what is legal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medvol.core.errors import ConfigError

Normalisation = Literal["window", "zscore", "percentile", "suv", "unit"]


@dataclass(frozen=True)
class Modality:
    """One imaging modality.

    Attributes:
        name: Short name used in values files: CT, MR, PT, XR, US, RGB, MULTI.
        dicom: DICOM Modality (0008,0060) values that mean it.
        unit: Unit of a voxel once loaded, empty for arbitrary units.
        normalisation: How bundles bring voxels to network range by default.
        legal_range: Values outside cannot be this modality; None where any value is possible.
        windows: Named display and clipping windows as (low, high) in ``unit``.
        effects: What acquisition may do to the voxels, as augmentation by name: (probability,
            smallest, largest strength); see ``medvol.transforms.RandIntensityd`` for the units.
        max_jitter: Largest change of brightness or contrast, as a share, that still shows what
            such a scanner could have made; calibrated units allow less.
    """

    name: str
    dicom: tuple[str, ...]
    unit: str
    normalisation: Normalisation
    legal_range: tuple[float, float] | None
    windows: dict[str, tuple[float, float]]
    effects: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    max_jitter: float = 0.3


# Windows are (level - width/2, level + width/2) of the usual radiology presets:
# lung -600/1500, soft tissue 40/400, bone 400/1800, brain 40/80, liver 60/160, mediastinum 50/350.
_CT_WINDOWS = {
    "lung": (-1350.0, 150.0),
    "soft_tissue": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "liver": (-20.0, 140.0),
    "mediastinum": (-125.0, 225.0),
}

# Probabilities and factors for arbitrary units follow nnU-Net v2's default trainer (Isensee et al.
# 2021, Nat Methods 18:203); hounsfield units are calibrated, so CT varies in noise and sharpness,
# by scanner drift of a few HU, and hardly in contrast.
_SHARED = {
    "noise": (0.15, 0.0, 0.3),
    "blur": (0.2, 0.5, 1.0),
    "brightness": (0.15, 0.75, 1.25),
    "contrast": (0.15, 0.75, 1.25),
    "gamma": (0.3, 0.7, 1.5),
}
_CT_EFFECTS = {
    "noise": (0.15, 5.0, 30.0),
    "blur": (0.2, 0.5, 1.0),
    "low_resolution": (0.2, 1.0, 2.0),
    "shift": (0.15, -10.0, 10.0),
    "contrast": (0.15, 0.9, 1.1),
}
_MR_EFFECTS = _SHARED | {
    "low_resolution": (0.25, 1.0, 2.0),
    "bias_field": (0.2, 0.1, 0.4),
    "ghosting": (0.05, 0.1, 0.4),
    "gibbs": (0.05, 0.2, 0.5),
}
_PT_EFFECTS = {k: _SHARED[k] for k in ("noise", "blur")} | {"low_resolution": (0.2, 1.0, 2.0)}
_US_EFFECTS = _SHARED | {"speckle": (0.2, 0.05, 0.2)}
_COLOUR = {k: _SHARED[k] for k in ("noise", "blur")} | {"brightness": (0.15, 0.9, 1.1)}

_ROWS = (
    Modality("CT", ("CT",), "HU", "window", (-8192.0, 32767.0), _CT_WINDOWS, _CT_EFFECTS, 0.15),
    Modality("MR", ("MR",), "", "zscore", None, {}, _MR_EFFECTS),
    Modality("PT", ("PT",), "SUVbw", "suv", (0.0, 10000.0), {}, _PT_EFFECTS),
    Modality("XR", ("CR", "DX", "XR", "RG", "MG"), "", "percentile", None, {}, _SHARED),
    Modality("US", ("US",), "", "unit", None, {}, _US_EFFECTS),
    Modality("RGB", ("OP", "XC", "SM", "ES", "GM"), "", "percentile", None, {}, _COLOUR),
    Modality("MULTI", (), "", "percentile", None, {}, _COLOUR),
)


@dataclass(frozen=True)
class Preset:
    """A way to bring voxels to network range, by name.

    Attributes:
        modality: The modality that it is meant for.
        method: ``window``, ``zscore``, ``percentile``, ``suv`` or ``unit``.
        low: Lower end: of the window, or a percentile; not used by ``zscore``.
        high: Upper end, likewise.
        inside_body: Whether statistics leave out the background (values under a tenth of the
            99.5th percentile).
        n4: Whether the MR bias field is estimated and removed first (through SimpleITK).
        clahe: Whether local contrast is equalised afterwards (2D only).
    """

    modality: str
    method: Normalisation
    low: float = 0.0
    high: float = 1.0
    inside_body: bool = False
    n4: bool = False
    clahe: bool = False


_PRESETS = {
    **{f"ct_{name}": Preset("CT", "window", *window) for name, window in _CT_WINDOWS.items()},
    "mr_zscore": Preset("MR", "zscore", inside_body=True),
    "mr_percentile": Preset("MR", "percentile", 0.5, 99.5, inside_body=True),
    "mr_n4": Preset("MR", "zscore", inside_body=True, n4=True),
    "pet_suv": Preset("PT", "suv", 0.0, 20.0),
    "xr_percentile": Preset("XR", "percentile", 1.0, 99.0),
    "xr_clahe": Preset("XR", "percentile", 1.0, 99.0, clahe=True),
    "us_unit": Preset("US", "unit", 0.0, 100.0),
    "colour_percentile": Preset("RGB", "percentile", 2.0, 98.0),
    "colour_zscore": Preset("RGB", "zscore"),
}


def find_preset(name: str) -> Preset:
    """Look a normalisation preset up by name.

    Raises:
        ConfigError: If no row matches.

    >>> find_preset("ct_lung").low
    -1350.0
    """
    if name not in _PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; known: {', '.join(sorted(_PRESETS))}")
    return _PRESETS[name]


def suv_factor(weight_kg: float, dose_bq: float, half_life_s: float, elapsed_s: float) -> float:
    """What turns Bq/ml into body-weight SUV: grams over the dose left at scan time.

    Args:
        weight_kg: Patient weight.
        dose_bq: Injected activity.
        half_life_s: Of the tracer.
        elapsed_s: From injection to the time that the image is decay-corrected to.

    Raises:
        ConfigError: If weight, dose or half-life is not positive.

    Source:
        QIBA FDG-PET/CT profile 1.13, SUV normalised by body weight.
    """
    if min(weight_kg, dose_bq, half_life_s) <= 0:
        raise ConfigError(
            f"SUV needs a positive weight, dose and half-life; found {weight_kg} kg, {dose_bq} Bq, "
            f"{half_life_s} s"
        )
    return 1000.0 * weight_kg / (dose_bq * 2.0 ** (-elapsed_s / half_life_s))


_ALIASES = {"MRI": "MR", "PET": "PT", "X-RAY": "XR", "XRAY": "XR", "ULTRASOUND": "US"}


def find_modality(name: str) -> Modality:
    """Look a modality up by its name, a usual alias (MRI, PET) or its DICOM code.

    Raises:
        ConfigError: If no row matches.

    >>> find_modality("mri").name, find_modality("DX").name
    ('MR', 'XR')
    """
    key = _ALIASES.get(name.strip().upper(), name.strip().upper())
    for row in _ROWS:
        if key == row.name or key in row.dicom:
            return row
    known = ", ".join(row.name for row in _ROWS)
    raise ConfigError(f"modality {name!r} is unknown; known: {known}")
