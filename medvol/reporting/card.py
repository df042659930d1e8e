"""`medvol card`: a model card and three checklists, every statement with the file that makes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvol import __version__
from medvol.core.files import write_json, write_text
from medvol.reporting.checklists import CARD, CHECKLISTS, Checklist, Topic
from medvol.reporting.facts import Fact, Facts, collect_facts

MISSING = "NOT PROVIDED"
#: Facts of one kind beyond which a file states "and more", so that a card stays readable.
_MOST = 40
_FEW = 3


@dataclass(frozen=True)
class Card:
    """What was written.

    Attributes:
        files: The card, the checklists and ``card.json``.
        answered: Per checklist, topics with evidence and topics in all.
        missing: Keys of facts that no file holds, most asked for first.
    """

    files: tuple[Path, ...]
    answered: dict[str, tuple[int, int]]
    missing: tuple[str, ...]


def write_card(
    sources: Sequence[Path], out: Path, *, own: Path | None = None, title: str = ""
) -> Card:
    """Write ``card.md``, one file per checklist, and ``card.json`` with every fact.

    Args:
        sources: Bundles and runs; see :func:`medvol.reporting.facts.collect_facts`.
        out: Folder to write.
        own: YAML of facts that only people know.
        title: Heading; by default the bundle's or the study's own.

    Raises:
        MissingInputError: If a source is neither a bundle nor a run.
    """
    facts = collect_facts(sources, own)
    texts = {"card.md": card_text(facts, title)}
    for listed in CHECKLISTS:
        texts[f"{listed.file}.md"] = checklist_text(listed, facts)
    for name, text in texts.items():
        write_text(out / name, text)
    answered = {listed.name: _count(listed, facts) for listed in CHECKLISTS}
    missing = _missing(facts)
    write_json(
        out / "card.json",
        {
            "medvol": __version__,
            "facts": {key: [vars(fact) for fact in rows] for key, rows in sorted(facts.items())},
            "answered": answered,
            "missing": missing,
        },
    )
    return Card(tuple(out / name for name in (*texts, "card.json")), answered, tuple(missing))


def card_text(facts: Facts, title: str = "") -> str:
    """The model card as Markdown."""
    name = title or (facts["title"][0].text if "title" in facts else "Model card")
    lines = [f"# {_cell(name)}", "", f"Written by medvol {__version__} from the files named in "
             f"brackets. What no file states is {MISSING}.", ""]  # fmt: skip
    for section, keys in CARD.items():
        lines += [f"## {section}", ""]
        for key in keys:
            lines += _list(key, facts.get(key, []))
        lines.append("")
    return "\n".join(lines)


def checklist_text(listed: Checklist, facts: Facts) -> str:
    """A checklist as a Markdown table: topic, answer, evidence."""
    done, total = _count(listed, facts)
    lines = [
        f"# {listed.name}", "",
        f"{done} of {total} topics have evidence. Topics are paraphrased in the guideline's order "
        "and carry no item numbers: take the published form for a submission, and this for what "
        "to put in it. Evidence shows what a file states, not that it is enough.", "",
        "| section | asks for | answer | evidence |", "|---|---|---|---|",
    ]  # fmt: skip
    for topic in listed.topics:
        rows = _answers(topic, facts)
        answer = "; ".join(_cell(fact.text) for fact in rows) or MISSING
        evidence = "; ".join(dict.fromkeys(f"`{fact.evidence}`" for fact in rows))
        lines.append(f"| {topic.section} | {topic.asks} | {answer} | {_cell(evidence)} |")
    return "\n".join([*lines, ""])


def _answers(topic: Topic, facts: Facts) -> list[Fact]:
    found = [fact for key in topic.keys for fact in facts.get(key, [])]
    if len(found) <= _FEW:
        return found
    last = found[_FEW - 1]
    more = f"{last.text} (and {len(found) - _FEW} more in card.md)"
    return [*found[: _FEW - 1], Fact(more, last.file, last.field)]


def _count(listed: Checklist, facts: Facts) -> tuple[int, int]:
    done = sum(any(key in facts for key in topic.keys) for topic in listed.topics)
    return done, len(listed.topics)


def _missing(facts: Facts) -> list[str]:
    """Keys of topics without any answer, by how many topics they would answer."""
    counts: dict[str, int] = {}
    for listed in CHECKLISTS:
        for topic in listed.topics:
            if not any(key in facts for key in topic.keys):
                for key in topic.keys:
                    counts[key] = counts.get(key, 0) + 1
    return sorted(counts, key=lambda key: (-counts[key], key))


def _list(key: str, rows: Sequence[Fact]) -> list[str]:
    name = key.replace("_", " ")
    if not rows:
        return [f"- {name}: {MISSING}"]
    if len(rows) == 1:
        return [f"- {name}: {_line(rows[0])}"]
    shown = [f"  - {_line(fact)}" for fact in rows[:_MOST]]
    more = [f"  - and {len(rows) - _MOST} more in card.json"] if len(rows) > _MOST else []
    return [f"- {name}:", *shown, *more]


def _line(fact: Fact) -> str:
    return f"{_cell(fact.text)} [`{fact.evidence}`]"


def _cell(text: str) -> str:
    """Text that cannot end a table's cell, open a link, or become HTML."""
    return re.sub(r"([|<\[])", r"\\\1", text)
