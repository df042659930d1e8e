"""The table of all cases, worst first, from what evaluation and prediction left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvol.core.errors import MedvolError
from medvol.core.files import sha256_file
from medvol.evaluation import MaskFiles, MaskOptions, Results, mask_cohorts, show
from medvol.evaluation.evaluate import MASK_RUN
from medvol.evaluation.summary import badness
from medvol.metrics import Score, metric_of
from medvol.reporting.tables import metric_name

_MOST_CHOICES = 60


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and the number to sort by (``None`` for text, empty where undefined)."""

    text: str
    value: str | None = None


@dataclass(frozen=True)
class CaseRow:
    """A row of the table: one structure of one case, or one classified case."""

    cohort: str
    case: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class CaseTable:
    """All cases of a run.

    Attributes:
        header: Column names; the first is the case's.
        rows: Worst first.
        choices: Columns to choose a value of: number of the column and its values.
        note: What the order means.
        example: A comparison that the filter understands.
    """

    header: Sequence[str]
    rows: Sequence[CaseRow]
    choices: Mapping[int, Sequence[str]]
    note: str
    example: str

    @property
    def cases(self) -> list[tuple[str, str]]:
        """Cohort and name of every case, worst first."""
        return list(dict.fromkeys((row.cohort, row.case) for row in self.rows))


@dataclass(frozen=True)
class CaseFiles:
    """Where a run's label maps and their records are, as far as they still are.

    Attributes:
        masks: (Cohort, case) to its two label maps, or its two masks of each structure.
        images: The same to an image.
        labels: Label value to name; None where the values are the names.
        fault: Why there are none; empty otherwise.
    """

    masks: Mapping[tuple[str, str], Sequence[MaskFiles]] = field(default_factory=dict)
    images: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    labels: Mapping[int, str] | None = None
    fault: str = ""

    def record(self, cohort: str, case: str) -> dict[str, Any]:
        """The ``prediction.json`` beside a predicted label map; empty where there is none."""
        files = self.masks.get((cohort, case))
        return files[0].record() if files else {}


def find_files(results: Results, images: Path | None) -> CaseFiles:
    """A run's label maps, and images from a data set or a folder."""
    masks: dict[tuple[str, str], list[MaskFiles]] = {}
    image_paths: dict[tuple[str, str], Path] = {}
    options, labels, fault = dict(results.options), results.options.get("labels"), ""
    try:
        if results.command == MASK_RUN:
            for cohort in mask_cohorts(MaskOptions(**options, output=results.folder)):
                for one in cohort.files:
                    masks.setdefault((cohort.name, one.case), []).append(one)
                labels = labels or cohort.structures.labels
                image_paths |= {(cohort.name, name): path for name, path in cohort.images.items()}
        elif options.get("data"):
            image_paths = {("internal", n): path for n, path in _images(options["data"]).items()}
        if images:
            named = _images(images)
            image_paths = {
                (cohort, n): path for cohort in results.scores for n, path in named.items()
            }
    except MedvolError as error:
        if images is not None and not images.exists():
            raise
        fault = f"Not all files that were evaluated can be found ({type(error).__name__})."
    return CaseFiles(masks, image_paths, labels or None, fault)


def changed_since(results: Results, files: Sequence[MaskFiles]) -> bool:
    """Whether a label map is no longer the one that was evaluated."""
    paths = [path for one in files for path in (one.pred, one.ref)]
    return any(results.inputs.get(path.absolute()) != sha256_file(path) for path in paths)


def case_table(results: Results, files: CaseFiles) -> CaseTable:
    """The table of a run."""
    return _mask_table(results, files) if results.kind == "masks" else _score_table(results)


