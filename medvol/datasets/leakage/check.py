"""One verdict from all that the leakage check looks at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from medvol.core.errors import MissingInputError
from medvol.datasets.leakage.contingency import Contingency, contingencies
from medvol.datasets.leakage.duplicates import Duplicate, find_duplicates
from medvol.datasets.leakage.features import CaseFeatures, read_features
from medvol.datasets.leakage.probes import Probe, run_probes
from medvol.datasets.manifest import Manifest
from medvol.datasets.split import Split, shared_patients

#: ``leak``: an accuracy on this data set would measure the leak. ``suspect``: look before use.
Verdict = Literal["clean", "suspect", "leak"]
#: Called with a phase (read, probe), what is done and the total.
Progress = Callable[[str, int, int], None]
_STRONG_AUC = 0.8


@dataclass
class LeakageReport:
    """What was found; case names only, never a patient id.

    Attributes:
        name: The data set.
        n: Cases that could be read.
        probes: Every probe on every pair of classes.
        duplicates: Pairs of cases that show one image.
        contingencies: Source columns against the class.
        shared: Patients on several sides of the split, each as its case names.
        several_classes: Patients whose cases carry different classes, each as its case names.
        unreadable: (case, reason) of unreadable images.
        features: What was read, for the figures.
    """

    name: str
    n: int
    probes: list[Probe] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    contingencies: list[Contingency] = field(default_factory=list)
    shared: list[list[str]] = field(default_factory=list)
    several_classes: list[list[str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    features: list[CaseFeatures] = field(default_factory=list, repr=False)

    @property
    def shortcuts(self) -> list[Probe]:
        """Probes that fire without having seen the inside of the image, strongest first."""
        return sorted((p for p in self.probes if p.is_shortcut), key=lambda p: -p.auc)

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        if any(bad for bad, _ in self._judged()):
            return "leak"
        return "suspect" if self._judged() else "clean"

    @property
    def findings(self) -> list[str]:
        """One line per finding, the grave ones first."""
        return [line for _, line in sorted(self._judged(), key=lambda item: not item[0])]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, for JSON."""
        return {
            "name": self.name,
            "n": self.n,
            "verdict": self.verdict,
            "findings": self.findings,
            "probes": [probe.to_dict() for probe in self.probes],
            "duplicates": [pair.to_dict() for pair in self.duplicates],
            "contingencies": [table.to_dict() for table in self.contingencies],
            "patients_on_both_sides": self.shared,
            "patients_with_several_classes": self.several_classes,
            "unreadable": [{"case": case, "reason": reason} for case, reason in self.unreadable],
        }

    def _judged(self) -> list[tuple[bool, str]]:
        return [*self._case_findings(), *self._source_findings(), *self._probe_findings()]

    def _case_findings(self) -> list[tuple[bool, str]]:
        rows = []
        if self.shared:
            rows.append(
                (
                    True,
                    f"{len(self.shared)} patients lie on both sides of the split "
                    f"(e.g. {_some(self.shared[0])})",
                )
            )
        if self.several_classes:
            rows.append(
                (
                    False,
                    f"{len(self.several_classes)} patients carry several classes "
                    f"(e.g. {_some(self.several_classes[0])})",
                )
            )
        for kind, grave, text in (
            (("file", "pixels"), True, "exact duplicate{s}"),
            (("near",), True, "near duplicate{s}"),
            (("mirrored",), True, "mirrored duplicate{s}"),
            (("suspect",), False, "suspiciously alike pair{s} (one patient under two names?)"),
        ):
            if pairs := [pair for pair in self.duplicates if pair.kind in kind]:
                crossing = sum(bool({"patient", "class", "split"} & set(p.crosses)) for p in pairs)
                rows.append(
                    (
                        grave and crossing > 0,
                        f"{len(pairs)} {text.format(s='s' * (len(pairs) > 1))}, "
                        f"{crossing} across patients, classes or splits "
                        f"(e.g. {pairs[0].first} and {pairs[0].second})",
                    )
                )
        if self.unreadable:
            rows.append(
                (
                    False,
                    f"{len(self.unreadable)} images cannot be read (e.g. {self.unreadable[0][0]})",
                )
            )
        return rows

    def _source_findings(self) -> list[tuple[bool, str]]:
        rows = []
        for table in self.contingencies:
            if table.is_confounded:
                only = (
                    f"; {', '.join(table.exclusive)} comes from one {table.column} only, which "
                    "holds nothing else"
                    if table.exclusive
                    else ""
                )
                rows.append(
                    (
                        True,
                        f"{table.column} is confounded with the class "
                        f"(Cramér's V {table.cramers_v:.2f}, p {table.p:.2g}){only}",
                    )
                )
        return rows

    def _probe_findings(self) -> list[tuple[bool, str]]:
        rows = []
        for probe in sorted((p for p in self.probes if p.fires), key=lambda p: -p.auc):
            value = f"AUC {probe.auc:.3f} ({probe.low:.3f} to {probe.high:.3f})"
            if probe.is_shortcut:
                rows.append(
                    (probe.low >= _STRONG_AUC, f"{probe.pair}: {probe.probe} alone reaches {value}")
                )
            elif probe.low >= _STRONG_AUC:
                rows.append(
                    (
                        False,
                        f"{probe.pair}: a {probe.probe} already reaches {value}; a model "
                        "must be reported beside it",
                    )
                )
        return rows


def check_leakage(
    manifest: Manifest,
    split: Split | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> LeakageReport:
    """Look for every way to the label that does not lead through the anatomy.

    Args:
        manifest: The data set; classes make the probes possible, ``site`` and further columns
            the contingency tables, ``patient`` the patient checks.
        split: Folds to check for shared patients and duplicates; the data set's own by default.
        seed: Of folds, permutations and resampling.
        progress: Called while images are read and probes run.

    Returns:
        All findings with intervals; ``verdict`` and ``findings`` sum up.

    Raises:
        MissingInputError: If no image can be read.
    """
    tell = progress or (lambda _phase, _done, _total: None)
    total = len(manifest.cases)
    features, unreadable = read_features(manifest.cases, lambda done: tell("read", done, total))
    if not features:
        raise MissingInputError(f"{manifest.root}: no image can be read; {unreadable[0][1]}")
    report = LeakageReport(manifest.name, len(features), unreadable=unreadable, features=features)
    category = {case.case: case.category for case in manifest.cases}
    labelled = [feature for feature in features if category[feature.case] is not None]
    if len(manifest.classes) > 1:
        classes = [str(category[feature.case]) for feature in labelled]
        report.probes = run_probes(
            labelled, classes, seed=seed, progress=lambda done, n: tell("probe", done, n)
        )
    report.contingencies = contingencies(manifest.cases, seed)
    places = dict(split.place) if split else None
    report.duplicates = find_duplicates(features, manifest.cases, places)
    report.shared = list(shared_patients(manifest, split).values())
    report.several_classes = _several_classes(manifest)
    return report


def _several_classes(manifest: Manifest) -> list[list[str]]:
    kinds: dict[str, set[str]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for case in manifest.cases:
        if case.patient and case.category is not None:
            kinds[case.patient].add(case.category)
            members[case.patient].append(case.case)
    return [members[patient] for patient, found in kinds.items() if len(found) > 1]


def _some(names: list[str]) -> str:
    return " and ".join(names[:2])
