"""Slow: what a plan must cope with, trained for two minutes in a process of its own."""

import math

import pytest

from tools.bench.planning import DATASETS, measure


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_a_phantom_data_set_is_planned_trained_and_its_memory_foretold(name, tmp_path):
    row = measure(name, tmp_path, 120.0)
    assert math.isfinite(row["dice"]["mean"])
    assert row["dice"]["mean"] > 0.1  # a network that learned nothing scores 0
    assert row["memory_ratio"] == pytest.approx(1.0, abs=0.15)
