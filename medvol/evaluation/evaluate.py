"""`medvol evaluate`: one call from predictions to the tables of a paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvol.core.errors import ConfigError
from medvol.core.files import fields_to_csv, write_text
from medvol.core.notebook import data_frame, html_table
from medvol.core.runs import changed_outputs, read_run, write_run
from medvol.evaluation import classification, summary
from medvol.evaluation.agreement import AgreementRow, agreement
from medvol.evaluation.case_scores import case_columns, case_scores, worst_scores
from medvol.evaluation.cases import (
    CaseInfo,
    case_lines,
    from_manifest,
    group_columns,
    placed,
    require_no_overlap,
)
from medvol.evaluation.cohorts import Cohort, find_cohort, require_apart, require_other_cohort
from medvol.evaluation.curves import cohort_curves
from medvol.evaluation.gaps import GapRow, find_gaps
from medvol.evaluation.longitudinal import LESION_RUN, follow_pairs
from medvol.evaluation.pairing import RECORD, makers, read_record
from medvol.evaluation.predictions import (
    Predictions,
    read_predictions,
    require_other_predictions,
)
from medvol.evaluation.remarks import gap_remarks, mask_remarks, score_remarks
from medvol.evaluation.segmentation import measure_masks
from medvol.evaluation.summary import BootstrapPlan, SummaryRow
from medvol.metrics import (
    MetricPlan,
    Score,
    cases_to_csv,
    measured_tables,
    scores_to_csv,
)

if TYPE_CHECKING:
    from pandas import DataFrame

#: What ``run.json`` calls the runs of this module.
MASK_RUN, SCORE_RUN = "evaluate masks", "evaluate scores"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskOptions:
    """What ``medvol evaluate masks`` was asked for.

    Attributes:
        pred: Folder of predicted label maps, a manifest that names them, or the template of one
            mask file per structure: ``scans/{case}/rater/{label}.nrrd``.
        ref: Folder of reference label maps, a data set that names them, or a template likewise.
        output: Folder to write.
        data: Data set that knows patient, site, sex and label names; ``ref`` if that is one.
        train: The training data set, to reject shared patients.
        split: File of ``medvol data split``; cases of its folds are named as training cases.
        external_pred: Predictions of an external cohort.
        external_ref: Its references.
        external_data: Its data set.
        by: Columns to form subgroups by.
        metrics: Names of mask metrics.
        taus_mm: Tolerances of the surface Dice.
        width_mm: Depth of the band of the boundary IoU.
        labels: Label value to name; by default the data set's, or all that occur.
        worst: How many of the worst cases to list per label and metric.
        resamples: Bootstrap resamples.
        confidence: Nominal coverage of intervals.
        seed: Of the resamples.
    """

    pred: Path
    ref: Path
    output: Path
    data: Path | None = None
    train: Path | None = None
    split: Path | None = None
    external_pred: Path | None = None
    external_ref: Path | None = None
    external_data: Path | None = None
    by: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("dice", "hd95", "assd", "nsd_voxel")
    taus_mm: tuple[float, ...] = (2.0,)
    width_mm: float | None = None
    labels: Mapping[int, str] | None = None
    worst: int = 10
    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class ScoreOptions:
    """What ``medvol evaluate scores`` was asked for; see ``MaskOptions``.

    Attributes:
        scores: CSV of the test cases.
        output: Folder to write.
        validation: CSV of other cases, on which thresholds are fixed.
        external: CSV of an external cohort.
        data: Data set that knows class, patient, site and sex.
        train: The training data set, to reject shared patients.
        split: File of ``medvol data split``; cases of its folds are named as training cases.
        positive: The positive class, of a single score or of two classes.
        rules: Operating points to fix on the validation cases.
        prevalence: State predictive values at this share of positives too.
        by: Columns to form subgroups by.
        worst: How many of the worst cases to list.
        resamples: Bootstrap resamples.
        confidence: Nominal coverage of intervals.
        seed: Of the resamples.
    """

    scores: Path
    output: Path
    validation: Path | None = None
    external: Path | None = None
    data: Path | None = None
    train: Path | None = None
    split: Path | None = None
    positive: str | None = None
    rules: tuple[str, ...] = classification.RULES
    prevalence: float | None = None
    by: tuple[str, ...] = ()
    worst: int = 10
    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        table: Rows of ``summary.csv``.
        worst: The worst cases, worst first.
        output: Folder that holds ``scores.csv``, ``summary.csv``, ``worst.csv``, ``cases.csv``,
            ``volumes.csv`` and ``agreement.csv`` or ``curves.json``, and ``run.json``; None where
            the tables were not kept.
        n_unknown_patients: Cases whose patient is not known, so that each counts as one.
        training_cases: Cases that their data set, or the record beside the weights, states to be
            trained on.
        gaps: Rows of ``gaps.csv``: subgroups and cohorts beside each other.
        remarks: What the numbers do not show, a sentence each.
    """

    table: Sequence[SummaryRow | classification.ClassRow]
    worst: Sequence[Score]
    output: Path | None
    n_unknown_patients: int = 0
    training_cases: tuple[str, ...] = ()
    gaps: tuple[GapRow, ...] = ()
    remarks: tuple[str, ...] = ()

    def to_pandas(self) -> DataFrame:
        """The rows of ``summary.csv`` as a pandas table."""
        return data_frame([asdict(row) for row in self.table])

    def _repr_html_(self) -> str:
        return html_table([asdict(row) for row in self.table])


