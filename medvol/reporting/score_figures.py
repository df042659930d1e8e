"""Figures of a classification's evaluation, drawn from the curves that evaluation left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvol.datasets.pages import figure
from medvol.evaluation import Results, show_interval
from medvol.evaluation.classification import ClassRow
from medvol.reporting import style
from medvol.reporting.style import PageFigure, save_figure, shorten

_MOST_CLASSES = len(style.SERIES)
_SQUARE_IN = (4.6, 4.3)
Curves = Mapping[str, Any]


def draw_scores(results: Results, folder: Path) -> list[PageFigure]:
    """Write every figure of a classification run, per cohort."""
    found = []
    for cohort in results.curves:
        suffix = "" if cohort["cohort"] == "internal" else f"_{cohort['cohort']}"
        found += _cohort_figures(results, cohort, folder, suffix)
    return found


def _cohort_figures(
    results: Results, cohort: Curves, folder: Path, suffix: str
) -> list[PageFigure]:
    about = (
        f" {cohort['cohort'].capitalize()}: n = {cohort['n']}, {cohort['n_patients']} patients. "
        f"Bands: pointwise {100 * cohort['confidence']:g}% intervals, patients resampled whole."
    )
    curves = cohort["curves"][:_MOST_CLASSES]
    found = []
    if curves:
        found = [
            _roc(results, cohort, folder, suffix, about),
            _pr(results, cohort, folder, suffix, about),
        ]
    known = [one for one in curves if "calibration" in one]
    if known:
        found.append(_calibration(known, folder, suffix, about))
        found.append(_decision(known, folder, suffix, about))
    found += [_scores(one, folder, suffix, len(curves) > 1, k) for k, one in enumerate(curves)]
    if cohort["confusion"]:
        found.append(_confusion(cohort["confusion"], folder, suffix, about))
    return found


def _roc(results: Results, cohort: Curves, folder: Path, suffix: str, about: str) -> PageFigure:
    fig = figure(*_SQUARE_IN)
    axes = fig.add_subplot()
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=0.8, linestyle=":")
    for k, one in enumerate(cohort["curves"][:_MOST_CLASSES]):
        roc, colour = one["roc"], style.SERIES[k]
        axes.fill_between(roc["at"], _nan(roc["lower"]), _nan(roc["upper"]), color=colour,
                          alpha=0.16, linewidth=0)  # fmt: skip
        axes.plot(
            roc["fpr"], roc["tpr"], color=colour, label=_named(results, cohort, one, "auc_roc")
        )
        if len(cohort["curves"]) == 1:
            _operating_points(axes, results, cohort["cohort"], one["label"])
    _unit_square(axes, "1 - specificity", "sensitivity")
    axes.legend(loc="lower right")
    text = "Receiver operating characteristic; AUC with its interval."
    return save_figure(fig, folder, f"roc{suffix}", "ROC curve", text + about)


def _operating_points(axes: Any, results: Results, cohort: str, label: str) -> None:
    """Thresholds that were fixed elsewhere, where they landed on these cases, with intervals."""
    rows = [r for r in results.table if isinstance(r, ClassRow) and r.group == "all"
            and r.cohort == cohort and r.label == label and r.operating_point]  # fmt: skip
    at = {(r.operating_point, r.metric): r for r in rows}
    rules = dict.fromkeys(r.operating_point for r in rows)
    for k, rule in enumerate(rules):
        sens, spec = at.get((rule, "sensitivity")), at.get((rule, "specificity"))
        if sens is None or spec is None or not np.isfinite([sens.value, spec.value]).all():
            continue
        x = 1 - spec.value
        axes.plot([x, x], [sens.lower, sens.upper], color=style.BLACK, linewidth=0.9)
        axes.plot(
            [1 - spec.upper, 1 - spec.lower], [sens.value] * 2, color=style.BLACK, linewidth=0.9
        )
        axes.plot(
            x,
            sens.value,
            "osD^vP"[k % 6],
            color=style.BLACK,
            markersize=5,
            linestyle="",
            label=rule,
        )


def _pr(results: Results, cohort: Curves, folder: Path, suffix: str, about: str) -> PageFigure:
    fig = figure(*_SQUARE_IN)
    axes = fig.add_subplot()
    for k, one in enumerate(cohort["curves"][:_MOST_CLASSES]):
        pr, colour = one["pr"], style.SERIES[k]
        axes.axhline(pr["prevalence"], color=colour, linewidth=0.8, linestyle=":")
        axes.fill_between(pr["at"], _nan(pr["lower"]), _nan(pr["upper"]), color=colour, alpha=0.16,
                          linewidth=0, step="pre")  # fmt: skip
        label = _named(results, cohort, one, "average_precision")
        axes.step([0, *pr["recall"]], [pr["precision"][0], *pr["precision"]], where="pre",
                  color=colour, label=label)  # fmt: skip
    _unit_square(axes, "recall (sensitivity)", "precision (PPV)")
    axes.legend(loc="lower left")
    text = (
        "Average precision is the sum of these steps; dotted: prevalence, which a coin would reach."
    )
    return save_figure(
        fig, folder, f"precision_recall{suffix}", "Precision and recall", text + about
    )


def _calibration(curves: Sequence[Curves], folder: Path, suffix: str, about: str) -> PageFigure:
    fig = figure(*_SQUARE_IN)
    axes, below = fig.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=0.8, linestyle=":")
    for k, one in enumerate(curves):
        bins, colour = one["calibration"]["bins"], style.SERIES[k]
        x = [b["mean_prob"] for b in bins]
        slope = one["calibration"]["slope"]
        text = shorten(one["label"], 22)
        if slope[0] is not None:
            text += f": slope {show_interval(*_nan(slope), digits=2)}"
        axes.vlines(x, [b["lower"] for b in bins], [b["upper"] for b in bins], color=colour,
                    alpha=0.6, linewidth=1.1)  # fmt: skip
        axes.plot(
            x, [b["rate"] for b in bins], "o-", color=colour, markersize=4, linewidth=1, label=text
        )
        width = 0.1 / len(curves)
        below.bar([b["low"] + width * (k + 0.5) for b in bins], [b["n"] for b in bins], 0.9 * width,
                  color=colour)  # fmt: skip
    axes.set(ylim=(-0.02, 1.02), ylabel="observed share")
    axes.legend(loc="upper left")
    below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="cases")
    text = (
        "Ten bins of equal width; bars: intervals of the observed share; below, "
        "cases per bin. A slope under 1 means overconfidence."
    )
    return save_figure(fig, folder, f"calibration{suffix}", "Calibration", text + about)


def _decision(curves: Sequence[Curves], folder: Path, suffix: str, about: str) -> PageFigure:
    fig = figure(*_SQUARE_IN)
    axes = fig.add_subplot()
    top = 0.0
    for k, one in enumerate(curves):
        curve, colour = one["decision"], style.SERIES[k]
        model, everybody = _nan(curve["model"]), _nan(curve["everybody"])
        axes.fill_between(curve["at"], _nan(curve["lower"]), _nan(curve["upper"]), color=colour,
                          alpha=0.16, linewidth=0)  # fmt: skip
        axes.plot(curve["at"], model, color=colour, label=shorten(one["label"]))
        axes.plot(curve["at"], everybody, color=colour, linewidth=0.9, linestyle="--",
                  label="treat all" if k == 0 else None)  # fmt: skip
        top = max(top, float(np.nanmax([*_nan(curve["upper"]), *model, *everybody])))
    axes.axhline(0, color=style.GREY, linewidth=0.9, label="treat none")
    axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.08 * top), xlabel="threshold probability",
             ylabel="net benefit")  # fmt: skip
    axes.legend(loc="upper right")
    text = "Net benefit of acting above each threshold (Vickers & Elkin 2006)."
    return save_figure(fig, folder, f"decision_curve{suffix}", "Decision curve", text + about)


def _scores(one: Curves, folder: Path, suffix: str, is_numbered: bool, at: int) -> PageFigure:
    fig = figure(4.6, 3.0)
    axes = fig.add_subplot()
    hist = one["scores"]
    edges = np.array(hist["edges"])
    for side, colour, sign, text in (
        ("positive", style.VERMILION, 1, f"{shorten(one['label'], 22)} (n = {one['n_pos']})"),
        ("negative", style.BLUE, -1, f"others (n = {one['n'] - one['n_pos']})"),
    ):
        axes.bar(edges[:-1], sign * np.array(hist[side]), np.diff(edges), align="edge",
                 color=colour, alpha=0.85, label=text)  # fmt: skip
    axes.axhline(0, color=style.BLACK, linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set(xlabel=f"score of {shorten(one['label'])}", ylabel="cases")
    axes.legend(loc="best")
    name = f"scores{suffix}" + (f"_{at + 1}" if is_numbered else "")
    return save_figure(fig, folder, name, "Scores by truth",
                        "How far the scores of both kinds of cases lie apart.")  # fmt: skip


def _confusion(matrices: Sequence[Curves], folder: Path, suffix: str, about: str) -> PageFigure:
    size = len(matrices[0]["classes"])
    across = min(3, len(matrices))
    side = max(2.7, 0.85 * size)
    fig = figure(side * across + 0.3, side * -(-len(matrices) // across) + 0.2)
    panels = fig.subplots(-(-len(matrices) // across), across, squeeze=False).ravel()
    for panel in panels[len(matrices) :]:
        panel.set_axis_off()
    for panel, one in zip(panels, matrices, strict=False):
        share = np.array([_nan(row) for row in one["estimate"]])
        panel.imshow(np.nan_to_num(share), cmap="Blues", vmin=0, vmax=1.15)
        for i in range(size):
            for j in range(size):
                lines = f"{one['counts'][i][j]}"
                if np.isfinite(share[i, j]):
                    low, high = one["lower"][i][j], one["upper"][i][j]
                    lines += f"\n{100 * share[i, j]:.0f}%\n({100 * low:.0f} to {100 * high:.0f})"
                panel.text(j, i, lines, ha="center", va="center", fontsize=7.5 if size < 5 else 6,
                           color="white" if share[i, j] > 0.6 else style.BLACK)  # fmt: skip
        names = [shorten(name, 14) for name in one["classes"]]
        panel.set_xticks(range(size), names, rotation=30 if size > 2 else 0)
        panel.set_yticks(range(size), names, rotation=90, va="center")
        panel.set(xlabel="called", ylabel="truth")
        rule = one["rule"] + (f" ({one['threshold']})" if one["threshold"] else "")
        panel.set_title(rule, fontsize=8.5)
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
    return save_figure(fig, folder, f"confusion{suffix}", "Confusion",
                        "Cases, share of the row (sensitivity of that class) and its Wilson "
                        "interval." + about, is_wide=across > 1)  # fmt: skip


def _named(results: Results, cohort: Curves, one: Curves, metric: str) -> str:
    """The class and its number with its interval, as the summary table has it."""
    row = next((r for r in results.table if isinstance(r, ClassRow) and r.group == "all"
                and r.cohort == cohort["cohort"] and r.label == one["label"]
                and r.metric == metric), None)  # fmt: skip
    name = {"auc_roc": "AUC", "average_precision": "AP"}[metric]
    label = shorten(one["label"], 22)
    return (
        label
        if row is None
        else f"{label}: {name} {show_interval(row.value, row.lower, row.upper)}"
    )


def _unit_square(axes: Any, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y)
    axes.set_aspect("equal")


def _nan(values: Sequence[float | None]) -> list[float]:
    """JSON's null is an undefined number."""
    return [float("nan") if value is None else value for value in values]
