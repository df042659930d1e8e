"""``predictions.csv``: per case the truth and the network's probabilities or logits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import InputError, LabelError, NonFiniteError
from medvol.evaluation.cases import CaseInfo
from medvol.evaluation.rows import read_table

_CASE = ("case", "case_id", "id", "file", "image")
_TRUTH = ("truth", "y", "y_true", "target", "class", "label", "category")
_PATIENT = ("patient", "patient_id", "patient_group")
_SINGLE = ("prob", "score", "probability", "y_score", "p")
_PREFIXES = {"prob": ("prob_", "p_", "probability_"), "logit": ("logit_", "logits_")}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of one cohort.

    Attributes:
        source: Where they come from, for messages.
        cases: One per row, in order.
        classes: Class names; two for a single score, the second the positive one.
        truth: Class number of each case, shape (n,); None where the file names none.
        prob: Probabilities (or scores), shape (n, classes).
        logits: Logits, shape (n, classes); None where the file holds none.
        is_single: Whether the file holds one score of the positive class.
    """

    source: str
    cases: tuple[CaseInfo, ...]
    classes: tuple[str, ...]
    truth: NDArray[np.int64] | None
    prob: NDArray[np.float64]
    logits: NDArray[np.float64] | None
    is_single: bool

    @cached_property
    def patients(self) -> NDArray[np.str_]:
        """What resampling keeps together, per row."""
        return np.array([info.patient for info in self.cases])

    @property
    def known_truth(self) -> NDArray[np.int64]:
        """The truth.

        Raises:
            InputError: If the file has none.
        """
        if self.truth is None:
            raise InputError(
                f"{self.source}: has no truth; add a column 'truth' or pass --data with classes"
            )
        return self.truth

    @property
    def is_probability(self) -> bool:
        """Whether every score lies in 0 to 1, so that calibration and Brier score mean anything."""
        return self.prob.size > 0 and bool(self.prob.min() >= 0 and self.prob.max() <= 1)

    @property
    def called(self) -> NDArray[np.int64]:
        """The most probable class of each case; of two equal ones the positive, as at 0.5."""
        if len(self.classes) == 2:
            return (self.prob[:, 1] >= self.prob[:, 0]).astype(np.int64)
        return self.prob.argmax(axis=1)

    def of_cases(self, known: Mapping[str, CaseInfo]) -> Predictions:
        """The same scores with what ``known`` states of their cases."""
        return replace(self, cases=tuple(known.get(info.case, info) for info in self.cases))

    def take(self, rows: NDArray[np.intp]) -> Predictions:
        """Only some rows."""
        return Predictions(
            self.source,
            tuple(self.cases[int(k)] for k in rows),
            self.classes,
            None if self.truth is None else self.truth[rows],
            self.prob[rows],
            None if self.logits is None else self.logits[rows],
            self.is_single,
        )


def read_predictions(
    path: str | os.PathLike[str],
    *,
    cohort: str = "internal",
    truth: Mapping[str, str] | None = None,
    known: Mapping[str, CaseInfo] | None = None,
    positive: str | None = None,
) -> Predictions:
    """Read a CSV of scores.

    Columns: ``case``; ``truth`` (class name or number); ``prob`` or ``score`` for one positive
    class, or ``prob_<class>`` for each class; ``logit_<class>`` likewise; ``patient_id`` and any
    further columns become what subgroups are formed by. Beside logits, columns named by the classes
    alone are probabilities, as bundles write them; without any they are computed from the logits.

    Args:
        path: The file.
        cohort: ``internal`` or ``external``.
        truth: Case to class name, where the file has none.
        known: What a manifest knows of each case.
        positive: Name of the positive class, of a single score or of two classes.

    Raises:
        InputError: Naming the file, the line and the fault.
    """
    path = Path(path)
    header, rows = read_table(path)
    case_column = _first(header, _CASE)
    if case_column is None:
        raise InputError(f"{path}: has no column 'case'")
    names = [row[case_column] for row in rows]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: case {double!r} has several rows")
    truth_column = _first(header, _TRUTH)
    texts = None
    if truth_column is not None:
        texts = [row[truth_column] for row in rows]
    elif truth is not None:
        if missing := [name for name in names if name not in truth]:
            raise InputError(f"{path}: case {missing[0]!r} has no class in the data set")
        texts = [truth[name] for name in names]
    classes, prob, logits, is_single = _scores(path, header, rows, positive)
    if is_single and texts is not None:
        named = classes[1] if classes[1] in texts else None
        if positive and named not in (None, positive):
            raise LabelError(
                f"{path}: its score is of {named!r}, so {positive!r} cannot be positive"
            )
        classes = _binary_names(path, texts, positive or named)
    if not is_single and logits is None:
        _require_sums(path, prob)
    numbers = None if texts is None else _class_numbers(path, texts, classes)
    used = {case_column, truth_column, *_score_columns(header), *classes}
    infos = tuple(_info(row, case_column, used, cohort, known or {}) for row in rows)
    found = Predictions(str(path), infos, classes, numbers, prob, logits, is_single)
    return found if is_single or positive is None else _turned(found, positive)


