"""Predictions plane by plane against the whole volume's probabilities, by scipy and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms.compose import Compose
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from scipy.ndimage import map_coordinates

from medvol.core.errors import ConfigError, InputError, TooLargeError
from medvol.core.geometry import Geometry
from medvol.inferers import (
    Decision,
    Prediction,
    PredictionPipeline,
    SlidingWindowInferer,
    ToSourceGridd,
)
from medvol.inferers.grid_map import GridMap, Inverse
from medvol.networks import Ensemble


def mixer(channels: int = 4) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv3d(6, channels, 1)
    )


def smooth(size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    coarse = torch.randn(1, 1, *[max(2, n // 3) for n in size]) * 4
    return torch.nn.functional.interpolate(coarse, size, mode="trilinear")


def prepared(image: torch.Tensor, source: Geometry, inverse: Inverse | None = None) -> MetaTensor:
    """An image (1, C, X, Y, Z) as a bundle's preprocessing leaves it."""
    made = MetaTensor(image[0])
    if isinstance(image, MetaTensor):
        made.affine = image.affine.reshape(4, 4)
    made.meta["spatial_shape"] = np.asarray(source.shape)
    made.meta["original_affine"] = torch.from_numpy(source.affine)
    if inverse is not None:
        made.applied_operations = [{"class": "T", "extra_info": {"inverse": vars(inverse)}}]
    return made


def predicted(
    inferer: SlidingWindowInferer,
    image: torch.Tensor,
    net: object,
    source: Geometry,
    decision: Decision | None = None,
    inverse: Inverse | None = None,
    **wanted: bool,
) -> Prediction:
    pipeline = PredictionPipeline(inferer, decision or Decision(inferer.activation))
    return pipeline.predict(prepared(image, source, inverse), net, **wanted)


