"""What a check found, as JSON, figures and one HTML page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from medvol.core.files import write_json
from medvol.datasets.checking import CheckReport
from medvol.datasets.leakage import LeakageReport, draw_leakage
from medvol.datasets.manifest import Manifest
from medvol.datasets.pages import Part, write_page


def write_check_page(
    report: CheckReport,
    leakage: LeakageReport | None,
    manifest: Manifest,
    answer: dict[str, Any],
    folder: str | os.PathLike[str],
) -> Path:
    """Write ``check.json`` and ``check.html``, with the leakage check's figures beside them.

    Args:
        report: What the input checks and the plausibility check found.
        leakage: What the leakage check found, None where it did not run.
        manifest: The data set.
        answer: What the command line prints as JSON.
        folder: Created.

    Returns:
        Path of the page.
    """
    folder = Path(folder)
    write_json(folder / "check.json", answer)
    rows = [("case", "kind", "fault"), *((f.case, f.kind, f.fault) for f in report.faults)]
    parts = [Part("Cases", report.remarks, rows if report.faults else ())]
    if leakage:
        parts += _leakage_parts(leakage, draw_leakage(leakage, manifest, folder))
    bad = len({fault.case for fault in report.faults})
    verdict = f"{bad} of {report.n} cases are bad." if bad else f"All {report.n} cases are sound."
    tone = "bad" if bad else "good"
    if leakage:
        verdict += f" Leakage: {leakage.verdict}."
        tone = leakage.verdict if leakage.verdict != "clean" else tone
    page = folder / "check.html"
    write_page(page, f"Check of {report.name}", verdict, tone, parts)
    return page


def _leakage_parts(leakage: LeakageReport, figures: list[Path]) -> list[Part]:
    probes = [("classes", "probe", "n", "AUC", "95% interval", "null 95%", "p (Holm)", "fires")]
    probes += [
        (
            p.pair,
            p.probe,
            p.n,
            f"{p.auc:.3f}",
            f"{p.low:.3f} to {p.high:.3f}",
            f"{p.null_high:.3f}",
            f"{p.p_adjusted:.3g}",
            "yes" if p.fires else "no",
        )
        for p in leakage.probes
        if not p.why_undefined
    ]
    return [
        Part("Leakage", leakage.findings or ["Nothing was found."], (), figures),
        Part(
            "Probes",
            [
                "Ridge classifiers on single features, five patient-grouped folds; the "
                "null permutes labels among patients within folds."
            ],
            probes if len(probes) > 1 else (),
        ),
    ]
