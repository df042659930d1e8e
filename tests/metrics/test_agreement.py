import numpy as np
import pytest

from medvol.core import GridMismatchError, NonFiniteError
from medvol.metrics import limits_of_agreement


def test_bias_and_limits_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(10, 2, 40), rng.normal(10, 2, 40)
    got = limits_of_agreement(a, b, resamples=100).value
    sd = np.std(a - b, ddof=1)
    assert got == pytest.approx([(a - b).mean() + k * 1.959963985 * sd for k in (0, -1, 1)])


def test_intervals_have_the_width_of_bland_and_altman_1999():
    # Their standard errors: s / sqrt(n) of the bias, about sqrt(3 / n) s of a limit.
    rng = np.random.default_rng(1)
    n = 400
    band = limits_of_agreement(rng.normal(0, 1, n), np.zeros(n), resamples=2000)
    half = (band.upper - band.lower) / 2
    want = [1.96 / np.sqrt(n), *[1.96 * np.sqrt(3 / n)] * 2]
    assert half == pytest.approx(want, rel=0.2)


def test_a_repeated_patient_adds_nothing_to_the_interval():
    rng = np.random.default_rng(2)
    a, b = rng.normal(5, 1, 30), rng.normal(5, 1, 30)
    alone = limits_of_agreement(a, b, resamples=500)
    twice = limits_of_agreement(
        np.tile(a, 2), np.tile(b, 2), groups=np.tile(np.arange(30), 2), resamples=500
    )
    assert twice.lower[0] == pytest.approx(alone.lower[0])
    assert twice.upper[0] == pytest.approx(alone.upper[0])


def test_what_cannot_be_measured_is_undefined_or_rejected():
    assert np.isnan(limits_of_agreement([], []).value).all()
    one = limits_of_agreement([2.0], [1.0])
    assert one.value[0] == 1
    assert np.isnan(one.value[1:]).all()
    with pytest.raises(GridMismatchError):
        limits_of_agreement([1.0], [1.0, 2.0])
    with pytest.raises(NonFiniteError):
        limits_of_agreement([np.inf], [1.0])
