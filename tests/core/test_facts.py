import subprocess
import sys

import pytest

from medvol.core import ConfigError, find_label, find_modality, flip_objection
from medvol.core.labels import side_of


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("kidney_left", "left"),
        ("rightLung", "right"),
        ("femur (R)", "right"),
        ("L_hippocampus", "left"),
        ("liver", "unsided"),
        ("bright spot", "unsided"),
        ("left and right", "unsided"),
        ("left right", "unsided"),
        ("vertebrae_L1", "unsided"),
        ("disc L5-S1", "unsided"),
        ("rib_left_3", "left"),
        ("kidney_R", "right"),
    ],
)
def test_side_is_read_from_words(name, side):
    assert side_of(name) == side


def test_chest_rejects_every_mirror():
    for axis in ("left-right", "anterior-posterior", "superior-inferior"):
        assert flip_objection("chest", axis)


def test_lateral_label_forbids_a_mirror_that_the_body_allows():
    assert flip_objection("brain", "left-right") is None
    assert "names a side" in str(flip_objection("brain", "left-right", ["right_amygdala"]))


def test_unknown_rows_are_rejected_and_unknown_labels_are_generic():
    with pytest.raises(ConfigError, match="known: CT"):
        find_modality("MEG")
    with pytest.raises(ConfigError, match="body_part"):
        flip_objection("tail", "left-right")
    assert find_label("left femur").laterality == "left"
    assert find_label("femur") == find_label("Femur")


def test_import_and_help_load_no_torch():
    code = (
        "import sys; from medvol.cli.main import main; import medvol.core; main(['--help']); "
        "print(sorted({'torch','monai','numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
