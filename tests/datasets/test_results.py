from pathlib import Path

import pytest

from medvol.datasets import ResultLayout, list_images
from tests.datasets.test_listing import write_dicom


def results(folder: Path) -> list[str]:
    layout = ResultLayout(folder, folder / "out")
    found = [Path(layout.filename(str(path))) for path in list_images(folder)]
    return [path.relative_to(folder / "out").as_posix() for path in found]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a.nii.gz", "sub/a.nii.gz"], ["a_seg.nii.gz", "sub/a_seg.nii.gz"]),
        (["a.nii", "a.nii.gz"], ["a.nii_seg.nii.gz", "a.nii.gz_seg.nii.gz"]),
        (["a.mha", "a.nrrd", "b.nii"], ["a.mha_seg.nii.gz", "a.nrrd_seg.nii.gz", "b_seg.nii.gz"]),
        (["a.1.nii", "a.2.nii"], ["a.1_seg.nii.gz", "a.2_seg.nii.gz"]),
    ],
)
def test_every_image_has_a_result_of_its_own(touch, images, expected):
    assert results(touch(*images)) == expected


def test_series_folders_named_by_uids_keep_their_names(tmp_path):
    for uid in ("1.2.3", "1.2.4"):
        for number in (1, 2):
            write_dicom(tmp_path / uid / f"{number}.dcm", uid, "MR")
    (tmp_path / "1.2.3.nii").write_bytes(b"")
    assert results(tmp_path) == ["1.2.3_seg.nii.gz", "1.2.3.nii_seg.nii.gz", "1.2.4_seg.nii.gz"]


def test_a_single_image_stays_inside_the_output_folder(touch):
    folder = touch("x/a.nii")
    for root in (folder / "x" / "a.nii", folder / "x", folder / "elsewhere"):
        layout = ResultLayout(root, folder / "out", postfix="cam")
        assert layout.filename(folder / "x" / "a.nii") == str(folder / "out" / "a_cam.nii.gz")
