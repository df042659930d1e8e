"""What the verbs of `medvol evaluate` share: how lists are read and tables are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medvol.core.errors import ConfigError

if TYPE_CHECKING:
    from medvol.evaluation import Evaluation


def as_list(text: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def as_numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers between commas.

    Raises:
        ConfigError: Naming the option and the part that is not a number.
    """
    found = []
    for part in as_list(text):
        try:
            found.append(float(part))
        except ValueError:
            raise ConfigError(f"{option}: {part!r} is not a number") from None
    return tuple(found)


def progress() -> Callable[[int, int], None] | None:
    """A counter of cases on a terminal's stderr."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\rscored {done} of {total}", end=end, file=sys.stderr, flush=True)

    return show


def print_evaluation(found: Evaluation, as_json: bool) -> None:
    """The tables of an evaluation, and what limits them."""
    from medvol.evaluation import to_json
    from medvol.evaluation.classification import ClassRow

    if as_json:
        print(json.dumps(to_json(found), allow_nan=False))
        return
    for row in found.table:
        mark = "  few patients" if row.is_small else ""
        where = f"{row.cohort:8}  {row.group:16}  {row.label:18}"
        text = _class_text(row) if isinstance(row, ClassRow) else _mask_text(row)
        print(f"{where}  {text}{mark}")
    _print_worst(found.worst)
    for line in found.remarks:
        print(line)
    if found.training_cases:
        print(f"{len(found.training_cases)} cases are training cases, of their data set or by the "
              f"weights' own record (for example {found.training_cases[0]}): scores of cases that "
              "the network was trained on do not measure accuracy")  # fmt: skip
    if found.n_unknown_patients:
        print(f"patients are unknown for {found.n_unknown_patients} cases, each counted as one: "
              "intervals are too narrow if a patient has several; --data names them")  # fmt: skip
    print(f"tables: {found.output}")


def _class_text(row: Any) -> str:
    from medvol.evaluation import show_interval

    count = f"{row.k}/{row.n}" if row.k >= 0 else f"n={row.n}"
    at = f" at {row.operating_point} ({row.threshold:.4g})" if row.operating_point else ""
    return f"{row.metric:18} {show_interval(row.value, row.lower, row.upper)}  {count}{at}"


def _mask_text(row: Any) -> str:
    from medvol.evaluation import show_interval

    mean = show_interval(row.mean, row.mean_lower, row.mean_upper)
    middle = show_interval(row.median, row.median_lower, row.median_upper)
    unit = f" {row.unit}" if row.unit else ""
    return (f"{row.metric:14} mean {mean}{unit}  median {middle}{unit}  "
            f"n={row.n}, {row.n_undefined} undefined, {row.n_infinite} infinite, "
            f"{row.n_false_negative} false negative, {row.n_false_positive} false positive"
            )  # fmt: skip


def _print_worst(worst: Sequence[Any]) -> None:
    from medvol.evaluation import show

    print("worst cases")
    for row in worst:
        why = f"  ({row.why_undefined})" if row.why_undefined else ""
        print(f"  {row.case}  {row.label}  {row.metric} {show(row.value)} {row.unit}{why}")