def evaluate_segmentation(
    options: MaskOptions, *, jobs: int = 1, progress: Progress | None = None
) -> Evaluation:
    """Score label maps and write the tables.

    Args:
        options: What was asked for.
        jobs: Processes; the numbers do not depend on it.
        progress: Called with cases done and cases in all.

    Raises:
        InputError: If the external cohort holds a case of the internal one.
    """
    params = {"boundary_iou": {"width_mm": options.width_mm}} if options.width_mm else None
    plan = MetricPlan(options.metrics, options.taus_mm, params)
    draw = BootstrapPlan(options.resamples, options.confidence, options.seed)
    cohorts = mask_cohorts(options)
    for cohort in cohorts:
        require_apart(cohort, options.train)
    texts: dict[str, str] = {}
    table: list[SummaryRow] = []
    limits: list[AgreementRow] = []
    worst: list[Score] = []
    empty: set[tuple[str, str]] = set()
    inputs = [path for path in (options.pred, options.ref) if path.is_file()]
    for cohort in cohorts:
        found = measure_masks(
            cohort.files, plan, structures=cohort.structures, jobs=jobs, progress=progress
        )
        known = list(cohort.cases.values())
        table += summary.summarise(found.scores, cohort.cases, by=options.by, plan=draw)
        limits += agreement(found.volumes, cohort.cases, draw)
        worst = worst or summary.worst_cases(found.scores, options.worst)
        held = {row.case for row in found.volumes if row.ref > 0}
        empty |= {(cohort.name, case) for case in cohort.cases if case not in held}
        inputs += [path for one in cohort.files for path in (one.pred, one.ref)]
        inputs += cohort.indexes
        texts |= measured_tables(
            found, case_lines(known), suffix="" if cohort is cohorts[0] else "_external",
            further=group_columns(known, options.by),
        )  # fmt: skip
    if len(cohorts) > 1:
        require_other_cohort(cohorts[0], cohorts[1], empty)
    remarks, gaps = mask_remarks(table), find_gaps(table, options.confidence)
    texts["gaps.csv"] = fields_to_csv(GapRow, gaps)
    texts["summary.csv"] = fields_to_csv(SummaryRow, table)
    texts["agreement.csv"] = fields_to_csv(AgreementRow, limits)
    texts["worst.csv"] = scores_to_csv(worst)
    records = (one.record() for cohort in cohorts for one in cohort.files)
    _write(options, texts, inputs, MASK_RUN, makers(records))
    tested = [info for cohort in cohorts for info in cohort.cases.values()]
    return _evaluation(table, worst, options.output, tested, (gaps, remarks))


def mask_cohorts(options: MaskOptions) -> list[Cohort]:
    """The internal cohort of an evaluation, and the external one if there is any."""
    cohorts = [
        find_cohort(
            "internal", options.pred, options.ref, options.data, options.labels, options.split
        )
    ]
    if options.external_pred and options.external_ref:
        paths = options.external_pred, options.external_ref, options.external_data
        cohorts.append(find_cohort("external", *paths, options.labels))
    return cohorts


