"""The one noun for a data set: cases with their files, and what the labels mean."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError, LabelError, MedvolError, MissingInputError
from medvol.core.files import sha256_file, write_json
from medvol.io.checks import shown
from medvol.io.data_file import with_data

_VERSION = 1
_SPLITS = ("train", "validation", "test")
_TEXT_FIELDS = ("patient", "study", "split", "site", "sex")


@dataclass(frozen=True)
class Case:
    """One case: what is fed to a network at once, and what is known about it.

    Attributes:
        case: Name, unique in its data set; names outputs.
        images: Absolute paths, one per channel; a path may be a folder holding a DICOM series.
        label: Absolute path of the label map, None where there is none.
        category: Class name for classification, None where there is none.
        patient: Patient id as the data set gives it; None where unknown. Never printed.
        study: Study or session id.
        fold: Cross-validation fold from 0, None where the data set names none.
        split: ``train``, ``validation`` or ``test`` where the data set states it.
        site: Where the image comes from: hospital, scanner or source collection.
        sex: As given.
        extra: Further columns of a datalist, as text or numbers.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    category: str | None = None
    patient: str | None = None
    study: str | None = None
    fold: int | None = None
    split: str | None = None
    site: str | None = None
    sex: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Path:
        """The first (or only) image."""
        return self.images[0]

    @property
    def group(self) -> str:
        """What must not be torn apart by a split: the patient, or the case where unknown."""
        return f"patient:{self.patient}" if self.patient else f"case:{self.case}"

    def sha256(self) -> dict[str, str]:
        """Digest of every image and label, by role.

        A series folder counts as its files, a header as itself and the data file that it names.
        """
        digests = {f"image{i}" if i else "image": file_digest(p) for i, p in enumerate(self.images)}
        if self.label is not None:
            digests["label"] = file_digest(self.label)
        return digests


