import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medvol.core import InputError
from medvol.transforms import ToGreyImaged


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 6, 5), (1, 6, 5, 1), (3, 6, 5, 1)])
def test_every_single_image_becomes_one_grey_plane(shape):
    image = MetaTensor(torch.rand(shape), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    found = ToGreyImaged("image")({"image": image, "other": 1})
    assert found["image"].shape == (1, 6, 5)
    assert torch.equal(found["image"].affine, image.affine)
    wanted = image.as_tensor().reshape(shape[0], 6, 5).mean(0, keepdim=True)
    torch.testing.assert_close(found["image"].as_tensor(), wanted)
    assert found["other"] == 1


def test_volumes_are_rejected_by_name():
    image = MetaTensor(torch.rand(1, 6, 5, 2), meta={"filename_or_obj": "ct.nii"})
    with pytest.raises(InputError, match=r"ct\.nii: has shape \(6, 5, 2\)"):
        ToGreyImaged("image")({"image": image})
