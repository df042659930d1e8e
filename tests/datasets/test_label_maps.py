import pytest

from medvol.core import ConfigError, MissingInputError
from medvol.datasets import label_map_cases


@pytest.fixture
def maps(tmp_path):
    for name in ("a.nii.gz", "b.nii", "c.NII.GZ", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def names(rows):
    return [row["label"].rsplit("/", 1)[-1] for row in rows]


def test_held_out_maps_validate_and_never_train(maps):
    cases = label_map_cases(maps, ["b"])
    assert names(cases["train"]) == ["a.nii.gz", "c.NII.GZ"]
    assert names(cases["validate"]) == ["b.nii"]


def test_a_held_out_map_that_is_not_there_is_named(maps):
    with pytest.raises(ConfigError, match="'d' is not there"):
        label_map_cases(maps, ["a", "d"])


def test_a_folder_without_maps_to_train_on_is_rejected(maps, tmp_path):
    with pytest.raises(MissingInputError, match="none trains"):
        label_map_cases(maps, ["a", "b", "c"])
    with pytest.raises(MissingInputError, match="is not a folder"):
        label_map_cases(tmp_path / "lacking")
