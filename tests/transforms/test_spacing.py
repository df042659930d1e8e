import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.dictionary import Spacingd as MonaiSpacingd

from medvol.core import ConfigError
from medvol.transforms import Spacingd

TURN = np.array([[0.8, 0.6, 0, 5], [-0.6, 0.8, 0, 7], [0, 0, 1, 3], [0, 0, 0, 1]])
GRIDS = {
    "anisotropic": np.diag([1.5, 1.5, 3, 1.0]),
    "oblique": TURN @ np.diag([-0.7, 1.5, 3, 1.0]),
    "sheared": np.diag([-0.7, 1.5, 3, 1.0]) @ TURN,
}


def volume(affine, shape=(21, 30, 13), dtype="f4"):
    values = np.random.default_rng(0).normal(0, 50, (2, *shape)).astype(dtype)
    return MetaTensor(torch.from_numpy(values), torch.tensor(affine))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("mode", "padding"), [("bilinear", "border"), ("nearest", "border"), (3, "mirror")]
)
@pytest.mark.parametrize("pixdim", [1.0, (1.1, 2.3, -1)])
def test_grid_and_values_are_monais(grid, mode, padding, pixdim):
    image = volume(GRIDS[grid])
    theirs = MonaiSpacingd("x", pixdim, mode=mode, padding_mode=padding)({"x": image})["x"]
    ours = Spacingd("x", pixdim, mode=mode, anti_alias=False)({"x": image})["x"]
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.affine, theirs.affine, atol=1e-9)
    # the last sample may lie beyond the edge, where MONAI's spline mirrors and ours repeats
    inside = (slice(None), *(slice(-1) for _ in range(3))) if mode == 3 else ()
    assert torch.allclose(ours[inside], theirs[inside], atol=2e-4)


#: Float32 rounding of three products in a row: terms of one axis times eps times the largest sum
#: of absolute weights, cubed: 1 for linear, (1 + |z|) / (1 - |z|) = sqrt(3) for the spline's
#: prefilter with its pole z = sqrt(3) - 2.
TERMS = {"bilinear": (2, 1.0), "cubic": (30, 3**0.5)}


@pytest.mark.parametrize("grid", ["anisotropic", "oblique"])
@pytest.mark.parametrize("mode", TERMS)
@pytest.mark.parametrize("pixdim", [1.0, (1.1, 2.3, -1)])
def test_values_are_simpleitks(grid, mode, pixdim):
    import SimpleITK as sitk

    image = volume(GRIDS[grid])[:1]
    ours = Spacingd("x", pixdim, mode=mode, anti_alias=False)({"x": image})["x"]
    target = _sitk_image(ours)
    spline = sitk.sitkLinear if mode == "bilinear" else sitk.sitkBSpline
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(_sitk_image(image), target, sitk.Transform(), spline, 0.0)
    ).T
    # the last sample of an axis may lie beyond the input, where SimpleITK has no value
    inside = (slice(1, -1),) * 3
    terms, gain = TERMS[mode]
    eps = np.finfo(np.float32).eps
    tolerance = 3 * terms * eps * gain**3 * float(image.abs().max())
    error = np.abs(ours[0].numpy()[inside] - theirs[inside]).max()
    assert error < tolerance
    assert tolerance < 0.01 * float(image.std())


def _sitk_image(image):
    import SimpleITK as sitk

    affine = np.diag([-1, -1, 1, 1]) @ np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    out = sitk.GetImageFromArray(np.ascontiguousarray(image[0].numpy().T))
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return out


@pytest.mark.parametrize("grid", GRIDS)
def test_inverse_restores_the_grid_and_smooth_values(grid):
    x, y, z = np.meshgrid(*[np.linspace(0, 2, n) for n in (21, 30, 13)], indexing="ij")
    image = MetaTensor(torch.from_numpy(np.sin(x + y + z)[None].astype("f4")), GRIDS[grid])
    space = Spacingd("x", 0.7, mode="cubic", anti_alias=False)
    back = space.inverse(space({"x": image}))["x"]
    assert back.shape == image.shape
    assert torch.allclose(back.affine, image.affine)
    assert (back - image)[:, 2:-2, 2:-2, 2:-2].abs().max() < 5e-3


def test_other_keys_are_left_alone():
    image = volume(GRIDS["anisotropic"])
    image.meta["filename_or_obj"] = "scan.nii.gz"
    data = {"image": image, "image_path": "scan.nii.gz", "image_meta_dict": {"a": 1}}
    out = Spacingd("image", 2.0)(data)
    assert out["image_path"] == "scan.nii.gz"
    assert out["image_meta_dict"] == {"a": 1}


def test_anti_aliasing_removes_what_the_new_grid_cannot_hold():
    stripes = torch.ones(1, 40, 8, 8)
    stripes[:, ::2] = -1
    image = MetaTensor(stripes, torch.eye(4, dtype=torch.float64))
    plain = Spacingd("x", (4, 1, 1), anti_alias=False)({"x": image})["x"]
    clean = Spacingd("x", (4, 1, 1))({"x": image})["x"]
    assert plain.abs().min() == 1
    assert clean[:, 2:-2].abs().max() < 1e-3


def test_nearest_keeps_dtype_and_values():
    image = MetaTensor(torch.randint(0, 200, (1, 9, 8, 7), dtype=torch.uint8), GRIDS["oblique"])
    out = Spacingd("x", 0.6, mode="nearest")({"x": image})["x"]
    assert out.dtype == torch.uint8
    assert set(out.unique().tolist()) <= set(image.unique().tolist())


def test_unknown_mode_is_rejected():
    with pytest.raises(ConfigError, match="choose bilinear"):
        Spacingd("x", 1.0, mode="lanczos")
