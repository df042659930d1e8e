"""The page that a browser shows at the server's address: what is served, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.05rem; margin-top: 1.8rem }
table { border-collapse: collapse; width: 100% } .note { color: #5b6675 }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #dde3ea;
  vertical-align: top }
th { color: #5b6675; font-weight: 600 } td.number { text-align: right;
  font-variant-numeric: tabular-nums }
code { background: #f0f3f7; padding: .1rem .3rem; border-radius: 3px }
progress { width: 12rem; vertical-align: middle }
"""


def start_page(
    info: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]], labelled: list[str], url: str
) -> str:
    """One HTML page without any outside resource.

    Args:
        info: The answer of ``/info/``.
        scores: Image to its uncertainty, as the scoring methods keep it.
        labelled: Images with a finished label.
        url: Where the server is reached, for the guides.
    """
    store = info["datastore"]
    done, total = store["completed"], store["total"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["name"])}'
        f"</title><style>{_STYLE}</style><body><h1>{escape(info['name'])}</h1>"
        f'<p><progress max="{total}" value="{done}"></progress> {done} of {total} images have a '
        "finished label</p>"
        f"<h2>Models</h2>{_models(info)}<h2>Next to label</h2>{_ranking(scores, labelled)}"
        f"<h2>In 3D Slicer</h2>{_slicer(url, info)}<h2>In the browser</h2>"
        '<p><a href="/ohif/">OHIF</a> (for images on a DICOMweb server) · '
        '<a href="/docs">requests</a> (needs a network for its look) · <a href="/info/">info</a> · '
        '<a href="/logs/?html=true">log</a></p></body></html>'
    )


def _models(info: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(str(model['type']))}</td>"
        f"<td>{escape(', '.join(model['labels']))}</td>"
        f"<td>{escape(str(model.get('version', '')))}</td>"
        f"<td>{'yes' if name in info['trainers'] else 'no'}</td></tr>"
        for name, model in sorted(info["models"].items())
    )
    return (f"<table><tr><th>name</th><th>gives</th><th>labels</th><th>version</th>"
            f"<th>learns from labels</th></tr>{rows}</table>")  # fmt: skip


def _ranking(scores: Mapping[str, Mapping[str, Any]], labelled: list[str], most: int = 10) -> str:
    rows = [(name, row) for name, row in scores.items() if name not in labelled]
    rows.sort(key=lambda item: -item[1].get("entropy", -1.0))
    if not rows:
        return '<p class="note">Nothing is scored yet, or everything is labelled.</p>'
    body = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{_number(row, 'entropy')}</td>"
        f"<td class=number>{_number(row, 'mutual_information')}</td>"
        f"<td>{escape(row.get('rejected', ''))}</td></tr>"
        for name, row in rows[:most]
    )
    more = f'<p class="note">and {len(rows) - most} more</p>' if len(rows) > most else ""
    return (f"<table><tr><th>image</th><th>entropy (nats)</th><th>disagreement (nats)</th><th></th>"
            f"</tr>{body}</table>{more}")  # fmt: skip


def _number(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.4f}" if key in row else ""


def _slicer(url: str, info: Mapping[str, Any]) -> str:
    found = [name for name in sorted(info["strategies"]) if name.startswith("uncertainty")]
    strategy = escape((found or ["first"])[0])
    return (
        f"<p>Extension <b>MONAILabel</b>, server <code>{escape(url)}</code>. <b>Next Sample</b> "
        f"with strategy <code>{strategy}</code> loads the image that teaches most, <b>Run</b> "
        "labels it, correct it, <b>Submit Label</b>, then <b>Train</b>.</p>"
    )
