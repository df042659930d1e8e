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
