"""How figures look: one palette that every kind of colour vision tells apart, one writer."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.files import write_bytes

#: Okabe & Ito 2008, Color Universal Design.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
#: In this order for classes and groups; yellow is too light for lines on white.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
REFERENCE, PREDICTION = BLUE, VERMILION
GREY = "#6E7781"

_RULES: dict[Any, Any] = {
    # Names of cases and labels are text, never formulas.
    "text.parse_math": False,
    "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "lines.linewidth": 1.6, "svg.hashsalt": "medvol", "pdf.fonttype": 42,
}  # fmt: skip
_DPI = 200


@dataclass(frozen=True)
class PageFigure:
    """A figure on disk and, as SVG, for a page.

    Attributes:
        name: Stem of its files.
        title: A few words.
        caption: What it shows, with n and what intervals mean.
        files: The PDF and the PNG.
        uri: The SVG as a data address.
        is_wide: Whether it needs the page's full width.
    """

    name: str
    title: str
    caption: str
    files: tuple[Path, ...]
    uri: str
    is_wide: bool = False


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib with medvol's rules; characters that its font lacks do not stop it."""
    import matplotlib

    with matplotlib.rc_context(_RULES), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save_figure(
    figure: Any, folder: Path, name: str, title: str, caption: str, *, is_wide: bool = False
) -> PageFigure:
    """Write a figure as PDF and PNG, without a date inside, and keep its SVG."""
    dateless: dict[str, dict[str, Any]] = {
        "pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None},
    }  # fmt: skip
    files, svg = [], b""
    for kind, metadata in dateless.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
        if kind == "svg":
            svg = buffer.getvalue()
            continue
        files.append(folder / f"{name}.{kind}")
        write_bytes(files[-1], buffer.getvalue())
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return PageFigure(name, title, caption, tuple(files), uri, is_wide)


def shorten(text: str, most: int = 28) -> str:
    """A name that fits beside an axis."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
