"""The worst cases as figures and as volumes that a page carries."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medvol.core.errors import MedvolError
from medvol.evaluation import Results
from medvol.reporting.cases import CaseFiles, CaseTable, changed_since
from medvol.reporting.planes import outline_planes
from medvol.reporting.volumes import View, view_image, view_masks

Key = tuple[str, str]


@dataclass(frozen=True)
class Shown:
    """A case that the page can show.

    Attributes:
        key: Cohort and case.
        why: Why it is among the worst, as numbers.
        uri: A figure of three planes.
        parts: Role to gzipped NIfTI as base64.
        labels: Names of the structures.
        note: How the copy differs from the files.
    """

    key: Key
    why: str
    uri: str
    parts: dict[str, str]
    labels: Sequence[str]
    note: str


def show_worst(
    results: Results,
    table: CaseTable,
    files: CaseFiles,
    wanted: tuple[int, int],
    progress: Callable[[int, int], None],
) -> tuple[list[Shown], str]:
    """The worst cases whose files are at hand, and a sentence on which they are.

    Args:
        results: The run.
        table: Its cases, worst first.
        files: Where they are.
        wanted: How many cases, and voxels of each.
        progress: Called with cases done and cases in all.
    """
    count, max_voxels = wanted
    at_hand = files.masks if results.kind == "masks" else files.images
    chosen = [key for key in table.cases if key in at_hand][:count]
    shown, faults = [], [files.fault] if files.fault else []
    for k, key in enumerate(chosen):
        try:
            view = _view(results, files, key, max_voxels)
        except MedvolError as error:
            faults.append(f"{key[1]}: {error}")
        else:
            shown.append(_shown(key, view, _why(table, key)))
        progress(k + 1, len(chosen))
    note = (
        f"The page carries display copies of {len(shown)} of {len(table.cases)} cases, the worst "
        "of those whose files were at hand: cropped around the structures, 8 bits, thinned where "
        "large."
    )
    if not shown:
        note = "No case is drawn: neither label maps nor images were at hand."
    return shown, " ".join([note, *faults])


def _view(results: Results, files: CaseFiles, key: Key, max_voxels: int) -> View:
    if results.kind == "scores":
        return view_image(files.images[key], max_voxels)
    pair = files.masks[key]
    if changed_since(results, pair):
        raise MedvolError("its label maps have changed since the evaluation, so it is not drawn")
    return view_masks(pair, files.images.get(key), files.labels, max_voxels)


def _shown(key: Key, view: View, why: str) -> Shown:
    drawn: Any = outline_planes(view.image, view.ref, view.pred, view.spacing_mm)
    uri = "data:image/png;base64," + base64.b64encode(drawn).decode()
    return Shown(key, why, uri, view.parts(), view.labels, view.note)


def _why(table: CaseTable, key: Key) -> str:
    """The first row's numbers of a case: its label or truth, then what the table sorts by."""
    row = next(row for row in table.rows if (row.cohort, row.case) == key)
    pairs = list(zip(table.header[1:], row.cells, strict=True))
    texts = [cell.text for name, cell in pairs if cell.value is None and name != "cohort"][:2]
    numbers = [f"{name} {cell.text}" for name, cell in pairs if cell.value is not None]
    return ", ".join([text for text in texts if text] + numbers[:2])
