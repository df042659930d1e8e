"""`medvol report` of predictions alone: a page for a reader who has no references."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol import __version__
from medvol.core.errors import MedvolError, MissingInputError
from medvol.core.files import fields_to_csv, write_text
from medvol.core.labels import find_label
from medvol.evaluation import StructureVolume, read_records, structure_volumes
from medvol.evaluation.pairing import require_unaltered
from medvol.reporting.page import write_page
from medvol.reporting.panels import draw_slice, png_of
from medvol.reporting.report import Progress, Report
from medvol.reporting.volumes import View, canonical, view_prediction, voxel_cap

_PLANE_PIXELS = 420
_STRIP, _STRIP_PIXELS = 8, 210
#: Cases whose volumes the page carries; the others have their figures.
_VIEWED = 12


@dataclass(frozen=True)
class _Case:
    """One case as the page shows it."""

    record: Mapping[str, Any]
    volumes: Sequence[StructureVolume]
    view: View | None
    note: str

    @property
    def name(self) -> str:
        """The case's name."""
        return str(self.record["case"])

    @property
    def reasons(self) -> list[str]:
        """Why a person should look at it, worst first."""
        review = self.record.get("review", {})
        found = [str(review["reason"])] if review.get("flag") else []
        status = self.record.get("status", "done")
        return [f"{status}: {self.record.get('reason', '')}"] if status != "done" else found


