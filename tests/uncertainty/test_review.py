import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import InputError
from medvol.uncertainty import ReviewLimits, fit_limit, review_case

ALL = ReviewLimits(margin=0.1, epistemic=0.2, agreement=0.8)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"probability": 0.55, "threshold": 0.5}, "within 0.1 of the threshold"),
        ({"conformal_set": []}, "set is empty"),
        ({"conformal_set": ["normal", "pneumonia"]}, "holds normal and pneumonia"),
        ({"epistemic": 0.3}, "0.3 exceeds 0.2"),
        ({"agreement": {"spleen": 0.5}}, "samples of spleen agree to 0.50 < 0.8"),
        ({"probability": math.nan, "threshold": 0.5}, "probability is nan"),
        ({"epistemic": math.inf}, "epistemic uncertainty is inf"),
    ],
)
def test_each_rule_flags_with_its_reason(known, words):
    found = review_case(ALL, **known)
    assert found.is_needed
    assert words in found.reason


def test_sure_case_is_not_flagged_and_rules_left_out_do_not_flag():
    sure = {"probability": 0.9, "threshold": 0.5, "conformal_set": ["a"], "epistemic": 0.1,
            "agreement": {"spleen": 0.9}}  # fmt: skip
    assert review_case(ALL, **sure) == review_case(ALL)
    unsure = {"probability": 0.5, "threshold": 0.5, "conformal_set": [], "epistemic": 9.0,
              "agreement": {"spleen": 0.0}}  # fmt: skip
    assert not review_case(ReviewLimits(unsure_sets=False), **unsure).is_needed
    assert review_case(ALL, **unsure).reason.count(";") == 3


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=50), share=st.floats(0, 1))
def test_limit_flags_at_most_the_share(values, share):
    limit = fit_limit(values, share)
    assert np.mean(np.array(values) > limit) <= share + 1e-9


def test_limit_of_nothing_is_refused():
    for values in ([], [math.nan]):
        with pytest.raises(InputError):
            fit_limit(values)
