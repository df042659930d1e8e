"""Figures of a segmentation's evaluation: distributions, and agreement of volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvol.datasets.pages import figure
from medvol.evaluation import AgreementRow, Results, SummaryRow
from medvol.metrics import Score, Volume, metric_of
from medvol.reporting import style
from medvol.reporting.style import PageFigure, save_figure, shorten
from medvol.reporting.tables import metric_name

_MOST_LABELS = 40
_PANELS_ACROSS = 3
_COHORTS = {"internal": style.BLUE, "external": style.VERMILION}


def draw_masks(results: Results, folder: Path) -> list[PageFigure]:
    """Write every figure of a segmentation run."""
    found = [
        _distribution(results, metric, folder)
        for metric in dict.fromkeys(row.metric for row in results.scores["internal"])
    ]
    for cohort, volumes in results.volumes.items():
        rows = [row for row in results.agreement if row.cohort == cohort]
        if volumes and rows:
            found.append(_bland_altman(volumes, rows, folder, cohort))
    return found


def _distribution(results: Results, metric: str, folder: Path) -> PageFigure:
    """A row per label: every case, the quartiles, the median with its interval."""
    rows = [r for r in results.table if isinstance(r, SummaryRow) and r.metric == metric
            and r.group == "all" and r.label != "(all labels)"][:_MOST_LABELS]  # fmt: skip
    fig = figure(7.2, 0.9 + 0.42 * len(rows))
    axes = fig.add_subplot()
    edge = _finite_edge(results, metric)
    for at, row in enumerate(rows):
        values = [
            s for s in results.scores[row.cohort] if (s.label, s.metric) == (row.label, metric)
        ]
        _strip(axes, at, values, _COHORTS[row.cohort], edge)
        _middle(axes, at, row)
    several = len({row.cohort for row in rows}) > 1
    names = [shorten(row.label) + (f" ({row.cohort})" if several else "") for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    unit = metric_of(metric).unit
    axes.set_xlabel(metric_name(metric) + (f" [{unit}]" if unit else ""))
    axes.grid(axis="x", color="#E5E8EB", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    n = ", ".join(f"{shorten(r.label)} {r.n}" for r in rows[:8]) + (" ..." if len(rows) > 8 else "")
    caption = f"Every case a dot (n: {n}); box: quartiles; line: median; whisker: its interval."
    if any(row.n_infinite for row in rows):
        caption += " A triangle at the edge: infinite distances, one of two masks empty."
    return save_figure(fig, folder, f"distribution_{metric.replace('@', '_at_')}",
                        metric_name(metric), caption)  # fmt: skip


def _strip(axes: Any, at: int, values: Sequence[Score], colour: str, edge: float) -> None:
    """Dots, spread by a fixed pattern to keep equal values apart; infinite ones at the edge."""
    known = [s.value for s in values if not math.isnan(s.value)]
    finite = np.array([v for v in known if math.isfinite(v)])
    spread = 0.26 * ((np.arange(len(finite)) * 0.618) % 1 - 0.5)
    axes.scatter(finite, at + spread, s=11, color=colour, alpha=0.55, linewidths=0, zorder=3)
    if endless := len(known) - len(finite):
        axes.scatter([edge], [at], marker=">", s=34, color=style.VERMILION, zorder=5, clip_on=False)
        axes.annotate(f"{endless} infinite", (edge, at), (-6, 5), textcoords="offset points",
                      fontsize=7.5, color=style.VERMILION, ha="right")  # fmt: skip


def _middle(axes: Any, at: int, row: SummaryRow) -> None:
    if math.isfinite(row.q25) and math.isfinite(row.q75):
        axes.barh(at, row.q75 - row.q25, left=row.q25, height=0.5, color="#DDE3E8", zorder=1)
    if math.isfinite(row.median):
        axes.plot(
            [row.median] * 2, [at - 0.27, at + 0.27], color=style.BLACK, linewidth=1.8, zorder=4
        )
    if math.isfinite(row.median_lower) and math.isfinite(row.median_upper):
        axes.plot([row.median_lower, row.median_upper], [at + 0.36] * 2, color=style.BLACK,
                  linewidth=1.1, solid_capstyle="butt", marker="|", markersize=4)  # fmt: skip


def _finite_edge(results: Results, metric: str) -> float:
    values = [s.value for rows in results.scores.values() for s in rows
              if s.metric == metric and math.isfinite(s.value)]  # fmt: skip
    return 1.06 * max(values, default=1.0) or 1.0


def _bland_altman(
    volumes: Sequence[Volume], rows: Sequence[AgreementRow], folder: Path, cohort: str
) -> PageFigure:
    """A panel per label: difference over mean, bias and limits, each with its interval's band."""
    rows = rows[:_MOST_LABELS]
    across = min(_PANELS_ACROSS, len(rows))
    down = math.ceil(len(rows) / across)
    fig = figure(3.6 * max(2, across), 2.7 * down)
    panels = np.atleast_1d(fig.subplots(down, across, squeeze=False)).ravel()
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    for panel, row in zip(panels, rows, strict=False):
        own = [v for v in volumes if v.label == row.label]
        for middle, lower, upper, colour in (
            (row.bias, row.bias_lower, row.bias_upper, style.BLUE),
            (row.low, row.low_lower, row.low_upper, style.VERMILION),
            (row.high, row.high_lower, row.high_upper, style.VERMILION),
        ):
            if math.isfinite(middle):
                panel.axhline(middle, color=colour, linewidth=1.2,
                              linestyle="-" if colour == style.BLUE else "--")  # fmt: skip
            if math.isfinite(lower) and math.isfinite(upper):
                panel.axhspan(lower, upper, color=colour, alpha=0.14, linewidth=0)
        panel.axhline(0, color=style.GREY, linewidth=0.7)
        panel.scatter([v.mean for v in own], [v.difference for v in own], s=13, color=style.BLACK,
                      alpha=0.7, linewidths=0, zorder=3)  # fmt: skip
        panel.set_title(f"{shorten(row.label, 24)} (n = {row.n})")
        panel.set_xlabel(f"mean of both [{row.unit}]")
        panel.set_ylabel(f"prediction - reference [{row.unit}]", fontsize=8)
    caption = (
        f"Bland and Altman, {cohort}: bias (blue) and 95% limits of agreement (dashed), each with "
        "its percentile bootstrap interval as a band, patients resampled whole. An "
        "empty mask counts with volume 0."
    )
    name = "bland_altman" + ("" if cohort == "internal" else f"_{cohort}")
    return save_figure(fig, folder, name, "Agreement of volumes", caption, is_wide=across > 2)


