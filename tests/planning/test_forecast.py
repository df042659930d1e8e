import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import ConfigError
from medvol.planning import Costs, Request, Size, fill_budget, parse_duration

seconds = st.floats(0.01, 5.0)
COSTS = Costs(10.0, 0.1, 0.2, 0.5, 0.3, 500 << 20, 1 << 20, 8)


@given(step=seconds, case=st.floats(0.001, 0.2), validation=seconds, budget=st.floats(2e3, 1e5))
def test_a_run_fills_its_budget_to_five_percent_where_an_epoch_is_small(
    step, case, validation, budget
):
    costs = Costs(10.0, case, step, 0.5, validation, 0, 0, 0)
    size = Size(train=40, validate=10, steps=20)
    epoch = 20 * step + 0.5
    found = fill_budget(costs, size, budget)
    # The total is counted again, part by part.
    total = 10 + case * 50 + found.epochs * epoch + found.validations * 10 * validation
    assert found.total_s == pytest.approx(total)
    assert total <= budget
    assert found.epochs % found.interval == 0
    if epoch + 10 * validation < 0.04 * budget:
        assert total >= 0.95 * budget


def test_memory_is_the_trial_runs_and_a_case_for_every_further_one():
    size = Size(train=100, validate=20, steps=50)
    assert fill_budget(COSTS, size, 3600).peak_bytes == (500 + 120 - 8) << 20
    half = Size(train=100, validate=20, steps=50, cache_rate=0.5)
    assert fill_budget(COSTS, half, 3600).peak_bytes == (500 + 60 - 8) << 20


def test_a_budget_without_an_epoch_is_refused_with_what_it_takes():
    with pytest.raises(ConfigError, match=r"one epoch and one validation take 38 s here"):
        fill_budget(COSTS, Size(train=100, validate=20, steps=50), 20)


@pytest.mark.parametrize("text", ["2", "h", "2 weeks", "-3m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)


def test_unknown_networks_are_refused_by_name():
    with pytest.raises(ConfigError, match="'mamba' is unknown; choose auto, folded"):
        Request(60, network="mamba")
