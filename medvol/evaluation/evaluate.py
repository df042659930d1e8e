"""`medvol evaluate`: one call from predictions to the tables of a paper."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvol.core.errors import ConfigError, MissingInputError
from medvol.core.files import write_text
from medvol.evaluation import classification, pairing, summary
from medvol.evaluation.agreement import AgreementRow, Volume, agreement
from medvol.evaluation.cases import (
    CaseInfo,
    cases_to_csv,
    from_manifest,
    from_names,
    require_no_overlap,
)
from medvol.evaluation.curves import cohort_curves
from medvol.evaluation.longitudinal import follow_pairs
from medvol.evaluation.predictions import Predictions, read_predictions
from medvol.evaluation.rows import fields_to_csv
from medvol.evaluation.runs import changed_outputs, read_run, write_run
from medvol.evaluation.segmentation import measure_masks
from medvol.evaluation.summary import BootstrapPlan, SummaryRow
from medvol.metrics import MetricPlan, Score, metric_of, scores_to_csv

if TYPE_CHECKING:
    from medvol.datasets import Manifest

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskOptions:
    """What ``medvol evaluate --pred --ref`` was asked for.

    Attributes:
        pred: Folder of predicted label maps, a manifest that names them, or the template of one
            mask file per structure: ``scans/{case}/rater/{label}.nrrd``.
        ref: Folder of reference label maps, a data set that names them, or a template likewise.
        output: Folder to write.
        data: Data set that knows patient, site, sex and label names; ``ref`` if that is one.
        train: The training data set, to refuse shared patients.
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
    """What ``medvol evaluate --scores`` was asked for; see ``MaskOptions``.

    Attributes:
        scores: CSV of the test cases.
        output: Folder to write.
        validation: CSV of other cases, on which thresholds are fixed.
        external: CSV of an external cohort.
        data: Data set that knows class, patient, site and sex.
        train: The training data set, to refuse shared patients.
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
            ``volumes.csv`` and ``agreement.csv`` or ``curves.json``, and ``run.json``.
        n_unknown_patients: Cases whose patient is not known, so that each counts as one.
    """

    table: Sequence[SummaryRow | classification.ClassRow]
    worst: Sequence[Score]
    output: Path
    n_unknown_patients: int = 0


def evaluate_segmentation(
    options: MaskOptions, *, jobs: int = 1, progress: Progress | None = None
) -> Evaluation:
    """Score label maps and write the tables.

    Args:
        options: What was asked for.
        jobs: Processes; the numbers do not depend on it.
        progress: Called with cases done and cases in all.
    """
    from medvol.datasets import index_files

    params = {"boundary_iou": {"width_mm": options.width_mm}} if options.width_mm else None
    plan = MetricPlan(options.metrics, options.taus_mm, params)
    draw = BootstrapPlan(options.resamples, options.confidence, options.seed)
    cohorts = [("internal", options.pred, options.ref, options.data)]
    if options.external_pred and options.external_ref:
        external = (options.external_pred, options.external_ref, options.external_data)
        cohorts.append(("external", *external))
    texts: dict[str, str] = {}
    table: list[SummaryRow] = []
    limits: list[AgreementRow] = []
    worst: list[Score] = []
    unknown = 0
    inputs = [path for path in (options.pred, options.ref) if path.is_file()]
    for cohort, pred, ref, data in cohorts:
        files, manifest = paired_files(pred, ref, data)
        _refuse_overlap(manifest, {one.case for one in files}, options.train)
        names = options.labels or (manifest.labels if manifest else None) or None
        found = measure_masks(files, plan, labels=names, jobs=jobs, progress=progress)
        cases = _case_infos([one.case for one in files], manifest, cohort)
        table += summary.summarise(found.scores, cases, by=options.by, plan=draw)
        limits += agreement(found.volumes, cases, draw)
        worst = worst or summary.worst_cases(found.scores, options.worst)
        inputs += [path for one in files for path in (one.pred, one.ref)]
        inputs += index_files(data or ref) if manifest else []
        end = "" if cohort == "internal" else f"_{cohort}"
        known = [cases[name] for name in dict.fromkeys(one.case for one in files)]
        unknown += sum(not info.is_patient_known for info in known)
        texts[f"scores{end}.csv"] = scores_to_csv(found.scores)
        texts[f"volumes{end}.csv"] = fields_to_csv(Volume, found.volumes)
        texts[f"cases{end}.csv"] = cases_to_csv(known, options.by, {})
    texts["summary.csv"] = fields_to_csv(SummaryRow, table)
    texts["agreement.csv"] = fields_to_csv(AgreementRow, limits)
    texts["worst.csv"] = scores_to_csv(worst)
    _write(options, texts, inputs, "evaluate --pred --ref")
    return Evaluation(table, worst, options.output, unknown)


