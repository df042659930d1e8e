"""De-identify a folder of DICOM files by PS3.15 Table E.1-1, at every depth of every data set.

Pseudonyms are keyed hashes, dates may be shifted, and a file in which an identifying word would
survive is not written.

Source:
    DICOM PS3.15 2026c, Annex E.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medvol import __version__
from medvol.core.errors import (
    InputError,
    MedvolError,
    MissingInputError,
    OutputError,
)
from medvol.core.files import atomic_path, output_path, write_json
from medvol.io.checks import shown
from medvol.io.dicom import is_beside, walk_files
from medvol.io.dicom_parse import NotDicomError, parse_file
from medvol.privacy.audit import Residual, audit_dataset, identity_words
from medvol.privacy.faces import FACE_MODALITIES, judged
from medvol.privacy.profile import PrivacyProfile
from medvol.privacy.pseudonym import Pseudonyms
from medvol.privacy.rules import Rules, deidentify

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

#: Objects made of words: they cannot be cleaned by rule and are left out.
_WORDS_SOP = ("1.2.840.10008.5.1.4.1.1.88", "1.2.840.10008.5.1.4.1.1.104",
              "1.2.840.10008.5.1.4.1.1.11", "1.2.840.10008.5.1.4.1.1.66",
              "1.2.840.10008.5.1.4.1.1.9", "1.2.840.10008.1.3")  # fmt: skip
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass
class DeidReport:
    """What a run did; holds output names and tags, never a value or a source path."""

    profile: str
    key: str
    written: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    residuals: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was left out and no identity or private element remains."""
        serious = ("identity", "private")
        return not self.left_out and not any(r["kind"] in serious for r in self.residuals)


def deidentify_folder(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    profile: PrivacyProfile,
    pseudonyms: Pseudonyms,
    *,
    key_origin: str = "",
    is_judging_faces: bool = True,
    on_file: Callable[[int, int], None] | None = None,
) -> DeidReport:
    """Write de-identified copies of every DICOM object below ``source``.

    Copies are named by number (``P001/S001/000001.dcm``), never by a tag or a source name. The
    report is written beside them as ``deid_report.json``. The source is never touched.

    Args:
        source: A folder, or one file.
        target: A new or empty folder outside ``source``.
        profile: What to keep and remove.
        pseudonyms: Keyed hash for patients and UIDs.
        key_origin: Where the key came from, for the report.
        is_judging_faces: Decode CT and MR series and look for a face; else their tags decide.
        on_file: Called with (done, total) after each file.

    Raises:
        OutputError: If ``target`` is not empty, lies inside ``source``, or cannot be written.
        MissingInputError: If ``source`` holds no DICOM object.
    """
    source, target = Path(source), Path(target)
    require_apart(source, target)
    files = [source] if source.is_file() else walk_files(source)
    report = DeidReport(profile.name, key_origin)
    cleaner = _Cleaner(Rules.load(profile), pseudonyms, _Folders(target), report)
    n_dicom = 0
    for index, path in enumerate(files, 1):
        if not _is_not_dicom(path):
            n_dicom += 1
            cleaner.copy(path, n_dicom)
        if on_file is not None:
            on_file(index, len(files))
    if not n_dicom:
        raise MissingInputError(f"{shown(source)}: holds no DICOM object")
    for series, modality in cleaner.scans.items() if is_judging_faces else ():
        rows = judged(cleaner.residuals[series], target / series, modality)
        cleaner.residuals[series] = dict.fromkeys(rows)
    report.residuals = [
        {"series": series, **asdict(row)}
        for series, rows in cleaner.residuals.items()
        for row in rows
    ]
    write_json(output_path(target, "deid_report.json"),
               {"medvol": __version__, **asdict(report)})  # fmt: skip
    return report


@dataclass
class _Cleaner:
    """What copying a data set needs and leaves: a copy, its residuals, or why there is none."""

    rules: Rules
    pseudonyms: Pseudonyms
    folders: _Folders
    report: DeidReport
    residuals: dict[str, dict[Residual, None]] = field(default_factory=dict)
    scans: dict[str, str] = field(default_factory=dict)

    def copy(self, path: Path, number: int) -> None:
        """Write one de-identified copy; ``number`` names it where it must be left out."""
        try:
            dataset = _read(path)
            modality = str(dataset.get("Modality", ""))
            place, found = _one_file(dataset, self.rules, self.pseudonyms, self.folders)
        except OutputError:
            raise
        except MedvolError as error:
            self.report.left_out.append({"file": str(number), "why": str(error)})
            return
        self.report.written += 1
        series = str(place.parent.relative_to(self.folders.target))
        self.residuals.setdefault(series, {}).update(dict.fromkeys(found))
        if modality in FACE_MODALITIES:
            self.scans[series] = modality