def require_other_predictions(internal: Predictions, external: Predictions) -> None:
    """Reject an external cohort that repeats the internal one.

    Raises:
        InputError: If every external row is an internal row, or has the scores of one.
    """
    ours, theirs = (
        {(info.case, *row) for info, row in zip(one.cases, one.prob.tolist(), strict=True)}
        for one in (internal, external)
    )
    if theirs <= ours:
        raise InputError(
            f"{external.source}: all {len(theirs)} external cases stand with the same scores in "
            f"{internal.source}; an external cohort must hold other patients"
        )
    require_other_scores(internal, external)


def require_other_scores(first: Predictions, second: Predictions) -> None:
    """Reject two sets of which one holds the other's images under other names.

    Scores that are nearly all different within a set and the same in both are of the same images;
    coarse scores, such as a reader's grades, decide nothing.

    Raises:
        InputError: Naming both cases of a pair.
    """
    rows = [
        [tuple(row) for row in (one.prob if one.logits is None else one.logits).tolist()]
        for one in (first, second)
    ]
    if first.classes != second.classes or any(2 * len(set(r)) <= len(r) for r in rows):
        return
    place = {row: k for k, row in enumerate(rows[0])}
    alike = [k for k, row in enumerate(rows[1]) if row in place]
    if len(alike) >= 5 and 2 * len(alike) >= min(map(len, rows)):
        pair = first.cases[place[rows[1][alike[0]]]].case, second.cases[alike[0]].case
        raise InputError(
            f"{second.source}: {len(alike)} cases have the very scores of cases of {first.source} "
            f"(for example {pair[1]!r} of {pair[0]!r}): the same images under other names"
        )


def _require_sums(path: Path, prob: NDArray[np.float64]) -> None:
    """Classes exclude each other here, so that their probabilities sum to 1; scores may not be."""
    total = prob.sum(axis=1)
    if (
        prob.size
        and prob.min() >= 0
        and prob.max() <= 1
        and (off := np.abs(total - 1) > 0.02).any()
    ):
        line = int(np.argmax(off))
        raise InputError(
            f"{path}: line {line + 2}: its probabilities sum to {total[line]:.3g}, not 1; where "
            "findings do not exclude each other, give a file with one column 'prob' for each"
        )


def _first(header: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(header)}
    return next((lower[name] for name in names if name in lower), None)


def _score_columns(header: Sequence[str]) -> list[str]:
    prefixes = tuple(p for group in _PREFIXES.values() for p in group)
    return [c for c in header if c.lower().startswith(prefixes) or c.lower() in (*_SINGLE, "logit")]


def _scores(
    path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]], positive: str | None
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64] | None, bool]:
    from medvol.metrics import apply_temperature

    found = {}
    for kind, prefixes in _PREFIXES.items():
        named = {
            column[len(p) :]: column
            for p in prefixes
            for column in header
            if column.lower().startswith(p) and len(column) > len(p)
        }
        if named:
            table = np.array([[_number(path, k, row, c) for c in named.values()]
                              for k, row in enumerate(rows, start=2)])  # fmt: skip
            found[kind] = (tuple(named), table)
    if not found:
        return _single(path, header, rows, positive)
    classes = next(iter(found.values()))[0]
    if any(names != classes for names, _ in found.values()):
        raise InputError(f"{path}: probabilities and logits name different classes")
    logits = found["logit"][1] if "logit" in found else None
    if "prob" in found:
        prob = found["prob"][1]
    elif set(classes) <= set(header):
        # predictions.csv: what a bundle gives after its temperature, a column for each class.
        prob = np.array([[_number(path, k, row, c) for c in classes]
                         for k, row in enumerate(rows, start=2)])  # fmt: skip
    else:
        prob = apply_temperature(logits, 1.0)  # pyright: ignore[reportArgumentType]
    if len(classes) > 1:
        return classes, prob, logits, False
    return (f"not {classes[0]}", classes[0]), _two_columns(prob[:, -1:]), logits, True


