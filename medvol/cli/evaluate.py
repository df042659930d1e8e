"""`medvol evaluate`: predictions and references become tables with intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.core.errors import ConfigError

if TYPE_CHECKING:
    from medvol.evaluation import Evaluation

EXAMPLE = "medvol evaluate --pred out --ref Task04_Hippocampus -o scores --by site"

_POINTS = "sensitivity>=0.95,specificity>=0.95,youden"


#: What each way to evaluate takes beside its own options; `--jobs` changes no number.
_SHARED = {"output", "data", "train", "by", "worst", "resamples", "confidence", "seed", "jobs"}
_TAKES = {
    "rerun": {"jobs"},
    "longitudinal": {"output", "repeatability"},
    "scores": {*_SHARED, "validation", "external", "positive", "at", "prevalence"},
    "pred": {*_SHARED, "ref", "external_pred", "external_ref", "external_data", "metrics", "tau",
             "width", "labels"},
}  # fmt: skip


def run(
    ctx: typer.Context,
    pred: Annotated[
        Path | None, typer.Option(help="Predicted label maps: folder, or P/{case}/{label}.nrrd.")
    ] = None,
    ref: Annotated[
        Path | None, typer.Option(help="References: folder, data set, or R/{case}/{label}.nrrd.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="CSV of scores (classification).")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set: patient, site, sex.")] = None,
    train: Annotated[Path | None, typer.Option(help="Training data set: no patient twice.")] = None,
    validation: Annotated[Path | None, typer.Option(help="CSV to fix thresholds on.")] = None,
    external: Annotated[Path | None, typer.Option(help="CSV of an external cohort.")] = None,
    external_pred: Annotated[Path | None, typer.Option(help="External predictions.")] = None,
    external_ref: Annotated[Path | None, typer.Option(help="External references.")] = None,
    external_data: Annotated[Path | None, typer.Option(help="External data set.")] = None,
    by: Annotated[str, typer.Option(help="Subgroup columns: site,sex,age.")] = "",
    metrics: Annotated[str, typer.Option(help="Mask metrics.")] = "dice,hd95,assd,nsd_voxel",
    tau: Annotated[str, typer.Option(help="Surface Dice tolerances in mm.")] = "2",
    width: Annotated[float | None, typer.Option(help="Band of boundary_iou in mm.")] = None,
    labels: Annotated[str, typer.Option(help="Label names: 1=liver,2=tumour.")] = "",
    positive: Annotated[str | None, typer.Option(help="Positive class.")] = None,
    at: Annotated[str, typer.Option(help="Operating points.")] = _POINTS,
    prevalence: Annotated[float | None, typer.Option(help="State PPV and NPV at it.")] = None,
    worst: Annotated[int, typer.Option(help="Worst cases listed.", min=0)] = 10,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Nominal coverage.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resamples.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    rerun: Annotated[Path | None, typer.Option(help="Repeat a run.json exactly.")] = None,
    longitudinal: Annotated[Path | None, typer.Option(help="CSV of pairs in time.")] = None,
    repeatability: Annotated[float | None, typer.Option(help="Limit, % of volume.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score segmentations (--pred --ref) or classifications (--scores), with intervals."""
    _refuse_unused(ctx)
    if rerun is not None:
        _rerun(rerun, jobs, as_json)
        return
    if output is None:
        raise ConfigError("medvol evaluate needs an output folder: -o FOLDER")
    if longitudinal is not None:
        _longitudinal(longitudinal, output, repeatability, as_json)
        return
    shared: dict[str, Any] = {
        "output": output, "data": data, "train": train, "by": _list(by), "worst": worst,
        "resamples": resamples, "confidence": confidence, "seed": seed,
    }  # fmt: skip
    if scores is not None:
        found = _classes(scores, validation=validation, external=external, positive=positive,
                         rules=_list(at), prevalence=prevalence, **shared)  # fmt: skip
    else:
        found = _masks(
            pred, ref, jobs, external_pred=external_pred, external_ref=external_ref,
            external_data=external_data, metrics=_list(metrics), taus_mm=_numbers(tau, "--tau"),
            width_mm=width, labels=_labels(labels), **shared,
        )  # fmt: skip
    _print(found, as_json)


def _refuse_unused(ctx: typer.Context) -> None:
    """Options that would say nothing: a figure must rest on all that was asked for."""
    names = {str(param.name): param.opts[0] for param in ctx.command.params}
    given = [name for name in names
             if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]  # fmt: skip
    way = next((name for name in _TAKES if name in given), None)
    if way is None:
        return
    for name in given:
        if name not in {*_TAKES[way], way, "as_json"}:
            if way == "scores" and name in ("pred", "ref"):
                raise ConfigError("--scores is for classification, --pred and --ref for "
                                  "segmentation")  # fmt: skip
            raise ConfigError(f"{names[name]} says nothing beside {names[way]}; leave it out")
    if "at" in given and "validation" not in given:
        raise ConfigError("--at needs --validation: an operating point is fixed on other cases")
    if "external_data" in given and "external_pred" not in given:
        raise ConfigError("--external-data needs --external-pred and --external-ref")


