"""`medvol report`: evaluations become one offline page, its figures and its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.core.errors import ConfigError
from medvol.core.files import output_path, write_text
from medvol.evaluation import Results, read_results
from medvol.reporting.page import write_page
from medvol.reporting.tables import Table, metric_table, summary_tables

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
        runs: Folders that ``medvol evaluate`` wrote.
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
    sections = []
    written: list[Path] = []
    for key, (name, results) in enumerate(zip(titles, found, strict=True)):
        tables = summary_tables(results)
        folder = out / "tables" if len(found) == 1 else output_path(out, "tables", name)
        written += [path for table in tables for path in _write_table(table, folder)]
        sections.append({"id": f"run{key}", "name": name, "kind": results.kind, "tables": tables,
                         "metrics": metric_table(results)})  # fmt: skip
        if progress is not None:
            progress("tables", key + 1, len(found))
    page = out / "report.html"
    values: dict[str, Any] = {
        "title": title or "Evaluation report", "sections": sections, "version": __version__,
    }  # fmt: skip
    write_page(page, values, {}, has_viewer=False)
    return Report(page, (), written, ())


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
