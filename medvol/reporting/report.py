"""`medvol report`: evaluations become one offline page, its figures and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.core.errors import ConfigError
from medvol.core.files import output_path, write_text
from medvol.evaluation import Results, read_results
from medvol.evaluation.classification import ClassRow
from medvol.metrics import Score
from medvol.metrics.registry import FALSE_NEGATIVE, FALSE_POSITIVE
from medvol.reporting.cases import CaseTable, case_table, find_files
from medvol.reporting.gallery import Shown, show_worst
from medvol.reporting.mask_figures import draw_masks, forest
from medvol.reporting.page import write_page
from medvol.reporting.score_figures import draw_scores
from medvol.reporting.style import PageFigure, drawing
from medvol.reporting.tables import Table, metric_table, origin_table, summary_tables
from medvol.reporting.volumes import voxel_cap

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: The HTML file.
        figures: Every figure, as PDF and PNG.
        tables: Every table, as CSV and LaTeX.
        volumes: Cases whose volumes the page carries.
    """

    page: Path
    figures: Sequence[Path]
    tables: Sequence[Path]
    volumes: Sequence[str]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str = "",
    names: Sequence[str] = (),
    images: Path | None = None,
    volumes: int = 12,
    progress: Progress | None = None,
) -> Report:
    """Write ``report.html``, ``figures/`` and ``tables/`` from evaluations.

    Nothing is computed here: every number and every curve is read from the runs' folders.

    Args:
        runs: Folders that ``medvol evaluate``, or a bundle's own evaluation, wrote.
        out: Folder to write; created.
        title: Heading of the page.
        names: A name for each run; by default its folder's.
        images: Data set or folder that holds the cases' images, for the viewer; by default the
            data set that the run was evaluated with.
        volumes: How many of the worst cases carry their volumes.
        progress: Called with a phase, what is done and the total.

    Raises:
        MissingInputError: If a folder holds no evaluation.
        ConfigError: If the names do not fit the runs.
    """
    if not runs or (names and len(names) != len(runs)):
        raise ConfigError(f"{len(runs)} runs cannot have {len(names)} names")
    found = [read_results(Path(run)) for run in runs]
    titles = list(names) or _names(found)
    on_progress = progress or (lambda *_: None)
    quota = (-(-volumes // len(found)), voxel_cap(volumes))
    sections = []
    with drawing():
        for key, (name, results) in enumerate(zip(titles, found, strict=True)):
            place = out if len(found) == 1 else output_path(out, f"run{key}_{name}")
            sections.append(_section(f"run{key}", name, results, place, images, quota, on_progress))
        overview = forest(list(zip(titles, found, strict=True)), out / "figures")
    page = out / "report.html"
    data, parts = _data(sections)
    values: dict[str, Any] = {
        "title": title or "Evaluation report", "lead": _lead(sections), "version": __version__,
        "sections": [section.values() for section in sections], "overview": overview,
    }  # fmt: skip
    write_page(page, values, data, parts)
    figures = [*overview, *(p for section in sections for p in section.figures)]
    return Report(
        page=page,
        figures=[path for figure in figures for path in figure.files],
        tables=[path for section in sections for path in section.written],
        volumes=[shown.key[1] for section in sections for shown in section.shown],
    )


@dataclass(frozen=True)
class _Section:
    """A run as the page shows it."""

    id: str
    name: str
    results: Results
    tables: Sequence[Table]
    origin: Table
    figures: Sequence[PageFigure]
    cases: CaseTable
    shown: Sequence[Shown]
    note: str
    written: Sequence[Path]

    def values(self) -> dict[str, Any]:
        """What the template needs."""
        at = {key: f"{self.id}-{k}" for k, key in enumerate(self.cases.cases)}
        table = self.cases
        return {
            "id": self.id, "name": self.name, "facts": _facts(self.results), "tables": self.tables,
            "figures": self.figures, "metrics": metric_table(self.results),
            "origin": self.origin, "has_masks": self.results.kind == "masks",
            "cards_note": self.note,
            "cards": [{"at": at[s.key], "name": s.key[1], "why": s.why, "uri": s.uri}
                      for s in self.shown],
            "cases": {
                "header": table.header, "note": table.note, "example": table.example,
                "choices": [{"column": k, "name": table.header[k], "options": v}
                            for k, v in table.choices.items()],
                "rows": [{"at": at[row.cohort, row.case], "case": row.case, "cells": row.cells}
                         for row in table.rows],
            },
        }  # fmt: skip


def _section(
    key: str,
    name: str,
    results: Results,
    out: Path,
    images: Path | None,
    quota: tuple[int, int],
    on_progress: Progress,
) -> _Section:
    """Write a run's tables and figures, and gather what the page shows of it."""
    files = find_files(results, images)
    cases = case_table(results, files)
    tables = summary_tables(results)
    cells = [(row.case, *(cell.text for cell in row.cells)) for row in cases.rows]
    plain = Table("cases", "All cases", cases.note, cases.header, cells)
    written = [path for table in (*tables, plain) for path in _write_table(table, out / "tables")]
    draw = draw_masks if results.kind == "masks" else draw_scores
    on_progress(f"{name}: figures", 0, 1)
    figures = draw(results, out / "figures")
    on_progress(f"{name}: figures", 1, 1)
    shown, note = show_worst(
        results, cases, files, quota, lambda done, total: on_progress(f"{name}: cases", done, total)
    )
    origin = origin_table(results, [files.record(*one) for one in files.masks])
    return _Section(key, name, results, tables, origin, figures, cases, shown, note, written)


def _data(sections: Sequence[_Section]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the scripts read: cases by key; and every volume by the id of its element."""
    cases: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for section in sections:
        shown = {one.key: one for one in section.shown}
        for k, key in enumerate(section.cases.cases):
            one = shown.get(key)
            cases[f"{section.id}-{k}"] = {
                "name": key[1], "run": section.name,
                "note": one.note if one else "No volume of this case is in this page.",
                "labels": list(one.labels) if one else [],
                "parts": {r: f"{section.id}-{k}-{r}" for r in one.parts} if one else None,
            }  # fmt: skip
            if one:
                parts |= {f"{section.id}-{k}-{r}": volume for r, volume in one.parts.items()}
    return {"cases": cases}, parts


def _patients(name: str, count: int, cases: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    unknown = sum(not case["patient_group"] for case in cases)
    note = f" (unknown for {unknown} cases, each counted as one)" if unknown else ""
    return {"name": f"patients{name}", "value": f"{count}{note}", "alert": bool(unknown)}


def _facts(results: Results) -> list[dict[str, Any]]:
    """The counts that a reader needs before any mean."""
    whole = [row for row in results.table if row.group == "all"]
    facts: list[dict[str, Any]] = []
    for cohort, cases in results.cases.items():
        own = [row for row in whole if row.cohort == cohort]
        name = "" if len(results.cases) == 1 else f" ({cohort})"
        facts += [
            {"name": f"cases{name}", "value": len(cases), "alert": False},
            _patients(name, max(row.n_patients for row in own), cases),
        ]
        if trained := sum(case.get("split") == "train" for case in cases):
            facts.append({"name": f"training cases among them{name}", "value": trained,
                          "alert": True})  # fmt: skip
        if results.kind == "masks":
            counts = _mask_counts(results.scores[cohort])
            facts += [
                {"name": what + name, "value": n, "alert": n > 0} for what, n in counts.items()
            ]
        else:
            facts += [{"name": f"{row.label}{name}", "value": row.n_pos, "alert": False}
                      for row in own if isinstance(row, ClassRow)
                      and row.metric == "auc_roc" and row.label != "(macro)"]  # fmt: skip
    return facts


def _mask_counts(scores: Sequence[Score]) -> dict[str, int]:
    """Structures of which one mask is empty: how often that decided a score."""
    why = {(s.case, s.label): s.why_undefined for s in scores if s.why_undefined}
    return {f"{what} structures": sum(what in text for text in why.values())
            for what in (FALSE_NEGATIVE, FALSE_POSITIVE)}  # fmt: skip


def _lead(sections: Sequence[_Section]) -> str:
    kinds = {"masks": "segmentation", "scores": "classification"}
    parts = [f"{kinds[s.results.kind]} of {len(s.cases.cases)} cases" for s in sections]
    text = "; ".join(parts) if len(parts) <= 3 else f"{len(parts)} runs"
    return f"{text[:1].upper()}{text[1:]}. Every number stands with its n and its interval."


def _names(found: Sequence[Results]) -> list[str]:
    """Folder names, with their parents' where two are equal."""
    names = [results.folder.absolute().name for results in found]
    if len(set(names)) < len(names):
        names = ["/".join(results.folder.absolute().parts[-2:]) for results in found]
    return names


def _write_table(table: Table, folder: Path) -> list[Path]:
    paths = [folder / f"{table.name}.csv", folder / f"{table.name}.tex"]
    write_text(paths[0], table.to_csv())
    write_text(paths[1], table.to_latex())
    return paths
