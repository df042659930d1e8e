"""SUV from PET headers: the time between injection and scan is known, or there is no SUV."""

from __future__ import annotations

import numpy as np
import pytest

from medvol.core import InputError
from medvol.io import read_scan

HOUR_S = 3600


@pytest.fixture
def suv(dicom_series, phantom):
    """The factor that a PET series is read with; keywords replace tags, dose tags by ``dose_``."""

    def read(**tags):
        from pydicom.dataset import Dataset

        dose = Dataset()
        dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = 350e6, HOUR_S
        dose.RadiopharmaceuticalStartTime = "093000"

        def change(ds, z):
            ds.Modality, ds.Units, ds.DecayCorrection = "PT", "BQML", "START"
            ds.PatientWeight, ds.SeriesTime = 70, "103000"
            ds.RadiopharmaceuticalInformationSequence = [dose]
            for word, value in tags.items():
                target = dose if word.startswith("dose_") else ds
                setattr(target, word.removeprefix("dose_"), value)

        return float(read_scan(dicom_series(change)).array.max() / phantom.max())

    return read


START = {"dose_RadiopharmaceuticalStartDateTime": "20240301093000"}
CASES = {
    "an hour": ({}, 1),
    "over midnight": ({"dose_RadiopharmaceuticalStartTime": "233000", "SeriesTime": "003000"}, 1),
    "injected at midnight": (
        {"dose_RadiopharmaceuticalStartDateTime": "20240301000000", "SeriesDate": "20240301",
         "dose_RadiopharmaceuticalStartTime": "", "SeriesTime": "010000"}, 1),
    "three days": (
        {**START, "SeriesDate": "20240304", "SeriesTime": "093000",
         "dose_RadionuclideHalfLife": 72 * HOUR_S}, 1),
    "corrected to the injection": ({"DecayCorrection": "ADMIN", "SeriesTime": ""}, 0),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_decay_is_undone_over_the_whole_time(suv, what):
    tags, half_lives = CASES[what]
    assert suv(**tags) == pytest.approx(70e3 / 350e6 * 2**half_lives, rel=1e-5)


REFUSED = {
    "a tracer of days without a day": ({"dose_RadionuclideHalfLife": 78 * HOUR_S}, "day of inj"),
    "a scan before the injection": ({**START, "SeriesDate": "20240229"}, "before the injection"),
    "a derived series": ({"AcquisitionTime": "101500"}, "after AcquisitionTime"),
    "lean body mass": ({"Units": "GML", "SUVType": "LBM"}, "body weight"),
    "no correction": ({"DecayCorrection": "NONE"}, "neither START nor ADMIN"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_leaves_the_decay_open_is_refused(suv, what):
    tags, fault = REFUSED[what]
    with pytest.raises(InputError, match=fault):
        suv(**tags)


def test_body_weight_suv_stays_as_it_is(suv):
    assert np.isclose(suv(Units="GML", SUVType="BW"), 1.0)
