import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, GridMismatchError, InputError, find_preset, suv_factor
from medvol.core.modality import _PRESETS
from medvol.transforms import (
    ChannelNormaliser,
    NormaliseChannelsd,
    NormalisedDifferenced,
    NormaliseIntensityd,
)
from medvol.transforms.clahe import equalise


def head(shape=(24, 28, 20), seed=0):
    """A bright ball in air: tissue of 300 +- 40, air of 0 to 10."""
    random = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    ball = (x**2).sum(0) < 0.6
    values = np.where(ball, random.normal(300, 40, shape), random.uniform(0, 10, shape))
    return torch.from_numpy(values.astype("f4"))[None], torch.from_numpy(ball)


@pytest.mark.parametrize("name", _PRESETS)
def test_every_preset_gives_finite_float32_and_keeps_the_grid(name):
    shape = (40, 32) if find_preset(name).clahe else (24, 28, 20)
    image = MetaTensor(head(shape)[0], torch.diag(torch.tensor([1.0, 2, 3, 1])))
    out = NormaliseIntensityd("image", name)({"image": image})["image"]
    assert out.dtype == torch.float32
    assert out.shape == image.shape
    assert torch.isfinite(out).all()
    assert torch.equal(out.affine, image.affine)
    if find_preset(name).method != "zscore":
        assert out.min() >= 0
        assert out.max() <= 1


@pytest.mark.parametrize("name", _PRESETS)
def test_an_image_of_one_value_stays_finite(name):
    out = NormaliseIntensityd("image", name)({"image": torch.full((1, 16, 16), 5.0)})["image"]
    assert torch.isfinite(out).all()


def test_window_maps_its_ends_to_zero_and_one_and_clips():
    hu = torch.tensor([-2000.0, -1350.0, -600.0, 150.0, 3000.0]).reshape(1, 5, 1)
    out = NormaliseIntensityd("image", "ct_lung")({"image": hu})["image"]
    assert out.flatten().tolist() == [0, 0, 0.5, 1, 1]


def test_zscore_is_that_of_the_body():
    image, ball = head()
    out = NormaliseIntensityd("image", "mr_zscore")({"image": image})["image"][0]
    assert float(out[ball].mean()) == pytest.approx(0, abs=1e-3)
    assert float(out[ball].std()) == pytest.approx(1, abs=1e-3)
    everything = NormaliseIntensityd("image", "mr_zscore", inside_body=False)({"image": image})
    assert float(everything["image"].mean()) == pytest.approx(0, abs=1e-5)


def test_percentiles_may_be_replaced():
    ramp = torch.linspace(0, 1000, 1001).reshape(1, -1, 1)
    out = NormaliseIntensityd("image", "xr_percentile", low=10, high=60)({"image": ramp})["image"]
    assert float(out[0, 100]) == 0
    assert float(out[0, 350]) == pytest.approx(0.5, abs=1e-5)
    assert float(out[0, 600]) == 1


def test_suv_uses_the_factor_of_the_image():
    # 70 kg, 370 MBq, one half-life: 70000 g / 185 MBq.
    factor = suv_factor(70, 370e6, 6586.2, 6586.2)
    assert factor == pytest.approx(70_000 / 185e6)
    image = MetaTensor(torch.full((1, 2, 2, 2), 10 / factor), meta={"suv_factor": factor})
    out = NormaliseIntensityd("image", "pet_suv")({"image": image})["image"]
    assert float(out.mean()) == pytest.approx(10 / 20)
    with pytest.raises(ConfigError, match="positive"):
        suv_factor(0, 370e6, 6586.2, 0)


def test_n4_flattens_a_smooth_bias():
    image, ball = head((32, 32, 24))
    slope = torch.linspace(-0.5, 0.5, 32).exp().reshape(1, 32, 1, 1)
    plain = NormaliseIntensityd("image", "mr_zscore")({"image": image * slope})["image"][0]
    fixed = NormaliseIntensityd("image", "mr_n4")({"image": image * slope})["image"][0]

    def tilt(out):
        place = torch.arange(32.0).reshape(32, 1, 1).expand(out.shape)[ball]
        return abs(float(torch.corrcoef(torch.stack([place, out[ball]]))[0, 1]))

    assert tilt(plain) > 0.7
    assert tilt(fixed) < 0.2


def test_unknown_preset_and_empty_range_are_rejected():
    with pytest.raises(ConfigError, match="known: colour"):
        NormaliseIntensityd("image", "ct_knee")
    with pytest.raises(ConfigError, match="not a range"):
        NormaliseIntensityd("image", "ct_lung", high=-1350)


