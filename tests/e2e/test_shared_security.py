"""The shared corpus's configs, archives, checkpoints and datalists: each refused in one line."""

from __future__ import annotations

import json
import re
import tarfile

import pytest

from medvol.bundle import read_config
from medvol.core import MedvolError, unpack
from medvol.datasets import read_dataset, training_cases
from medvol.networks import load_weights

KINDS = {"config": 7, "archive": 4, "checkpoint": 3, "datalist": 5}


def use(kind, path, out):
    if kind == "config":
        return read_config(path)
    if kind == "archive":
        return unpack(path, out)
    if kind == "checkpoint":
        return load_weights(path)
    manifest = read_dataset(path)
    return training_cases(path, manifest.labels, fold=-1, folds=2)


def test_every_security_case_does_what_the_manifest_demands(shared_data, tmp_path):
    with tarfile.open(shared_data / "bad_inputs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    manifest = next(tmp_path.rglob("manifest.json"))
    cases = [c for c in json.loads(manifest.read_text())["cases"] if c["kind"] in KINDS]
    assert len(cases) == sum(KINDS.values())
    wrong = []
    for case in cases:
        path, out = manifest.parent / case["path"], tmp_path / "out" / case["name"]
        try:
            use(case["kind"], path, out)
        except MedvolError as error:
            line = str(error)
            told = any(re.search(p, line, re.I) for p in case["error_fault_any"])
            named = any(name in line for name in case["error_names_any"])
            if "\n" in line or not (told and named):
                wrong.append(f"{case['name']}: {line}")
            if out.exists():
                wrong.append(f"{case['name']}: wrote {out}")
        else:
            if case["must"] == "reject":
                wrong.append(f"{case['name']}: accepted")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.rglob("PWNED*"))


def require_refused(path, content, fault):
    path.write_text(content)
    with pytest.raises(MedvolError, match=rf"{re.escape(path.name)}.*({fault})") as refusal:
        read_config(path)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"a": "@b", "b": "@a"}', "circular"),
        ('{"trainer": {"max_epochs": "many"}}', "max_epochs"),
        ('{"trainer": {"max_epochs": 0}}', "max_epochs"),
        ('{"inferer": {"roi_size": [-96, 96, 96]}}', "roi_size"),
        ('{"inferer": {"overlap": 1.5}}', "overlap"),
        ("[" * 5000 + "]" * 5000, "deep|list"),
        ('{"a": ' * 300 + "1" + "}" * 300, "deep"),
        ('{"a": 1,,}', "line 1"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": {"_target_": "$eval"}}', "not allowed"),
        ('{"a": {"_target_": "monai.utils.module.os.system"}}', "not allowed"),
        ('{"a": {"_target_": ["os.system"]}}', "not a name"),
        ('{"a": [{"b": ["$__import__(1)"]}]}', "code"),
        ('{"a": "%../../x.json::b"}', "another file"),
        ('{"a": {"_target_": "UNet", "_mode_": "debug"}}', "debugger"),
    ],
)
def test_config_without_sense_is_refused(tmp_path, content, fault):
    require_refused(tmp_path / "c.json", content, fault)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: 1\na: 2", "twice"),
        ("a: {b: 1, b: 2}", "twice"),
        ("a: &x [1, 2]\nb: [*x, *x]", "alias"),
        ("a: &x [*x]", "alias"),
        ("a: !!python/object/apply:os.system ['true']", "cannot be parsed"),
    ],
)
def test_yaml_that_says_things_twice_or_by_tags_is_refused(tmp_path, content, fault):
    require_refused(tmp_path / "c.yaml", content, fault)
