"""The leakage check as figures: probes with intervals, class means, duplicates, sources."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from medvol.datasets.leakage.check import LeakageReport
from medvol.datasets.leakage.contingency import Contingency
from medvol.datasets.leakage.features import CaseFeatures
from medvol.datasets.leakage.probes import Probe
from medvol.datasets.manifest import Manifest
from medvol.datasets.pages import figure, plain, save_figure

_MOST_PAIRS = 6


def draw_leakage(report: LeakageReport, manifest: Manifest, folder: Path) -> list[Path]:
    """Draw what applies to the data set, as PNG files.

    Returns:
        The files: ``probes.png``, ``class_means.png``, ``duplicates.png``, ``source_*.png``.
    """
    drawn = []
    if any(not probe.why_undefined for probe in report.probes):
        drawn.append(save_figure(_draw_probes(report.probes), folder / "probes.png"))
        if len({feature.fine.shape for feature in report.features}) == 1:
            drawn.append(save_figure(_draw_means(report, manifest), folder / "class_means.png"))
    if report.duplicates:
        drawn.append(save_figure(_draw_duplicates(report), folder / "duplicates.png"))
    for table in report.contingencies:
        name = "".join(c if c.isalnum() else "_" for c in table.column)
        drawn.append(save_figure(_draw_table(table), folder / f"source_{name}.png"))
    return drawn


def _draw_probes(probes: list[Probe]) -> Any:
    by_pair: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        if not probe.why_undefined:
            by_pair[probe.pair].append(probe)
    rows = max(len(found) for found in by_pair.values())
    fig = figure(4.6 * len(by_pair), 1.2 + 0.32 * rows)
    for number, (pair, found) in enumerate(by_pair.items(), start=1):
        axes = fig.add_subplot(1, len(by_pair), number)
        for place, probe in enumerate(reversed(found)):
            colour = "#b2182b" if probe.is_shortcut else "#e08214" if probe.fires else "#777777"
            axes.plot(
                [0.5, probe.null_high], [place, place], color="#dddddd", lw=9, solid_capstyle="butt"
            )
            axes.plot([probe.low, probe.high], [place, place], color=colour, lw=2)
            axes.plot(probe.auc, place, "o", color=colour, ms=5)
        axes.set_yticks(range(len(found)), [plain(p.probe) for p in reversed(found)], fontsize=8)
        axes.set_xlim(0.3, 1.02)
        axes.axvline(0.5, color="k", lw=0.6)
        axes.set_title(plain(pair), fontsize=9)
        axes.set_xlabel("AUC, 95% interval; grey: permuted labels", fontsize=8)
    return fig


def _draw_means(report: LeakageReport, manifest: Manifest) -> Any:
    """Mean image of each class: what a thumbnail probe sees, the frame marked."""
    category = {case.case: case.category for case in manifest.cases}
    fig = figure(2.6 * len(manifest.classes), 3.0)
    for number, name in enumerate(manifest.classes, start=1):
        shown = [_flat(f) for f in report.features if category[f.case] == name]
        axes = fig.add_subplot(1, len(manifest.classes), number)
        axes.set_axis_off()
        axes.set_title(plain(f"{name} (n={len(shown)})"), fontsize=9)
        if not shown:
            continue
        mean = np.mean(shown, axis=0)
        axes.imshow(mean.T, cmap="gray")
        n, m = mean.shape
        axes.plot(
            [n / 8, n * 7 / 8, n * 7 / 8, n / 8, n / 8],
            [m / 8, m / 8, m * 7 / 8, m * 7 / 8, m / 8],
            color="#e08214",
            lw=1,
        )
    return fig


def _draw_duplicates(report: LeakageReport) -> Any:
    by_name = {feature.case: feature for feature in report.features}
    pairs = report.duplicates[:_MOST_PAIRS]
    fig = figure(5.2, 2.8 * len(pairs))
    for row, pair in enumerate(pairs):
        for column, name in enumerate((pair.first, pair.second)):
            axes = fig.add_subplot(len(pairs), 2, 2 * row + column + 1)
            axes.imshow(_flat(by_name[name]).T, cmap="gray")
            axes.set_axis_off()
            axes.set_title(plain(f"{name[:30]}\n{pair.kind} {pair.likeness:.2f}"), fontsize=7)
    return fig


def _draw_table(table: Contingency) -> Any:
    levels, classes = list(table.table), list(next(iter(table.table.values())))
    counts = np.asarray([[table.table[a][b] for b in classes] for a in levels], float)
    fig = figure(2.5 + 1.1 * len(classes), 1.4 + 0.4 * len(levels))
    axes = fig.add_subplot()
    axes.imshow(
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1),
        cmap="Blues",
        vmin=0,
        vmax=1,
        aspect="auto",
    )
    for (i, j), count in np.ndenumerate(counts):
        axes.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(classes)), [plain(name) for name in classes], fontsize=8, rotation=20)
    axes.set_yticks(range(len(levels)), [plain(level[:32]) for level in levels], fontsize=8)
    axes.set_title(plain(f"{table.column}: Cramér's V {table.cramers_v:.2f}"), fontsize=9)
    return fig


def _flat(feature: CaseFeatures) -> np.ndarray:
    """The image, or the middle slice of the volume."""
    fine = feature.fine
    return fine if fine.ndim == 2 else fine[:, :, fine.shape[2] // 2]
