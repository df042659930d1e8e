"""What a modality is: the unit of its voxels, how they are normalised, and what is legal."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    name: str
    dicom: tuple[str, ...]
    unit: str
    normalisation: Normalisation
    legal_range: tuple[float, float] | None
    windows: dict[str, tuple[float, float]]


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

_ROWS = (
    Modality("CT", ("CT",), "HU", "window", (-8192.0, 32767.0), _CT_WINDOWS),
    Modality("MR", ("MR",), "", "zscore", None, {}),
    Modality("PT", ("PT",), "SUVbw", "suv", (0.0, 10000.0), {}),
    Modality("XR", ("CR", "DX", "XR", "RG", "MG"), "", "percentile", None, {}),
    Modality("US", ("US",), "", "unit", None, {}),
    Modality("RGB", ("OP", "XC", "SM", "ES", "GM"), "", "percentile", None, {}),
    Modality("MULTI", (), "", "percentile", None, {}),
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