def _single(
    path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]], positive: str | None
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64] | None, bool]:
    from medvol.metrics import apply_temperature

    score, logit = _first(header, _SINGLE), _first(header, ("logit",))
    if score is None and logit is None:
        raise InputError(f"{path}: has neither 'prob' nor 'prob_<class>' nor 'logit_<class>'")
    columns = {
        name: np.array([_number(path, k, row, name) for k, row in enumerate(rows, start=2)])
        for name in (score, logit)
        if name
    }
    logits = columns[logit][:, None] if logit else None
    prob = _two_columns(columns[score][:, None]) if score else np.empty((0, 2))
    if not score and logits is not None:
        prob = apply_temperature(logits, 1.0)
    return ("negative", positive or "positive"), prob, logits, True


def _turned(data: Predictions, positive: str) -> Predictions:
    """With the positive of two classes second; of more each counts as positive in turn."""
    if positive not in data.classes:
        raise LabelError(f"{data.source}: {positive!r} is not one of {list(data.classes)}")
    if len(data.classes) != 2 or data.classes.index(positive) == 1:
        return data
    return replace(
        data, classes=data.classes[::-1], prob=data.prob[:, ::-1],
        truth=None if data.truth is None else 1 - data.truth,
        logits=None if data.logits is None else data.logits[:, ::-1],
    )  # fmt: skip


def _two_columns(positive: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([1 - positive, positive])


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, ValueError):
        raise InputError(f"{path}: line {line}: {column} is not a number") from None
    if not math.isfinite(value):
        raise NonFiniteError(f"{path}: line {line}: {column} is {value}")
    return value


def _binary_names(path: Path, texts: Sequence[str], positive: str | None) -> tuple[str, ...]:
    """Names of the negative and the positive class."""
    names = sorted(set(texts))
    if set(names) <= {"0", "1"} or set(names) <= {"0.0", "1.0"}:
        return ("0", "1")
    if len(names) > 2 or positive not in names:
        raise LabelError(
            f"{path}: a single score needs a truth of 0 and 1, or --positive with one of "
            f"{', '.join(names[:5])}"
        )
    other = [name for name in names if name != positive]
    return (other[0] if other else "other", str(positive))


def _class_numbers(path: Path, texts: Sequence[str], classes: tuple[str, ...]) -> NDArray[np.int64]:
    index = {name: k for k, name in enumerate(classes)}
    index |= {f"{k}.0": k for k in range(len(classes)) if str(k) in index}
    if not set(texts) <= set(index) and all(text.isdigit() for text in texts):
        raise LabelError(
            f"{path}: its truth are numbers ({texts[0]} first) and its classes names "
            f"{list(classes)}; write names, since the order of the columns decides nothing"
        )
    for line, text in enumerate(texts, start=2):
        if text not in index:
            raise LabelError(f"{path}: line {line}: class {text!r} is not one of {list(classes)}")
    return np.array([index[text] for text in texts])


def _info(
    row: Mapping[str, str],
    case_column: str,
    used: set[str | None],
    cohort: str,
    known: Mapping[str, CaseInfo],
) -> CaseInfo:
    case = row[case_column]
    patient_column = _first(list(row), _PATIENT)
    base = known.get(case)
    own = {k: v for k, v in row.items() if k not in used and k != patient_column}
    columns = {**(base.columns if base else {}), **own}
    patient = f"patient:{row[patient_column]}" if patient_column and row[patient_column] else None
    return CaseInfo(case, patient or (base.patient if base else f"case:{case}"), cohort, columns)