def evaluate_scores(options: ScoreOptions) -> Evaluation:
    """Score a CSV of probabilities and write the tables."""
    from medvol.datasets import read_dataset

    manifest = read_dataset(options.data) if options.data else None
    draw = BootstrapPlan(options.resamples, options.confidence, options.seed)
    known = from_manifest(manifest) if manifest else None
    truth = {c.case: c.category for c in manifest.cases if c.category} if manifest else None

    seen: list[Mapping[str, Any]] = []

    def read(path: Path, cohort: str) -> Predictions:
        found = read_predictions(
            path, cohort=cohort, truth=truth, known=known, positive=options.positive
        )
        records = {c.case: read_record(path.parent / c.case / RECORD) for c in found.cases}
        if cohort != "validation":
            seen.extend(records.values())
        trained = {c.case: c.trained() for c in found.cases
                   if records[c.case].get("is_training_case") is True}  # fmt: skip
        return found.of_cases(trained)

    test = read(options.scores, "internal")
    test = test.of_cases(placed({info.case: info for info in test.cases}, options.split))
    if options.train:
        if manifest is None:
            raise ConfigError(
                "--train needs to know the test cases' patients: give their data set with --data"
            )
        held = manifest.select(info.case for info in test.cases)
        require_no_overlap(held, read_dataset(options.train))
    thresholds = None
    if options.validation:
        validation = read(options.validation, "validation")
        classification.require_other_cases(validation, test)
        thresholds = classification.fix_thresholds(validation, options.rules)  # pyright: ignore[reportArgumentType]
    rows: list[classification.ClassRow] = []
    remarks: list[str] = []
    curves: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    outside = read(options.external, "external") if options.external else None
    if outside is not None:
        require_other_predictions(test, outside)
    for data, end in ((test, ""), (outside, "_external")):
        if data is None:
            continue
        rows += classification.summarise_predictions(
            data, thresholds=thresholds, by=options.by, plan=draw, prevalence=options.prevalence
        )
        remarks += score_remarks(data, has_thresholds=thresholds is not None)
        curves.append(cohort_curves(data, thresholds, draw))
        texts[f"scores{end}.csv"] = scores_to_csv(case_scores(data))
        columns = group_columns(data.cases, options.by) | case_columns(data)
        texts[f"cases{end}.csv"] = cases_to_csv(case_lines(data.cases), columns)
    worst = worst_scores(case_scores(test))[: options.worst]
    gaps = find_gaps(rows, options.confidence)
    texts["gaps.csv"] = fields_to_csv(GapRow, gaps)
    texts["summary.csv"] = fields_to_csv(classification.ClassRow, rows)
    texts["worst.csv"] = scores_to_csv(worst)
    texts["curves.json"] = json.dumps({"cohorts": curves}, allow_nan=False) + "\n"
    given = (options.scores, options.validation, options.external, options.split)
    inputs = [path for path in given if path]
    _write(options, texts, inputs, SCORE_RUN, makers(seen))
    tested = [*test.cases, *(outside.cases if outside else ())]
    return _evaluation(rows, worst, options.output, tested, (gaps, remarks))


def rerun(path: Path, *, jobs: int = 1, progress: Progress | None = None) -> list[str]:
    """Repeat a locked run into its folder's ``rerun`` and name the outputs that differ.

    Raises:
        InputError: If an input is not what it was.
    """
    run = read_run(path)
    folder = path.parent / "rerun"
    if run["command"] == LESION_RUN:
        follow_pairs(run["options"]["pairs"], folder, run["options"]["repeatability_percent"])
    elif run["command"] == MASK_RUN:
        options = MaskOptions(**{**run["options"], "output": folder})
        evaluate_segmentation(options, jobs=jobs, progress=progress)
    elif run["command"] == SCORE_RUN:
        evaluate_scores(ScoreOptions(**{**run["options"], "output": folder}))
    else:
        raise ConfigError(
            f"{path}: is of {run['command']!r}; medvol evaluate rerun repeats {MASK_RUN!r}, "
            f"{SCORE_RUN!r} and {LESION_RUN!r}"
        )
    return changed_outputs(run, folder)


def _evaluation(
    table: Sequence[SummaryRow | classification.ClassRow],
    worst: Sequence[Score],
    output: Path,
    tested: Sequence[CaseInfo],
    notes: tuple[Sequence[GapRow], Sequence[str]],
) -> Evaluation:
    unknown = sum(not info.is_patient_known for info in tested)
    trained = tuple(info.case for info in tested if info.split == "train")
    gaps, remarks = notes
    return Evaluation(
        table, worst, output, unknown, trained, tuple(gaps), (*remarks, *gap_remarks(gaps))
    )


def _write(
    options: MaskOptions | ScoreOptions,
    texts: Mapping[str, str],
    inputs: Sequence[Path],
    command: str,
    predicted_by: Sequence[Mapping[str, Any]],
) -> None:
    from medvol.datasets import index_files

    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(options.output / name, text)
    named = {field.name: getattr(options, field.name) for field in fields(options)}
    named.pop("output")
    extra = [p for known in (options.data, options.train) if known for p in index_files(known)]
    write_run(options.output, command, named, [*inputs, *extra], texts, predicted_by)


def to_json(found: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values; undefined and infinite numbers become text."""
    return {
        "output": str(found.output or ""),
        "table": [row.to_json() for row in found.table],
        "worst": [row.to_json() for row in found.worst],
        "n_unknown_patients": found.n_unknown_patients,
        "training_cases": list(found.training_cases),
        "gaps": [gap.to_json() for gap in found.gaps],
        "remarks": list(found.remarks),
    }
