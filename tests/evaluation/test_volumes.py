"""`volumes.csv`: what follows from the volumes that predictions hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import MissingInputError
from medvol.evaluation import structure_volumes, write_volumes
from tests.evaluation.conftest import read_csv

ml = st.floats(0.001, 1e4)


def record(case="a", **volumes):
    rows = [{"label": k, "name": name.replace("_", " "), "volume_ml": volume}
            for k, (name, volume) in enumerate(volumes.items(), start=1)]  # fmt: skip
    return {"case": case, "status": "done", "structures": rows}


@given(left=ml, right=ml, stem=ml)
def test_asymmetry_is_signed_left_minus_right_and_the_same_for_both_sides(left, right, stem):
    rows = structure_volumes(record(left_thalamus=left, right_thalamus=right, brain_stem=stem))
    assert rows[0].asymmetry_percent == rows[1].asymmetry_percent
    assert rows[0].asymmetry_percent == pytest.approx(
        (left - right) / ((left + right) / 2) * 100, abs=1e-3
    )
    assert rows[2].asymmetry_percent == ""
    swapped = structure_volumes(record(left_thalamus=right, right_thalamus=left))
    assert swapped[0].asymmetry_percent == pytest.approx(-rows[0].asymmetry_percent, abs=1e-3)


@given(volumes=st.lists(ml, min_size=1, max_size=9))
def test_shares_add_up_to_all(volumes):
    rows = structure_volumes(record(**{f"part_{chr(97 + k)}": v for k, v in enumerate(volumes)}))
    assert sum(float(row.share_percent) for row in rows) == pytest.approx(100, abs=0.01)


def test_nothing_found_has_neither_asymmetry_nor_share():
    rows = structure_volumes(record(left_thalamus=0.0, right_thalamus=0.0))
    assert [(row.asymmetry_percent, row.share_percent) for row in rows] == [("", "")] * 2


def test_the_table_holds_every_finished_case_and_is_written_anew(tmp_path):
    for case, status in (("a", "done"), ("b", "rejected"), ("c", "done")):
        (tmp_path / case).mkdir()
        content = {**record(case, liver=2.5), "status": status}
        (tmp_path / case / "prediction.json").write_text(json.dumps(content))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "prediction.json").write_text("{")
    path = write_volumes(tmp_path)
    assert path is not None
    assert [(row["case"], row["volume_ml"]) for row in read_csv(path)] == [
        ("a", "2.5"), ("c", "2.5")
    ]  # fmt: skip
    with pytest.raises(MissingInputError, match="holds neither an evaluation nor predictions"):
        write_volumes(tmp_path / "a")
