"""Whatever the operating system says of a name becomes one line and exit 2."""

from __future__ import annotations

import json

import pytest

from medvol.cli.main import main
from medvol.core import MedvolError


@pytest.mark.parametrize("verb", ["scan", "check", "split", "profile"])
def test_a_name_too_long_for_the_disk_is_refused(tmp_path, capsys, verb):
    path = tmp_path / ("n" * 300)
    assert main(["data", verb, str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(path) in line
    assert "too long" in line


@pytest.mark.parametrize(
    "verb",
    [("data", "check", "x", "--leakage"), ("evaluate", "scores", "x", "-o", "y"),
     ("compare", "x", "y"), ("calibrate", "--validation", "x", "--test", "y"),
     ("drift", "x", "--reference", "y"), ("plan", "x", "-o", "y")],
)  # fmt: skip
def test_a_negative_seed_is_refused(capsys, verb):
    assert main([*verb, "--seed=-1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--seed" in line


def test_a_refusal_forges_no_line_and_no_escape():
    assert str(MedvolError("a\nERROR \x1b[2J: bad")) == "a ERROR ?[2J: bad"


def test_a_file_name_forges_no_line_of_a_check(tmp_path, capsys):
    for name in ("a.png", "b\n  refused.png", "l.nii.gz"):
        (tmp_path / name).touch()
    rows = [{"case": "a", "image": "a.png", "label": "l.nii.gz"},
            {"case": "b", "image": "b\n  refused.png"}]  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps({"training": rows}))
    assert main(["data", "check", str(tmp_path / "d.json")]) == 1
    text = capsys.readouterr().out
    assert "b?  refused.png: has no label map" in text
    assert not any(line.startswith("  refused.png") for line in text.splitlines())
