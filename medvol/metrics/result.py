"""Results with several fields, read as attributes or by name: ``r.lower``, ``r["lower"]``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Fields:
    """Base of frozen result classes; ``dict(result)`` gives its fields in order."""

    def keys(self) -> Iterator[str]:
        """Names of the fields."""
        return iter([field.name for field in fields(self)])

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; JSON has no NaN or infinity, so these become text."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dict(self).items()
        }

    def __getitem__(self, name: str) -> Any:
        if name not in {field.name for field in fields(self)}:
            raise KeyError(name)
        return getattr(self, name)
