"""What the user asks of a plan, and what a plan is made of: values with their reasons."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from medvol.core.errors import ConfigError

NETWORKS = ("auto", "folded", "plain", "residual", "segresnet", "swin_unetr")
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Request:
    """What a plan has to fit.

    Attributes:
        budget_s: Wall-clock time of one training run.
        device: ``cpu`` or ``cuda``.
        gpu_mem_gb: Memory that a CUDA run may take.
        network: One of ``NETWORKS``; auto chooses by device.
        folds: Folds of the cross-validation.
        seed: Of the run and of the split.
    """

    budget_s: float
    device: str = "cpu"
    gpu_mem_gb: float = 12.0
    network: str = "auto"
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigError(f"network {self.network!r} is unknown; choose {', '.join(NETWORKS)}")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device {self.device!r} is neither cpu nor cuda")
        if not (0 < self.budget_s < math.inf and 0 < self.gpu_mem_gb < math.inf and self.folds > 1):
            raise ConfigError("budget and GPU memory must be above 0, folds at least 2")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed {self.seed} must lie in 0 to 2**32 - 1")


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``12m``, ``2h`` or ``1.5d``.

    Raises:
        ConfigError: If the text is none of these.

    >>> parse_duration("2h"), parse_duration("90s")
    (7200.0, 90.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*", text.lower())
    if found is None:
        raise ConfigError(f"{text!r} is not a duration; write 90s, 12m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


@dataclass
class Draft:
    """A values file in the making: sections of values, each with its reason.

    Attributes:
        sections: Section by section, key to (value, why); an empty reason is not shown.
    """

    sections: list[dict[str, tuple[Any, str]]] = field(default_factory=lambda: [{}])

    def section(self) -> None:
        """Start a new section."""
        self.sections.append({})

    def set(self, key: str, value: Any, why: str = "") -> None:
        """Choose a value; a key that was chosen before keeps its place."""
        for rows in self.sections:
            if key in rows:
                rows[key] = (value, why or rows[key][1])
                return
        self.sections[-1][key] = (value, why)

    def __getitem__(self, key: str) -> Any:
        for rows in self.sections:
            if key in rows:
                return rows[key][0]
        raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        return any(key in rows for rows in self.sections)
