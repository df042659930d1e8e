"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd): text headers judged before any voxel is read.

Source:
    https://teem.sourceforge.net/nrrd/format.html and
    https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import GeometryError, InputError, MedvolError, UnsafeFileError
from medvol.core.geometry import LPS_TO_RAS, Geometry
from medvol.io import formats
from medvol.io.checks import (
    Scan,
    check_claim,
    check_file,
    check_spacing,
    number,
    shown,
    to_float32,
)
from medvol.io.raw_volume import RawVolume

_MAX_HEADER = 1 << 18
_SPACING_TOLERANCE = 1e-3
_UNIT_LENGTH = 1e-3
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"), "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "uint64", "uint64_t"),
    "f4": ("float",), "f8": ("double",),
}  # fmt: skip
_META_TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
               "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
               "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}  # fmt: skip
_SPACES = {
    "right-anterior-superior": np.eye(4), "ras": np.eye(4),
    "left-posterior-superior": LPS_TO_RAS, "lps": LPS_TO_RAS,
    "left-anterior-superior": np.diag([-1.0, 1, 1, 1]), "las": np.diag([-1.0, 1, 1, 1]),
}  # fmt: skip
_UNIT_MM = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "um": 0.001, "µm": 0.001,
            "micron": 0.001, "micrometer": 0.001, "cm": 10.0, "centimeter": 10.0,
            "m": 1000.0, "meter": 1000.0}  # fmt: skip
_FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
#: Kinds of an axis along which something lies in space.
_SPATIAL_KINDS = frozenset({"domain", "space", "none", "???"})


def read_itk_format(path: Path, *, channels: bool = False, assume_ras: bool = False) -> Scan:
    """Read a NRRD or MetaImage file with every check.

    Args:
        path: .nrrd, .nhdr, .mha or .mhd; a detached data file must lie in the same folder.
        channels: Accept one axis without a place in space as channels.
        assume_ras: Take an image without orientation as lying along R, A, S.

    Raises:
        InputError: For anything truncated, contradictory, unsupported or non-finite.
    """
    volume, geometry, channel_axis = _open(path, assume_ras, channels)
    voxels = volume.read()
    axis = len(volume.shape) if channel_axis is None else channel_axis
    stored = np.moveaxis(voxels[..., None] if channel_axis is None else voxels, axis, 0)
    return Scan(to_float32(path, stored.reshape(-1, *geometry.shape)), geometry.affine, path)


