"""How much memory this process has taken."""

from __future__ import annotations

import sys


def peak_ram_bytes() -> int:
    """Largest resident size that this process ever had."""
    try:
        import resource
    except ImportError:  # Windows, which keeps the number elsewhere
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
