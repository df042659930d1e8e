"""File name endings are listed in one table, `medvol.io.formats`, and every module asks it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.io import formats

PACKAGE = Path(__file__).parents[2] / "medvol"
KNOWN = frozenset(formats.ALL) | frozenset(suffix[1:] for suffix in formats.ALL)


def suffix_lists(source: str) -> list[list[str]]:
    """Tuples, lists and sets of a module that hold two or more endings of images."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = [e.value for e in node.elts if isinstance(e, ast.Constant)]
            known = [text for text in texts if text in KNOWN]
            found += [known] if len(known) > 1 else []
    return found


MODULES = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "io" / "formats.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_other_module_lists_file_name_endings(path):
    assert suffix_lists(path.read_text(encoding="utf-8")) == []


def test_the_law_sees_a_list_and_reads_the_package():
    assert suffix_lists('x = name.endswith((".nii", ".nii.gz"))') == [[".nii", ".nii.gz"]]
    assert len(MODULES) > 200


@given(
    stem=st.text("ab.1_ ", min_size=1).filter(lambda s: not s.endswith(".")),
    suffix=st.sampled_from(formats.ALL),
    upper=st.booleans(),
)
def test_a_name_is_its_stem_and_its_ending_in_any_case(stem, suffix, upper):
    ending = suffix.upper() if upper else suffix
    assert formats.split_name(stem + ending) == (stem, ending)
    kind = formats.format_of(stem + ending)
    assert kind is not None
    assert suffix in formats.SUFFIXES[kind]
