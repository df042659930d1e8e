"""The tables of DICOM PS3.3 for dicom-validator, from the PyPI package ``dicom-standard``.

dicom-validator reads the standard's docbook from a site; ``dicom-standard`` carries the same
tables as JSON, every condition included as the standard's own sentence, which dicom-validator's
own parser turns into rules here.
"""

from __future__ import annotations

import html
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

SR_CONTENT, CONTENT_SEQUENCE = "sr-document-content", "(0040,A730)"
FUNCTIONAL_GROUPS = ("(5200,9229)", "(5200,9230)")
#: PS3.3 Table C.17-5 includes each of these "if and only if Value Type is" the second; the JSON
#: holds their attributes side by side without that sentence.
BY_VALUE_TYPE = {
    "numeric-measurement": "NUM", "code": "CODE", "composite-object-reference": "COMPOSITE",
    "image-reference": "IMAGE", "waveform-reference": "WAVEFORM", "spatial-coordinates": "SCOORD",
    "3d-spatial-coordinates": "SCOORD3D", "temporal-coordinates": "TCOORD",
    "container": "CONTAINER",
}  # fmt: skip


def published_standard(folder: Path) -> Any:
    """A ``DicomInfo`` of the SOP classes that medvol writes, from ``dicom-standard``'s JSON."""
    from dicom_validator.spec_reader.condition_parser import ConditionParser
    from dicom_validator.validator.dicom_info import DicomInfo

    def table(name: str) -> list[dict[str, Any]]:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    dictionary = {
        row["tag"]: {"name": row["name"], "vr": row["valueRepresentation"],
                     "vm": row["valueMultiplicity"], "prop": ""}
        for row in table("attributes") if row["tag"]
    }  # fmt: skip
    parser = ConditionParser(dictionary)
    parts = {**_grouped(table("module_to_attributes"), "moduleId"),
             **_grouped(table("macro_to_attributes"), "macroId")}  # fmt: skip
    used = {"modules": table("ciod_to_modules"), "group_macros": table("ciod_to_fg_macros")}
    iods, wanted = {}, {SR_CONTENT, *BY_VALUE_TYPE}
    for sop in table("sops"):
        if sop["ciod"] in ("Segmentation", "Comprehensive SR"):
            ciod = sop["ciod"].lower().replace(" ", "-")
            iods[sop["id"]] = {"title": sop["ciod"]} | {
                kind: _uses(rows, ciod, parser) for kind, rows in used.items()
            }
            wanted |= {u["ref"] for kind in used for u in iods[sop["id"]][kind].values()}
    names = {tag: row["name"] for tag, row in dictionary.items()}
    modules = {ref: _module(parts[ref], names, parser) for ref in wanted}
    _split_by_value_type(modules, parser)
    return DicomInfo(dictionary, iods, modules)


def _grouped(rows: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return found


def _uses(rows: list[dict[str, Any]], ciod: str, parser: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for row in rows:
        if row["ciodId"] == ciod:
            ref = row.get("moduleId") or row["macroId"]
            found[ref] = {"ref": ref, "use": row["usage"]}
            if row["conditionalStatement"]:
                text = f"{row['usage']} - {row['conditionalStatement']}"
                found[ref]["cond"] = parser.parse(text).result_dict()
    return found


def _module(rows: list[dict[str, Any]], names: dict[str, str], parser: Any) -> dict[str, Any]:
    module: dict[str, Any] = {}
    for row in rows:
        *above, last = map(_tag, row["path"].split(":")[1:])
        level = module
        for tag in above:
            level = level[tag].setdefault("items", {})
        entry = level.setdefault(last, {})
        entry |= {"name": names.get(row["tag"], row["tag"]), "type": row["type"]}
        if row["type"] in ("1C", "2C", "3"):
            condition = parser.parse(_plain(row["description"]))
            if condition.type.value != "U":
                entry["cond"] = condition.result_dict()
        if last in FUNCTIONAL_GROUPS:
            entry["items"] = {"include": [{"ref": "FuncGroup"}]}
    return module


def _split_by_value_type(modules: dict[str, Any], parser: Any) -> None:
    content = modules[SR_CONTENT]
    for macro, value_type in BY_VALUE_TYPE.items():
        for tag in modules[macro]:
            content.pop(tag, None)
        rule = parser.parse(f"Required if Value Type (0040,A040) is {value_type}.").result_dict()
        rule["type"] = "MN"
        content.setdefault("include", []).append({"ref": macro, "cond": rule})
    items = content[CONTENT_SEQUENCE]["items"]
    known = {*content, *(tag for macro in BY_VALUE_TYPE for tag in modules[macro])}
    own = {tag: entry for tag, entry in items.items() if tag not in known}
    content[CONTENT_SEQUENCE]["items"] = own | {"include": [{"ref": SR_CONTENT}]}  # of any depth


def _tag(digits: str) -> str:
    return f"({digits[:4]},{digits[4:]})".upper().replace("X", "x")


def _plain(description: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", description)).split())