def write_prediction_report(
    folder: Path,
    out: Path,
    *,
    title: str = "",
    images: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write ``report.html`` and ``tables/volumes.csv`` of a folder of predictions.

    Args:
        folder: What ``medvol predict`` wrote.
        out: Folder to write; created.
        title: Heading of the page.
        images: Case to its image; by default where ``prediction.json`` found it.
        progress: Called with a phase, what is done and the total.

    Raises:
        MissingInputError: If the folder holds no prediction of masks.
    """
    records = [r for r in read_records(folder) if "structures" in r or r.get("status") != "done"]
    if not records:
        raise MissingInputError(f"{folder}: holds predictions, but no segmentation to draw")
    flagged = sorted(records, key=lambda r: (not _Case(r, (), None, "").reasons, r["case"]))
    cases = []
    for k, record in enumerate(flagged):
        cases.append(_case(folder, record, (images or {}).get(str(record["case"])), len(records)))
        if progress:
            progress("cases", k + 1, len(records))
    rows = [row for case in cases for row in case.volumes]
    table = out / "tables" / "volumes.csv"
    write_text(table, fields_to_csv(StructureVolume, rows))
    shown = [case for case in cases if case.view is not None][:_VIEWED]
    data: dict[str, Any] = {"cases": {}}
    parts: dict[str, str] = {}
    for k, case in enumerate(cases):
        carried = case.view.parts() if case.view is not None and case in shown else {}
        parts |= {f"case{k}-{role}": volume for role, volume in carried.items()}
        data["cases"][f"case{k}"] = {
            "name": case.name, "run": "", "note": case.note,
            "labels": list(case.view.labels) if case.view else [],
            "parts": {role: f"case{k}-{role}" for role in carried} or None,
        }  # fmt: skip
    values = {
        "title": title or "Segmentation report", "lead": _lead(cases), "version": __version__,
        "cases": [_shown(f"case{k}", case, case in shown) for k, case in enumerate(cases)],
        "is_uncertain": any(row.lower_ml != "" for row in rows),
        "has_sides": any(row.asymmetry_percent != "" for row in rows),
    }  # fmt: skip
    write_page(out / "report.html", values, data, parts, "predictions.html")
    return Report(out / "report.html", (), (table,), [case.name for case in shown])


def _case(folder: Path, record: Mapping[str, Any], image: Path | None, count: int) -> _Case:
    """A case with its display copy, or the reason why it has none."""
    if record.get("status", "done") != "done":
        return _Case(record, (), None, "Nothing was segmented.")
    volumes = structure_volumes(record)
    mask = folder / str(record["case"]) / str(record.get("outputs", {}).get("nifti", ""))
    if not mask.is_file():
        return _Case(record, volumes, None, "Its label map is not at hand as NIfTI.")
    stated = record.get("input")
    if image is None and stated:
        image = Path(os.path.normpath(folder.absolute() / str(stated)))
    names = {row.label: row.structure for row in volumes}
    try:
        require_unaltered(mask)
        is_there = image is not None and image.exists()
        view = view_prediction(mask, image if is_there else None, names, voxel_cap(count))
    except MedvolError as error:
        return _Case(record, volumes, None, str(error))
    return _Case(record, volumes, canonical(view), view.note)


def _lead(cases: Sequence[_Case]) -> str:
    flagged = sum(bool(case.reasons) for case in cases)
    what = {f"{b.get('name')} {b.get('version')}" for c in cases if (b := c.record.get("bundle"))}
    by = f" by {', '.join(sorted(what))}" if what else ""
    look = f"{flagged} of them should be looked at, and come first." if flagged else (
        "None was flagged for review, which does not make any of them right."
    )  # fmt: skip
    return f"{len(cases)} {'case' if len(cases) == 1 else 'cases'} segmented{by}. {look}"


def _shown(at: str, case: _Case, is_viewed: bool) -> dict[str, Any]:
    """What the template needs of a case."""
    values = [row.label for row in case.volumes]
    colours = {k + 1: find_label(row.structure).colour for k, row in enumerate(case.volumes)}
    figures = [] if case.view is None else _figures(case, colours)
    present = set() if case.view is None or case.view.pred is None else set(
        np.unique(case.view.pred).tolist()
    )  # fmt: skip
    return {
        "at": at, "name": case.name, "reasons": case.reasons, "figures": figures,
        "note": case.note, "is_viewed": is_viewed, "facts": _facts(case.record),
        "rows": [
            {"name": row.structure, "colour": "#{:02x}{:02x}{:02x}".format(*colours[k + 1]),
             "volume": f"{row.volume_ml:.3g}", "interval": _interval(row),
             "asymmetry": _number(row.asymmetry_percent), "share": _number(row.share_percent),
             "is_absent": values[k] > 0 and row.volume_ml == 0, "is_drawn": k + 1 in present}
            for k, row in enumerate(case.volumes)
        ],
    }  # fmt: skip


def _figures(case: _Case, colours: Mapping[int, Sequence[int]]) -> list[dict[str, str]]:
    """Three planes through what was found, and a strip of axial slices."""
    view = case.view
    assert view is not None
    assert view.pred is not None
    image = np.zeros(view.shape, np.uint8) if view.image is None else view.image
    found = np.argwhere(view.pred > 0)
    centre = _fullest(view.pred)
    largest_mm = max(n * mm for n, mm in zip(view.shape, view.spacing_mm, strict=True))
    scale = _PLANE_PIXELS / largest_mm
    draw = [
        draw_slice(image, view.pred, colours, view.spacing_mm, plane, centre[axis], scale)
        for plane, axis in (("sagittal", 0), ("coronal", 1), ("axial", 2))
    ]
    planes = {"uri": _uri(png_of(draw)), "kind": "planes",
              "alt": f"{case.name}: sagittal, coronal and axial slice through what was "
                     f"found, with the outlines of {len(case.volumes)} structures"}  # fmt: skip
    low, high = (found[:, 2].min(), found[:, 2].max()) if len(found) else (0, view.shape[2] - 1)
    slices = np.unique(np.linspace(low, high, _STRIP).round().astype(int))
    wide_mm = max(view.shape[a] * view.spacing_mm[a] for a in (0, 1))
    strip = [draw_slice(image, view.pred, colours, view.spacing_mm, "axial", int(z),
                        _STRIP_PIXELS / wide_mm) for z in slices]  # fmt: skip
    row = {"uri": _uri(png_of(strip)), "kind": "strip",
           "alt": f"{case.name}: {len(slices)} axial slices from foot to head"}  # fmt: skip
    return [planes, row] if len(slices) > 1 else [planes]


def _fullest(mask: NDArray[np.uint8]) -> list[int]:
    """Along each axis the slice that holds most of the structures; the middle where none is."""
    counts = [np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    return [int(n.argmax()) if n.any() else len(n) // 2 for n in counts]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was done to the input, and with what."""
    bundle, rows = record.get("bundle", {}), []
    if bundle.get("name"):
        rows.append(("Bundle", f"{bundle['name']} {bundle.get('version', '')}".strip()))
        rows.append(("Weights", str(bundle.get("weights_sha256", ""))[:12]))
    if located := record.get("located"):
        by = bundle.get("locates", {}).get("name", "")
        names = ", ".join(f"{one['structure']} ({one['located_ml']:.3g} ml)" for one in located)
        rows.append(("Located" + (f" by {by}" if by else ""), names))
    if record.get("input_sha256"):
        rows.append(("Input digest", str(record["input_sha256"])[:12]))
    if record.get("is_training_case"):
        rows.append(("Training", "the weights were trained on this very image"))
    seconds = record.get("seconds", {})
    if isinstance(seconds, Mapping) and seconds:
        rows.append(("Time", f"{sum(seconds.values()):.1f} s on {record.get('device', '')}"))
    if record.get("fallback"):
        rows.append(("Memory", str(record["fallback"])))
    return rows


def _interval(row: StructureVolume) -> str:
    if row.lower_ml == "" or row.upper_ml == "":
        return ""
    return f"{float(row.lower_ml):.3g} to {float(row.upper_ml):.3g}"


def _number(value: float | str) -> str:
    return "" if value == "" else f"{float(value):.1f}"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
