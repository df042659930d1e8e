"""What one DICOM file states about its frames, each value checked."""

from __future__ import annotations

import hashlib
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

from medvol.core.errors import GeometryError, InputError
from medvol.io.checks import number, shown
from medvol.io.dicom_parse import FLOAT_PIXEL_DATA, SEQUENCES, Elements, Parsed, parse_file

#: Tag -> keyword of every element that medvol reads from an image.
KEYWORDS = {
    0x00080008: "ImageType", 0x00080016: "SOPClassUID", 0x00080018: "SOPInstanceUID",
    0x00080022: "AcquisitionDate", 0x00080032: "AcquisitionTime", 0x0008002A: "AcquisitionDateTime",
    0x00080021: "SeriesDate", 0x00080031: "SeriesTime", 0x00080060: "Modality",
    0x00100010: "PatientName", 0x00100020: "PatientID", 0x00101030: "PatientWeight",
    0x00180015: "BodyPartExamined", 0x00180050: "SliceThickness", 0x00180081: "EchoTime",
    0x00180086: "EchoNumbers", 0x00180088: "SpacingBetweenSlices", 0x00181060: "TriggerTime",
    0x00181072: "RadiopharmaceuticalStartTime", 0x00181074: "RadionuclideTotalDose",
    0x00181075: "RadionuclideHalfLife", 0x00181078: "RadiopharmaceuticalStartDateTime",
    0x00181164: "ImagerPixelSpacing", 0x00189087: "DiffusionBValue",
    0x0020000D: "StudyInstanceUID", 0x0020000E: "SeriesInstanceUID",
    0x00200011: "SeriesNumber", 0x00200012: "AcquisitionNumber", 0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient", 0x00200037: "ImageOrientationPatient",
    0x00200052: "FrameOfReferenceUID", 0x00200100: "TemporalPositionIdentifier",
    0x00209128: "TemporalPositionIndex", 0x00209056: "StackID",
    0x00280002: "SamplesPerPixel", 0x00280004: "PhotometricInterpretation",
    0x00280006: "PlanarConfiguration", 0x00280008: "NumberOfFrames", 0x00280010: "Rows",
    0x00280011: "Columns", 0x00280030: "PixelSpacing", 0x00280100: "BitsAllocated",
    0x00280101: "BitsStored", 0x00280102: "HighBit", 0x00280103: "PixelRepresentation",
    0x00280120: "PixelPaddingValue", 0x00280121: "PixelPaddingRangeLimit",
    0x00280301: "BurnedInAnnotation", 0x00281052: "RescaleIntercept", 0x00281053: "RescaleSlope",
    0x00281054: "RescaleType",
    0x00282110: "LossyImageCompression", 0x00541001: "Units", 0x00541006: "SUVType",
    0x00541102: "DecayCorrection",
    0x70531000: "SUVScaleFactor",
    0x0062000B: "ReferencedSegmentNumber", 0x00620004: "SegmentNumber",
    0x00620001: "SegmentationType",
}  # fmt: skip
TAGS = {keyword: tag for tag, keyword in KEYWORDS.items()}
WANTED = frozenset(KEYWORDS) | SEQUENCES
_GROUPS_SHARED, _GROUPS_FRAME = 0x52009229, 0x52009230
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_MODALITY_OF_CLASS = {
    f"{_STORAGE}2": "CT", f"{_STORAGE}2.1": "CT", f"{_STORAGE}4": "MR", f"{_STORAGE}4.1": "MR",
    f"{_STORAGE}20": "NM", f"{_STORAGE}128": "PT", f"{_STORAGE}130": "PT",
}  # fmt: skip
_NUMBER = re.compile(r"[0-9+\-.,eE \\]{1,100}")

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One plane of pixels: where it lies and what its stored values mean.

    Attributes:
        index: Which frame of its file.
        position: LPS millimetres of its first pixel; None if the file does not give one.
        orientation: Row then column direction cosines in LPS.
        pixel_spacing_mm: Distance between rows, then between columns.
        time: What tells this frame from others at its position (time, echo, b-value).
        apart_mm: From slice to slice, as the file states it; a SEG leaves slices out.
    """

    image: DicomImage = field(repr=False)
    index: int
    position: Vector | None
    orientation: Vector | None
    pixel_spacing_mm: Vector | None
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    time: tuple[str, ...]
    segment: int | None = None
    apart_mm: float | None = None


@dataclass
class DicomImage:
    """The header of one image file, without anything that names a patient."""

    path: Path
    parsed: Parsed = field(repr=False)
    texts: dict[str, str] = field(repr=False)
    patient: str = field(repr=False)
    rows: int
    columns: int
    n_frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    frames: list[Frame] = field(default_factory=list, repr=False)

    @property
    def modality(self) -> str:
        """DICOM Modality, upper case, letters only; where it is missing, what the class states."""
        stated = self.texts.get("Modality") or _MODALITY_OF_CLASS.get(
            self.texts.get("SOPClassUID", ""), ""
        )
        return re.sub(r"[^A-Z]", "", stated.upper())[:4]

    @property
    def series(self) -> str:
        """SeriesInstanceUID."""
        return self.texts.get("SeriesInstanceUID", "")

    @property
    def photometric(self) -> str:
        """PhotometricInterpretation."""
        return self.texts.get("PhotometricInterpretation", "MONOCHROME2")

    @property
    def is_segmentation(self) -> bool:
        """Whether this is a DICOM SEG object."""
        return self.texts.get("SOPClassUID") == "1.2.840.10008.5.1.4.1.1.66.4"

    @property
    def is_localizer(self) -> bool:
        """Whether ImageType holds LOCALIZER."""
        return "LOCALIZER" in self.texts.get("ImageType", "").upper().split("\\")

    @property
    def is_burned_in(self) -> bool:
        """Whether BurnedInAnnotation is YES."""
        return self.texts.get("BurnedInAnnotation", "").upper() == "YES"


def read_header(path: Path) -> DicomImage | None:
    """Read one file's header; None if it is a DICOM object without pixels.

    Raises:
        NotDicomError: If it is not a DICOM file.
        InputError: If it is damaged or contradicts itself.
    """
    parsed = parse_file(path, WANTED)
    if parsed.pixel_offset is None:
        return None
    return header_of(parsed)


def header_of(parsed: Parsed) -> DicomImage:
    """The checked header of a parsed file that has pixels.

    Raises:
        InputError: If sizes or bit depths are impossible.
    """
    get = Getter(parsed.path, parsed.elements, parsed.order)
    name = shown(parsed.path)
    if any(tag in parsed.elements for tag in FLOAT_PIXEL_DATA):
        raise InputError(f"{name}: float pixel data is not supported")
    rows, columns = get.ushort("Rows"), get.ushort("Columns")
    if not rows or not columns:
        raise InputError(f"{name}: Rows and Columns must both be above zero")
    allocated = get.ushort("BitsAllocated") or 0
    stored = get.ushort("BitsStored", allocated) or 0
    high = get.ushort("HighBit", stored - 1)
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated:
        raise InputError(f"{name}: {stored} bits stored in {allocated} bits allocated is impossible"
                         " or unsupported")  # fmt: skip
    if high != stored - 1:
        raise InputError(f"{name}: HighBit {high} contradicts BitsStored {stored}")
    if get.ushort("PixelRepresentation", 0) > 1:
        raise InputError(f"{name}: PixelRepresentation is neither 0 (unsigned) nor 1 (signed)")
    image = DicomImage(
        path=parsed.path, parsed=parsed, texts=get.texts(), patient=_patient_key(get),
        rows=rows, columns=columns, n_frames=_n_frames(name, get),
        samples=get.ushort("SamplesPerPixel", 1) or 1, bits_allocated=allocated,
        bits_stored=stored, high_bit=high, is_signed=get.ushort("PixelRepresentation", 0) == 1,
    )  # fmt: skip
    image.frames = _frames(image, get)
    return image


class Getter:
    """Typed access to raw elements; a value that cannot be is rejected by its keyword."""

    def __init__(self, path: Path, elements: Elements, order: str) -> None:
        self.path, self.elements, self.order = path, elements, order

    def raw(self, keyword: str) -> bytes | None:
        """The raw bytes, or None where the element is absent or empty."""
        value = self.elements.get(TAGS[keyword])
        return value if isinstance(value, bytes) and value else None

    def text(self, keyword: str) -> str:
        """A text value without its padding, empty where absent."""
        return (self.raw(keyword) or b"").decode("latin-1").strip("\0 ")

    def texts(self) -> dict[str, str]:
        """Every text element that is needed later; identity is not among them."""
        return {word: self.text(word) for word in _TEXTS if self.raw(word)}

    def ushort(self, keyword: str, default: int | None = None) -> int:
        """An unsigned short.

        Raises:
            InputError: If it is required and absent, or of another length.
        """
        value = self.raw(keyword)
        if value is None and default is not None:
            return default
        if value is None or len(value) < 2:
            raise InputError(f"{shown(self.path)}: {keyword} is missing or damaged")
        return struct.unpack_from(self.order + "H", value)[0]

    def numbers(self, keyword: str, count: int | None = None) -> Vector | None:
        """Decimal strings as floats; None where absent.

        Raises:
            GeometryError: If a value is not a finite decimal number, or the count is wrong.
        """
        text = self.text(keyword)
        if not text:
            return None
        found = f" (found {text.strip()})" if _NUMBER.fullmatch(text) else ""
        try:
            values = tuple(number(part) for part in text.split("\\"))
        except ValueError as error:
            raise GeometryError(f"{shown(self.path)}: {keyword} holds a value that is not a "
                                f"decimal number{found}") from error  # fmt: skip
        if not all(map(math.isfinite, values)):
            raise GeometryError(f"{shown(self.path)}: {keyword} holds a non-finite value")
        if count is not None and len(values) != count:
            raise GeometryError(f"{shown(self.path)}: {keyword} holds {len(values)} values, "
                                f"wanted {count}{found}")  # fmt: skip
        return values

    def number(self, keyword: str) -> float | None:
        """The first decimal number of an element."""
        values = self.numbers(keyword)
        return values[0] if values else None

    def moment(self, keyword: str) -> str:
        """A value that tells frames apart, as text whichever way it is stored; empty if absent."""
        raw, form = self.raw(keyword), _BINARY.get(keyword)
        if raw is None or form is None or len(raw) != struct.calcsize(form):
            return self.text(keyword)
        return repr(struct.unpack(self.order + form, raw)[0])

    def items(self, tag: int) -> list[Getter]:
        """The items of a sequence."""
        value = self.elements.get(tag)
        found = value if isinstance(value, list) else []
        return [Getter(self.path, item, self.order) for item in found]


_TEXTS = ("ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID",
          "SeriesInstanceUID", "FrameOfReferenceUID", "PhotometricInterpretation", "Units",
          "DecayCorrection", "BurnedInAnnotation", "LossyImageCompression", "SeriesNumber",
          "BodyPartExamined", "RescaleType", "SegmentationType", "AcquisitionDate",
          "AcquisitionTime", "SeriesDate", "SeriesTime")  # fmt: skip
_TIMES = ("TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "EchoNumbers",
          "EchoTime", "DiffusionBValue", "TriggerTime", "AcquisitionNumber",
          "AcquisitionTime")  # fmt: skip

_BINARY = {"TemporalPositionIndex": "I", "DiffusionBValue": "d"}


def _patient_key(get: Getter) -> str:
    # Compared, never printed: a digest cannot reach a message by accident.
    identity = (get.raw("PatientID") or b"") + b"\0" + (get.raw("PatientName") or b"")
    return hashlib.sha256(identity).hexdigest()


def _n_frames(name: str, get: Getter) -> int:
    text = get.text("NumberOfFrames")
    if not text:
        return 1
    if not re.fullmatch(r"\+?\d{1,7}", text) or int(text) < 1:
        raise InputError(f"{name}: NumberOfFrames is not a positive number")
    return int(text)


def _frames(image: DicomImage, get: Getter) -> list[Frame]:
    shared = get.items(_GROUPS_SHARED)[:1]
    per_frame = get.items(_GROUPS_FRAME)
    if not per_frame:
        layers = [*shared, get]
        return [_frame(image, index, layers) for index in range(image.n_frames)]
    if len(per_frame) != image.n_frames:
        raise InputError(f"{shown(image.path)}: NumberOfFrames is {image.n_frames} but "
                         f"{len(per_frame)} frames are described")  # fmt: skip
    return [_frame(image, i, [groups, *shared, get]) for i, groups in enumerate(per_frame)]


def _frame(image: DicomImage, index: int, layers: list[Getter]) -> Frame:
    flat = [getter for layer in layers for getter in _flattened(layer)]

    def numbers(keyword: str, count: int) -> Vector | None:
        return next((v for g in flat if (v := g.numbers(keyword, count))), None)

    apart = numbers("SpacingBetweenSlices", 1)
    thickness = numbers("SliceThickness", 1) or apart
    slope, intercept = numbers("RescaleSlope", 1), numbers("RescaleIntercept", 1)
    segment = next((g.ushort("ReferencedSegmentNumber") for g in flat
                    if g.raw("ReferencedSegmentNumber")), None)  # fmt: skip
    return Frame(
        image=image, index=index,
        position=numbers("ImagePositionPatient", 3),
        orientation=numbers("ImageOrientationPatient", 6),
        pixel_spacing_mm=numbers("PixelSpacing", 2),
        thickness_mm=abs(thickness[0]) if thickness else None,
        slope=slope[0] if slope else None, intercept=intercept[0] if intercept else None,
        time=tuple(next((t for g in flat if (t := g.moment(word))), "") for word in _TIMES),
        segment=segment, apart_mm=abs(apart[0]) if apart else None,
    )  # fmt: skip


def _flattened(layer: Getter) -> list[Getter]:
    inner = [tag for tag, value in layer.elements.items() if isinstance(value, list)
             and tag in _FUNCTIONAL]  # fmt: skip
    return [item for tag in inner for item in layer.items(tag)[:1]] + [layer]


_FUNCTIONAL = frozenset({0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00209111, 0x0062000A,
                         0x00189114})  # fmt: skip
