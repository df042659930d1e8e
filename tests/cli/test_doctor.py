import importlib
import json
import sys
import tomllib
from pathlib import Path

import pytest

from medvol.cli import doctor
from medvol.cli.main import main

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_only_what_pip_installs_with_medvol_is_called_needed():
    wanted = {row.partition(">")[0].lower() for row in PROJECT["dependencies"]}
    assert {package.lower() for package in doctor._NEEDED.values()} <= wanted
    assert set(doctor._OPTIONAL.values()) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError("libtorch.so: cannot open shared object file"), "broken (libtorch.so"),
        (RuntimeError("operator nms does not exist"), "broken (operator nms"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "broken (No module named 'x'"),
        (ModuleNotFoundError("No module named 'ignite'", name="ignite"), "pip install"),
    ],
)
def test_a_broken_install_is_told_with_its_fix(monkeypatch, capsys, raised, said):
    def load(name, real=importlib.import_module):
        if name == "ignite":
            raise raised
        return real(name) if name.startswith("medvol") else sys

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    monkeypatch.setattr(doctor, "_MINIMUM", {})
    assert main(["doctor", "--json"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["packages"]}
    assert rows["ignite"]["fix"].startswith(said)
    assert rows["ignite"]["fix"].endswith("pip install 'pytorch-ignite'")


@pytest.mark.parametrize("version", ["2.13rc1", "2.13.0a0+git1", "2.13"])
def test_versions_of_every_kind_are_read(version):
    assert doctor._numbers(version) == (2, 13)
