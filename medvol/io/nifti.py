"""NIfTI-1 and NIfTI-2, plain, gzipped or as .hdr/.img pairs: header first, voxels second.

The header is parsed here and not by nibabel, because it must be judged before a byte of voxels
is decompressed, and because nibabel repairs what has to be rejected.

Source:
    https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GeometryError, GridMismatchError, InputError, MedvolError
from medvol.core.geometry import Geometry
from medvol.io.checks import Scan, check_claim, check_spacing, shown, to_float32, warn
from medvol.io.stream import ByteSource, open_bytes

#: Which of two contradicting orientations to believe, or an assumption where there is none.
Orientation = Literal["strict", "sform", "qform", "assume_ras"]

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
           1024: "i8", 1280: "u8"}  # fmt: skip
_UNSUPPORTED = {0: "unknown", 1: "1-bit", 32: "complex", 128: "RGB colour", 1792: "complex",
            1536: "128-bit float", 2048: "complex", 2304: "RGBA colour"}  # fmt: skip
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_MAX_EXTENSION = 64 << 20
_MAGIC = {b"n+1\0": True, b"ni1\0": False, b"n+2\0": True, b"ni2\0": False}


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header states, each field checked."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: NDArray[np.float64]
    unit_mm: float
    single: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of voxels that the header claims."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Fields:
    """Raw header fields, common to NIfTI-1 and NIfTI-2."""

    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    offset: float
    slope: float
    inter: float
    forms: tuple[float, ...]
    units: int
    first: int


def read_nifti(path: Path, orientation: Orientation = "strict", *, channels: bool = False) -> Scan:
    """Read a NIfTI file with every check.

    Args:
        path: .nii, .nii.gz, or either file of a .hdr/.img pair.
        orientation: ``strict`` rejects a file without qform and sform, and one whose two forms
            disagree; ``sform`` and ``qform`` name the one to believe, ``assume_ras`` takes
            pixdim along R, A, S.
        channels: Accept a fourth axis and return it as channels.

    Returns:
        The scan in RAS millimetres whatever unit the header uses.

    Raises:
        InputError: For anything that is truncated, contradictory, unsupported or non-finite.
    """
    head_path, data_path = _pair(path)
    with open_bytes(head_path) as source:
        header = _header(path, source, has_partner=data_path != head_path)
        shape, n_channels = _volume_shape(path, header.shape, channels)
        affine = header_affine(path, header, shape, orientation)
        raw = _read_voxels(path, source, header) if header.single else None
    if raw is None:
        with open_bytes(data_path) as source:
            raw = _read_voxels(path, source, header)
    voxels = _scaled(path, raw, header)
    stored = voxels.reshape((*shape, n_channels), order="F")
    return Scan(np.moveaxis(stored, -1, 0), affine, path)


def read_grid(
    path: Path,
    orientation: Orientation = "strict",
    *,
    channels: bool = True,
    is_whole: bool = False,
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (channels last) and affine of a file that passes every check up to its voxels.

    With ``is_whole`` a compressed file is read to its end as well, though nothing is kept.

    Nothing is decompressed; of a plain file its length is compared with the header's claim.

    Raises:
        InputError: If the header is rejected, or the file too short.
    """
    head_path, data_path = _pair(path)
    with open_bytes(head_path) as source:
        header = _header(path, source, has_partner=data_path != head_path)
        shape, n_channels = _volume_shape(path, header.shape, channels)
        affine = header_affine(path, header, shape, orientation)
        if header.single:
            _check_data(source, header, is_whole)
    if not header.single:
        with open_bytes(data_path) as source:
            _check_data(source, header, is_whole)
    return (*shape, n_channels) if n_channels > 1 else shape, affine


def is_second_half(path: Path) -> bool:
    """Whether this is the .img whose .hdr lies beside it."""
    stem = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return stem.suffix.lower() == ".img" and _other_half(stem, ".hdr") is not None


