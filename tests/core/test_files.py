import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import OutputError, atomic_path, output_path, write_json
from medvol.core.files import safe_name


def test_failed_write_keeps_the_old_file_and_leaves_no_scratch(tmp_path):
    target = tmp_path / "mask.json"
    write_json(target, {"old": 1})

    def write_half():
        with atomic_path(target) as scratch:
            scratch.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert json.loads(target.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


def test_file_that_reads_back_differently_never_appears(tmp_path):
    def reject(path):
        raise OutputError(f"{path.name}: differs")

    with (
        pytest.raises(OutputError, match="differs"),
        atomic_path(tmp_path / "a", verify=reject) as scratch,
    ):
        scratch.write_text("x")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_one_line_naming_the_file(tmp_path):
    target = tmp_path / "seg.nii.gz"
    with pytest.raises(OutputError, match=r"seg\.nii\.gz: cannot be written"), atomic_path(target):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_output_path_never_leaves_the_folder(tmp_path, parts):
    path = output_path(tmp_path, *parts)
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert path != tmp_path


@given(st.text(max_size=60))
def test_safe_name_is_stable(name):
    assert safe_name(safe_name(name)) == safe_name(name)