def by_scipy(
    probability: np.ndarray, network: Geometry, source: Geometry, decision: Decision
) -> np.ndarray:
    """Resample every class over the whole volume, then decide; the far outside is background."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in source.shape], indexing="ij"))
    step = np.linalg.inv(network.affine) @ source.affine
    at = np.einsum("ij,jxyz->ixyz", step[:3, :3], index) + step[:3, 3][:, None, None, None]
    last = np.array(network.shape)[:, None, None, None] - 1
    inside = ((at > -0.5) & (at < last + 0.5)).all(0)  # within the outer faces of its voxels
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
    shift=st.tuples(*[st.sampled_from([-3.0, -1.65, -0.25, 0.0, 0.35, 1.25])] * 3),
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
    decision, net = Decision("softmax", thresholds=thresholds), mixer()
    inferer = SlidingWindowInferer((6, 7, 5), 2, 0.5, "gaussian")
    with torch.no_grad():
        got = predicted(inferer, image, net, source, decision).labels
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
        got = predicted(inferer, data["image"][None], net, source).labels
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    assert agreement(got, back.argmax(0).numpy()) > 0.999


def test_the_same_grid_gives_exactly_the_arg_max():
    image = MetaTensor(smooth((17, 9, 22)), affine=torch.eye(4, dtype=torch.float64))
    inferer, net = SlidingWindowInferer((8, 8, 8), 3, 0.5, "gaussian"), mixer()
    with torch.no_grad():
        got = predicted(inferer, image, net, Geometry((17, 9, 22), np.eye(4))).labels
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_an_image_smaller_than_the_window_is_padded_as_in_whole_volume_mode():
    image = MetaTensor(smooth((5, 12, 4)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian", cval=-1.0)
    net = mixer()
    with torch.no_grad():
        got = predicted(inferer, image, net, Geometry((5, 12, 4), np.eye(4))).labels
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_a_single_channel_is_foreground_from_its_threshold_on():
    image = MetaTensor(smooth((9, 9, 9)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((6, 6, 6), 1, 0.5, activation="sigmoid")
    for threshold in (0.3, 0.7):
        decision = Decision("sigmoid", thresholds=(threshold,))
        got = predicted(
            inferer, image, lambda w: w, Geometry((9, 9, 9), np.eye(4)), decision
        ).labels
        want = (image[0, 0].sigmoid() >= threshold).as_tensor().numpy()
        np.testing.assert_array_equal(got, want)


def test_mirrors_are_averaged_before_the_decision():
    image = MetaTensor(smooth((12, 12, 12)), affine=torch.eye(4, dtype=torch.float64))
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, tta=[0, 2], returns="probabilities")
    net = mixer()
    with torch.no_grad():
        got = predicted(inferer, image, net, Geometry((12, 12, 12), np.eye(4))).labels
        want = inferer(image, net).argmax(1)[0].numpy()
    np.testing.assert_array_equal(got, want)


def test_what_does_not_fit_is_rejected():
    image = MetaTensor(smooth((8, 8, 8)), affine=torch.eye(4, dtype=torch.float64))
    inferer, grid = SlidingWindowInferer((8, 8, 8)), Geometry((8, 8, 8), np.eye(4))
    with pytest.raises(InputError, match="affine"):
        PredictionPipeline(inferer, Decision()).predict(image[0].as_tensor(), mixer())
    with pytest.raises(ConfigError, match="thresholds"):
        predicted(inferer, image, mixer(), grid, Decision("softmax", None, (0.5, 0.5)))
    with pytest.raises(ConfigError, match="sigmoid"):
        predicted(inferer, image, lambda w: w, grid)
    with pytest.raises(ConfigError, match="averages by softmax"):
        PredictionPipeline(inferer, Decision("sigmoid"))


def test_a_grid_far_outside_weighs_nothing():
    away = np.eye(4)
    away[0, 3] = 6.0
    found = GridMap.between(Geometry((8, 8, 8), np.eye(4)), Geometry((8, 8, 8), away))
    assert found is not None
    weights = found.weights(0)
    assert weights is not None
    assert weights.sum(1).tolist() == [1.0] * 2 + [0.0] * 6
    assert found.seen(0).tolist() == [True] * 2 + [False] * 6


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
        got = predicted(
            inferer, data["image"][None], net, source, inverse=Inverse(anti_alias=True)
        ).labels
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    assert agreement(got, back.argmax(0).numpy()) > 0.999


def test_outside_of_a_crop_is_background_and_inside_as_resampled():
    from monai.transforms.croppad.dictionary import CropForegroundd

    raw = MetaTensor(body()[0], affine=torch.diag(torch.tensor([2.0, 1, 1, 1.0])))
    pre = Compose(
        [CropForegroundd("image", "image"), Spacingd("image", (1.0, 1.0, 1.0), mode="bilinear")]
    )
    data = pre({"image": raw})
    inferer, source = (
        SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian"),
        Geometry((40, 36, 44), raw.affine.numpy()),
    )

    def net(window):  # foreground everywhere: whatever lies outside shows
        return torch.cat([window * 0 - 9, mixer()(window)], 1)

    with torch.no_grad():
        got = predicted(inferer, data["image"][None], net, source).labels
        data["pred"] = inferer(data["image"][None], net)[0].softmax(0)
    back = Invertd("pred", pre, "image", nearest_interp=False)(data)["pred"]
    box = (slice(10, 30), slice(5, 20), slice(12, 38))
    assert agreement(got[box], back.argmax(0).numpy()[box]) > 0.999
    assert got[box].all()
    got[box] = 0
    assert not got.any()


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
        got = predicted(inferer, image, net, Geometry((40, 36, 44), np.eye(4))).labels
    box = (slice(10, 30), slice(5, 20), slice(12, 38))
    np.testing.assert_array_equal(got[box], want[box])
    assert not np.delete(got, np.arange(10, 30), 0).any(), "outside of the crop"


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
    decision = Decision(activation, values, (0.5,) if values else None)
    grid = Geometry((40, 36, 44), np.eye(4))
    labels = predicted(inferer, image, net, grid, decision).labels
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
    assert not predicted(inferer, image, net, Geometry((20, 20, 20), np.eye(4))).labels.any()


decisions = st.sampled_from(
    [
        Decision("softmax"),
        Decision("softmax", (0, 3, 1, 9), (0.0, 0.5, 0.4, 0.6)),
        Decision("softmax", None, None, (1.0, 1.5, 0.7, 2.0)),
        Decision("sigmoid", (1, 2, 3, 4), (0.5,)),
        Decision("sigmoid", (2, 1, 3, 5), overlaps=True),
    ]
)


@settings(max_examples=60)
@given(
    size=st.tuples(*[st.integers(4, 17)] * 3),
    roi=st.tuples(*[st.integers(3, 9)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    batch=st.integers(1, 4),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 3.0])] * 3),
    shift=st.tuples(*[st.sampled_from([-2.0, 0.0, 0.35])] * 3),
    turn=st.sampled_from([0.0, 0.3]),
    decision=decisions,
    tta=st.sampled_from([None, [0], [1, 2]]),
    members=st.integers(1, 2),
    anti_alias=st.booleans(),
    background=st.sampled_from([None, 0.5]),
)
def test_plane_by_plane_equals_whole_and_nothing_asked_beside_changes_labels(
    size, roi, overlap, batch, spacing, shift, turn, decision, tta, members, anti_alias, background
):
    affine = np.diag([*spacing, 1.0])
    cos, sin = np.cos(turn), np.sin(turn)
    affine[:2, :2] = np.array([[cos, -sin], [sin, cos]]) @ affine[:2, :2]
    affine[:3, 3] = shift
    extent = np.maximum(1, np.round(np.array(size) / spacing))
    source = Geometry(tuple(int(v) for v in extent), affine)
    image = MetaTensor(smooth(size), affine=torch.eye(4, dtype=torch.float64))
    inverse = Inverse(anti_alias=anti_alias)
    nets = [mixer() for _ in range(members)]
    for index, net in enumerate(nets):
        torch.nn.init.normal_(net[2].bias, std=0.1 + index)
    net = Ensemble(nets, decision.activation) if members > 1 else nets[0]
    inferer = SlidingWindowInferer(
        roi, batch, overlap, "gaussian", tta=tta, activation=decision.activation,
        background=background, returns="probabilities",
    )  # fmt: skip
    plain = predicted(inferer, image, net, source, decision, inverse)
    full = predicted(inferer, image, net, source, decision, inverse,
                     probabilities=True, uncertainty=True)  # fmt: skip
    np.testing.assert_array_equal(full.labels, plain.labels)
    again = decision.labels(torch.from_numpy(full.probabilities).movedim(-1, 0)).numpy()
    np.testing.assert_array_equal(again, plain.labels)
    assert full.maps["epistemic"].min() >= 0
    with torch.no_grad():
        whole = inferer(image, net)[0].as_tensor()
    if inferer.blended(net) == "probabilities":
        whole = torch.special.logit(whole) if decision.activation == "sigmoid" else whole.log()
    if background is None:
        made = prepared(image, source, inverse)
        step = ToSourceGridd("pred", decision)
        other = np.asarray(step({"image": made, "pred": whole})["pred"][0])
        is_exact = inferer.blended(net) == "logits"
        assert agreement(other, plain.labels) >= (1.0 if is_exact else 0.99)


def test_a_failed_attempt_leaves_no_tensor_and_the_network_returns_home():
    import gc
    import weakref

    image = MetaTensor(smooth((12, 12, 12)), affine=torch.eye(4, dtype=torch.float64))
    source, net, batches, made = Geometry((12, 12, 12), np.eye(4)), mixer(), [], []

    def short_of_memory(window):
        assert not [ref for ref in made if ref() is not None], "held from the failed attempt"
        batches.append(len(window))
        out = net(window)
        if len(window) > 1:
            made.append(weakref.ref(out.untyped_storage()))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    gc.disable()
    try:
        inferer = SlidingWindowInferer((8, 8, 8), 4, 0.5)
        found = predicted(inferer, image, short_of_memory, source)
    finally:
        gc.enable()
    assert batches[:3] == [4, 2, 1]
    assert len(made) == 2
    assert found.fallback == "batch 1"
    np.testing.assert_array_equal(found.labels, predicted(inferer, image, net, source).labels)


def test_probabilities_in_a_mapped_file_are_the_same_and_leave_no_file(tmp_path):
    image = MetaTensor(smooth((20, 14, 9)), affine=torch.eye(4, dtype=torch.float64))
    source, net = Geometry((20, 14, 9), np.eye(4)), mixer()
    inferer = SlidingWindowInferer((8, 8, 8), 1, 0.5, "gaussian")  # no batch to halve first
    free = predicted(inferer, image, net, source, probabilities=True)
    pipeline = PredictionPipeline(inferer, Decision(), max_ram="100GB", scratch_dir=str(tmp_path))
    plan = pipeline.plan(source, source.shape, net, 1, probabilities=True)
    held = 4 * free.probabilities.size
    pipeline.max_ram = plan.ram_bytes - held // 2
    made = prepared(image, source)
    tight = pipeline.predict(made, net, probabilities=True)
    assert isinstance(tight.probabilities, np.memmap)
    np.testing.assert_array_equal(tight.probabilities, free.probabilities)
    assert list(tmp_path.iterdir()) == []
    pipeline.max_ram = 1000
    with pytest.raises(TooLargeError, match="20x14x9"):
        pipeline.predict(made, net)
    made.meta["filename_or_obj"] = "scan.nii"
    with pytest.raises(TooLargeError, match=r"^scan\.nii: an image of 20x14x9"):
        pipeline(list_data_collate([made]), net)


def test_slices_of_a_volume_are_what_a_2d_network_says_of_each():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 1)
    )
    image = MetaTensor(smooth((9, 11, 7)), affine=torch.eye(4, dtype=torch.float64))
    source = Geometry((9, 11, 7), np.eye(4))
    inferer = SlidingWindowInferer((16, 16), 5, 0.25, "gaussian")
    with torch.no_grad():
        pad = torch.nn.functional.pad(image.as_tensor(), [0, 0, 2, 3, 3, 4])
        want = torch.stack([net(pad[..., z]) for z in range(7)], -1)[0, :, 3:12, 2:13]
    found = predicted(inferer, image, net, source, probabilities=True)
    np.testing.assert_array_equal(found.labels, want.argmax(0).numpy())
    np.testing.assert_allclose(
        found.probabilities, want.softmax(0).movedim(0, -1).numpy(), atol=1e-5
    )


def test_a_2d_image_is_predicted_as_one_slice():
    image = MetaTensor(torch.randn(1, 9, 11), affine=torch.eye(4, dtype=torch.float64))
    image.meta |= {"spatial_shape": np.array([9, 11]), "original_affine": torch.eye(4)}
    net = torch.nn.Conv2d(1, 3, 3, padding=1)
    pipeline = PredictionPipeline(SlidingWindowInferer((16, 16), mode="gaussian"), Decision())
    found = pipeline.predict(image, net)
    assert found.labels.shape == (9, 11, 1)
    assert tuple(pipeline(list_data_collate([image]), net).shape) == (1, 1, 9, 11)


def test_slices_that_were_resampled_one_by_one_come_back_unmixed():
    image = MetaTensor(smooth((6, 6, 4)), affine=torch.diag(torch.tensor([1.0, 1, 3, 1])).double())
    source = Geometry((6, 6, 12), np.diag([1.0, 1, 1, 1]))
    inferer = SlidingWindowInferer((6, 6, 4))
    found = predicted(inferer, image, mixer(), source, inverse=Inverse(nearest_axis=2),
                      probabilities=True)  # fmt: skip
    for place, slice_ in enumerate([0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]):
        want = mixer()(image.as_tensor()).softmax(1)[0, ..., slice_].movedim(0, -1)
        np.testing.assert_allclose(
            found.probabilities[:, :, place], want.detach().numpy(), atol=1e-6
        )


def test_a_network_that_had_to_run_on_the_cpu_returns_home_even_after_a_failure():
    from medvol.inferers.pipeline import _placed

    home, cpu, moves = torch.device("cuda:0"), torch.device("cpu"), []

    class Moved:
        def to(self, device):
            moves.append(device)

    with _placed(Moved(), home, cpu):
        assert moves == [cpu]
    assert moves == [cpu, home]
    with pytest.raises(MemoryError), _placed(Moved(), home, cpu):
        raise MemoryError
    assert moves == [cpu, home, cpu, home]
    with _placed(Moved(), home, home):
        pass
    assert len(moves) == 4


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_made_by_indexing_keeps_each_images_grid(count):
    affine = np.diag([1.0, 1.2, 0.9, 1.0])
    source = Geometry((14, 13, 12), affine)
    image = prepared(MetaTensor(smooth((9, 10, 11)), affine=affine), source, Inverse())
    pipeline, net = PredictionPipeline(SlidingWindowInferer((8, 8, 8)), Decision()), mixer()
    collated = pipeline(list_data_collate([image] * count), net)
    indexed = pipeline(torch.cat([image[None]] * count), net)
    assert tuple(indexed.shape) == (count, 1, *source.shape)
    assert torch.equal(indexed.as_tensor(), collated.as_tensor())
    assert np.allclose(indexed[0].affine, affine)