def parse_header(path: Path, head: bytes) -> NiftiHeader:
    """Parse the first bytes of a file as a NIfTI-1 or NIfTI-2 header.

    Raises:
        InputError: If they are none, or a field cannot be.
    """
    name = shown(path)
    if len(head) < 348:
        raise InputError(f"{name}: not a valid NIfTI file: {len(head)} bytes, truncated header")
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", head)
        if size == 348:
            return _parse_1(name, head, order)
        if size == 540 and len(head) >= 540:
            return _parse_2(name, head, order)
    kind = "PNG data" if head.startswith(b"\x89PNG") else "its first bytes are not a NIfTI header"
    raise InputError(f"{name}: not a valid NIfTI file ({kind})")


def header_affine(
    path: Path, header: NiftiHeader, shape: tuple[int, int, int], orientation: Orientation
) -> NDArray[np.float64]:
    """The affine in RAS millimetres, by the policy of ``orientation``.

    Raises:
        GeometryError: If the orientation is unknown, contradictory or impossible.
    """
    name = shown(path)
    use_s = header.sform_code > 0 and orientation != "qform"
    use_q = header.qform_code > 0 and orientation != "sform"
    if not use_s and not use_q:
        if orientation != "assume_ras":
            raise GeometryError(f"{name}: orientation unknown: qform and sform codes are both 0, "
                                "so left and right cannot be distinguished; fix the header or pass "
                                "orientation='assume_ras'")  # fmt: skip
        check_spacing(path, np.asarray(header.pixdim[1:4]) * header.unit_mm)
        return np.diag([*(v * header.unit_mm for v in header.pixdim[1:4]), 1.0])
    sform = _geometry(path, header, shape, _sform(header), "sform") if use_s else None
    qform = _geometry(path, header, shape, _qform(path, header), "qform") if use_q else None
    if sform and qform and orientation == "strict":
        _require_agreement(name, sform, qform)
    chosen = sform or qform
    assert chosen is not None
    return chosen.affine


def _header(path: Path, source: ByteSource, has_partner: bool) -> NiftiHeader:
    header = parse_header(path, source.head(544))
    if not header.single and not has_partner:
        raise InputError(f"{shown(path)}: its magic bytes state that its voxels lie in an .img "
                         "file, but it is not an .hdr file")  # fmt: skip
    check_claim(path, header.shape)
    return header


def _pair(path: Path) -> tuple[Path, Path]:
    suffixes = {".hdr": ".img", ".img": ".hdr"}
    stem, gz = (path.with_suffix(""), ".gz") if path.suffix.lower() == ".gz" else (path, "")
    other = suffixes.get(stem.suffix.lower())
    if other is None:
        return path, path
    partner = _other_half(stem, other)
    if partner is None:
        raise InputError(f"{shown(path)}: its other half {stem.stem}{other}{gz} is missing")
    return (path, partner) if other == ".img" else (partner, path)


def _other_half(stem: Path, other: str) -> Path | None:
    endings = (f"{suffix}{gz}" for suffix in (other, other.upper()) for gz in ("", ".gz", ".GZ"))
    return next((p for end in endings if (p := stem.with_suffix(end)).is_file()), None)


def _parse_1(name: str, head: bytes, order: str) -> NiftiHeader:
    single = _magic(name, head[344:348])
    offset, slope, inter = struct.unpack_from(order + "3f", head, 108)
    fields = _Fields(
        dim=struct.unpack_from(order + "8h", head, 40),
        datatype=struct.unpack_from(order + "h", head, 70)[0],
        pixdim=struct.unpack_from(order + "8f", head, 76),
        offset=offset, slope=slope, inter=inter,
        forms=struct.unpack_from(order + "2h6f12f", head, 252),
        units=head[123], first=352,
    )  # fmt: skip
    return _checked(name, order, fields, single)


