"""Small data sets on disk, in every layout; the index is read without decoding a pixel."""

import json

import pytest


@pytest.fixture
def touch(tmp_path):
    """Create (almost) empty files below the test's folder."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return tmp_path

    return make


@pytest.fixture
def write_index(tmp_path):
    """Write JSON (or raw text) below the test's folder and return its path."""

    def make(content, name="dataset.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make
