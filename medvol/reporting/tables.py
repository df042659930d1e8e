"""Rows of an evaluation as tables for a page and for a paper."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvol.core.files import csv_text
from medvol.evaluation import Results, SummaryRow, show, show_interval
from medvol.evaluation.classification import ClassRow
from medvol.metrics import find_metric
from medvol.metrics.registry import FALSE_NEGATIVE, FALSE_POSITIVE, Metric

_ACRONYMS = {
    "hd95", "assd", "masd", "asd", "nsd", "auc", "roc", "iou", "ece", "ppv", "npv", "mcc", "lr",
    "f1",
}  # fmt: skip
_METHODS = {
    "bca": "BCa", "bca, clustered": "BCa by patient",
    "percentile, clustered": "percentile by patient",
    "delong_logit": "DeLong, logit", "newcombe": "Newcombe", "wilson": "Wilson",
    "newcombe, clustered": "Newcombe by patient", "wilson, clustered": "Wilson by patient",
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        name: Stem of its files.
        title: Heading on a page.
        caption: What it shows, in one sentence or two.
        header: Names of the columns.
        rows: Cells.
        marked: Numbers of the rows that a reader should distrust.
    """

    name: str
    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()

    def to_csv(self) -> str:
        """The table as CSV."""
        return csv_text(self.header, self.rows)

    def to_latex(self) -> str:
        """The table for LaTeX with the booktabs package; every cell is escaped."""
        columns, caption = "l" * len(self.header), escape_latex(self.caption or self.title)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
                 rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(self.header),
                 r"\midrule", *map(_latex_row, self.rows), r"\bottomrule", r"\end{tabular}",
                 r"\end{table}"]  # fmt: skip
        return "\n".join(lines) + "\n"


def summary_tables(results: Results) -> list[Table]:
    """The main table of a run, and one of its subgroups if it has any."""
    whole = [row for row in results.table if row.group == "all"]
    groups = [row for row in results.table if row.group != "all"]
    confidence = f"{100 * float(results.options.get('confidence', 0.95)):g}%"
    make = _mask_table if results.kind == "masks" else _score_table
    tables = [make("summary", whole, confidence)]
    if groups:
        tables.append(make("subgroups", groups, confidence))
    return tables


def metric_table(results: Results) -> Table:
    """What each metric of a run is: unit, direction, definition."""
    rows = []
    for column in dict.fromkeys(row.metric for row in results.table):
        found = _metric(column)
        if found is None:
            continue
        text = (found.function.__doc__ or "").strip().splitlines()[0]
        better = {"higher": "higher", "lower": "lower", "zero": "closer to 0"}
        rows.append((metric_name(column), found.unit or "ratio",
                     better.get(found.direction, ""), text.rstrip(".")))  # fmt: skip
    return Table(
        "metrics", "What the numbers are", "", ("metric", "unit", "better", "definition"), rows
    )


def origin_table(results: Results, records: Sequence[Mapping[str, Any]]) -> Table:
    """What the numbers rest on: the run's options, its inputs' digests, versions, bundles.

    Args:
        results: The run.
        records: Content of the cases' ``prediction.json`` files, as far as there are any.
    """
    skipped = {"pred", "ref", "data", "train", "scores", "validation", "external", "labels",
               "external_pred", "external_ref", "external_data", "regions", "split"}  # fmt: skip
    shown = {k: v for k, v in results.options.items() if k not in skipped and v not in (None, ())}
    digest = hashlib.sha256("".join(sorted(results.inputs.values())).encode()).hexdigest()
    rows = [("command", results.command)]
    rows += [(k.replace("_", " "), _plain(v)) for k, v in shown.items()]
    rows.append(
        ("inputs", f"{len(results.inputs)} files, SHA-256 of their sorted digests {digest}")
    )
    checked = "yes" if results.options.get("train") else "no (--train was not given)"
    rows.append(("training data checked for shared patients", checked))
    bundles = {f"{b.get('name')} {b.get('version')}" for r in records
               if isinstance(b := r.get("bundle"), Mapping) and b.get("name")}  # fmt: skip
    rows += [("bundle", name) for name in sorted(bundles)]
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in results.versions.items())))
    if results.command.startswith("evaluate"):
        rows.append(("repeat it exactly", "medvol evaluate rerun run.json"))
    return Table("provenance", "Provenance", "", ("what", "value"), rows)