def _parse_2(name: str, head: bytes, order: str) -> NiftiHeader:
    single = _magic(name, head[4:8])
    offset, slope, inter = struct.unpack_from(order + "qdd", head, 168)
    fields = _Fields(
        dim=struct.unpack_from(order + "8q", head, 16),
        datatype=struct.unpack_from(order + "h", head, 12)[0],
        pixdim=struct.unpack_from(order + "8d", head, 104),
        offset=offset, slope=slope, inter=inter,
        forms=struct.unpack_from(order + "2i6d12d", head, 344),
        units=struct.unpack_from(order + "i", head, 500)[0], first=544,
    )  # fmt: skip
    return _checked(name, order, fields, single)


def _magic(name: str, magic: bytes) -> bool:
    if magic not in _MAGIC:
        raise InputError(f"{name}: not a valid NIfTI file: the magic bytes are missing "
                         "(ANALYZE 7.5 files have no orientation)")  # fmt: skip
    return _MAGIC[magic]


def _checked(name: str, order: str, fields: _Fields, single: bool) -> NiftiHeader:
    n_dims, offset = fields.dim[0], fields.offset
    if not 1 <= n_dims <= 7:
        raise InputError(f"{name}: dim[0] gives {n_dims} dimensions, wanted 1 to 7")
    shape = tuple(int(n) for n in fields.dim[1 : n_dims + 1])
    if bad := [f"dim[{i}]={n}" for i, n in enumerate(shape, 1) if n < 1]:
        fault = "negative" if min(shape) < 0 else "zero, an empty image"
        raise InputError(f"{name}: {', '.join(bad)} is {fault}")
    if fields.datatype not in _DTYPES:
        kind = _UNSUPPORTED.get(fields.datatype, "unknown")
        raise InputError(f"{name}: data type code {fields.datatype} ({kind} voxels) is not "
                         "supported; wanted scalar integers or floats")  # fmt: skip
    if not math.isfinite(offset) or offset != int(offset) or not 0 <= offset <= _MAX_EXTENSION:
        raise InputError(f"{name}: vox_offset {offset:g} is impossible")
    if single and offset < fields.first:
        raise InputError(f"{name}: vox_offset {offset:g} lies inside the header of "
                         f"{fields.first} bytes")  # fmt: skip
    slope, inter = _scaling(name, fields.slope, fields.inter)
    if (fields.units & 7) not in _UNIT_MM:
        raise GeometryError(f"{name}: xyzt_units {fields.units} names no unit of length")
    q_code, s_code, *rest = fields.forms
    return NiftiHeader(
        shape=shape, dtype=np.dtype(order + _DTYPES[fields.datatype]), offset=int(offset),
        slope=slope, inter=inter, pixdim=tuple(fields.pixdim),
        qform_code=int(q_code), sform_code=int(s_code),
        quatern=tuple(rest[:3]), qoffset=tuple(rest[3:6]),
        srow=np.asarray(rest[6:18], dtype=np.float64).reshape(3, 4),
        unit_mm=_UNIT_MM[fields.units & 7], single=single,
    )  # fmt: skip


def _scaling(name: str, slope: float, inter: float) -> tuple[float, float]:
    # The standard's "no scaling" is slope 0; SPM and nibabel write NaN for both.
    if slope == 0 or (math.isnan(slope) and (math.isnan(inter) or inter == 0)):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise InputError(f"{name}: scl_slope {slope:g} and scl_inter {inter:g} are non-finite")
    return slope, inter


def _volume_shape(
    path: Path, shape: tuple[int, ...], channels: bool
) -> tuple[tuple[int, int, int], int]:
    x, y, z = (*shape, 1, 1)[:3]
    more = [n for n in shape[3:] if n != 1]
    if more and not channels:
        raise InputError(f"{shown(path)}: is {3 + len(more)}D ({'x'.join(map(str, shape))}): a "
                         "time series or several channels, where one volume is wanted; split "
                         "it, or read it with channels=True")  # fmt: skip
    if len(more) > 1:
        raise InputError(f"{shown(path)}: has {3 + len(more)} dimensions; at most 4 can be read")
    return (x, y, z), more[0] if more else 1


def _sform(header: NiftiHeader) -> NDArray[np.float64]:
    return np.vstack([header.srow, [0, 0, 0, 1.0]])