def _classes(scores: Path, **options: Any) -> Evaluation:
    from medvol.evaluation import ScoreOptions, evaluate_scores

    return evaluate_scores(ScoreOptions(scores, **options))


def _masks(pred: Path | None, ref: Path | None, jobs: int, **options: Any) -> Evaluation:
    from medvol.evaluation import MaskOptions, evaluate_segmentation

    if pred is None or ref is None:
        raise ConfigError("medvol evaluate needs --pred and --ref, or --scores, or --longitudinal")
    if (options["external_pred"] is None) != (options["external_ref"] is None):
        raise ConfigError("--external-pred and --external-ref belong together")
    found = MaskOptions(pred, ref, **options)
    return evaluate_segmentation(found, jobs=jobs, progress=_progress())


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(texts: str, option: str) -> tuple[float, ...]:
    return tuple(_number(text, option) for text in _list(texts))


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is no number") from None


def _labels(text: str) -> dict[int, str] | None:
    found = {}
    for part in _list(text):
        value, _, name = part.partition("=")
        if not (value.strip().isdigit() and name.strip()):
            raise ConfigError(f"--labels: {part!r} is not of the form 1=liver")
        if int(value) == 0:
            raise ConfigError(f"--labels: {part!r}: 0 is the background, which is not scored")
        found[int(value)] = name.strip()
    return found or None


def _progress():
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rscored {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show


def _print(found: Evaluation, as_json: bool) -> None:
    from medvol.evaluation import show_interval, to_json

    if as_json:
        print(json.dumps(to_json(found), allow_nan=False))
        return
    from medvol.evaluation.classification import ClassRow

    for row in found.table:
        mark = "  few patients" if row.is_small else ""
        where = f"{row.cohort:8}  {row.group:16}  {row.label:18}"
        if isinstance(row, ClassRow):
            count = f"{row.k}/{row.n}" if row.k >= 0 else f"n={row.n}"
            at = f" at {row.operating_point} ({row.threshold:.4g})" if row.operating_point else ""
            text = show_interval(row.value, row.lower, row.upper)
            print(f"{where}  {row.metric:18} {text}  {count}{at}{mark}")
            continue
        text = show_interval(row.mean, row.mean_lower, row.mean_upper)
        middle = show_interval(row.median, row.median_lower, row.median_upper)
        unit = f" {row.unit}" if row.unit else ""
        print(f"{where}  {row.metric:14} mean {text}{unit}  median {middle}{unit}  "
              f"n={row.n}, {row.n_undefined} undefined, {row.n_infinite} infinite, "
              f"{row.n_missed} missed, {row.n_invented} invented{mark}")  # fmt: skip
    _print_worst(found.worst)
    if found.n_unknown_patients:
        print(f"patients are unknown for {found.n_unknown_patients} cases, each counted as one: "
              "intervals are too narrow if a patient has several; --data names them")  # fmt: skip
    print(f"tables: {found.output}")


def _print_worst(worst: Sequence[Any]) -> None:
    from medvol.evaluation import show

    print("worst cases")
    for row in worst:
        why = f"  ({row.why_undefined})" if row.why_undefined else ""
        print(f"  {row.case}  {row.label}  {row.metric} {show(row.value)} {row.unit}{why}")


def _rerun(path: Path, jobs: int, as_json: bool) -> None:
    from medvol.evaluation import rerun

    changed = rerun(path, jobs=jobs, progress=_progress())
    if as_json:
        print(json.dumps({"run": str(path), "identical": not changed, "changed": changed}))
    elif not changed:
        print(f"{path}: repeated exactly")
    else:
        print(f"{path}: differs in {', '.join(changed)}")
    if changed:
        raise typer.Exit(1)


def _longitudinal(pairs: Path, output: Path, repeatability: float | None, as_json: bool) -> None:
    from medvol.evaluation import follow_pairs
    from medvol.reporting import draw_changes

    rows = follow_pairs(pairs, output, repeatability)
    draw_changes(rows, output / "longitudinal.png")
    if as_json:
        print(json.dumps(rows, allow_nan=False))
        return
    for row in rows:
        change = row["change_percent"]
        text = f"{float(change):+.0f}%" if change != "inf" else "new"
        print(f"{row['case']:16}  label {row['label']}  lesion {row['lesion']}  {row['status']:9} "
              f"{row['baseline_ml']:.3f} -> {row['followup_ml']:.3f} ml  {text}  "
              f"{row['n_baseline']} -> {row['n_followup']} components")  # fmt: skip
    if not rows:
        print(f"no lesion at either time\ntables: {output}")
        return
    limits = rows[0].get("limits_percent")
    said = "none: give --repeatability, or rows of kind retest" if limits is None else (
        f"{limits[0]:.0f}% to +{limits[1]:.0f}%")  # fmt: skip
    print(f"repeatability limit: {said}\ntables: {output}")