def metric_name(column: str) -> str:
    """A column of ``scores.csv`` for a reader.

    >>> metric_name("nsd_voxel@2mm"), metric_name("hd95"), metric_name("auc_roc")
    ('NSD voxel at 2 mm', 'HD95', 'AUC ROC')
    """
    name, _, tau = column.partition("@")
    words = [w.upper() if w in _ACRONYMS else w for w in name.split("_")]
    text = " ".join(words)
    text = text[:1].upper() + text[1:]
    return f"{text} at {re.sub(r'mm$', ' mm', tau)}" if tau else text


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> escape_latex("a_b & 5%")
    'a\\_b \\& 5\\%'
    """
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"


def _mask_table(name: str, rows: Sequence[Any], confidence: str) -> Table:
    header = ("label", "metric", "n (patients)", f"mean ({confidence} CI)",
              f"median ({confidence} CI)", "quartiles", "worst", "undefined", "infinite",
              FALSE_NEGATIVE, FALSE_POSITIVE)  # fmt: skip
    cells = []
    for row in rows:
        spread = "undefined" if math.isnan(row.q25) else f"{show(row.q25)} to {show(row.q75)}"
        cells.append(
            (row.label, metric_name(row.metric) + (f" [{row.unit}]" if row.unit else ""),
             f"{row.n} ({row.n_patients})", show_interval(row.mean, row.mean_lower, row.mean_upper),
             show_interval(row.median, row.median_lower, row.median_upper), spread,
             show(row.worst), str(row.n_undefined), str(row.n_infinite), str(row.n_false_negative),
             str(row.n_false_positive))
        )  # fmt: skip
    caption = (
        f"Mean with BCa and median with percentile bootstrap {confidence} intervals, patients "
        "resampled whole. Undefined values (nothing to find, nothing found) are left out of "
        "both and counted; a false negative or false positive structure counts as Dice 0 "
        "and distance inf."
    )
    return _table(name, caption, header, cells, rows)


def _score_table(name: str, rows: Sequence[Any], confidence: str) -> Table:
    header = ("class", "metric", f"value ({confidence} CI)", "count", "operating point",
              "threshold", "positives", "patients", "interval")  # fmt: skip
    cells = []
    for row in rows:
        count = f"{row.k}/{row.n}" if row.k >= 0 else f"n = {row.n}"
        threshold = "" if math.isnan(row.threshold) else f"{row.threshold:.4g}"
        cells.append(
            (row.label, metric_name(row.metric), show_interval(row.value, row.lower, row.upper),
             count, row.operating_point, threshold, str(row.n_pos), str(row.n_patients),
             _METHODS.get(row.method, row.method))
        )  # fmt: skip
    caption = (
        "Each class against the rest. Thresholds were fixed on validation cases, or stand at 0.5 "
        "where there were none ('fixed'); the last column names how the interval was made."
    )
    return _table(name, caption, header, cells, rows)


def _table(
    name: str,
    caption: str,
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    rows: Sequence[SummaryRow | ClassRow],
) -> Table:
    """With columns for cohort and group where they tell rows apart."""
    marked = frozenset(k for k, row in enumerate(rows) if row.is_small)
    for title, values in (
        ("group", [row.group for row in rows]), ("cohort", [row.cohort for row in rows]),
    ):  # fmt: skip
        if len(set(values)) > 1:
            header = (title, *header)
            cells = [(value, *row) for value, row in zip(values, cells, strict=True)]
    if marked:
        caption += " Rows with a dagger rest on few patients: their intervals promise too much."
        cells = [(f"{row[0]} \N{DAGGER}" if k in marked else row[0], *row[1:])
                 for k, row in enumerate(cells)]  # fmt: skip
    title = {"summary": "Summary", "subgroups": "Subgroups"}[name]
    return Table(name, title, caption, header, cells, marked)


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(_plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metric(column: str) -> Metric | None:
    from medvol.core.errors import ConfigError

    try:
        return find_metric(column.partition("@")[0])
    except ConfigError:
        return None
