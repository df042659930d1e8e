"""medvol's sliding window against MONAI's, and the laws both must obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer as MonaiInferer
from monai.networks.nets.unet import UNet

from medvol.core.errors import ConfigError, InputError
from medvol.inferers import SlidingWindowInferer, WindowGrid, importance_map, onednn_convolutions


def mixer(channels: int = 3, spatial_dims: int = 3) -> torch.nn.Module:
    """A small network whose answer depends on position inside the window and on neighbours."""
    torch.manual_seed(0)
    conv = torch.nn.Conv3d if spatial_dims == 3 else torch.nn.Conv2d
    return torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.Tanh(), conv(4, channels, 1))


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="instance").eval()


windows = st.fixed_dictionaries(
    {
        "roi_size": st.sampled_from([(8, 6, 4), (5, 9, 7), 6, (-1, 8, 4)]),
        "overlap": st.sampled_from([0.0, 0.25, 0.5, (0.1, 0.6, 0.75)]),
        "mode": st.sampled_from(["constant", "gaussian"]),
        "sw_batch_size": st.integers(1, 5),
        "padding_mode": st.sampled_from(["constant", "replicate"]),
        "cval": st.sampled_from([0.0, -3.0]),
    }
)


@settings(max_examples=40)
@given(
    options=windows,
    size=st.tuples(*[st.integers(3, 15)] * 3),
    batch=st.integers(1, 2),
)
def test_result_equals_monai_on_3d_images(options, size, batch):
    net, x = mixer(), torch.randn(batch, 1, *size)
    if options["padding_mode"] == "replicate":
        options["cval"] = 0.0  # MONAI itself refuses another value here
    with torch.no_grad():
        ours = SlidingWindowInferer(**options)(x, net)
        theirs = MonaiInferer(**options)(x, net)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@settings(max_examples=20)
@given(size=st.tuples(*[st.integers(3, 30)] * 2), overlap=st.sampled_from([0.0, 0.3, 0.5]))
def test_result_equals_monai_on_2d_images(size, overlap):
    net, x = mixer(spatial_dims=2), torch.randn(2, 1, *size)
    options = {"roi_size": (8, 10), "sw_batch_size": 3, "overlap": overlap, "mode": "gaussian"}
    with torch.no_grad():
        ours = SlidingWindowInferer(**options)(x, net)
        theirs = MonaiInferer(**options)(x, net)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_unet_gives_monais_probabilities_at_batch_1_and_2():
    net, x = unet(), torch.randn(1, 1, 40, 24, 32)
    with torch.no_grad():
        want = MonaiInferer((24, 24, 24), 1, 0.5, "gaussian")(x, net).softmax(1)
        for batch in (1, 2):
            got = SlidingWindowInferer((24, 24, 24), batch, 0.5, "gaussian")(x, net).softmax(1)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_network_that_returns_its_input_gives_back_the_image():
    x = torch.randn(1, 1, 21, 34, 13, dtype=torch.float64)
    out = SlidingWindowInferer((8, 8, 8), 3, 0.5, "gaussian")(x, lambda w: w)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_outputs_are_stitched_like_monai(kind):
    def net(w):
        return (w, torch.cat([w, -w], 1)) if kind == "tuple" else {"b": w * 2, "a": w}

    x = torch.randn(1, 1, 12, 13, 14)
    ours, theirs = (
        c((6, 6, 6), 2, 0.5, "gaussian")(x, net) for c in (SlidingWindowInferer, MonaiInferer)
    )
    assert type(ours) is type(theirs)
    keys = [0, 1] if kind == "tuple" else ["a", "b"]
    for key in keys:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-5)


def test_outputs_of_another_resolution_are_left_to_monai():
    def half(w):
        return torch.nn.functional.avg_pool3d(w, 2)

    x = torch.randn(1, 1, 16, 16, 16)
    ours, theirs = (c((8, 8, 8), 2, 0.5)(x, half) for c in (SlidingWindowInferer, MonaiInferer))
    torch.testing.assert_close(ours, theirs)


def test_monais_special_calls_keep_working():
    x = torch.randn(1, 1, 16, 12, 12)
    options = {"roi_size": (8, 8, 8), "sw_batch_size": 2, "overlap": 0.5}
    for extra in ({"buffer_steps": 1}, {"with_coord": True}):

        def net(w, *coords):
            return w * 3

        ours = SlidingWindowInferer(**options, **extra)(x, net)
        torch.testing.assert_close(ours, MonaiInferer(**options, **extra)(x, net))


def test_a_metatensor_keeps_its_affine():
    affine = np.array([[0, -2.0, 0, 7], [1.5, 0, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]])
    x = MetaTensor(torch.randn(1, 1, 10, 10, 10), affine=torch.as_tensor(affine)[None])
    out = SlidingWindowInferer((8, 8, 8), 2, 0.5)(x, mixer())
    assert isinstance(out, MetaTensor)
    np.testing.assert_array_equal(out.affine[0], affine)


def test_gradients_flow_as_in_monai():
    grads = []
    for c in (SlidingWindowInferer, MonaiInferer):
        net, x = mixer(), torch.ones(1, 1, 9, 9, 9)
        c((6, 6, 6), 1, 0.5, "gaussian")(x, net).square().sum().backward()
        grads.append(net[0].weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 1), (2, 1, 0), (1, 2, "same")])
def test_forced_convolutions_equal_the_default_ones(groups, stride, dilation, padding):
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(4, 6, 3, stride, padding, dilation, groups)
    x = torch.randn(1, 4, 9, 10, 11)
    with torch.no_grad():
        want = conv(x)
        with onednn_convolutions():
            torch.testing.assert_close(conv(x), want, rtol=1e-5, atol=1e-5)


def test_forced_convolutions_are_really_forced():
    seen = []
    conv, x = torch.nn.Conv3d(2, 2, 3), torch.randn(1, 2, 6, 6, 6)
    with torch.no_grad(), torch.profiler.profile() as profile, onednn_convolutions():
        conv(x)
    seen = {event.name for event in profile.events() or []}
    assert "aten::mkldnn_convolution" in seen
    assert not any("slow_conv3d" in name for name in seen)


@settings(max_examples=40)
@given(
    size=st.tuples(*[st.integers(1, 25)] * 3),
    roi=st.tuples(*[st.integers(1, 12)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.8]),
)
def test_every_voxel_lies_under_a_window_and_constants_are_kept(size, roi, overlap):
    grid = WindowGrid.over(size, roi, overlap)
    weight = importance_map(grid.roi, "gaussian", 0.125, torch.device("cpu"), torch.float64)
    slow = torch.zeros(grid.padded, dtype=torch.float64)
    for box in grid.boxes():
        slow[box] += weight
    assert len(grid.boxes()) == len(grid)
    assert slow.min() > 0, "a voxel lies under no window"
    inferer = SlidingWindowInferer(roi, 3, overlap, "gaussian")
    seven = inferer(torch.full((1, 1, *size), 7.0, dtype=torch.float64), lambda window: window)
    torch.testing.assert_close(seven, torch.full((1, 1, *size), 7.0, dtype=torch.float64))


@settings(max_examples=60)
@given(
    size=st.tuples(*[st.integers(1, 60)] * 3),
    roi=st.tuples(*[st.integers(2, 16)] * 3),
    slack=st.sampled_from([0.0, 0.05, 0.2]),
)
def test_slack_saves_windows_and_keeps_every_voxel_covered(size, roi, slack):
    usual, fewer = WindowGrid.over(size, roi, 0.5), WindowGrid.over(size, roi, 0.5, slack)
    assert len(fewer) <= len(usual)
    if not slack:
        assert fewer == usual
    for length, edge, starts in zip(fewer.padded, fewer.roi, fewer.starts, strict=True):
        assert starts[0] == 0
        assert starts[-1] == length - edge
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= edge * (0.5 + slack) + 1).all()


def test_slack_saves_a_row_where_one_voxel_costs_it():
    assert WindowGrid.over((97,), 48, 0.5).starts == ((0, 24, 48, 49),)
    assert WindowGrid.over((97,), 48, 0.5, 0.05).starts == ((0, 24, 49),)


def test_wrong_arguments_are_rejected():
    with pytest.raises(ConfigError, match="slack"):
        SlidingWindowInferer((4, 4, 4), overlap=0.5, overlap_slack=0.6)(
            torch.zeros(1, 1, 8, 8, 8), mixer()
        )
    with pytest.raises(ConfigError, match="overlap"):
        SlidingWindowInferer((4, 4, 4), overlap=1.0)(torch.zeros(1, 1, 8, 8, 8), mixer())
    with pytest.raises(ConfigError, match="sw_batch_size"):
        SlidingWindowInferer((4, 4, 4), 0)
    with pytest.raises(InputError, match="axes"):
        SlidingWindowInferer((4, 4, 4, 4))(torch.zeros(1, 1, 8, 8, 8), mixer())
