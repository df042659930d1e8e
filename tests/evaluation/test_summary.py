import math

import pytest

from medvol.evaluation.cases import CaseInfo
from medvol.evaluation.summary import BootstrapPlan, summarise
from medvol.metrics import Score


def table(patients: list[str]):
    rows = [Score(f"c{i}", "liver", "dice", 0.8 + 0.01 * i, "", "") for i in range(len(patients))]
    cases = {f"c{i}": CaseInfo(f"c{i}", patient) for i, patient in enumerate(patients)}
    return summarise(rows, cases, plan=BootstrapPlan(resamples=300))[0]


@pytest.mark.parametrize(
    ("patients", "has_interval"),
    [(["a"], False), (["a", "a", "b", "b", "b"], False), (["a", "b", "c"], True)],
)
def test_two_patients_bound_nothing_however_many_cases(patients, has_interval):
    row = table(patients)
    assert row.n == len(patients)
    assert math.isfinite(row.mean)
    bounds = (row.mean_lower, row.mean_upper, row.median_lower, row.median_upper)
    assert [math.isfinite(bound) for bound in bounds] == [has_interval] * 4
