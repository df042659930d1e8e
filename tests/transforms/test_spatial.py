import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, GridMismatchError, PolicyError
from medvol.transforms import RandSpatialBatchd, RandSpatiald, measured_folding
from medvol.transforms.grid import displacement
from medvol.transforms.spatial import recorded_warp

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


TURN = np.array([[0.8, 0.6, 0, 5], [-0.6, 0.8, 0, 7], [0, 0, 1, 3], [0, 0, 0, 1]])
AFFINES = {
    "anisotropic": np.diag([0.7, 1.5, 5, 1.0]),
    "oblique": TURN @ np.diag([-0.7, 1.5, 5, 1.0]),
    "tilted gantry": np.array([[0.8, 0, 0, 1], [0, 0.8, 2, 1], [0, 0, 5, 1], [0, 0, 0, 1.0]]),
}


def world_map(before, after):
    """Where the move sends patient space: output index to input index, seen in millimetres."""
    matrix = np.linalg.solve(before.affine.numpy(), after.affine.numpy())
    frame = before.affine.numpy()
    return frame @ matrix @ np.linalg.inv(frame)


@pytest.mark.parametrize("name", AFFINES)
def test_a_rotation_is_rigid_in_millimetres_on_any_grid(name):
    data = pair(affine=AFFINES[name])
    turn = RandSpatiald(KEYS, rotate_range=0.3, scale_range=0, elastic=False)
    linear = world_map(data["image"], turn.set_random_state(1)(data)["image"])[:3, :3]
    assert np.abs(linear @ linear.T - np.eye(3)).max() < 1e-9
    assert np.linalg.det(linear) == pytest.approx(1)
    assert np.abs(linear - np.eye(3)).max() > 0.05


def test_a_plane_of_a_volume_turns_within_itself():
    sagittal = np.array([[0, 0, 2, 0], [0.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1.0]])
    data = pair((30, 20), affine=sagittal)
    turn = RandSpatiald(KEYS, rotate_range=0.3, scale_range=0, elastic=False)
    out = turn.set_random_state(1)(data)["image"]
    linear = world_map(data["image"], out)[:3, :3]
    assert np.abs(linear @ linear.T - np.eye(3)).max() < 1e-9
    assert np.allclose(linear[0], [1, 0, 0], atol=1e-9)


def test_shift_and_scale_are_what_they_say():
    data = pair(affine=AFFINES["anisotropic"])
    shift = RandSpatiald(KEYS, rotate_range=0, scale_range=0, translate_range_mm=4, elastic=False)
    for seed in range(20):
        moved = world_map(data["image"], shift.set_random_state(seed)(data)["image"])
        assert np.abs(moved[:3, 3]).max() <= 4
    scale = RandSpatiald(KEYS, rotate_range=0, scale_range=0.2, elastic=False)
    factors = [
        1 / world_map(data["image"], scale.set_random_state(s)(data)["image"])[0, 0]
        for s in range(60)
    ]
    assert 0.8 <= min(factors) < 0.85
    assert 1.15 < max(factors) <= 1.2


@pytest.mark.parametrize("name", ["anisotropic", "oblique"])
def test_displacement_stays_under_its_bound_in_millimetres(name):
    data = pair(affine=AFFINES[name])
    bend = RandSpatiald(
        KEYS, rotate_range=0, scale_range=0, elastic_magnitude_mm=(3, 3), elastic_spacing_mm=9
    )
    out = bend.set_random_state(0)(data)["image"]
    warp = recorded_warp(out.applied_operations[-1])
    spacing = np.linalg.norm(AFFINES[name][:3, :3], axis=0)
    moved_mm = np.abs(displacement(warp).numpy() * spacing)
    assert 1 < moved_mm.max() <= 3
    assert measured_folding(out) == 0


STORAGE = {"RAS": np.eye(4), "LPS": np.diag([-1, -1, 1, 1.0]), "SLP": None}
STORAGE["SLP"] = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("name", STORAGE)
def test_a_mirror_is_exact_and_along_the_patients_axis(name):
    data = pair(affine=STORAGE[name])
    flip = RandSpatiald(
        KEYS, rotate_range=0, scale_range=0, elastic=False, flip_axes=["left-right"],
        flip_prob=1, body_part="brain",
    )  # fmt: skip
    out = flip(data)
    axis = 2 if name == "SLP" else 1
    for key in KEYS:
        assert torch.equal(out[key].as_tensor(), data[key].as_tensor().flip(axis))
    back = flip.inverse(out)
    assert all(torch.equal(back[key].as_tensor(), data[key].as_tensor()) for key in KEYS)


def test_a_mirror_swaps_the_labels_of_the_two_sides():
    data = pair()
    flip = RandSpatiald(
        KEYS, rotate_range=0, scale_range=0, elastic=False, flip_axes=["left-right"],
        flip_prob=1, body_part="brain", labels={1: "left ear", 2: "right ear", 3: "nose"},
        swap_labels=[(1, 2)],
    )  # fmt: skip
    out = flip(data)
    want = torch.tensor([0, 2, 1, 3], dtype=torch.uint8)[data["label"].long().as_tensor()]
    assert torch.equal(out["label"].as_tensor(), want.flip(1))
    assert torch.equal(flip.inverse(out)["label"].as_tensor(), data["label"].as_tensor())


