import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from medvol.core import ConfigError, InputError, LabelError, NonFiniteError
from medvol.metrics import apply_temperature, fit_temperature


def honest(n, classes, seed):
    """Logits whose softmax is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    p = softmax(logits, axis=1)
    return logits, np.array([rng.choice(classes, p=row) for row in p])


@given(factor=st.floats(1e-4, 1e4), classes=st.integers(2, 4))
def test_temperature_finds_the_factor_that_spoilt_honest_logits(factor, classes):
    logits, labels = honest(4000, classes, 0)
    honest_temperature = fit_temperature(logits, labels)
    assert honest_temperature == pytest.approx(1, abs=0.1)
    spoilt = fit_temperature(logits * factor, labels)
    assert spoilt == pytest.approx(factor * honest_temperature, rel=1e-4)


def test_temperature_equals_scikit_learns():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    labels = (x[:, 0] + rng.normal(0, 2, 400) > 0).astype(int) + (x[:, 1] > 1)
    model = LogisticRegression(C=100).fit(x[:100] * 3, labels[:100])
    held, truth = x[100:] * 3, labels[100:]
    logits = model.decision_function(held)
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(held, truth)
    ours = apply_temperature(logits, fit_temperature(logits, truth))
    np.testing.assert_allclose(ours, theirs.predict_proba(held), atol=1e-4)


@given(temperature=st.floats(0.05, 50))
def test_scaling_keeps_the_ranking_and_sums_to_one(temperature):
    logits = np.random.default_rng(2).normal(size=(20, 3))
    p = apply_temperature(logits, temperature)
    np.testing.assert_allclose(p.sum(1), 1)
    assert np.array_equal(p.argmax(1), logits.argmax(1))


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (np.ones((4, 2)), [0, 0, 0, 0], InputError),
        (np.ones((4, 2)), [0, 1, 0, 1], InputError),
        ([[1, 0], [2, 0], [0, 1], [0, 3]], [1, 1, 0, 0], InputError),
        ([[1, 0], [2, 0], [0, 1], [0, 3]], [0, 0, 1, 1], InputError),
        (np.ones((4, 2)), [0, 1, 2, 0], LabelError),
        (np.ones((4, 2)), [0, 1, 0.5, 0], LabelError),
        (np.ones((4, 2)), [0, 1], InputError),
        (np.ones((4, 1)), [0, 0, 0, 0], InputError),
        (np.ones((0, 2)), [], InputError),
        ([[0, np.nan], [1, 0]], [0, 1], NonFiniteError),
    ],
)
def test_what_cannot_be_fitted_is_rejected(logits, labels, error):
    with pytest.raises(error):
        fit_temperature(logits, labels)


def test_temperature_zero_is_rejected():
    with pytest.raises(ConfigError, match="positive"):
        apply_temperature([[1.0, 2.0]], 0)
