"""The environment of the marked tests: built once, or the one that MEDVOL_LABEL_ENV names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medvol.label.environment import build_environment


@pytest.fixture(scope="session")
def label_python(tmp_path_factory) -> Path:
    folder = os.environ.get("MEDVOL_LABEL_ENV") or tmp_path_factory.mktemp("label") / "env"
    return build_environment(folder)
