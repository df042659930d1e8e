"""What de-identification leaves behind: a list of residual risks, without a single value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

_TEXT = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "PN", "AE", "UR", "CS"})
_FREE_TEXT = frozenset({"ST", "LT", "UT", "UC"})
#: Attributes whose values tell who or where; their words are searched for in everything kept.
IDENTIFYING = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames",
    "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers",
    "MilitaryRank", "AccessionNumber", "StudyID", "AdmissionID", "ReferringPhysicianName",
    "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord",
    "OperatorsName", "RequestingPhysician", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "ResponsiblePerson", "IssuerOfPatientID",
)  # fmt: skip
#: Words of such values that are not an identity.
_COMMON = frozenset({"HOSPITAL", "CLINIC", "UNIVERSITY", "INSTITUTE", "MEDICAL", "CENTER", "CENTRE",
                     "RADIOLOGY", "DEPARTMENT", "ANONYMIZED", "ANONYMOUS", "UNKNOWN", "NONE",
                     "ORIGINAL", "PRIMARY", "AXIAL", "HEAD", "BRAIN", "CHEST",
                     "ABDOMEN"})  # fmt: skip
_FACES = re.compile(r"HEAD|BRAIN|FACE|NECK|SKULL|ORBIT|SINUS|CEREB|TEMPOR|HIPPOC|CRAN|IAC", re.I)
#: Why a series is flagged whose tags speak of a head; its voxels may show otherwise.
FACE_BY_TAG = "a head scan may be rendered as a recognisable face"
_BURNED_IN_MODALITIES = frozenset({"US", "ES", "XC", "OT", "SC", "RF", "XA", "OP", "GM"})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Residual:
    """One thing that a person should look at: what it is and where, never its value."""

    kind: str
    where: str
    why: str


def identity_words(dataset: Dataset) -> frozenset[str]:
    """Upper-case words and whole values that identify, of at least four characters."""
    found: set[str] = set()
    for element in dataset.iterall():
        if element.keyword not in IDENTIFYING and element.VR != "PN":
            continue
        text = str(element.value).upper()
        found.add(text.strip())
        found.update(re.split(r"[\^=\s,;\\/\[\]'\"]+", text))
    return frozenset(w for w in found if len(w) >= 4 and w not in _COMMON)


def mentions(element: DataElement, words: frozenset[str]) -> bool:
    """Whether a text element contains one of the identifying words."""
    if element.VR not in _TEXT or element.is_empty:
        return False
    text = str(element.value).upper()
    return any(word in text for word in words)


def audit_dataset(dataset: Dataset, words: frozenset[str] = frozenset()) -> list[Residual]:
    """Everything in a de-identified data set that may still tell who was imaged.

    Private elements, identifying words in text that was kept, free text, burned-in annotation,
    and faces that a head scan would show. An empty list of the first two is a promise; the last
    two need eyes.

    Args:
        dataset: After de-identification.
        words: :func:`identity_words` of the same data set before it.
    """
    return [
        *_elements(dataset, words),
        *_burned_in(dataset),
        *_faces(dataset),
    ]


def _elements(dataset: Dataset, words: frozenset[str]) -> Iterator[Residual]:
    for element in dataset.iterall():
        where = element.keyword or f"({element.tag.group:04X},{element.tag.element:04X})"
        if element.tag.is_private:
            yield Residual("private", where, "a private element was kept")
        elif mentions(element, words):
            yield Residual("identity", where, "holds a word of an identifying attribute")
        elif element.VR in _FREE_TEXT and not element.is_empty:
            yield Residual("free text", where, "free text may name somebody")


def _burned_in(dataset: Dataset) -> Iterator[Residual]:
    declared = str(dataset.get("BurnedInAnnotation", "")).upper()
    kind = str(dataset.get("Modality", "")).upper()
    if declared == "YES":
        yield Residual("burned-in", "PixelData", "BurnedInAnnotation is YES")
    elif declared != "NO" and (
        kind in _BURNED_IN_MODALITIES
        or str(dataset.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
        or "SECONDARY" in [str(v).upper() for v in _values(dataset.get("ImageType"))]
    ):
        yield Residual("burned-in", "PixelData",
                       "this kind of image often carries text in its pixels")  # fmt: skip


def _faces(dataset: Dataset) -> Iterator[Residual]:
    if str(dataset.get("Modality", "")).upper() not in ("CT", "MR", "PT"):
        return
    part = str(dataset.get("BodyPartExamined", ""))
    if _FACES.search(part):
        yield Residual("face", "PixelData", FACE_BY_TAG)
    elif not part.strip():
        yield Residual("face", "PixelData", "BodyPartExamined is empty; if this is a head scan it "
                       "may show a recognisable face")  # fmt: skip


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
