import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import OutputError, atomic_path, output_path, write_json
from medvol.core.files import CsvRows, csv_text, safe_name


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


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")) | st.sampled_from(
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "'=1", "''+x", "-0.5", "'plain'", "\t=1"]
)


@given(rows=st.lists(st.tuples(cells, cells), min_size=1))
def test_no_cell_is_a_formula_and_every_value_comes_back(rows):
    text = csv_text(["a", "b"], rows)
    for row in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        for cell in row:
            if cell[:1] in ("=", "+", "-", "@", "\t"):
                float(cell)  # a number is no formula
    back = CsvRows(io.StringIO(text, newline=""))
    assert [(row["a"], row["b"]) for row in back] == rows


def test_pandas_reads_the_values_as_the_docstring_says():
    pandas = pytest.importorskip("pandas")
    names = ["=1+1", "'=1", "plain", "-0.5"]
    table = pandas.read_csv(io.StringIO(csv_text(["case"], [[name] for name in names])), dtype=str)
    plain = table.replace(r"^'(?='*[=+\-@\t\r])", "", regex=True)
    assert plain["case"].tolist() == names
