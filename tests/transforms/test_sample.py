import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from medvol.core import ConfigError
from medvol.transforms.grid import (
    FOLD_FREE_SHARE,
    Warp,
    control_shape,
    displacement,
    find_output,
    folding_share,
    inverse_grid,
    sampling_grid,
)
from medvol.transforms.kernel import is_available
from medvol.transforms.sample import Resampler, check_mode, restore_lost, sample

KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(not is_available(), reason="numba"))]
SHAPES = [((18, 22, 15), (16, 24, 13)), ((30, 26), (28, 31)), ((7, 9, 1), (8, 8, 2))]


def some_warp(seed, in_shape, out_shape, elastic=True, share=0.9):
    random, n = np.random.default_rng(seed), len(in_shape)
    linear = np.eye(n) + random.uniform(-0.25, 0.25, (n, n))
    centre_in, centre_out = (np.asarray(s) / 2 - 0.5 for s in (in_shape, out_shape))
    matrix = np.eye(n + 1)
    matrix[:n, :n] = linear
    matrix[:n, n] = centre_in - linear @ centre_out + random.uniform(-1, 1, n)
    if not elastic:
        return Warp(matrix, in_shape, out_shape)
    step = tuple(random.uniform(4, 7, n))
    bound = share * FOLD_FREE_SHARE[n] * np.asarray(step).reshape(-1, *[1] * n)
    control = random.uniform(-1, 1, (n, *control_shape(out_shape, step))) * bound
    return Warp(matrix, in_shape, out_shape, control, step)


def dense_places(warp):
    """Input index of every output voxel from the definition, spline summed tap by tap."""
    n = warp.ndim
    output = np.stack(np.meshgrid(*[np.arange(s) for s in warp.out_shape], indexing="ij"), -1)
    moved = output.astype(float)
    if warp.control is not None:
        counts = warp.control.shape[1:]
        weights = []
        for axis, (size, step, count) in enumerate(
            zip(warp.out_shape, warp.step, counts, strict=True)
        ):
            t = (output[..., axis] - (size - 1) / 2) / step + (count - 3) / 2 + 1
            away = np.abs(t[..., None] - np.arange(count))
            near = 2 / 3 - away**2 + away**3 / 2
            far = (2 - away) ** 3 / 6
            weights.append(np.where(away < 1, near, np.where(away < 2, far, 0)))
        letters = "uvw"[:n]
        terms = ",".join(f"...{c}" for c in letters)
        for axis in range(n):
            moved[..., axis] += np.einsum(f"{letters},{terms}->...", warp.control[axis], *weights)
    return moved @ warp.matrix[:n, :n].T + warp.matrix[:n, n]


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize(("in_shape", "out_shape"), SHAPES)
def test_grid_is_the_definition(in_shape, out_shape, elastic):
    warp = some_warp(1, in_shape, out_shape, elastic)
    sizes = torch.tensor(in_shape)
    got = ((sampling_grid(warp)[0].flip(-1) + 1) * sizes - 1) / 2
    assert np.abs(got.numpy() - dense_places(warp)).max() < 2e-4


@pytest.mark.parametrize("use_kernel", KERNELS)
@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0), ("cubic", 3)])
@pytest.mark.parametrize(
    ("padding", "scipy_mode"), [("zeros", "grid-constant"), ("border", "nearest")]
)
@pytest.mark.parametrize("shapes", SHAPES[:2])
def test_values_agree_with_scipy(shapes, mode, order, padding, scipy_mode, use_kernel):
    # Coordinates in float32 are off by about 1e-5 voxels; values here differ by up to 6 a voxel.
    in_shape, out_shape = shapes
    volume = np.random.default_rng(0).normal(size=(2, *in_shape)).astype("f4")
    warp = some_warp(2, in_shape, out_shape)
    places = np.moveaxis(dense_places(warp), -1, 0)
    read = Resampler(warp, use_kernel=use_kernel)
    got = read(torch.from_numpy(volume), mode, padding).numpy()
    reference_mode = scipy_mode
    if mode == "cubic":  # the spline itself is mirrored; what lies outside is another matter
        reference_mode = "mirror"
        inside = np.all([(p > 0) & (p < s - 1) for p, s in zip(places, in_shape, strict=True)], 0)
    elif mode == "nearest":  # scipy breaks ties upwards, and float32 breaks them by chance
        inside = np.all([np.abs(p - np.floor(p) - 0.5) > 1e-3 for p in places], 0)
    else:
        inside = np.ones(out_shape, bool)
    assert inside.mean() > 0.3
    for channel in range(2):
        want = map_coordinates(volume[channel], places, order=order, mode=reference_mode)
        assert np.abs(got[channel] - want)[inside].max() < 2e-4


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_a_spline_that_overshoots_wraps_no_integer(dtype):
    limits = torch.iinfo(dtype)
    volume = torch.full((1, 16, 16), limits.min, dtype=dtype)
    volume[:, 8:] = limits.max
    matrix = np.eye(3)
    matrix[0, 2] = 0.5
    got = Resampler(Warp(matrix, (16, 16), (16, 16)))(volume, "cubic", "border")[0, :, 3]
    wanted = np.full(15, float(limits.min))
    wanted[8:] = limits.max
    wanted[7] = (limits.min + limits.max) / 2
    span = limits.max - limits.min
    assert np.abs(got.numpy()[:15] - wanted).max() < 0.15 * span