def forest(named: Sequence[tuple[str, Results]], folder: Path) -> list[PageFigure]:
    """For each metric and label that several segmentation runs share: means with intervals."""
    found = []
    runs = [(name, r) for name, r in named if r.kind == "masks"]
    columns = [{(s.label, s.metric) for s in r.table if s.group == "all"} for _, r in runs]
    shared = set.intersection(*columns) if len(runs) > 1 else set()
    order = dict.fromkeys(s.metric for s in runs[0][1].table) if shared else {}
    for metric in order:
        own = [row for row in runs[0][1].table if row.metric == metric and row.group == "all"]
        named_once = dict.fromkeys(row.label for row in own if (row.label, metric) in shared)
        labels = list(named_once)[:_MOST_LABELS]
        if labels:
            found.append(_forest(runs, metric, labels, folder))
    return found


def _forest(
    runs: Sequence[tuple[str, Results]], metric: str, labels: Sequence[str], folder: Path
) -> PageFigure:
    fig = figure(7.2, 0.9 + (0.22 + 0.2 * len(runs)) * len(labels))
    axes = fig.add_subplot()
    for k, (name, results) in enumerate(runs):
        colour, marker = style.SERIES[k % len(style.SERIES)], "osD^vPX"[k % 7]
        for at, label in enumerate(labels):
            row = next(s for s in results.table if isinstance(s, SummaryRow) and s.group == "all"
                       and (s.label, s.metric) == (label, metric))  # fmt: skip
            y = at + (k - (len(runs) - 1) / 2) * 0.8 / len(runs)
            if math.isfinite(row.mean_lower) and math.isfinite(row.mean_upper):
                axes.plot([row.mean_lower, row.mean_upper], [y, y], color=colour, linewidth=1.3)
            if math.isfinite(row.mean):
                axes.plot(row.mean, y, marker, color=colour, markersize=5, linestyle="",
                          label=f"{shorten(name)} (n = {row.n})" if at == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    unit = metric_of(metric).unit
    axes.set_xlabel(f"mean {metric_name(metric)}" + (f" [{unit}]" if unit else ""))
    axes.grid(axis="x", color="#E5E8EB", linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption = ("Mean of each run with its BCa interval; means that are infinite (one of two "
               "masks empty) are not drawn, see the tables.")  # fmt: skip
    return save_figure(fig, folder, f"runs_{metric.replace('@', '_at_')}",
                        f"Runs side by side: {metric_name(metric)}", caption)  # fmt: skip