@dataclass
class _Folders:
    """Numbers patients, series and files, so that names reveal nothing and never collide."""

    target: Path
    numbers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def place(self, dataset: Dataset) -> Path:
        patient, series = str(dataset.PatientID), str(dataset.get("SeriesInstanceUID", ""))
        p = self._number("patient", patient)
        s = self._number("series", patient, series)
        n = self.numbers[("file", patient, series)] = self.numbers.get(
            ("file", patient, series), 0
        ) + 1  # fmt: skip
        return output_path(self.target, f"P{p:03d}", f"S{s:03d}", f"{n:06d}.dcm")

    def _number(self, kind: str, *names: str) -> int:
        key = (kind, *names)
        if key not in self.numbers:
            beside = sum(k[:-1] == key[:-1] for k in self.numbers)
            self.numbers[key] = beside + 1
        return self.numbers[key]


def require_apart(source: Path, target: Path, key_file: Path | None = None) -> None:
    """Reject a target or key that would touch the source, or lie among the copies.

    Raises:
        MissingInputError: If there is no source.
        OutputError: Otherwise.
    """
    if not source.exists():
        raise MissingInputError(f"{shown(source)}: does not exist")
    here, there = source.resolve(), target.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise OutputError(f"{shown(target)}: must lie outside the source folder, which is never "
                          "written to")  # fmt: skip
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{shown(target)}: exists and is not empty; choose a new folder")
    if key_file and any(key_file.resolve().is_relative_to(place) for place in (here, there)):
        raise OutputError(f"{shown(key_file)}: the key must lie outside the scans and their copies")


def _is_not_dicom(path: Path) -> bool:
    """Whether a file is not a DICOM object (a readme beside the slices) and is not copied."""
    if path.name.upper().split(".")[0] == "DICOMDIR":
        return True
    try:
        parse_file(path, frozenset())
    except NotDicomError:
        return True
    except InputError:
        return is_beside(path)
    return False


def _read(path: Path) -> Dataset:
    import pydicom
    from pydicom.uid import UID

    try:
        syntax = parse_file(path, frozenset()).syntax
        with _quiet():
            dataset = pydicom.dcmread(path, force=True)  # files without preamble too
            dataset.file_meta.setdefault("TransferSyntaxUID", UID(syntax))
    except (OSError, ValueError, KeyError, EOFError, AttributeError, NotImplementedError) as error:
        raise InputError("is damaged and cannot be read: left out") from error
    return dataset


def _one_file(
    dataset: Dataset, rules: Rules, pseudonyms: Pseudonyms, folders: _Folders
) -> tuple[Path, list[Residual]]:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    sop = str(
        dataset.get("SOPClassUID", "") or dataset.file_meta.get("MediaStorageSOPClassUID", "")
    )
    if sop.startswith(_WORDS_SOP) and not sop.startswith(_SEGMENTATION):
        raise InputError("a document, report or the like: made of words, left out")
    try:
        with _quiet():
            words = identity_words(dataset)
            instance = str(dataset.get("SOPInstanceUID", "")
                           or dataset.file_meta.get("MediaStorageSOPInstanceUID", ""))  # fmt: skip
            syntax = dataset.file_meta.TransferSyntaxUID
            deidentify(dataset, rules, pseudonyms)
            dataset.SOPClassUID = sop
            dataset.SOPInstanceUID = UID(pseudonyms.uid(instance))
            meta = FileMetaDataset()  # fresh: the old one names stations and senders
            meta.MediaStorageSOPClassUID = UID(sop)
            meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            meta.TransferSyntaxUID = syntax
            dataset.file_meta, dataset.preamble = meta, b"\0" * 128
            found = audit_dataset(dataset, words)
            if any(r.kind in ("identity", "private") for r in found):
                raise InputError("an identifying word or private element would remain: left out")
            place = folders.place(dataset)
            with atomic_path(place) as scratch:
                dataset.save_as(scratch, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        if isinstance(error, MedvolError):
            raise
        raise InputError("its data set is damaged and cannot be rewritten: left out") from error
    return place, found


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom quotes odd values in warnings and logs; none of them may leave."""
    import logging

    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
