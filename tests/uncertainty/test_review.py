import math

import pytest

from medvol.uncertainty import ReviewLimits, review_case

ALL = ReviewLimits(margin=0.1)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"probability": 0.55, "threshold": 0.5}, "within 0.1 of the threshold"),
        ({"conformal_set": []}, "set is empty"),
        ({"conformal_set": ["normal", "pneumonia"]}, "holds normal and pneumonia"),
        ({"probability": math.nan, "threshold": 0.5}, "probability is nan"),
    ],
)
def test_each_rule_flags_with_its_reason(known, words):
    found = review_case(ALL, **known)
    assert found.is_needed
    assert words in found.reason


def test_sure_case_is_not_flagged_and_rules_left_out_do_not_flag():
    sure = {"probability": 0.9, "threshold": 0.5, "conformal_set": ["a"]}
    assert review_case(ALL, **sure) == review_case(ALL)
    unsure = {"probability": 0.5, "threshold": 0.5, "conformal_set": []}
    assert not review_case(ReviewLimits(unsure_sets=False), **unsure).is_needed
    assert review_case(ALL, **unsure).reason.count(";") == 1
