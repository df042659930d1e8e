"""Labels slab by slab against the whole volume's probabilities, resampled by scipy and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from scipy.ndimage import map_coordinates

from medvol.core.errors import ConfigError, GridMismatchError, InputError
from medvol.core.geometry import Geometry
from medvol.inferers import Decision, GridMap, SlidingWindowInferer


def mixer(channels: int = 4) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(6, channels, 1)
    )


def smooth(size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    coarse = torch.randn(1, 1, *[max(2, n // 3) for n in size]) * 4
    return torch.nn.functional.interpolate(coarse, size, mode="trilinear")


def by_scipy(
    probability: np.ndarray, network: Geometry, source: Geometry, decision: Decision
) -> np.ndarray:
    """Resample every class over the whole volume, then decide; the far outside is background."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in source.shape], indexing="ij"))
    step = np.linalg.inv(network.affine) @ source.affine
    at = np.einsum("ij,jxyz->ixyz", step[:3, :3], index) + step[:3, 3][:, None, None, None]
    last = np.array(network.shape)[:, None, None, None] - 1
    inside = ((at > -1) & (at < last + 1)).all(0)
    moved = np.stack([map_coordinates(p, at, order=1, mode="nearest") for p in probability])
    labels = decision.labels(torch.from_numpy(moved)).numpy()
    return np.where(inside, labels, 0)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


axes = st.permutations([0, 1, 2])


@settings(max_examples=30)
@given(
    size=st.tuples(*[st.integers(5, 18)] * 3),
    order=axes,
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    spacing=st.tuples(*[st.sampled_from([0.4, 1.0, 1.7, 3.0])] * 3),
    # Fractions only: a grid that starts whole voxels off counts as cropped, see below.
    shift=st.tuples(*[st.sampled_from([-1.65, -0.25, 0.35, 1.25])] * 3),
    thresholds=st.sampled_from([None, (0.0, 0.5, 0.3, 0.4)]),
)
def test_labels_equal_whole_volume_interpolation(size, order, flips, spacing, shift, thresholds):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * (np.array(flips) * spacing)
    affine[:3, 3] = shift + np.where(np.array(flips)[np.argsort(order)] < 0, np.array(size) - 1, 0)
    extent = np.array(size)[list(order)]
    shape = tuple(int(v) for v in np.maximum(1, np.round(extent / spacing)))
    source, network = Geometry(shape, affine), Geometry(size, np.eye(4))
    image = MetaTensor(smooth(size), affine=torch.eye(4, dtype=torch.float64))
    decision, net = Decision("softmax", thresholds), mixer()
    inferer = SlidingWindowInferer((6, 7, 5), 2, 0.5, "gaussian")
    with torch.no_grad():
        got = inferer.label_map(image, net, source, decision)
        probability = inferer(image, net).softmax(1)[0].as_tensor().double().numpy()
    want = by_scipy(probability, network, source, decision)
    assert got.shape == shape
    assert agreement(got, want) > 0.998, "beyond ties"


def test_labels_equal_monais_inverse_of_orientation_and_spacing():
    affine = np.array([[0, 0, 1.5, 3], [-0.8, 0, 0, 20], [0, -0.8, 0, 9], [0, 0, 0, 1]])
    raw = MetaTensor(smooth((21, 26, 13))[0], affine=torch.as_tensor(affine))
    source = Geometry((21, 26, 13), affine)
    pre = Compose(
        [
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (1.0, 1.2, 0.9), mode="bilinear"),
        ]
    )
    data = pre({"image": raw})
    inferer, net = SlidingWindowInferer((12, 12, 12), 1, 0.5, "gaussian"), mixer()
    with torch.no_grad():
        got = inferer.label_map(data["image"][None], net, source)
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    assert agreement(got, back.argmax(0).numpy()) > 0.999