def evaluate_scores(options: ScoreOptions) -> Evaluation:
    """Score a CSV of probabilities and write the tables."""
    manifest = _manifest(options.data, required=True) if options.data else None
    draw = BootstrapPlan(options.resamples, options.confidence, options.seed)
    known = from_manifest(manifest) if manifest else None
    truth = {c.case: c.category for c in manifest.cases if c.category} if manifest else None

    def read(path: Path, cohort: str) -> Predictions:
        return read_predictions(
            path, cohort=cohort, truth=truth, known=known, positive=options.positive
        )

    test = read(options.scores, "internal")
    _refuse_overlap(manifest, {info.case for info in test.cases}, options.train)
    thresholds = None
    if options.validation:
        validation = read(options.validation, "validation")
        classification.require_other_cases(validation, test)
        thresholds = classification.fix_thresholds(validation, options.rules)  # pyright: ignore[reportArgumentType]
    rows: list[classification.ClassRow] = []
    curves: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    outside = read(options.external, "external") if options.external else None
    for data, end in ((test, ""), (outside, "_external")):
        if data is None:
            continue
        rows += classification.summarise_predictions(
            data, thresholds=thresholds, by=options.by, plan=draw, prevalence=options.prevalence
        )
        curves.append(cohort_curves(data, thresholds, draw))
        texts[f"scores{end}.csv"] = scores_to_csv(_case_scores(data))
        texts[f"cases{end}.csv"] = cases_to_csv(data.cases, options.by, _case_columns(data))
    worst = _worst_scores(_case_scores(test))[: options.worst]
    texts["summary.csv"] = fields_to_csv(classification.ClassRow, rows)
    texts["worst.csv"] = scores_to_csv(worst)
    texts["curves.json"] = json.dumps({"cohorts": curves}, allow_nan=False) + "\n"
    inputs = [p for p in (options.scores, options.validation, options.external) if p]
    _write(options, texts, inputs, "evaluate --scores")
    tested = [*test.cases, *(outside.cases if outside else ())]
    unknown = sum(not info.is_patient_known for info in tested)
    return Evaluation(rows, worst, options.output, unknown)


def rerun(path: Path, *, jobs: int = 1, progress: Progress | None = None) -> list[str]:
    """Repeat a locked run into its folder's ``rerun`` and name the outputs that differ.

    Raises:
        InputError: If an input is not what it was.
    """
    run = read_run(path)
    folder = path.parent / "rerun"
    if run["command"] == "evaluate --longitudinal":
        follow_pairs(run["options"]["pairs"], folder, run["options"]["repeatability_percent"])
        return changed_outputs(run, folder)
    kinds: dict[str, type[MaskOptions] | type[ScoreOptions]] = {
        "evaluate --pred --ref": MaskOptions, "evaluate --scores": ScoreOptions,
    }  # fmt: skip
    if run["command"] not in kinds:
        raise ConfigError(f"{path}: medvol evaluate cannot repeat {run['command']!r}")
    options = kinds[run["command"]](**{**run["options"], "output": folder})
    if isinstance(options, MaskOptions):
        evaluate_segmentation(options, jobs=jobs, progress=progress)
    else:
        evaluate_scores(options)
    return changed_outputs(run, folder)


def paired_files(
    pred: Path, ref: Path, data: Path | None = None
) -> tuple[list[pairing.MaskFiles], Manifest | None]:
    """The label maps that a run compares, and the data set that knows their cases, if any."""
    known = None if data is None and pairing.is_template(ref) else data or ref
    manifest = _manifest(known, required=data is not None)
    return _pairs(pred, ref, manifest), manifest


def _manifest(path: Path | None, *, required: bool) -> Manifest | None:
    """The data set at a path; None if it is only a folder of label maps."""
    from medvol.core import MedvolError
    from medvol.datasets import read_dataset

    if path is None:
        return None
    try:
        manifest = read_dataset(path)
    except MedvolError:
        if required or path.is_file():
            raise
        return None
    is_data_set = required or any(case.label for case in manifest.cases)
    return manifest if is_data_set else None


