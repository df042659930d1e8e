"""PS3.15 Table E.1-1 applied to one data set, at every depth.

The table and its dummy values come from ``dicom-anonymizer``; that package applies it to the top
level only, so the walk through nested sequences is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvol import __version__
from medvol.core.errors import MissingPackageError
from medvol.privacy.audit import identity_words, mentions
from medvol.privacy.profile import PrivacyProfile
from medvol.privacy.pseudonym import Pseudonyms, shift_date

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

_TABLE = "dicomfields_2026c"
_DATES = frozenset({"DA", "DT"})
_TIMES = frozenset({"DA", "DT", "TM"})
_DUMMY_DATE = {"DA": "19000101", "DT": "19000101000000", "TM": "000000"}
#: Retain Device Identity Option, PS3.15 Table E.1-1 column "Retain Device Ident."
_DEVICE = frozenset({
    "DeviceSerialNumber", "DeviceUID", "DeviceLabel", "DeviceDescription",
    "DeviceSettingDescription",
    "StationName", "GantryID", "DetectorID", "CassetteID", "GeneratorID", "PlateID",
    "PerformedStationName", "PerformedStationAETitle", "ScheduledStationName",
    "ScheduledStationAETitle", "SourceManufacturer", "LensMake", "XRayDetectorLabel",
    "XRayDetectorID", "XRaySourceID", "ManufacturerDeviceIdentifier", "UDISequence",
    "UniqueDeviceIdentifier", "MACParametersSequence",
})  # fmt: skip


def deidentify(dataset: Dataset, rules: Rules, pseudonyms: Pseudonyms) -> None:
    """De-identify one data set in place, nested sequences included."""
    words = identity_words(dataset)
    patient = pseudonyms.patient(
        str(dataset.get("PatientID", "")), str(dataset.get("PatientName", ""))
    )
    days = pseudonyms.shift_days(patient, rules.profile.max_shift_days)
    _Walk(rules, pseudonyms, words, days).clean(dataset)
    dataset.PatientID = patient
    dataset.PatientName = patient
    dataset.PatientBirthDate = ""
    _declare(dataset, rules.profile)


@dataclass(frozen=True)
class Rules:
    """Table E.1-1 as action letters, and its masked rows for repeating groups."""

    profile: PrivacyProfile
    letters: dict[int, str]
    masked: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def load(cls, profile: PrivacyProfile) -> Rules:
        try:
            from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
        except ImportError as error:
            raise MissingPackageError(
                "de-identification needs dicom-anonymizer; pip install 'medvol[dicom]'"
            ) from error
        table = dicom_anonymization_database_selector(_TABLE)
        letters: dict[int, str] = {}
        masked: list[tuple[tuple[int, ...], str]] = []
        for category, tags in table.items():
            letter = category.removesuffix("_TAGS")
            if letter == "ALL":
                continue
            for tag in tags:
                if len(tag) > 2:
                    masked.append((tuple(tag), letter))
                else:
                    letters[tag[0] << 16 | tag[1]] = letter
        return cls(profile, letters, tuple(masked))

    def letter(self, element: DataElement) -> str:
        """The action for an element: K(eep), X, Z, D or U, alone or combined."""
        word = element.keyword
        if word in self.profile.remove or element.tag.is_private or not word:
            return "X"
        if word in self.profile.keep:
            return "K"
        if self.profile.device == "retain" and word in _DEVICE:
            return "K"
        tag = int(element.tag)
        if tag in self.letters:
            return self.letters[tag]
        for (group, number, group_mask, mask), letter in self.masked:
            if element.tag.group & group_mask == group & group_mask and (
                element.tag.element & mask == number & mask
            ):
                return letter
        return "D" if element.VR == "PN" else "K"


@dataclass(frozen=True)
class _Walk:
    rules: Rules
    pseudonyms: Pseudonyms
    words: frozenset[str]
    days: int

    def clean(self, dataset: Dataset) -> None:
        for element in list(dataset):
            letter = self.rules.letter(element)
            if self._is_shifted(element, letter):
                self._shift(element)
            elif letter == "K":
                self._keep(dataset, element)
            else:
                self._act(dataset, element, letter)

    def _is_shifted(self, element: DataElement, letter: str) -> bool:
        return (
            self.rules.profile.dates == "shift"
            and element.VR in _TIMES
            and letter != "K"
            and not element.tag.is_private
            and element.keyword not in ("", "PatientBirthDate", "PatientBirthTime")
        )

    def _keep(self, dataset: Dataset, element: DataElement) -> None:
        if element.VR == "SQ":
            for item in element.value:
                self.clean(item)
        elif mentions(element, self.words) and element.keyword not in self.rules.profile.keep:
            del dataset[element.tag]

    def _act(self, dataset: Dataset, element: DataElement, letter: str) -> None:
        if element.VR == "UI" and "U" in letter:
            element.value = self._uids(element.value)
        elif element.VR == "SQ" and "U" in letter:
            for item in element.value:
                self.clean(item)
        elif letter == "X" or (element.VR == "SQ" and letter.startswith("X")):
            del dataset[element.tag]
        elif letter in ("Z", "X_Z"):
            element.value = [] if element.VR == "SQ" else None
        elif element.VR == "SQ":
            element.value = []  # a dummy item would be made up
        else:
            self._dummy(dataset, element)

    def _dummy(self, dataset: Dataset, element: DataElement) -> None:
        from dicomanonymizer.simpledicomanonymizer import replace_element

        if element.VR in _DUMMY_DATE:
            element.value = _DUMMY_DATE[element.VR]
        elif element.VR == "UI":
            element.value = self._uids(element.value)
        else:
            try:
                replace_element(element)
            except (NotImplementedError, ValueError, TypeError):
                del dataset[element.tag]

    def _shift(self, element: DataElement) -> None:
        if element.VR not in _DATES or element.is_empty:
            return  # times of day stay: alone they do not tell the day
        values = [element.value] if isinstance(element.value, str) else list(element.value)
        moved = [shift_date(str(value), self.days) for value in values]
        element.value = moved[0] if len(moved) == 1 else moved

    def _uids(self, value: Any) -> Any:
        if value is None or value == "":
            return value
        if isinstance(value, str):
            return value if value.startswith("1.2.840.10008.") else self.pseudonyms.uid(value)
        return [self._uids(str(v)) for v in value]


def _declare(dataset: Dataset, profile: PrivacyProfile) -> None:
    from pydicom.dataset import Dataset as Item

    def code(value: str, meaning: str) -> Item:
        item = Item()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        return item

    done = [code("113100", "Basic Application Confidentiality Profile")]
    if profile.dates == "shift":
        done.append(
            code("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
        )
    if profile.device == "retain":
        done.append(code("113109", "Retain Device Identity Option"))
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"medvol {__version__} {profile.name}"[:64]
    dataset.DeidentificationMethodCodeSequence = done
    dataset.LongitudinalTemporalInformationModified = (
        "MODIFIED" if profile.dates == "shift" else "REMOVED"
    )