@pytest.mark.skipif(not is_available(), reason="numba is not installed")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("in_shape", "out_shape"), [*SHAPES, ((70, 80, 90), (72, 75, 80))])
def test_numba_and_torch_agree(in_shape, out_shape, threads):
    warp = some_warp(3, in_shape, out_shape)
    image = torch.rand(1, *in_shape)
    label = (image * 5).to(torch.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast, slow = Resampler(warp), Resampler(warp, use_kernel=False)
        for padding in ("zeros", "border", "min"):
            a, b = (read(image, "bilinear", padding) for read in (fast, slow))
            assert torch.allclose(a, b, atol=2e-4)
            a, b = (read(label, "nearest", padding) for read in (fast, slow))
            assert a.dtype == torch.uint8
            assert (a != b).double().mean() < 1e-3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_crops_and_mirrors_copy_voxels_exactly(signs):
    volume = torch.rand(1, 9, 8, 7)
    matrix = np.diag([*signs, 1.0])
    shape = (5, 6, 11)
    matrix[:3, 3] = [3 if s > 0 else 3 + n - 1 for s, n in zip(signs, shape, strict=True)]
    out = Resampler(Warp(matrix, (9, 8, 7), shape))(volume, "bilinear", "zeros")
    for x, y, z in np.ndindex(*shape):
        i, j, k = (int(matrix[a, a] * v + matrix[a, 3]) for a, v in enumerate((x, y, z)))
        inside = 0 <= i < 9 and 0 <= j < 8 and 0 <= k < 7
        assert out[0, x, y, z] == (volume[0, i, j, k] if inside else 0)


@given(st.integers(0, 10_000), st.sampled_from([2, 3]))
@settings(max_examples=30)
def test_a_field_within_the_bound_never_folds(seed, n):
    shape = (24, 20, 16)[:n]
    random = np.random.default_rng(seed)
    step = tuple(random.uniform(3, 8, n))
    bound = 0.999 * FOLD_FREE_SHARE[n] * np.asarray(step).reshape(-1, *[1] * n)
    # the extremes are the hardest: every control point at a corner of its cube
    control = random.choice([-1.0, 1.0], (n, *control_shape(shape, step))) * bound
    assert folding_share(Warp(np.eye(n + 1), shape, shape, control, step)) == 0


def test_folding_is_measured_where_it_happens():
    control = np.zeros((2, 9, 9))
    control[0, 4, :], control[0, 5, :] = 12.0, -12.0  # neighbours pass each other
    warp = Warp(np.eye(3), (41, 41), (41, 41), control, (8.0, 8.0))
    share = folding_share(warp)
    assert 0.02 < share < 0.5
    slope = np.gradient(displacement(warp)[..., 0].numpy(), axis=0)
    assert share == pytest.approx(float((1 + slope <= 0).mean()), abs=0.03)


@given(st.integers(0, 10_000), st.sampled_from([0, 1]))
@settings(max_examples=15)
def test_inverse_returns_to_within_a_tenth_of_a_voxel(seed, which):
    # What each input voxel's number reads after there and back is its own place.
    shape = SHAPES[which][0]
    warp = some_warp(seed, shape, tuple(2 * s for s in shape), share=0.6)
    places = np.stack(np.meshgrid(*[np.arange(s) for s in shape], indexing="ij"))
    there = Resampler(warp)(torch.from_numpy(places.astype("f4")), "bilinear", "border")
    grid = inverse_grid(warp)
    back = sample(there, grid, "bilinear", "border").numpy()
    seen = (grid[0].abs() < 0.9).all(-1).numpy()
    for axis in range(len(shape)):
        seen &= (places[axis] > 2) & (places[axis] < shape[axis] - 3)
    assert seen.any()
    assert np.abs(back - places)[:, seen].max() < 0.1


def test_onehot_keeps_classes_and_beats_nearest_on_a_smooth_border():
    x, y = np.mgrid[:40, :40]
    label = torch.from_numpy((3 * ((x - 20) ** 2 + (y - 20) ** 2 < 150)).astype("u1"))[None]
    big = np.diag([0.25, 0.25, 1.0])
    warp = Warp(big, (40, 40), (157, 157))
    fx, fy = np.mgrid[:157, :157] / 4
    truth = 3 * ((fx - 20) ** 2 + (fy - 20) ** 2 < 150)
    smooth, rough = (Resampler(warp)(label, m, "zeros")[0].numpy() for m in ("onehot", "nearest"))
    assert set(np.unique(smooth)) == {0, 3}
    assert (smooth != truth).sum() < (rough != truth).sum()


def test_a_one_voxel_class_survives_shrinking():
    label = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    label[0, 7, 11, 13] = 9
    warp = some_warp(5, (20, 20, 20), (10, 10, 10))
    warp = Warp(warp.matrix @ np.diag([2.0, 2, 2, 1]), (20,) * 3, (10,) * 3)
    out = Resampler(warp)(label, "nearest", "zeros")
    assert 9 not in out
    restored = restore_lost(label, out, warp)
    (place,) = np.argwhere(restored[0].numpy() == 9)
    came_from = warp.matrix[:3, :3] @ place + warp.matrix[:3, 3]
    assert np.abs(came_from - (7, 11, 13)).max() <= 1.5


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_an_input_voxel_is_found_in_the_output(seed):
    warp = some_warp(seed, (20, 18, 16), (40, 36, 32), share=0.6)
    found = find_output(warp, (9, 8, 7))
    if found is not None:
        back = dense_places(warp)[found]
        assert np.linalg.norm(back - (9, 8, 7)) < 2.0


def test_modes_without_meaning_are_rejected():
    with pytest.raises(ConfigError, match="choose from bilinear"):
        check_mode("lanczos", "zeros")
    with pytest.raises(ConfigError, match="choose from zeros"):
        check_mode("bilinear", "wrap")
    with pytest.raises(ConfigError, match="not reflection"):
        check_mode("cubic", "reflection")
