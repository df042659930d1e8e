"""One HTML file that runs from a disk without a network, whatever the names in it hold."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from medvol.core.files import write_text

#: Scripts run only if their digest is listed here by ``render``; nothing may be fetched.
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; "
    "font-src data:; connect-src data: blob:; worker-src blob:; style-src 'unsafe-inline'; "
    "script-src {scripts}"
)
# Characters that could end a script element, start a comment, or break old JavaScript parsers.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029"}


def write_page(
    target: Path,
    values: dict[str, Any],
    data: Any,
    parts: Mapping[str, str],
    template: str = "page.html",
) -> None:
    """Write a report's page.

    Args:
        target: The file, written atomically.
        values: What the template shows; every text is escaped.
        data: What the scripts read, as JSON values.
        parts: Element id to volume as base64; without any the page carries no 3D viewer.
        template: Which of the templates beside this module.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    scripts = [asset("niivue.min.js"), asset("viewer.js")] if parts else []
    scripts.append(asset("report.js"))
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, loader=FunctionLoader(asset))  # fmt: skip
    text = environment.get_template(template).render(
        **values,
        policy=_POLICY.format(scripts=digests),
        style=asset("report.css"),
        scripts=scripts,
        data=script_json(data),
        parts=[{"id": name, "base64": volume} for name, volume in parts.items()],
    )
    write_text(target, text)


def script_json(value: Any) -> str:
    r"""JSON that may stand inside a script element.

    >>> script_json({"case": "</script><b>"})
    '{"case":"\\u003c/script\\u003e\\u003cb\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


@cache
def asset(name: str) -> str:
    """A text file shipped beside this module."""
    return files("medvol.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
