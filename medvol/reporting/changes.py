"""A figure of lesions over time: each one's volume before and after, by what became of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from medvol.core.files import atomic_path

#: Okabe and Ito's colours, distinct for the colour-blind; the line style repeats it.
_STYLES = {
    "new": ("#D55E00", "-"), "grown": ("#CC79A7", "-"), "stable": ("#999999", "-"),
    "undecided": ("#999999", ":"), "shrunk": ("#0072B2", "--"), "resolved": ("#009E73", "--"),
}  # fmt: skip


def draw_changes(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Volumes at both times on a logarithmic axis, and the changes that repeatability explains.

    Args:
        rows: What ``follow_pairs`` returned; nothing is drawn without a lesion.
        path: A .png file, written atomically.
    """
    from matplotlib.figure import Figure

    if not rows:
        return
    volumes = [float(row[key]) for row in rows for key in ("baseline_ml", "followup_ml")]
    floor = min(v for v in volumes if v > 0) / 2
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    if "limits_percent" in rows[0]:
        low, high = (1 + limit / 100 for limit in rows[0]["limits_percent"])
        middle = math.sqrt(floor * max(volumes))
        label = f"repeatability {100 * (low - 1):.0f} to +{100 * (high - 1):.0f}%"
        axes.fill_between(
            [0, 1], [middle, middle * low], [middle, middle * high], color="0.9", label=label
        )
    for status, (colour, style) in _STYLES.items():
        chosen = [row for row in rows if row["status"] == status]
        for k, row in enumerate(chosen):
            ends = [max(float(row[key]), floor) for key in ("baseline_ml", "followup_ml")]
            label = f"{status}, n={len(chosen)}" if k == 0 else None
            axes.plot([0, 1], ends, color=colour, linestyle=style, marker="o", label=label)
    axes.set_yscale("log")
    axes.set_xticks([0, 1], ["baseline", "follow-up"])
    axes.set_ylabel(f"volume (ml); absent is drawn at {floor:.2g}")
    axes.legend(fontsize="small")
    with atomic_path(path) as scratch:
        figure.savefig(scratch, dpi=120)