def test_equalising_spreads_a_narrow_histogram_but_not_beyond_the_limit():
    random = np.random.default_rng(0)
    dull = np.clip(random.normal(0.5, 0.02, (128, 96)), 0, 1)
    bright = equalise(dull, clip_limit=4.0)
    assert bright.std() > 1.5 * dull.std()
    assert bright.std() < 4.5 * dull.std()
    order = np.argsort(dull[:8, :6].ravel())
    assert (np.diff(equalise(dull, tiles=1)[:8, :6].ravel()[order]) >= -1e-6).all()


def test_equalising_a_flat_histogram_changes_nothing():
    levels = np.tile(np.arange(256) / 255, (64, 1))
    assert np.abs(equalise(levels, tiles=1) - levels).max() < 0.01
    with pytest.raises(InputError, match="2D"):
        equalise(np.zeros((2, 3, 4)))


def bands(seed, channels=4):
    """Correlated channels on very different scales, like satellite bands."""
    random = np.random.default_rng(seed)
    base = random.normal(size=(1, 20, 30))
    scale = 10.0 ** random.uniform(-3, 4, (channels, 1, 1))
    return (base + random.normal(0, 0.5, (channels, 20, 30))) * scale + 7 * scale


@given(st.integers(0, 200), st.integers(1, 13))
def test_zscore_gives_mean_0_and_deviation_1_whatever_the_range(seed, channels):
    images = [bands(seed + i, channels) for i in range(2)]
    fitted = ChannelNormaliser.fit(images)
    out = torch.cat([fitted.transform(torch.from_numpy(i)).flatten(1) for i in images], 1)
    assert torch.allclose(out.mean(1), torch.zeros(channels), atol=1e-4)
    assert torch.allclose(out.std(1, correction=0), torch.ones(channels), atol=1e-4)


@given(st.integers(0, 200))
def test_zscore_leaves_correlations_between_channels_unchanged(seed):
    image = bands(seed)
    out = ChannelNormaliser.fit([image]).transform(torch.from_numpy(image)).numpy()
    before, after = (np.corrcoef(v.reshape(4, -1)) for v in (image, out))
    assert np.allclose(before, after, atol=1e-4)


@given(st.integers(0, 200))
def test_inverse_returns_the_raw_values_that_were_not_clipped(seed):
    image = torch.from_numpy(bands(seed))
    z = ChannelNormaliser.fit([image])
    assert torch.allclose(z.inverse(z.transform(image)).double(), image, rtol=1e-4, atol=1e-3)
    clip = ChannelNormaliser.fit([image], "percentile")
    out = clip.transform(image)
    kept = (out > 0) & (out < 1)
    assert out.min() == 0
    assert out.max() == 1
    assert float(kept.double().mean()) == pytest.approx(0.96, abs=0.01)
    back = clip.inverse(out).double()
    assert torch.allclose(back[kept], image[kept], rtol=1e-4, atol=1e-3)


def test_fitted_numbers_travel_through_a_config():
    image = torch.from_numpy(bands(3))
    fitted = ChannelNormaliser.fit([image], "percentile")
    out = NormaliseChannelsd("image", **fitted.as_dict())({"image": MetaTensor(image)})["image"]
    assert torch.equal(out.as_tensor(), fitted.transform(image))


def test_channel_faults_are_rejected():
    with pytest.raises(InputError, match="no training image"):
        ChannelNormaliser.fit([])
    with pytest.raises(InputError, match=r"channels \[1\]"):
        ChannelNormaliser.fit([np.stack([np.arange(9.0), np.ones(9)])])
    fitted = ChannelNormaliser.fit([bands(0)])
    with pytest.raises(GridMismatchError, match="3 channels"):
        fitted.transform(torch.zeros(3, 4, 4))
    with pytest.raises(ConfigError, match="positive scale"):
        ChannelNormaliser("zscore", (0.0,), (0.0,))


def test_normalised_difference_is_that_of_raw_values():
    image = torch.tensor([[[0.1, 0.0]], [[0.5, 0.0]]])
    out = NormalisedDifferenced("image", 1, 0)({"image": image})["image"]
    assert out.shape == (3, 1, 2)
    assert out[2].flatten().tolist() == pytest.approx([0.4 / 0.6, 0.0])
    with pytest.raises(InputError, match="raw"):
        NormalisedDifferenced("image", 1, 0)({"image": image - 1})
