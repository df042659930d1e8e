"""One progress bar per phase, on stderr."""

from __future__ import annotations

import sys
from typing import Any


class Bars:
    """Call it with a phase, what is done and the total; a new phase starts a new bar."""

    def __init__(self, *, quiet: bool = False, unit: str = "it", scale: bool = False) -> None:
        self._quiet, self._unit, self._scale = quiet, unit, scale
        self._phase = ""
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if phase != self._phase:
            self.__exit__()
            from tqdm import tqdm

            pause_s = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                desc=phase,
                total=total,
                initial=0,
                unit=self._unit,
                unit_scale=self._scale,
                disable=self._quiet,
                mininterval=pause_s,
            )
            self._phase = phase
        self._bar.total = total
        self._bar.update(done - self._bar.n)