def test_the_same_grid_gives_exactly_the_arg_max():
    image = MetaTensor(smooth((17, 9, 22)), affine=torch.eye(4, dtype=torch.float64))
    inferer, net = SlidingWindowInferer((8, 8, 8), 3, 0.5, "gaussian"), mixer()
    with torch.no_grad():
        got = inferer.label_map(image, net, Geometry((17, 9, 22), np.eye(4)))
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_an_image_smaller_than_the_window_is_padded_as_in_whole_volume_mode():
    image = MetaTensor(smooth((5, 12, 4)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian", cval=-1.0)
    net = mixer()
    with torch.no_grad():
        got = inferer.label_map(image, net, Geometry((5, 12, 4), np.eye(4)))
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_a_single_channel_is_foreground_from_its_threshold_on():
    image = MetaTensor(smooth((9, 9, 9)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((6, 6, 6), 1, 0.5)
    for threshold in (0.3, 0.7):
        decision = Decision("sigmoid", (threshold,))
        got = inferer.label_map(image, lambda w: w, Geometry((9, 9, 9), np.eye(4)), decision)
        want = (image[0, 0].sigmoid() >= threshold).as_tensor().numpy()
        np.testing.assert_array_equal(got, want)


def test_mirrors_are_averaged_before_the_decision():
    image = MetaTensor(smooth((12, 12, 12)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, tta=[0, 2], returns="probabilities")
    net = mixer()
    with torch.no_grad():
        got = inferer.label_map(image, net, Geometry((12, 12, 12), np.eye(4)))
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_what_does_not_fit_is_refused():
    image = MetaTensor(smooth((8, 8, 8)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8))
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(GridMismatchError, match="obliquely"):
        inferer.label_map(image, mixer(), Geometry((8, 8, 8), turned))
    with pytest.raises(InputError, match="affine"):
        inferer.label_map(image.as_tensor(), mixer(), Geometry((8, 8, 8), np.eye(4)))
    with pytest.raises(ConfigError, match="thresholds"):
        inferer.label_map(
            image, mixer(), Geometry((8, 8, 8), np.eye(4)), Decision("softmax", (0.5, 0.5))
        )
    with pytest.raises(ConfigError, match="sigmoid"):
        inferer.label_map(image, lambda w: w, Geometry((8, 8, 8), np.eye(4)))


def test_a_grid_far_outside_weighs_nothing():
    away = np.eye(4)
    away[0, 3] = 6.0
    found = GridMap.between(Geometry((8, 8, 8), np.eye(4)), Geometry((8, 8, 8), away))
    assert found is not None
    weights = found.weights(0)
    assert weights is not None
    assert weights.sum(1).tolist() == [1.0] * 2 + [0.0] * 6


@pytest.mark.parametrize("spacing", [(1.0, 1.2, 0.9), (0.5, 0.5, 0.6), (3.0, 2.0, 2.5)])
def test_labels_equal_medvols_own_inverse(spacing):
    from medvol.transforms import Spacingd as OwnSpacingd

    affine = np.array([[0, 0, 1.5, 3], [-0.8, 0, 0, 20], [0, -0.8, 0, 9], [0, 0, 0, 1]])
    raw = MetaTensor(smooth((21, 26, 13))[0], affine=torch.as_tensor(affine))
    pre = Compose([Orientationd("image", "RAS", labels=None), OwnSpacingd("image", spacing)])
    data = pre({"image": raw})
    inferer, net = SlidingWindowInferer((12, 12, 12), 1, 0.5, "gaussian"), mixer()
    source = Geometry((21, 26, 13), affine)
    with torch.no_grad():
        got = inferer.label_map(data["image"][None], net, source, anti_alias=True)
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    assert agreement(got, back.argmax(0).numpy()) > 0.999


def test_a_crop_is_undone_as_by_padding_with_nothing():
    from monai.transforms.croppad.dictionary import CropForegroundd

    raw = MetaTensor(body()[0], affine=torch.diag(torch.tensor([2.0, 1, 1, 1.0])))
    pre = Compose(
        [CropForegroundd("image", "image"), Spacingd("image", (1.0, 1.0, 1.0), mode="bilinear")]
    )
    data = pre({"image": raw})
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian")
    net = mixer()
    with torch.no_grad():
        got = inferer.label_map(
            data["image"][None], net, Geometry((40, 36, 44), raw.affine.numpy())
        )
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    inside = back.sum(0) > 0.99
    assert inside.any()
    assert agreement(got[inside], back.argmax(0).numpy()[inside]) > 0.999
    far = np.ones_like(got, dtype=bool)
    far[9:31, 4:21, 11:39] = False
    assert not got[far].any()


def body(size=(40, 36, 44)) -> torch.Tensor:
    """A smooth image inside a box, 0 outside."""
    image = torch.zeros(1, 1, *size)
    image[0, 0, 10:30, 5:20, 12:38] = smooth((20, 15, 26))[0, 0].abs() + 0.1
    return image


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_declared_background_is_not_predicted_and_comes_out_as_background(activation):
    calls = []

    def net(window):
        calls.append(len(window))
        return torch.cat([-window + 0.5, window * 3 - 0.5], 1)

    image = body()
    options = {"roi_size": (8, 8, 8), "sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian"}
    whole = SlidingWindowInferer(**options, activation=activation)(image, net)
    every, calls[:] = len(calls), []
    some = SlidingWindowInferer(**options, activation=activation, background=0.0)(image, net)
    assert len(calls) < 0.4 * every
    inside = image > 0
    torch.testing.assert_close(
        some[:, :1][inside], whole[:, :1][inside], rtol=0, atol=1e-4
    )  # this network looks at single voxels, so that cropping cannot change it
    far = torch.nn.functional.max_pool3d(image, 19, 1, 9) == 0
    assert (some.softmax(1) if activation == "softmax" else some.sigmoid())[:, 1:][far].max() < 1e-6


def test_declared_background_gives_the_same_labels_slab_by_slab():
    image = MetaTensor(body(), affine=torch.eye(4, dtype=torch.float64))
    inferer, net = SlidingWindowInferer((8, 8, 8), 2, 0.5, "gaussian", background=0.0), mixer()
    with torch.no_grad():
        want = inferer(image, net).argmax(1)[0].numpy()
        got = inferer.label_map(image, net, Geometry((40, 36, 44), np.eye(4)))
    box = (slice(10, 30), slice(5, 20), slice(12, 38))
    np.testing.assert_array_equal(got[box], want[box])
    assert agreement(got, want) > 0.99  # one voxel beside the crop repeats its edge


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mirrors_do_not_fill_the_far_outside_with_a_structure(activation):
    image = MetaTensor(body(), affine=torch.eye(4, dtype=torch.float64))
    far = torch.nn.functional.max_pool3d(body(), 19, 1, 9)[0, 0] == 0

    def net(window):  # two structures, or background and one
        return torch.cat([window * 3 - 0.5, -window - 1], 1)

    inferer = SlidingWindowInferer(
        (8, 8, 8), 2, 0.5, "gaussian", tta=[0], activation=activation, background=0.0
    )
    values = (1, 2) if activation == "sigmoid" else None
    decision = Decision(activation, (0.5,) if values else None, values)
    labels = inferer.label_map(image, net, Geometry((40, 36, 44), np.eye(4)), decision)
    blended = inferer(image, net)
    assert not labels[far.numpy()].any()
    structures = blended.sigmoid() if activation == "sigmoid" else blended.softmax(1)[:, 1:]
    assert structures[0, :, far].max() < 1e-6


def test_an_image_of_nothing_but_background_is_background():
    image = MetaTensor(torch.zeros(1, 1, 20, 20, 20), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8), 2, background=0.0)

    def net(window):
        return torch.cat([torch.ones_like(window), torch.zeros_like(window)], 1)

    assert not inferer(image, net).argmax(1).any()
    assert not inferer.label_map(image, net, Geometry((20, 20, 20), np.eye(4))).any()


def test_blending_in_a_mapped_file_changes_nothing(tmp_path):
    image, net = smooth((20, 14, 9)), mixer()
    options = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    with torch.no_grad():
        want = SlidingWindowInferer(**options)(image, net)
        got = SlidingWindowInferer(**options, scratch_dir=str(tmp_path))(image, net)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []


def test_channels_may_stand_for_any_label():
    decision = Decision(None, (0.5,), (4, 7))
    probability = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.3]])
    assert decision.labels(probability).tolist() == [4, 7, 0]
