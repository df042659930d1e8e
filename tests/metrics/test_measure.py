import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medvol.core import ConfigError
from medvol.metrics import CaseLine, MetricPlan, Structures, cases_to_csv, measure_case

PLAN = MetricPlan(("dice", "hd95", "absolute_volume_difference"))
SPACING = (1.0, 0.5, 3.0)
maps = hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 4))
LABELS = {1: "a", 2: "b", 3: "c"}


def rows(pred, ref, structures):
    found = measure_case("x", pred, ref, SPACING, structures=structures, plan=PLAN)
    return {structures.name_of(key): measured for key, measured in found.items()}


@given(pred=maps, ref=maps)
def test_an_ignored_voxel_is_background_in_both_maps(pred, ref):
    ignoring = rows(pred, ref, Structures(LABELS, ignore_label=4))
    pred, ref = np.where(ref == 4, 0, pred), np.where(ref == 4, 0, ref)
    assert repr(ignoring) == repr(rows(pred, ref, Structures(LABELS)))


@given(pred=maps, ref=maps)
def test_a_region_is_the_union_of_its_labels(pred, ref):
    found = rows(pred, ref, Structures(LABELS, {"whole": (1, 2, 3), "b": (2,)}))
    assert list(found) == ["whole", "b"]
    whole = rows((pred > 0) & (pred < 4), (ref > 0) & (ref < 4), Structures({1: "whole"}))
    assert repr(found["whole"]) == repr(whole["whole"])
    assert repr(found["b"]) == repr(rows(pred, ref, Structures(LABELS))["b"])


@given(pred=maps, ref=maps)
def test_open_structures_are_those_that_occur(pred, ref):
    found = rows(pred, ref, Structures({1: "a"}, is_open=True))
    values = sorted(set(np.unique([pred, ref]).tolist()) - {0})
    assert list(found) == ["a" if value == 1 else str(value) for value in values]


@pytest.mark.parametrize(
    ("labels", "regions", "ignored"),
    [({"0": "air"}, {}, None), ({"1": "a"}, {"r": [0, 1]}, None), ({"1": "a", "2": "b"}, {}, 2)],
)
def test_background_and_ignored_values_cannot_be_scored(labels, regions, ignored):
    with pytest.raises(ConfigError, match="can be scored"):
        Structures.of(labels, regions, ignored)


@given(groups=st.lists(st.sampled_from(["", "secret_a", "secret_b", "secret_c"]), min_size=1))
def test_patients_are_told_apart_and_not_named(groups):
    text = cases_to_csv([CaseLine(f"c{k}", group) for k, group in enumerate(groups)])
    assert "secret" not in text
    written = [row["patient_group"] for row in csv.DictReader(io.StringIO(text))]
    for k, one in enumerate(groups):
        assert (written[k] == "") == (one == "")
        for j, other in enumerate(groups):
            assert (written[k] == written[j]) == (one == other)