def test_an_image_tilted_beyond_the_anatomy_is_not_mirrored():
    tilted = np.array([[0.8, 0.6, 0, 0], [-0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    data = pair(affine=tilted)
    flip = RandSpatiald(
        KEYS, rotate_range=0, scale_range=0, elastic=False, flip_axes=["left-right"],
        flip_prob=1, body_part="brain",
    )  # fmt: skip
    assert torch.equal(flip(data)["image"].as_tensor(), data["image"].as_tensor())


def test_a_lost_lesion_keeps_one_voxel():
    data = pair((24, 24, 24))
    data["label"] = torch.zeros_like(data["label"])
    data["label"][0, 12, 11, 13] = 7
    shrink = RandSpatiald(KEYS, rotate_range=0.2, scale_range=0.4, elastic_spacing_mm=20)
    for seed in range(15):
        assert (shrink.set_random_state(seed)(data)["label"] == 7).any()


def test_a_crop_can_be_centred_on_the_foreground():
    data = pair((40, 40, 40))
    data["label"] = torch.zeros_like(data["label"])
    data["label"][0, 35, 4, 20] = 1
    crop = RandSpatiald(
        KEYS, prob=0, spatial_size=(10, 10, 10), foreground_key="label", foreground_prob=1
    )
    assert crop(data)["label"].sum() == 1


def test_a_pad_can_take_the_images_smallest_value():
    data = pair()
    data["image"] = data["image"] - 1000
    out = RandSpatiald(KEYS, spatial_size=(40, 40, 40), padding_mode="min")(data)
    assert out["image"].min() >= data["image"].min() - 1e-3
    assert out["label"][:, 0, 0, 0] == 0


def test_missing_and_plain_keys():
    data = {"image": torch.rand(1, 12, 10, 8)}
    with pytest.raises(KeyError):
        RandSpatiald(KEYS)(data)
    out = RandSpatiald(KEYS, allow_missing_keys=True)(data)
    assert list(out) == ["image"]
    assert isinstance(out["image"], MetaTensor)


def test_a_batch_moves_every_item_by_its_own_draw():
    images = torch.rand(3, 1, 16, 14, 12)
    move = RandSpatialBatchd(KEYS, spatial_size=(12, 12, 12))
    batch = {"image": images, "label": (images > 0.5).to(torch.uint8)}
    out = move.set_random_state(4)(batch)
    assert out["image"].shape == out["label"].shape == (3, 1, 12, 12, 12)
    assert set(out["label"].unique().tolist()) <= {0, 1}
    assert not torch.equal(out["image"][0], out["image"][1])
    again = move.set_random_state(4)(batch)
    assert torch.equal(out["image"], again["image"])


def test_a_batch_of_one_equals_the_single_transform():
    data = pair((16, 14, 12))
    settings_ = {"elastic_magnitude_mm": 2, "elastic_spacing_mm": 8}
    one = RandSpatiald("image", **settings_).set_random_state(2)(data)["image"]
    batch = MetaTensor(data["image"][None].as_tensor(), data["image"].affine)
    many = RandSpatialBatchd("image", **settings_).set_random_state(2)({"image": batch})["image"]
    assert torch.allclose(one.as_tensor(), many[0], atol=1e-4)


def test_a_batch_is_padded_by_each_items_own_minimum():
    batch = torch.rand(2, 1, 12, 12, 12) + torch.tensor([5.0, 105.0]).reshape(2, 1, 1, 1, 1)
    move = RandSpatialBatchd("image", padding_mode="min", translate_range_mm=6.0, elastic=False)
    out = move.set_random_state(0)({"image": batch})["image"]
    assert torch.allclose(out.amin((1, 2, 3, 4)), batch.amin((1, 2, 3, 4)), atol=1e-2)


@pytest.mark.parametrize("options", [{"mode": "cubic"}, {"mode": "onehot"},
                                     {"foreground_key": "label"}])  # fmt: skip
def test_a_batch_refuses_what_belongs_to_the_single_transform(options):
    with pytest.raises(ConfigError, match="use RandSpatiald"):
        RandSpatialBatchd("image", **options)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_as_the_cpu():
    data = pair((40, 36, 30))
    on_gpu = {key: value.to("cuda") for key, value in data.items()}
    move = RandSpatiald(KEYS)
    cpu, gpu = move.set_random_state(3)(data), move.set_random_state(3)(on_gpu)
    assert gpu["image"].device.type == "cuda"
    assert torch.allclose(cpu["image"], gpu["image"].cpu(), atol=1e-3)
    assert (cpu["label"] != gpu["label"].cpu()).float().mean() < 1e-3


def test_a_small_structure_centres_as_many_crops_as_a_large_one():
    label = torch.zeros(1, 32, 32, 32)
    label[:, 4:20, 4:20, 4:20] = 1  # 4096 voxels
    label[:, 28, 28, 28] = 2
    label[:, 2, 30, 2] = 3  # never asked for
    crop = RandSpatiald(["label"], prob=0.0, spatial_size=(6, 6, 6), foreground_key="label",
                        foreground_prob=1.0, foreground_values=(1, 2))  # fmt: skip
    crop.set_random_state(0)
    seen = [int(crop({"label": label})["label"].max()) for _ in range(200)]
    # Binomial with n = 200, p = 1/2: five standard deviations are 35.
    assert 65 <= seen.count(2) <= 135
    assert 3 not in seen