def _mask_table(results: Results, files: CaseFiles) -> CaseTable:
    metrics = list(dict.fromkeys(s.metric for s in results.scores["internal"]))
    groups = [k for k in results.cases["internal"][0] if k.startswith("group_")]
    several = len(results.scores) > 1
    review = {key: _review(files.record(*key)) for key in files.masks}
    has_review = any(review.values())
    units = {v.unit for rows in results.volumes.values() for v in rows}
    unit = f" [{units.pop()}]" if len(units) == 1 else ""
    header = ["case", *["cohort"] * several, "label",
              *(metric_name(m) + _unit(m) for m in metrics), f"predicted{unit}",
              f"reference{unit}", "empty mask", *["review"] * has_review,
              *(name.removeprefix("group_") for name in groups)]  # fmt: skip
    found: list[tuple[float, CaseRow]] = []
    for cohort, scores in results.scores.items():
        by_key: dict[tuple[str, str], dict[str, Score]] = {}
        for score in scores:
            by_key.setdefault((score.case, score.label), {})[score.metric] = score
        volumes = {(v.case, v.label): v for v in results.volumes[cohort]}
        columns = {row["case"]: row for row in results.cases[cohort]}
        for (case, label), own in by_key.items():
            volume = volumes[case, label]
            why = next((s.why_undefined for s in own.values() if s.why_undefined), "")
            cells = [
                *[Cell(cohort)] * several, Cell(label),
                *(_number(own[m].value) if m in own else Cell("", "") for m in metrics),
                _number(volume.pred), _number(volume.ref), Cell(why),
                *[Cell(review.get((cohort, case), ""))] * has_review,
                *(Cell(columns[case][name]) for name in groups),
            ]  # fmt: skip
            rank = _rank(own.get(metrics[0]), metrics[0])
            found.append((rank, CaseRow(cohort, case, cells)))
    first = metric_name(metrics[0])
    return _sorted_table(header, found, f"Sorted by {first}, worst first; a row per structure.",
                         f"{first.lower().replace(' ', '_')}<0.8")  # fmt: skip


def _score_table(results: Results) -> CaseTable:
    several = len(results.scores) > 1
    names = [name for name in results.cases["internal"][0] if name not in ("case", "cohort")]
    texts = [n for n in names if n in ("truth", "called") or n.startswith("group_")]
    numbers = [n for n in names if n.startswith("prob_")]
    metric = results.scores["internal"][0].metric
    is_brier = metric == "brier"
    last = "Brier" if is_brier else "ranked rightly"
    scored = "P({})" if is_brier else "score of {}"
    header = ["case", *["cohort"] * several,
              *(n.removeprefix("group_").replace("called", "most probable") for n in texts),
              *(scored.format(n.removeprefix("prob_")) for n in numbers), last]  # fmt: skip
    found = []
    for cohort, rows in results.cases.items():
        by_case = {s.case: s for s in results.scores[cohort]}
        for row in rows:
            score = by_case[row["case"]]
            cells = [*[Cell(cohort)] * several, *(Cell(row[n]) for n in texts),
                     *(_number(float(row[n])) for n in numbers), _number(score.value)]  # fmt: skip
            found.append((_rank(score, metric), CaseRow(cohort, row["case"], cells)))
    if is_brier:
        note = "Sorted by the squared error of the probabilities, worst first."
        return _sorted_table(header, found, note, "brier>0.5")
    note = ("The scores are not probabilities: sorted by the share of the other classes' cases "
            "that a case is ranked rightly against, worst first.")  # fmt: skip
    return _sorted_table(header, found, note, "ranked_rightly<0.5")


def _sorted_table(
    header: Sequence[str], found: Sequence[tuple[float, CaseRow]], note: str, example: str
) -> CaseTable:
    """Worst first; choices for the text columns that repeat few values."""
    rows = [row for _, row in sorted(found, key=lambda pair: (-pair[0], pair[1].case))]
    choices = {}
    for k in range(len(header) - 1):
        values = list(dict.fromkeys(row.cells[k].text for row in rows))
        is_text = all(row.cells[k].value is None for row in rows)
        if is_text and 1 < len(values) <= _MOST_CHOICES and header[k + 1] != "empty mask":
            choices[k + 1] = sorted(value for value in values if value)
    return CaseTable(header, rows, choices, note, example)


def _rank(score: Score | None, metric: str) -> float:
    if score is None or math.isnan(score.value):
        return -math.inf
    return badness(score.value, metric_of(metric).direction)


def _number(value: float) -> Cell:
    if math.isnan(value):
        return Cell("undefined", "")
    # JavaScript reads what repr writes, but for infinity.
    return Cell(show(value), repr(value).replace("inf", "Infinity"))


def _unit(metric: str) -> str:
    unit = metric_of(metric).unit
    return f" [{unit}]" if unit else ""


def _review(record: Mapping[str, Any]) -> str:
    review = record.get("review")
    if not isinstance(review, Mapping) or not review.get("flag"):
        return ""
    return str(review.get("reason") or "flagged")


def _images(place: Path) -> dict[str, Path]:
    from medvol.datasets import read_dataset

    return {case.case: case.image for case in read_dataset(place).cases}
