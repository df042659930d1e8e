"""Every bad case of a data set, named before the first epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from medvol.datasets.manifest import Case, Manifest
from medvol.datasets.plausibility import Oddity, find_oddities
from medvol.datasets.stats import CaseStats, read_all_stats
from medvol.io.checks import shown

_OF_IMAGE = ("constant image", "HU range", "wrong modality")


@dataclass(frozen=True)
class Fault:
    """One reason why a case should not be trained on.

    Attributes:
        case: Case name.
        kind: ``rejected`` by the input checks; ``mirrored``, ``wrong modality``, ``HU range``,
            ``outlier volume``, ``empty label``, ``constant image``, ``no label`` or
            ``outlier grid``.
        fault: One line naming the file and what is wrong.
    """

    case: str
    kind: str
    fault: str


@dataclass
class CheckReport:
    """What the check of a data set found.

    Attributes:
        name: The data set.
        layout: How it lies on disk.
        n: Number of cases.
        faults: All faults, rejected cases first.
        remarks: What is worth knowing about the data set as a whole.
        stats: Numbers of the cases that passed the input checks.
    """

    name: str
    layout: str
    n: int
    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stats: list[CaseStats] = field(default_factory=list, repr=False)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong with any case."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "layout": self.layout,
            "n": self.n,
            "bad_cases": sorted({fault.case for fault in self.faults}),
            "faults": [asdict(fault) for fault in self.faults],
            "remarks": self.remarks,
        }


def check_dataset(manifest: Manifest, progress: Callable[[int], None] | None = None) -> CheckReport:
    """Send every case through the input checks, then look for what is readable but implausible.

    Args:
        manifest: The data set.
        progress: Called with the number of cases done.

    Returns:
        All faults; the check never stops at the first.
    """
    stats, rejected = read_all_stats(manifest, progress=progress)
    report = CheckReport(manifest.name, manifest.layout, len(manifest.cases), stats=stats)
    report.faults = [Fault(case.case, "rejected", str(error)) for case, error in rejected]
    report.faults += _unlabelled(manifest)
    cases = {case.case: case for case in manifest.cases}
    report.faults += [_fault(odd, cases[odd.case]) for odd in find_oddities(stats, manifest)]
    report.remarks = _remarks(manifest, stats)
    return report


def _fault(odd: Oddity, case: Case) -> Fault:
    of_label = None if odd.kind in _OF_IMAGE else case.label
    return Fault(odd.case, odd.kind, f"{shown(of_label or case.image)}: {odd.text}")


def _unlabelled(manifest: Manifest) -> list[Fault]:
    """Cases without a label among labelled ones; test cases need none."""
    train = manifest.training
    if manifest.layout != "folder" and any(case.label for case in train):
        return [
            Fault(case.case, "no label", f"{shown(case.image)}: has no label map")
            for case in train
            if case.label is None
        ]
    if manifest.classes:
        return [
            Fault(case.case, "no label", f"{shown(case.image)}: has no class")
            for case in train
            if case.category is None
        ]
    return []


def _remarks(manifest: Manifest, stats: list[CaseStats]) -> list[str]:
    rows = []
    present = {value for entry in stats for value in entry.volumes_ml}
    for value, name in manifest.labels.items():
        if stats and any(case.label for case in manifest.cases) and value not in present:
            rows.append(f"label {value} ({name}) occurs in no case")
    if not manifest.labels and present:
        rows.append(
            f"the data set names no labels; values {sorted(present)[:12]} occur, and any "
            "whole number was accepted"
        )
    counts = Counter(case.category for case in manifest.cases if case.category)
    if len(counts) > 1:
        most, least = counts.most_common()[0], counts.most_common()[-1]
        if most[1] >= 3 * least[1]:
            rows.append(
                f"classes are imbalanced: {most[1]} {most[0]} against {least[1]} {least[0]} "
                f"({most[1] / least[1]:.1f} to 1)"
            )
    if not any(case.patient for case in manifest.cases):
        rows.append("no patient ids: each case counts as a patient of its own")
    noted = Counter(note.split(": ", 1)[-1] for entry in stats for note in entry.notes)
    rows += [f"{count} cases: {text}" for text, count in noted.most_common(5)]
    return rows
