"""Figures without a display, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.files import write_bytes, write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .7em;text-align:left;
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}th{background:#f5f5f5}
img{max-width:100%;margin:.4em 0}.verdict{padding:.5em 1em;border-left:6px solid #888;
background:#f7f7f7}.leak,.bad{border-color:#b2182b}.suspect,.warn{border-color:#e08214}
.clean,.good{border-color:#1b7837}
</style></head><body><h1>{{ title }}</h1>
<p class="verdict {{ tone }}">{{ verdict }}</p>
{% for part in parts %}<h2>{{ part.heading }}</h2>
{% for line in part.lines %}<p>{{ line }}</p>{% endfor %}
{% if part.rows %}<table><tr>{% for cell in part.rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in part.rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for image in part.figures %}<img alt="{{ image.stem }}" src="data:image/png;base64,\
{{ encode(image) }}">{% endfor %}
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Part:
    """One section of a page: lines, a table whose first row is its header, figures."""

    heading: str
    lines: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Sequence[Path] = ()


def write_page(target: Path, title: str, verdict: str, tone: str, parts: Sequence[Part]) -> None:
    """Write one HTML file that needs no network and no file beside it; all text is escaped."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_PAGE)
    text = template.render(title=title, verdict=verdict, tone=tone, parts=parts, encode=_encoded)
    write_text(target, text)


def figure(width_in: float, height_in: float) -> Any:
    """A matplotlib figure that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure((width_in, height_in), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def plain(text: str) -> str:
    """A name as a figure shows it; matplotlib takes what stands between two dollars for math."""
    return text.replace("$", r"\$")


def save_figure(fig: Any, target: Path) -> Path:
    """Write a figure as PNG, atomically, without a date inside."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(target, buffer.getvalue())
    return target


def _encoded(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()