def _refuse_overlap(manifest: Manifest | None, tested: Set[str], train: Path | None) -> None:
    """Refuse a tested case of a training patient; the data set may hold other cases too."""
    if train is None:
        return
    if manifest is None:
        raise ConfigError(
            "--train needs to know the test cases' patients: pass their data set with --data"
        )
    from medvol.datasets import read_dataset

    require_no_overlap(manifest.select(tested), read_dataset(train))


def _pairs(pred: Path, ref: Path, manifest: Manifest | None) -> list[pairing.MaskFiles]:
    if pairing.is_template(pred) or pairing.is_template(ref):
        if not (pairing.is_template(pred) and pairing.is_template(ref)):
            raise ConfigError("pred and ref both need {case} and {label}, or neither")
        found = [pairing.find_structures(path) for path in (pred, ref)]
        return pairing.pair_structures(found[0], found[1], str(pred))
    predictions = _predictions(pred)
    if manifest is None or (ref.is_dir() and ref.absolute() != manifest.root.absolute()):
        return pairing.pair_masks(predictions, pairing.find_masks(ref), str(pred))
    labelled = {c.case: c.label for c in manifest.cases if c.label is not None}
    if any(case.split == "test" for case in manifest.cases):
        test = {case.case for case in manifest.cases if case.split == "test"}
        labelled = {name: path for name, path in labelled.items() if name in test}
    if not labelled:
        raise MissingInputError(f"{ref}: the data set names no reference label map to test on")
    return pairing.pair_masks(predictions, labelled, str(pred))


def _predictions(pred: Path) -> dict[str, Path]:
    """Predicted label maps of a folder, or of a manifest's label (or else image) column."""
    if not pred.is_file():
        return pairing.find_masks(pred)
    from medvol.datasets import read_dataset

    return {case.case: case.label or case.image for case in read_dataset(pred).cases}


def _case_infos(
    names: Sequence[str], manifest: Manifest | None, cohort: str
) -> dict[str, CaseInfo]:
    known = from_manifest(manifest, cohort) if manifest else {}
    return from_names(names, cohort) | {k: v for k, v in known.items() if k in set(names)}


def _worst_scores(rows: Sequence[Score]) -> list[Score]:
    known = [row for row in rows if not math.isnan(row.value)]
    direction = {row.metric: metric_of(row.metric).direction for row in known}
    return sorted(known, key=lambda r: (-summary.badness(r.value, direction[r.metric]), r.case))


def _case_scores(data: Predictions) -> list[Score]:
    """Per case, the squared error of its probabilities (the two-class form halves it).

    Scores that are no probabilities have none: there it is the share of the other classes' cases
    that the case is ranked rightly against, whose mean over a class is that class's AUC.
    """
    truth = data.known_truth
    rows = []
    if not data.is_probability:
        for k, info in enumerate(data.cases):
            own = data.prob[:, truth[k]]
            others = own[truth != truth[k]]
            right = np.where(others < own[k], 1.0, np.where(others == own[k], 0.5, 0.0))
            value = float(right.mean()) if others.size else math.nan
            rows.append(Score(info.case, data.classes[int(truth[k])], "auc_roc", value))
        return rows
    for k, info in enumerate(data.cases):
        gap = data.prob[k].copy()
        gap[truth[k]] -= 1
        value = float((gap**2).sum()) / (2 if len(data.classes) == 2 else 1)
        rows.append(Score(info.case, data.classes[int(truth[k])], "brier", value))
    return rows


def _case_columns(data: Predictions) -> dict[str, list[Any]]:
    """Per case: the truth, the most probable class and every class's probability (or score)."""
    names = {"truth": data.known_truth, "called": data.called}
    columns: dict[str, list[Any]] = {
        name: [data.classes[int(k)] for k in numbers] for name, numbers in names.items()
    }
    for k, name in enumerate(data.classes):
        columns[f"prob_{name}"] = data.prob[:, k].tolist()
    return columns


def _write(
    options: MaskOptions | ScoreOptions,
    texts: Mapping[str, str],
    inputs: Sequence[Path],
    command: str,
) -> None:
    from medvol.datasets import index_files

    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(options.output / name, text)
    named = {field.name: getattr(options, field.name) for field in fields(options)}
    named.pop("output")
    extra = [p for known in (options.data, options.train) if known for p in index_files(known)]
    write_run(options.output, command, named, [*inputs, *extra], texts)


def to_json(found: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON values; undefined and infinite numbers become text."""
    return {
        "output": str(found.output),
        "table": [row.to_json() for row in found.table],
        "worst": [row.to_json() for row in found.worst],
        "n_unknown_patients": found.n_unknown_patients,
    }