def read_grid(
    path: Path, *, channels: bool = True, assume_ras: bool = False
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (channels last) and affine of a file that passes every check up to its voxels.

    Raises:
        InputError: If the header is rejected, or the file too short.
    """
    volume, geometry, channel_axis = _open(path, assume_ras, channels)
    check_claim(path, volume.shape)
    volume.check_length()
    n_channels = 1 if channel_axis is None else volume.shape[channel_axis]
    return (*geometry.shape, n_channels) if n_channels > 1 else geometry.shape, geometry.affine


def _open(path: Path, assume_ras: bool, channels: bool) -> tuple[RawVolume, Geometry, int | None]:
    check_file(path)
    with path.open("rb") as handle:
        head = handle.read(_MAX_HEADER)
    parse = _nrrd if formats.format_of(path.name) == "NRRD" else _metaimage
    volume, affine, channel_axis = parse(path, head, assume_ras)
    spatial = [n for axis, n in enumerate(volume.shape) if axis != channel_axis]
    x, y, z = (*spatial, 1, 1)[:3]
    try:
        geometry = Geometry((x, y, z), affine)
    except MedvolError as error:
        raise GeometryError(f"{shown(path)}: {error}") from error
    check_spacing(path, np.asarray(geometry.spacing_mm))
    if channel_axis is not None and volume.shape[channel_axis] > 1 and not channels:
        raise InputError(f"{shown(path)}: is {len(volume.shape)}D ("
                         f"{'x'.join(map(str, volume.shape))}): several channels or time points, "
                         "where one volume is wanted; read it with channels=True")  # fmt: skip
    return volume, geometry, channel_axis


def _nrrd(
    path: Path, head: bytes, assume_ras: bool
) -> tuple[RawVolume, NDArray[np.float64], int | None]:
    name = shown(path)
    if not head.startswith(b"NRRD000"):
        raise InputError(f"{name}: not a valid NRRD file: the magic bytes are missing")
    fields, end = _lines(name, head, re.compile(r"([^:=]+):\s*(.*)"))
    detached = fields.get("data file") or fields.get("datafile")
    if not end and detached is None:
        raise InputError(f"{name}: truncated: its header has no end")
    shape = _integers(name, fields, "sizes")
    if fields.get("dimension") != str(len(shape)):
        raise InputError(f"{name}: dimension and sizes disagree")
    code = next((c for c, names in _NRRD_TYPES.items() if fields.get("type", "") in names), None)
    if code is None:
        raise InputError(f"{name}: its data type is not supported; wanted scalar numbers")
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "ascii": "text", "txt": "text",
                "text": "text"}.get(fields.get("encoding", ""))  # fmt: skip
    if encoding is None:
        raise InputError(f"{name}: its encoding is not supported; wanted raw, gzip or ascii")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", ""), "")
    if not order and code[1] != "1" and encoding != "text":
        raise InputError(f"{name}: endian is missing, so its bytes are ambiguous")
    skip = fields.get("byte skip", "0")
    if fields.get("line skip", "0") != "0" or not re.fullmatch(r"-1|\d{1,9}", skip):
        raise InputError(f"{name}: line skip or this byte skip is not supported")
    data = path if detached is None else _beside(path, detached)
    offset = max(int(skip), 0) + (end if detached is None else 0)
    volume = RawVolume(path, data, offset, shape, np.dtype(order + code), encoding, skip == "-1")
    affine, channel = _nrrd_affine(name, fields, shape, assume_ras)
    return volume, affine, channel


def _nrrd_affine(
    name: str, fields: dict[str, str], shape: tuple[int, ...], assume_ras: bool
) -> tuple[NDArray[np.float64], int | None]:
    words = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    space = _SPACES.get(fields.get("space", "").lower())
    if not words or space is None:
        if not assume_ras:
            raise GeometryError(f"{name}: orientation unknown: the header has no usable space and "
                                "space directions; pass orientation='assume_ras'")  # fmt: skip
        spacings = _floats(name, fields, "spacings")
        if len(spacings) != len(shape) or len(shape) > 3:
            raise GeometryError(f"{name}: has no spacings for its axes")
        return np.diag([*spacings, *[1.0] * (3 - len(spacings)), 1.0]), None
    if len(words) != len(shape):
        raise GeometryError(f"{name}: space directions and sizes disagree")
    free = [axis for axis, word in enumerate(words) if word == "none"]
    kinds = fields.get("kinds", "").lower().split()
    if any(k not in _SPATIAL_KINDS for axis, k in enumerate(kinds) if axis not in free):
        raise GeometryError(f"{name}: kinds calls an axis with a place in space something else")
    if len(free) > 1 or len(words) - len(free) != 3:
        raise GeometryError(f"{name}: has {len(words) - len(free)} spatial axes, wanted 3")
    affine = np.eye(4)
    columns = [_vector(name, word, "space directions") for word in words if word != "none"]
    affine[:3, :3] = np.stack(columns, axis=1)
    _require_one_spacing(name, fields, np.linalg.norm(affine[:3, :3], axis=0), free)
    if "space origin" not in fields:
        raise GeometryError(f"{name}: space origin is missing, so its position is unknown")
    affine[:3, 3] = _vector(name, fields["space origin"], "space origin")
    words = re.findall(r'"[^"]*"|\S+', fields.get("space units", ""))
    units = {word.strip('"').strip().lower() for word in words}
    affine[:3] *= _unit_mm(name, units or {""})
    return space @ affine, free[0] if free else None


def _require_one_spacing(
    name: str, fields: dict[str, str], lengths: NDArray[np.float64], free: list[int]
) -> None:
    """Reject spacings that differ from the lengths of the directions; the format has either."""
    words = fields.get("spacings", "").split()
    stated = [word for axis, word in enumerate(words) if axis not in free]
    try:
        plain = [number(word) for word in stated]
    except ValueError as error:
        raise GeometryError(f"{name}: spacings holds a value that is not a number") from error
    if len(plain) == 3 and np.any(np.abs(np.asarray(plain) / lengths - 1) > _SPACING_TOLERANCE):
        raise GeometryError(f"{name}: its spacings contradict its space directions")


def _unit_mm(name: str, units: set[str]) -> float:
    """Millimetres of the one unit of length that a header names."""
    if len(units) != 1 or (unit := next(iter(units))) not in _UNIT_MM:
        raise GeometryError(f"{name}: its space units are not one known unit of length")
    return _UNIT_MM[unit]


def _metaimage(
    path: Path, head: bytes, assume_ras: bool
) -> tuple[RawVolume, NDArray[np.float64], int | None]:
    name = shown(path)
    fields, end = _lines(name, head, re.compile(r"(\w+)\s*=\s*(.*)"), last="elementdatafile")
    if "elementdatafile" not in fields or "dimsize" not in fields:
        raise InputError(f"{name}: not a valid MetaImage file: DimSize or ElementDataFile is "
                         "missing")  # fmt: skip
    shape = _integers(name, fields, "dimsize")
    if fields.get("ndims") != str(len(shape)) or not 2 <= len(shape) <= 3:
        raise InputError(f"{name}: NDims and DimSize must give 2 or 3 dimensions; found "
                         f"{len(shape)}")  # fmt: skip
    code = _META_TYPES.get(fields.get("elementtype", ""))
    if code is None:
        raise InputError(f"{name}: its data type is not supported; wanted scalar numbers")
    if not _is_true(name, "BinaryData", fields.get("binarydata", "true")):
        raise InputError(f"{name}: text voxels are not supported")
    scaling = {
        "elementtointensityfunctionslope": (1.0,),
        "elementtointensityfunctionoffset": (0.0,),
    }
    if any(_floats(name, fields, key) not in ((), plain) for key, plain in scaling.items()):
        raise InputError(f"{name}: ElementToIntensityFunction (a slope or offset of its values) "
                         "is not supported")  # fmt: skip
    order = _stated_once(name, fields, "binarydatabyteordermsb", "elementbyteordermsb") or "false"
    is_msb = _is_true(name, "BinaryDataByteOrderMSB", order)
    is_packed = _is_true(name, "CompressedData", fields.get("compresseddata", "false"))
    encoding = "zlib" if is_packed else "raw"
    n_channels = _integers(name, {"elementnumberofchannels": "1", **fields},
                           "elementnumberofchannels")[0]  # fmt: skip
    source, skip = fields["elementdatafile"], fields.get("headersize", "0")
    if not re.fullmatch(r"-1|\d{1,9}", skip):
        raise InputError(f"{name}: HeaderSize is not a number")
    local = source.upper() == "LOCAL"
    if local and int(skip) > 0:
        raise InputError(f"{name}: a HeaderSize of {skip} contradicts voxels behind the header")
    data, offset = (path, end) if local else (_beside(path, source), max(int(skip), 0))
    full = shape if n_channels == 1 else (n_channels, *shape)
    dtype = np.dtype((">" if is_msb else "<") + code)
    volume = RawVolume(path, data, offset, full, dtype, encoding, skip == "-1" and not local)
    return (
        volume,
        _meta_affine(name, fields, len(shape), assume_ras),
        None if n_channels == 1 else 0,
    )


def _meta_affine(
    name: str, fields: dict[str, str], n: int, assume_ras: bool
) -> NDArray[np.float64]:
    def first(*keys: str) -> tuple[float, ...]:
        return _floats(name, {keys[0]: _stated_once(name, fields, *keys)}, keys[0])

    spacing = first("elementspacing")
    matrix = first("transformmatrix", "rotation", "orientation")
    origin = first("offset", "position", "origin")
    if len(spacing) != n:
        raise GeometryError(f"{name}: ElementSpacing (spacing) is missing or holds {len(spacing)} "
                            f"numbers, wanted {n}")  # fmt: skip
    if not matrix and not origin and assume_ras:
        return np.diag([*spacing, *[1.0] * (4 - n)])
    if len(matrix) != n * n or len(origin) != n:
        raise GeometryError(f"{name}: orientation unknown: TransformMatrix or Offset is missing; "
                            "pass orientation='assume_ras'")  # fmt: skip
    if min(spacing) < 0:
        raise GeometryError(f"{name}: ElementSpacing (spacing) holds a negative number")
    directions = np.asarray(matrix).reshape(n, n).T
    if np.abs(np.linalg.norm(directions, axis=0) - 1).max() > _UNIT_LENGTH:
        raise GeometryError(f"{name}: the columns of TransformMatrix are not unit vectors, so the "
                            "spacing is given twice (its affine is ambiguous)")  # fmt: skip
    affine = np.eye(4)
    affine[:n, :n] = directions * np.asarray(spacing)
    affine[:n, 3] = origin
    affine[:3] *= _unit_mm(name, {fields.get("distanceunits", "").strip('"').lower()})
    return LPS_TO_RAS @ affine


def _stated_once(name: str, fields: dict[str, str], *keys: str) -> str:
    """The value under whichever of the keys that mean the same; empty if under none."""
    found = {" ".join(fields[key].lower().split()) for key in keys if key in fields}
    if len(found) > 1:
        raise InputError(f"{name}: its header contradicts itself: {' and '.join(keys)} differ")
    return found.pop() if found else ""


def _is_true(name: str, key: str, text: str) -> bool:
    """A MetaImage flag, whose readers go by its first letter."""
    if text.lower() not in _FLAGS:
        raise InputError(f"{name}: {key} is neither True nor False")
    return _FLAGS[text.lower()]


def _lines(
    name: str, head: bytes, pattern: re.Pattern[str], last: str = ""
) -> tuple[dict[str, str], int]:
    """Header fields in lower case, and where the header ends: at an empty line or at ``last``.

    The end is 0 where neither was found.
    """
    fields: dict[str, str] = {}
    position = 0
    while (stop := head.find(b"\n", position)) >= 0 or position < len(head):
        stop = stop if stop >= 0 else len(head)
        line = head[position:stop].decode("latin-1").strip("\r ")
        position = stop + 1
        if not line and not last:
            return fields, position
        found = pattern.match(line)
        if found and not line.startswith("#") and not line[found.end(1) :].startswith(":="):
            key, value = " ".join(found[1].lower().split()), found[2].strip()
            if fields.setdefault(key, value) != value:
                raise InputError(
                    f"{name}: its header contradicts itself: {shown(key)} is given twice"
                )
            if key == last:
                return fields, position
    if len(head) >= _MAX_HEADER:
        raise InputError(f"{name}: its header does not end within {_MAX_HEADER} bytes")
    return fields, 0


def _beside(path: Path, data: str) -> Path:
    if data.upper().startswith("LIST") or "%" in data:
        raise InputError(f"{shown(path)}: voxels in several files are not supported")
    if "/" in data or "\\" in data or data in (".", "..") or not data:
        raise UnsafeFileError(f"{shown(path)}: names a data file outside its own folder")
    target = path.parent / data
    if target.is_symlink() and not target.resolve().is_relative_to(path.parent.resolve()):
        raise UnsafeFileError(f"{shown(path)}: its data file is a link to outside its own folder")
    if target.name == path.name:
        raise InputError(f"{shown(path)}: names itself as its data file")
    if not target.exists():
        raise InputError(f"{shown(path)}: its data file {shown(data)} does not exist (missing)")
    return target


def _integers(name: str, fields: dict[str, str], key: str) -> tuple[int, ...]:
    words = fields.get(key, "").split()
    if not words or len(words) > 6 or not all(re.fullmatch(r"\d{1,9}", w) for w in words):
        raise InputError(f"{name}: {key} is missing or holds no positive whole numbers")
    values = tuple(map(int, words))
    if min(values) < 1:
        raise InputError(f"{name}: {key} holds a zero: an empty image")
    return values


def _floats(name: str, fields: dict[str, str], key: str) -> tuple[float, ...]:
    try:
        values = tuple(number(word) for word in fields.get(key, "").split())
    except ValueError as error:
        raise GeometryError(f"{name}: {key} holds a value that is not a number") from error
    if not all(map(math.isfinite, values)):
        raise GeometryError(f"{name}: {key} holds a non-finite value (NaN)")
    return values


def _vector(name: str, text: str, key: str) -> tuple[float, ...]:
    inner = text.strip().strip("()").replace(",", " ")
    values = _floats(name, {key: inner}, key)
    if len(values) != 3:
        raise GeometryError(f"{name}: {key} holds {len(values)} numbers, wanted 3")
    return values
