"""Does the source of an image give its class away?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.datasets.manifest import Case

_DRAWS = 2000
_STRONG = 0.5
_MOST_LEVELS = 30


@dataclass(frozen=True)
class Contingency:
    """A source column against the class.

    Attributes:
        column: site, sex, or a text column of the datalist.
        table: Cases by (level, class).
        cramers_v: Association from 0 to 1, corrected for chance.
        p: Permutation p-value of the association, patients kept whole.
        exclusive: Classes that come from one level only, which holds no other class.
        is_confounded: Whether the column gives the class away: strongly associated beyond
            chance, or some class exclusive to one level while other levels exist.

    Source:
        Bergsma 2013, J Korean Stat Soc 42:323, doi:10.1016/j.jkss.2012.10.002 (correction of V).
    """

    column: str
    table: dict[str, dict[str, int]]
    cramers_v: float
    p: float
    exclusive: tuple[str, ...]
    is_confounded: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {**self.__dict__, "exclusive": list(self.exclusive)}


def contingencies(cases: Sequence[Case], seed: int = 0) -> list[Contingency]:
    """Every text column with 2 to 30 levels, against the class."""
    known = [case for case in cases if case.category is not None]
    if len({case.category for case in known}) < 2:
        return []
    columns: dict[str, list[str | None]] = {
        "site": [case.site for case in known],
        "sex": [case.sex for case in known],
    }
    for name in sorted({key for case in known for key in case.extra}):
        values = [case.extra.get(name) for case in known]
        if all(value is None or isinstance(value, str) for value in values):
            columns[name] = values
    found = []
    for name, values in columns.items():
        rows = [(value, case) for value, case in zip(values, known, strict=True) if value]
        if 2 <= len({value for value, _ in rows}) <= _MOST_LEVELS:
            found.append(_contingency(name, rows, seed))
    return found


def _contingency(name: str, rows: list[tuple[str, Case]], seed: int) -> Contingency:
    levels, level = np.unique([value for value, _ in rows], return_inverse=True)
    classes, kind = np.unique([str(case.category) for _, case in rows], return_inverse=True)
    _, group = np.unique([case.group for _, case in rows], return_inverse=True)
    table = _count(level, kind, len(levels), len(classes))
    observed = _cramers_v(table)
    null = _null(level, kind, group, (len(levels), len(classes)), seed)
    p = (1 + np.count_nonzero(null >= observed - 1e-12)) / (1 + len(null))
    home = {c: np.flatnonzero(table[:, c]) for c in range(len(classes))}
    exclusive = tuple(
        str(classes[c])
        for c, at in home.items()
        if len(at) == 1 and np.count_nonzero(table[at[0]]) == 1
    )
    counts = {
        str(levels[i]): {str(classes[j]): int(table[i, j]) for j in range(len(classes))}
        for i in range(len(levels))
    }
    confounded = bool(p < 0.01 and (observed >= _STRONG or exclusive))
    return Contingency(name, counts, round(observed, 4), float(p), exclusive, confounded)


def _count(level: NDArray, kind: NDArray, rows: int, columns: int) -> NDArray[np.float64]:
    return (
        np.bincount(level * columns + kind, minlength=rows * columns)
        .reshape(rows, columns)
        .astype(float)
    )


def _cramers_v(table: NDArray[np.float64]) -> float:
    n = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / n
    phi2 = float(((table - expected) ** 2 / expected).sum() / n)
    r, k = table.shape
    phi2 = max(0.0, phi2 - (r - 1) * (k - 1) / (n - 1))
    r, k = r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)
    return float(np.sqrt(min(1.0, phi2 / max(min(r, k) - 1, 1e-9))))


def _null(
    level: NDArray, kind: NDArray, group: NDArray, shape: tuple[int, int], seed: int
) -> NDArray[np.float64]:
    """Cramér's V when patients of equal size trade their classes."""
    rng = np.random.default_rng(seed)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    blocks = [
        np.stack([m for m in members if len(m) == size])
        for size in sorted(Counter(len(m) for m in members))
    ]
    null = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        traded = kind.copy()
        for block in blocks:
            traded[block] = kind[block[rng.permutation(len(block))]]
        null[draw] = _cramers_v(_count(level, traded, *shape))
    return null
