"""False alarms and power of drift: ``python -m tools.bench.drift [--draws 1000]``.

False alarms: new and reference cases of one distribution, n against n; the share of draws with any
alarm should lie in 3 to 7%. Power: 200 new cases against 300 whose distribution changed;
it should be 0.9 at least. All seeds derive from --seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medvol.monitoring import DriftPlan, ReferenceProfile, find_drift

Table = NDArray[np.float64]
COLUMNS = 4
LOW, HIGH, POWER = 0.03, 0.07, 0.9


def spread(x: Table, _rng: np.random.Generator) -> Table:
    """Five times the spread."""
    return 5 * x


def two_clusters(x: Table, rng: np.random.Generator) -> Table:
    """Two groups at 4 standard deviations to both sides."""
    return x + 4 * rng.choice([-1.0, 1.0], (len(x), 1))


def constant(x: Table, _rng: np.random.Generator) -> Table:
    """Every value at the reference's middle."""
    return np.zeros_like(x)


def one_in_five(x: Table, rng: np.random.Generator) -> Table:
    """A fifth of the cases off by 50 standard deviations, to either side."""
    off = np.zeros((len(x), 1))
    off[: len(x) // 5] = 50 * rng.choice([-1.0, 1.0], (len(x) // 5, 1))
    return x + off


def shift(x: Table, _rng: np.random.Generator) -> Table:
    """The middle by one standard deviation, in one column."""
    return x + np.eye(x.shape[1])[0]


def tied(x: Table, _rng: np.random.Generator) -> Table:
    """Two columns that were independent become one."""
    return np.hstack([x[:, :1], x[:, :1], x[:, 2:]])


CHANGES: dict[str, Callable[[Table, np.random.Generator], Table]] = {
    "spread x5": spread,
    "two clusters at +-4 SD": two_clusters,
    "all constant": constant,
    "one in five off by 50 SD": one_in_five,
    "shift by 1 SD in one column": shift,
    "two columns become one": tied,
}


def alarms(new: Table, reference: Table, plan: DriftPlan) -> bool:
    """Whether any test alarms."""
    names = tuple(f"c{k}" for k in range(new.shape[1]))
    sides = [
        ReferenceProfile("draw", tuple(map(str, range(len(table)))), names, table)
        for table in (new, reference)
    ]
    return any(row.is_alarm for row in find_drift(sides[0], sides[1], plan).rows)


def share(
    sizes: tuple[int, int],
    change: Callable[[Table, np.random.Generator], Table] | None,
    draws: int,
    seed: int,
) -> float:
    """Share of draws that alarm."""
    found = 0
    for own in np.random.SeedSequence(seed).spawn(draws):
        rng = np.random.default_rng(own)
        new, reference = (rng.normal(size=(n, COLUMNS)) for n in sizes)
        new = new if change is None else change(new, rng)
        plan = DriftPlan(permutations=499, seed=int(own.generate_state(1)[0]))
        found += alarms(new, reference, plan)
    return found / draws


def main() -> int:
    """Print both tables; 1 if a share lies outside its bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261201)
    options = parser.parse_args()
    is_good = True
    for n in (5, 10, 20, 50, 200):
        value = share((n, n), None, options.draws, options.seed + n)
        is_judged = n >= 10
        is_good &= not is_judged or LOW <= value <= HIGH
        verdict = "shown" if not is_judged else "ok" if LOW <= value <= HIGH else "OUTSIDE"
        print(f"no change, {n:3} against {n:3}          {100 * value:6.1f}%  {verdict}", flush=True)
    for name, change in CHANGES.items():
        value = share((200, 300), change, max(20, options.draws // 20), options.seed)
        is_good &= value >= POWER
        verdict = "ok" if value >= POWER else "OUTSIDE"
        print(f"{name:30}       {100 * value:6.1f}%  {verdict}", flush=True)
    print(f"seed {options.seed}, {options.draws} draws; power from a twentieth of them")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