def _qform(path: Path, header: NiftiHeader) -> NDArray[np.float64]:
    b, c, d = header.quatern
    spacing = np.asarray(header.pixdim[1:4], dtype=np.float64)
    if not np.isfinite([*header.quatern, *header.qoffset, header.pixdim[0]]).all():
        raise GeometryError(f"{shown(path)}: the qform affine holds non-finite values (NaN)")
    if not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise GeometryError(f"{shown(path)}: pixdim gives a voxel spacing of "
                            f"{' x '.join(f'{v:g}' for v in spacing)}: zero, negative or "
                            "NaN is not a spacing")  # fmt: skip
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -1e-4:
        raise GeometryError(f"{shown(path)}: the qform quaternion is longer than 1")
    a = math.sqrt(max(rest, 0.0))
    if rest < 1e-7:  # as the reference library does: renormalise a half turn
        b, c, d = np.asarray(header.quatern) / math.sqrt(b * b + c * c + d * d)
        a = 0.0
    rotation = np.array([
        [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
        [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
        [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
    ])  # fmt: skip
    affine = np.eye(4)
    affine[:3, :3] = rotation * (spacing * (1, 1, -1 if header.pixdim[0] < 0 else 1))
    affine[:3, 3] = header.qoffset
    return affine


def _geometry(path: Path, header: NiftiHeader, shape: tuple[int, int, int],
              affine: NDArray[np.float64], which: str) -> Geometry:  # fmt: skip
    affine = affine.copy()
    if not np.isfinite(affine).all():
        raise GeometryError(f"{shown(path)}: the {which} affine holds non-finite values (NaN)")
    affine[:3] *= header.unit_mm
    if not affine[:3, :3].any(axis=0).all():
        raise GeometryError(f"{shown(path)}: the {which} affine is singular: an axis is all zero")
    try:
        geometry = Geometry(shape, affine)
    except MedvolError as error:
        raise GeometryError(f"{shown(path)}: {which}: {error}") from error
    check_spacing(path, np.asarray(geometry.spacing_mm))
    pixdim = np.asarray(header.pixdim[1:4]) * header.unit_mm
    if which == "sform" and header.qform_code <= 0 and np.isfinite(pixdim).all() and (
        pixdim.min() > 0 and np.abs(pixdim / geometry.spacing_mm - 1).max() > 0.01
    ):  # fmt: skip
        warn(path, "pixdim differs from the spacing of the sform; the sform is used")
    return geometry


def _require_agreement(name: str, sform: Geometry, qform: Geometry) -> None:
    tolerance = 0.1 * min(1.0, *sform.spacing_mm)
    try:
        sform.require_same(qform, "sform and qform", tolerance)
    except GridMismatchError as error:
        raise GeometryError(
            f"{name}: sform and qform name different orientations or positions: "
            f"{error}; pass orientation='sform' or 'qform' to choose"
        ) from error


def _read_voxels(path: Path, source: ByteSource, header: NiftiHeader) -> NDArray[Any]:
    buffer = source.read_exactly(header.offset, header.n_bytes)
    source.check_end(one_more=header.n_bytes // max(header.shape[-1], 1))
    return np.frombuffer(buffer, dtype=header.dtype)


def _check_data(source: ByteSource, header: NiftiHeader, is_whole: bool) -> None:
    end = header.offset + header.n_bytes
    source.check_length(end)
    if is_whole:
        source.skip_through(end)
        source.check_end(one_more=header.n_bytes // max(header.shape[-1], 1))


def _scaled(path: Path, raw: NDArray[Any], header: NiftiHeader) -> NDArray[np.float32]:
    if header.slope == 1.0 and header.inter == 0.0:
        return to_float32(path, raw)
    # float64 first: float32 would round a slope before it meets large stored values.
    wide = raw.astype(np.float64 if raw.dtype.itemsize > 2 else np.float32)
    wide *= header.slope
    wide += header.inter
    return to_float32(path, wide)
