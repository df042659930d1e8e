import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, GridMismatchError, PolicyError
from medvol.transforms import RandSpatiald

KEYS = ["image", "label"]


def pair(shape=(20, 24, 16), affine=None, seed=0):
    rng = np.random.default_rng(seed)
    affine = np.eye(4) if affine is None else affine
    return {
        "image": MetaTensor(torch.from_numpy(rng.normal(size=(1, *shape)).astype("f4")), affine),
        "label": MetaTensor(torch.from_numpy(rng.integers(0, 4, (1, *shape), "u1")), affine),
    }


@pytest.mark.parametrize("shape", [(20, 24, 16), (20, 24), (9, 7, 1)])
def test_identity_ranges_change_nothing(shape):
    data = pair(shape)
    out = RandSpatiald(KEYS, rotate_range=0, scale_range=0, elastic=False)(data)
    for key in KEYS:
        assert torch.equal(out[key].as_tensor(), data[key].as_tensor())
        assert out[key].dtype == data[key].dtype
        assert torch.allclose(out[key].affine, data[key].affine)


@given(st.integers(0, 2**31), st.sampled_from([(20, 24, 16), (20, 24)]))
@settings(max_examples=25)
def test_labels_never_gain_a_class(seed, shape):
    data = pair(shape, seed=seed % 97)
    out = RandSpatiald(KEYS, elastic_magnitude_mm=2, elastic_spacing_mm=8).set_random_state(seed)
    label = out(data)["label"]
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) <= set(data["label"].unique().tolist())


def test_one_seed_gives_one_sample():
    data = pair()
    move = RandSpatiald(KEYS)
    first = move.set_random_state(7)(data)["image"]
    move(data)
    again = move.set_random_state(7)(data)["image"]
    assert torch.equal(first.as_tensor(), again.as_tensor())


def test_size_is_cropped_and_padded_in_the_same_step():
    out = RandSpatiald(KEYS, spatial_size=(24, 16, -1))(pair())
    assert out["image"].shape == out["label"].shape == (1, 24, 16, 16)


def test_without_a_draw_a_pad_copies_every_voxel():
    data = pair()
    out = RandSpatiald(KEYS, prob=0, spatial_size=(24, 28, 20))(data)["image"]
    assert torch.equal(out[:, 2:22, 2:26, 2:18].as_tensor(), data["image"].as_tensor())
    assert out.sum() == pytest.approx(float(data["image"].sum()), rel=1e-4)


def test_keys_on_different_grids_are_refused():
    data = pair()
    data["label"] = data["label"][:, 1:]
    with pytest.raises(GridMismatchError, match="'label' has spatial shape"):
        RandSpatiald(KEYS)(data)


def test_a_deformation_that_could_fold_is_refused():
    with pytest.raises(ConfigError, match="could fold"):
        RandSpatiald(KEYS, elastic_magnitude_mm=9, elastic_spacing_mm=16)(pair())


def test_mirror_without_anatomy_is_refused():
    with pytest.raises(PolicyError, match="body_part"):
        RandSpatiald(KEYS, flip_axes=["left-right"])
