"""A plan as files: the commented values file and the model card."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

from medvol.planning.request import Draft

_WIDTH = 98


def values_text(draft: Draft, title: str, notes: Sequence[str], meta: dict[str, Any]) -> str:
    """The values file: every choice with its reason above or beside it.

    Args:
        draft: Values and reasons.
        title: First line.
        notes: What the plan rests on, one remark each.
        meta: The ``meta`` value: title, description and so on.
    """
    lines = [f"# {' '.join(title.split())}"]
    for note in notes:
        lines += textwrap.wrap(note, _WIDTH, initial_indent="# ", subsequent_indent="#   ")
    for rows in draft.sections:
        shown = [line for key, (value, why) in rows.items() for line in _row(key, value, why)]
        lines += [*shown, ""]
    return "\n".join(lines) + yaml.safe_dump({"meta": meta}, sort_keys=False, width=_WIDTH,
                                             allow_unicode=True)  # fmt: skip


def _row(key: str, value: Any, why: str) -> list[str]:
    why = " ".join(why.split())  # a name's line break would end the comment
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    row = f"{key}: {text.removesuffix('...' + chr(10)).strip()}"
    if not why:
        return [row]
    beside = f"{row:<32} # {why}"
    if len(beside) <= _WIDTH:
        return [beside]
    return [*textwrap.wrap(why, _WIDTH, initial_indent="# ", subsequent_indent="# "), row]


def card_text(draft: Draft, name: str, title: str, notes: Sequence[str], data: str) -> str:
    """The model card of a bundle that has been planned and not trained."""
    labels = ", ".join(f"{value} {label}" for value, label in draft["labels"].items())
    regions = ""
    if "regions" in draft:
        rows = [f"{n} ({', '.join(map(str, v))})" for n, v in draft["regions"].items()]
        regions = f" Outputs are regions that labels make up: {'; '.join(rows)}."
    spacing = " x ".join(f"{v:g}" for v in draft["spacing_mm"])
    patch = " x ".join(map(str, draft["roi_size"]))
    remarks = "\n".join(f"- {note}" for note in notes)
    return f"""# {title}

Planned from {data} by `medvol plan`; no weights yet. Labels: {labels}.{regions}

Input: {draft["in_channels"]} channel(s) of {draft["modality"]}, resampled to {spacing}
({"mm" if draft["spatial_dims"] == 3 else "pixels"}), patches of {patch}. Every choice is explained
in its values file.

{remarks}

```bash
medvol bundle verify {name}
medvol train {name} --data DATASET --folds all
```

Measured accuracy: none yet; nothing is known about patients, scanners or sites other than those
trained on. Research only; not a medical device and not for clinical decisions.
"""
