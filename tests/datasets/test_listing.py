"""What is found below a folder is what can be read, whatever it is called."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medvol.datasets import list_images
from medvol.io import inspect_image


@pytest.fixture
def pair():
    image = nib.Nifti1Pair(np.ones((3, 4, 5), np.float32), np.eye(4))  # pyright: ignore[reportPrivateImportUsage]
    image.header.set_xyzt_units("mm")
    return image


def test_a_gzipped_pair_is_found_once_and_read(tmp_path, pair):
    nib.save(pair, tmp_path / "a.hdr.gz")  # pyright: ignore[reportPrivateImportUsage]
    assert {path.name for path in tmp_path.iterdir()} == {"a.hdr.gz", "a.img.gz"}
    assert [path.name for path in list_images(tmp_path)] == ["a.hdr.gz"]
    for name in ("a.hdr.gz", "a.img.gz"):
        (found,) = list_images(tmp_path / name)
        assert inspect_image(found).shape == (3, 4, 5)


@pytest.mark.parametrize("name", ["scan.xyz", "1.2.840.113x", "IM_0001", "a.dcm"])
def test_a_dicom_file_is_known_by_its_content(tmp_path, name):
    shutil.copyfile(get_testdata_file("CT_small.dcm"), tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image, but long enough to be looked into" * 9)
    assert [path.name for path in list_images(tmp_path)] == [name]
    assert list_images(tmp_path / name) == [tmp_path / name]