@dataclass(frozen=True)
class Manifest:
    """A data set: an object that exists has at least one case, and no name twice.

    Attributes:
        name: Name for reports.
        root: Folder that relative paths start from.
        layout: How it was found on disk: msd, nnunet, bids, datalist, class-tree, folder, manifest.
        cases: The cases, sorted by name.
        labels: Label value to name, background (0) left out; empty where unknown.
        regions: Overlapping regions of nnU-Net: name to the label values they join.
        region_labels: The label value that each region is painted with, in order; empty where the
            data set does not state.
        ignore_label: Value of voxels to leave out of loss and score, None where there is none.
        channels: Channel names in order, for example ``("T1", "T2")``; empty where unknown.
        licence: As given.
    """

    name: str
    root: Path
    layout: str
    cases: tuple[Case, ...]
    labels: dict[int, str] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    region_labels: tuple[int, ...] = ()
    ignore_label: int | None = None
    channels: tuple[str, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        if not self.cases:
            raise MissingInputError(f"{self.root}: the data set holds no case")
        ordered = tuple(sorted(self.cases, key=lambda case: case.case))
        object.__setattr__(self, "cases", ordered)
        _require_unique(self.root, ordered)
        _require_usable(self.root, ordered)
        if any(value <= 0 for value in self.labels):
            raise LabelError(f"{self.root}: label values must be above 0: {sorted(self.labels)}")

    @property
    def modality(self) -> str | None:
        """The modality of the first channel as a medvol name (CT, MR, ...), None where unknown."""
        return guess_modality(self.channels[0]) if self.channels else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in alphabetical order; empty where the cases carry none."""
        return tuple(sorted({case.category for case in self.cases if case.category is not None}))

    @property
    def legal_labels(self) -> dict[int, str]:
        """Values that a label map may hold beside 0, the ignore label included."""
        ignored = {} if self.ignore_label is None else {self.ignore_label: "ignore"}
        return {**self.labels, **ignored}

    @property
    def training(self) -> tuple[Case, ...]:
        """Cases not set aside as test cases."""
        return tuple(case for case in self.cases if case.split != "test")

    @property
    def tested(self) -> tuple[Case, ...]:
        """Cases to score: labelled test cases where there are some, else every labelled case."""
        labelled = tuple(case for case in self.cases if case.label is not None)
        return tuple(case for case in labelled if case.split == "test") or labelled

    def split_of(self, case: Case) -> str:
        """The part that a case belongs to; empty where the data set does not state it.

        Beside cases that are set aside for testing, a case without a part trains.
        """
        return case.split or ("train" if self._has_test else "")

    @cached_property
    def _has_test(self) -> bool:
        return any(case.split == "test" for case in self.cases)

    def select(self, names: Iterable[str]) -> Manifest:
        """The same data set with only the named cases.

        Raises:
            MissingInputError: If a name is not in the data set.
        """
        wanted = set(names)
        if missing := wanted - {case.case for case in self.cases}:
            raise MissingInputError(f"{self.root}: has no case {sorted(missing)[0]!r}")
        return replace(self, cases=tuple(case for case in self.cases if case.case in wanted))

    def datalist(self, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Dictionaries for a MONAI dataset: image, label (path), class (index), case.

        Args:
            names: Only these cases; all by default.
        """
        chosen = self.cases if names is None else self.select(names).cases
        return [self._entry(case) for case in chosen]

    def _entry(self, case: Case) -> dict[str, Any]:
        paths = [str(path) for path in case.images]
        entry: dict[str, Any] = {"case": case.case, "image": paths if len(paths) > 1 else paths[0]}
        if case.label is not None:
            entry["label"] = str(case.label)
        if case.category is not None:
            entry["class"] = self.classes.index(case.category)
        return entry


def write_manifest(manifest: Manifest, target: str | os.PathLike[str], *, sha256: bool = False):
    """Write ``manifest.json`` atomically, with paths relative to the file's own folder.

    Args:
        manifest: What to write.
        target: Path of the JSON file.
        sha256: Whether to read every file and record its digest.
    """
    folder = Path(os.path.abspath(target)).parent
    cases = []
    for case in manifest.cases:
        row: dict[str, Any] = {
            "case": case.case,
            "images": [_relative(p, folder) for p in case.images],
        }
        if case.label is not None:
            row["label"] = _relative(case.label, folder)
        optional = {"class": case.category, "fold": case.fold}
        optional |= {name: getattr(case, name) for name in _TEXT_FIELDS}
        row |= {key: value for key, value in optional.items() if value is not None}
        if case.extra:
            row["extra"] = case.extra
        if sha256:
            row["sha256"] = case.sha256()
        cases.append(row)
    write_json(
        target,
        {
            "medvol_manifest": _VERSION,
            "name": manifest.name,
            "layout": manifest.layout,
            "labels": {str(value): name for value, name in manifest.labels.items()},
            "regions": {name: list(values) for name, values in manifest.regions.items()},
            "region_labels": list(manifest.region_labels),
            "ignore_label": manifest.ignore_label,
            "channels": list(manifest.channels),
            "licence": manifest.licence,
            "cases": cases,
        },
    )


def manifest_from_json(path: Path, content: dict[str, Any]) -> Manifest:
    """Build a manifest from the parsed content of a ``manifest.json``."""
    if content.get("medvol_manifest") != _VERSION:
        raise InputError(f"{path}: manifest version {content.get('medvol_manifest')!r} is unknown")
    root = path.parent.absolute()
    try:
        cases = tuple(_case_from_json(root, row) for row in content["cases"])
        return Manifest(
            name=str(content["name"]),
            root=root,
            layout="manifest",
            cases=cases,
            labels={int(value): str(name) for value, name in content["labels"].items()},
            regions={n: tuple(int(v) for v in r) for n, r in content["regions"].items()},
            region_labels=tuple(int(v) for v in content.get("region_labels", ())),
            ignore_label=None if content["ignore_label"] is None else int(content["ignore_label"]),
            channels=tuple(str(name) for name in list(content["channels"])),
            licence=content.get("licence", ""),
        )
    except MedvolError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: is not a valid manifest: {error!r}") from error


def guess_modality(channel: str) -> str | None:
    """The modality that a channel name means, None where the name does not tell.

    >>> guess_modality("T1w"), guess_modality("CT"), guess_modality("MRI"), guess_modality("x")
    ('MR', 'CT', 'MR', None)
    """
    key = channel.strip().upper().removeprefix("NO NORM").strip()
    sequences = ("T1", "T2", "FLAIR", "DWI", "ADC", "PD", "MRI", "MR", "SWI", "BOLD")
    if key.startswith(sequences):
        return "MR"
    if key.startswith(("CT", "CBCT")):
        return "CT"
    if key.startswith(("PET", "PT", "SUV")):
        return "PT"
    if key in ("CR", "DX", "XR", "XRAY", "X-RAY"):
        return "XR"
    return "US" if key in ("US", "ULTRASOUND") else None


def file_digest(path: Path) -> str:
    """SHA-256 of an image: its file, header with data file, or all files of its folder."""
    files = with_data(path) if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    if files == [path]:
        return sha256_file(path)
    import hashlib

    digest = hashlib.sha256()
    base = path if path.is_dir() else path.parent
    for member in sorted(files):
        digest.update(f"{_relative(member, base)}\0{sha256_file(member)}\n".encode())
    return digest.hexdigest()


def _case_from_json(root: Path, row: dict[str, Any]) -> Case:
    images, split, fold = row["images"], row.get("split"), row.get("fold")
    if not isinstance(images, list) or not images:
        raise ValueError(f"case {row['case']!r} has no list of images")
    if split not in (None, *_SPLITS) or not (fold is None or (type(fold) is int and fold >= 0)):
        raise ValueError(f"case {row['case']!r} has the split {split!r} and the fold {fold!r}")
    return Case(
        case=str(row["case"]),
        images=tuple(_absolute(root, item) for item in images),
        label=_absolute(root, row["label"]) if "label" in row else None,
        category=row.get("class"),
        fold=fold,
        extra=row.get("extra", {}),
        **{name: row.get(name) for name in _TEXT_FIELDS},
    )


def _require_unique(root: Path, cases: tuple[Case, ...]) -> None:
    for before, after in pairwise(cases):
        if before.case == after.case:
            raise InputError(f"{root}: case {after.case!r} appears twice ({before.image.name}, "
                             f"{after.image.name})")  # fmt: skip


def _require_usable(root: Path, cases: tuple[Case, ...]) -> None:
    """An image as its own label is a slip in the list; a case id may become a file name."""
    for case in cases:
        if not case.case.isprintable() or ".." in Path(case.case).parts:
            raise InputError(f"{root}: the case id {case.case!r} holds a control character or ..")
        if case.label is not None and case.label in case.images:
            raise InputError(f"{root}: case {case.case!r} names its image as its label too")


def require_apart(manifest: Manifest) -> None:
    """Reject one image as two cases, unless two readers drew it for the same side of a split.

    Raises:
        InputError: Naming the two cases.
    """
    seen: dict[tuple[Path, ...], Case] = {}
    for case in manifest.cases:
        other = seen.setdefault(case.images, case)
        if other is case:
            continue
        pair = f"{manifest.root}: cases {other.case!r} and {case.case!r}"
        if (case.split or "train", case.fold) != (other.split or "train", other.fold):
            raise InputError(f"{pair} are the same image in both of two splits: a leak")
        if (case.label, case.category) == (other.label, other.category):
            raise InputError(f"{pair} are a duplicate: the same image and label")


def require_files(cases: tuple[Case, ...]) -> None:
    """Reject the first case of which a file does not exist.

    Raises:
        MissingInputError: Naming the file and the case.
    """
    for case in cases:
        if not case.images:
            raise MissingInputError(f"case {case.case!r} has no image")
        for path in case.images:
            if not os.path.exists(path):
                raise MissingInputError(f"{shown(path)}: no such image (case {case.case!r})")
        if case.label is not None and not os.path.exists(case.label):
            raise MissingInputError(f"{shown(case.label)}: no such label (case {case.case!r})")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _absolute(root: Path, item: str) -> Path:
    return Path(os.path.abspath(root / item))
