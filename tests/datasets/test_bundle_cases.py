import numpy as np
import pytest

from medvol.core import InputError, LabelError, MissingInputError
from medvol.datasets import evaluation_cases, inference_cases, training_cases
from medvol.datasets.phantoms.writer import write_nifti


@pytest.fixture
def labelled(tmp_path):
    """Twelve tiny cases of six patients, with a fold column when asked for."""

    def make(folds=None):
        lines = ["image,label,patient_id" + (",fold" if folds else "")]
        for n in range(12):
            mask = np.zeros((4, 4, 4), np.uint8)
            mask.ravel()[: n + 1] = 1
            write_nifti(tmp_path / f"x{n:02d}.nii.gz", np.ones((4, 4, 4), np.float32), np.eye(4))
            write_nifti(tmp_path / f"m/x{n:02d}_m.nii.gz", mask, np.eye(4))
            fold = f",{folds(n)}" if folds else ""
            lines.append(f"x{n:02d}.nii.gz,m/x{n:02d}_m.nii.gz,p{n // 2}{fold}")
        (tmp_path / "datalist.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make


def test_folds_cover_all_cases_once_and_keep_patients_whole(labelled):
    folder = labelled()
    held = []
    for fold in range(3):
        cases = training_cases(folder, {1: "organ"}, fold=fold, folds=3)
        names = {part: {row["case"] for row in rows} for part, rows in cases.items()}
        assert not names["train"] & names["validate"]
        for n in range(0, 12, 2):
            pair = {f"x{n:02d}", f"x{n + 1:02d}"}
            assert pair <= names["train"] or pair <= names["validate"]
        held += sorted(names["validate"])
        scored = evaluation_cases(folder, {1: "organ"}, fold=fold, folds=3)
        assert {row["case"] for row in scored} == names["validate"]
    assert sorted(held) == [f"x{n:02d}" for n in range(12)]


def test_the_few_cases_that_hold_a_label_are_spread_over_the_folds(labelled):
    folder = labelled()
    for n in (4, 10):  # two patients of six, with volumes far apart
        mask = np.zeros((4, 4, 4), np.uint8)
        mask.ravel()[:n] = 1
        mask.ravel()[-1] = 2
        write_nifti(folder / f"m/x{n:02d}_m.nii.gz", mask, np.eye(4))
    for seed in range(8):
        holding = []
        for fold in range(3):
            held = training_cases(folder, {1: "organ", 2: "lesion"}, fold, 3, seed)["validate"]
            holding.append(len({"x04", "x10"} & {row["case"] for row in held}))
        assert max(holding) == 1


def test_a_fold_column_that_tears_patients_is_refused_unless_forced(labelled):
    folder = labelled(lambda n: n % 2)
    with pytest.raises(InputError, match="both sides of the split"):
        training_cases(folder, {1: "organ"})
    forced = training_cases(folder, {1: "organ"}, allow_shared_patients=True)
    assert len(forced["train"]) == len(forced["validate"]) == 6


def test_other_label_names_and_missing_labels_are_refused(labelled, write_index, touch):
    folder = labelled()
    write_index(
        {"labels": {"1": "liver"}, "training": [{"image": "x00.nii.gz", "label": "m/x00_m.nii.gz"}]}
    )
    with pytest.raises(LabelError, match="liver"):
        training_cases(folder, {1: "organ"})
    write_index({"training": [{"image": "x00.nii.gz"}]})
    with pytest.raises(MissingInputError, match="no case with a label map"):
        training_cases(folder, {1: "organ"})


def test_inference_takes_every_image_of_a_folder(touch):
    folder = touch("a.nii.gz", "sub/b.mha", "labelsTr/a.nii.gz")
    assert [row["image"][-6:] for row in inference_cases(folder)] == ["nii.gz", "/b.mha"]


def test_folds_given_to_some_cases_only_are_refused(labelled):
    folder = labelled(lambda n: n // 2 % 2 if n < 6 else "")
    with pytest.raises(InputError, match="6 of 12 cases have no fold"):
        training_cases(folder, {1: "organ"}, fold=0, folds=2)


@pytest.mark.parametrize("fold", [0, -1])
@pytest.mark.parametrize("folds", [None, lambda n: n // 2 % 3])
def test_training_on_empty_label_maps_is_rejected(labelled, fold, folds):
    folder = labelled(folds)
    for n in range(12):
        empty = np.zeros((4, 4, 4), np.uint8)
        write_nifti(folder / f"m/x{n:02d}_m.nii.gz", empty, np.eye(4))
    with pytest.raises(InputError, match="holds a structure"):
        training_cases(folder, {1: "organ"}, fold=fold, folds=3)
