"""Laws of synthesis: what stays, what changes together, and what an acquisition destroys."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, LabelError
from medvol.transforms import RandSpatiald, RandSynthesised

SIDES = [(2, 41), (17, 53)]
#: Nothing but the mixture: no blur, bias, noise, gamma or clipping.
PLAIN = {
    "bias_std_range": (0, 0), "isotropic_prob": 1.0, "isotropic_mm": (0.1, 0.1),
    "point_spread": (0, 0), "noise_range": (0, 0), "percentiles": (0, 100), "gamma_std": 0.0,
    "dark_background_prob": 0.0,
}  # fmt: skip


def head(shape=(24, 20, 16), spacing=(1.0, 1.0, 1.0), dtype=torch.int16):
    """Left and right halves with a structure each, on a background."""
    label = torch.zeros(1, *shape, dtype=dtype)
    middle = shape[0] // 2
    label[:, 2:middle, 2:-2, 2:-2] = 2
    label[:, middle:-2, 2:-2, 2:-2] = 41
    label[:, 4:7, 5:9, 5:9] = 17
    label[:, -9:-5, 8:12, 6:10] = 53
    return MetaTensor(label, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def made(label, seed=0, **ranges):
    transform = RandSynthesised(**ranges)
    transform.set_random_state(seed=seed)
    return transform({"label": label})


@given(st.integers(0, 2**31 - 1), st.sampled_from([(24, 20, 16), (17, 9, 1), (31, 22)]),
       st.tuples(*[st.floats(0.4, 6)] * 3))  # fmt: skip
def test_image_is_finite_within_0_and_1_and_on_the_label_maps_grid(seed, shape, spacing):
    label = torch.from_numpy(np.random.RandomState(seed % 99).randint(0, 5, (1, *shape)))
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    out = made(MetaTensor(label, affine=affine), seed)
    image = out["image"]
    assert image.shape == label.shape
    assert image.dtype == torch.float32
    assert torch.equal(image.affine, affine.to(image.affine))
    assert torch.isfinite(image).all()
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


@given(st.integers(0, 2**31 - 1))
def test_labels_do_not_depend_on_what_is_drawn(seed):
    label = head()
    out = made(label, seed, removed_labels=[(0.5, [41])])
    assert out["label"] is label
    assert torch.equal(label, head())


@given(st.integers(0, 2**31 - 1))
def test_deformed_labels_do_not_depend_on_contrast(seed):
    def moved(**ranges):
        move = RandSpatiald("label", swap_labels=SIDES, flip_axes=["left-right"], body_part="brain")
        move.set_random_state(seed=seed)
        return made(move({"label": head()})["label"], seed + 1, **ranges)

    plain, other = moved(), moved(mean_range=(0.4, 0.5), slice_mm=(7, 8), isotropic_prob=0.0)
    assert torch.equal(plain["label"], other["label"])
    assert not torch.equal(plain["image"], other["image"])


@given(st.integers(0, 2**31 - 1))
def test_same_seed_gives_the_same_image_and_another_seed_another(seed):
    first = made(head(), seed)["image"]
    assert torch.equal(first, made(head(), seed)["image"])
    assert not torch.equal(first, made(head(), seed + 1)["image"])


def test_a_mirror_swaps_left_and_right_exactly():
    mirror = RandSpatiald(
        "label", swap_labels=SIDES, flip_axes=["left-right"], flip_prob=1.0, body_part="brain",
        rotate_range=0.0, scale_range=0.0, elastic=False,
    )  # fmt: skip
    label = head()
    moved = mirror({"label": label})["label"].as_tensor()
    # by hand: reverse x, then exchange the names
    expected = label.as_tensor().flip(1).numpy().copy()
    names = {2: 41, 41: 2, 17: 53, 53: 17, 0: 0}
    expected = np.vectorize(names.get)(expected)
    assert np.array_equal(moved.numpy(), expected)


def test_tied_sides_share_one_contrast_and_a_mirrored_map_gives_the_mirrored_image():
    ranges = {**PLAIN, "std_range": (0, 0), "tied_labels": SIDES}
    label = head()
    image = made(label, 4, **ranges)["image"].as_tensor()
    for left, right in SIDES:
        values = [image[label.as_tensor() == side].unique() for side in (left, right)]
        assert len(values[0]) == len(values[1]) == 1
        assert values[0] == values[1]
    swapped = torch.from_numpy(
        np.vectorize({2: 41, 41: 2, 17: 53, 53: 17, 0: 0}.get)(label.as_tensor().flip(1).numpy())
    )
    assert torch.equal(made(swapped, 4, **ranges)["image"], image.flip(1))


def test_untied_sides_differ():
    image = made(head(), 4, **PLAIN, std_range=(0, 0))["image"].as_tensor()
    label = head().as_tensor()
    assert image[label == 2][0] != image[label == 41][0]


def test_contrast_of_a_label_does_not_depend_on_which_labels_are_in_sight():
    def means(label):
        transform = RandSynthesised(tied_labels=[(3, 9)])
        transform.set_random_state(seed=7)
        return transform._contrast(int(label.max()) + 1)[0]

    few, many = means(torch.tensor([0, 3])), means(torch.tensor([0, 9]))
    assert np.array_equal(few, many[:4])
    assert many[3] == many[9]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("slice_mm", [3.0, 5.0])
@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_frequencies_that_the_slices_could_not_carry_are_attenuated(axis, slice_mm, spacing):
    # White texture: before the acquisition every frequency holds the same power.
    shape = (60, 60, 60)
    label = MetaTensor(torch.ones(1, *shape, dtype=torch.int16),
                       affine=torch.diag(torch.tensor([spacing] * 3 + [1.0])))  # fmt: skip
    ranges = {**PLAIN, "isotropic_prob": 0.0, "slice_mm": (slice_mm, slice_mm),
              "in_plane_mm": (spacing, spacing), "point_spread": (0.5, 0.5),
              "mean_range": (0.5, 0.5), "std_range": (0.1, 0.1)}  # fmt: skip
    seed = next(s for s in range(99) if drawn_axis(s, ranges, label) == axis)
    image = made(label, seed, **ranges)["image"].as_tensor()[0].numpy()
    power = np.abs(np.fft.rfft(image - image.mean(), axis=axis)) ** 2
    power = power.mean(axis=tuple({0, 1, 2} - {axis}))
    frequency = np.fft.rfftfreq(shape[axis], spacing)
    nyquist = 1 / (2 * slice_mm)
    below = power[(frequency > 0) & (frequency < nyquist / 2)].mean()
    beyond = power[frequency > nyquist]
    assert beyond.mean() < 0.1 * below
    just_beyond = power[(frequency > 1.2 * nyquist) & (frequency < 2 * nyquist)]
    assert just_beyond.mean() < 0.1 * below


def drawn_axis(seed, ranges, label):
    transform = RandSynthesised(**ranges)
    transform.set_random_state(seed=seed)
    drawn = []
    real = transform._voxel_mm
    transform._voxel_mm = lambda ndim: drawn.append(real(ndim)) or drawn[0]
    transform({"label": label})
    return int(np.argmax(drawn[0]))


def test_a_fine_acquisition_without_blur_changes_no_mean():
    label = head()
    image = made(label, 1, **PLAIN, std_range=(0, 0))["image"].as_tensor()
    assert all(len(image[label.as_tensor() == v].unique()) == 1 for v in (0, 2, 17, 41, 53))


def test_removed_labels_look_like_background_and_stay_in_the_label_map():
    out = made(head(), 3, **PLAIN, std_range=(0, 0), removed_labels=[(1.0, [17, 999])])
    image, label = out["image"].as_tensor(), out["label"].as_tensor()
    assert image[label == 17].unique() == image[label == 0].unique()
    assert (label == 17).any()
    kept = made(head(), 3, **PLAIN, std_range=(0, 0), removed_labels=[(0.0, [17])])["image"]
    assert kept.as_tensor()[label == 17][0] != kept.as_tensor()[label == 0][0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_every_number_type_of_a_label_map_gives_the_same_image(dtype):
    assert torch.equal(made(head(dtype=dtype))["image"], made(head())["image"])


@pytest.mark.parametrize("label", [torch.zeros(1, 8, 8, 8), torch.full((1, 8, 8, 8), 65535.0),
                                   torch.ones(1, 1, 1, 1)])  # fmt: skip
def test_one_label_or_none_gives_a_finite_image(label):
    image = made(label)["image"]
    assert torch.isfinite(image).all()
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


@pytest.mark.parametrize(("label", "words"), [
    (torch.zeros(2, 4, 4, 4), "one channel"), (torch.zeros(4, 4), "one channel"),
    (torch.full((1, 4, 4, 4), 0.5), "fractions"), (torch.full((1, 4, 4, 4), -1), "-1 to -1"),
    (torch.full((1, 4, 4, 4), 70000), "70000"),
])  # fmt: skip
def test_what_is_not_a_label_map_is_rejected(label, words):
    with pytest.raises(LabelError, match=words):
        made(label)


@pytest.mark.parametrize("ranges", [
    {"mean_range": (1, 0)}, {"noise_range": (-1, 0)}, {"slice_mm": (0, 3)}, {"keys": ("a", "b")},
    {"tied_labels": [(1, 2), (2, 3)]}, {"percentiles": (1, 2, 3)},
])  # fmt: skip
def test_impossible_ranges_are_rejected(ranges):
    with pytest.raises(ConfigError):
        RandSynthesised(**ranges)


def test_nothing_is_made_where_the_draw_says_no():
    assert "image" not in made(head(), prob=0.0)
