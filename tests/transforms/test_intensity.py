import math

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medvol.core import ConfigError, LabelError
from medvol.core.modality import _ROWS
from medvol.transforms import RandIntensityd
from medvol.transforms import intensity as fx


def context(spacing=(1.0, 1.0, 1.0), unit=1.0, seed=0):
    return fx.EffectContext(spacing, unit, np.random.RandomState(seed))


def blob(shape=(20, 24, 16)):
    axes = torch.meshgrid(*[torch.linspace(-2, 2, n) for n in shape], indexing="ij")
    return torch.exp(-sum(a**2 for a in axes))[None] * 100


def only(name, *row):
    off = dict.fromkeys(fx.EFFECTS)
    return {**off, name: row}


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.name)
def test_every_modality_names_effects_that_exist(row):
    assert row.effects
    RandIntensityd("image", modality=row.name)


@pytest.mark.parametrize("name", fx.EFFECTS)
@pytest.mark.parametrize("shape", [(20, 24, 16), (20, 24), (9, 7, 1)])
def test_effect_keeps_shape_type_and_finite_values_and_changes_something(name, shape):
    strength = {
        "low_resolution": 2.0,
        "gamma": 1.4,
        "brightness": 1.2,
        "contrast": 0.8,
        "blur": 1.0,
    }
    data = {"image": MetaTensor(blob(shape), torch.diag(torch.tensor([1.0, 2, 3, 1])))}
    value = strength.get(name, 0.3)
    vary = RandIntensityd("image", effects=only(name, 1, value, value)).set_random_state(3)
    out = vary(data)["image"]
    assert out.shape == data["image"].shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert not torch.equal(out, data["image"])
    assert torch.equal(out.affine, data["image"].affine)


@pytest.mark.parametrize("name", fx.EFFECTS)
def test_a_constant_image_stays_finite(name):
    out = fx.EFFECTS[name](torch.full((1, 8, 9, 7), 5.0), 0.9, context())
    assert torch.isfinite(out).all()


def test_one_seed_gives_one_image():
    data = {"image": blob()}
    vary = RandIntensityd("image", effects={"noise": (1, 0.1, 0.2)})
    first = vary.set_random_state(5)(data)["image"]
    vary(data)
    assert torch.equal(first, vary.set_random_state(5)(data)["image"])


def test_noise_has_the_stated_size_in_hounsfield_units_and_in_a_window():
    flat = torch.zeros(1, 40, 40, 40)
    raw = RandIntensityd("image", "CT", effects=only("noise", 1, 20, 20))({"image": flat})
    assert float(raw["image"].std()) == pytest.approx(20, rel=0.02)
    scaled = RandIntensityd("image", "CT", effects=only("noise", 1, 20, 20), window_hu=(-100, 300))(
        {"image": flat}
    )
    assert float(scaled["image"].std()) == pytest.approx(20 / 400, rel=0.02)


def test_blur_is_in_millimetres():
    # The second moment of a blurred impulse is sigma squared, in mm, along every axis.
    impulse = torch.zeros(1, 41, 41, 41)
    impulse[0, 20, 20, 20] = 1
    out = fx.blur(impulse, 3.0, context(spacing=(1.0, 2.0, 1.5)))[0]
    place = torch.arange(41) - 20.0
    for axis, spacing in enumerate((1.0, 2.0, 1.5)):
        others = [a for a in range(3) if a != axis]
        spread = (out.sum(others) * (place * spacing) ** 2).sum()
        assert math.sqrt(spread) == pytest.approx(3.0, rel=0.02)


def test_low_resolution_removes_what_the_coarse_axis_cannot_hold():
    line = torch.cos(torch.arange(64) * math.pi)  # the highest frequency
    out = fx.low_resolution(line[None, :, None].expand(1, 64, 2), 2.0, context((1.0, 1.0)))
    # sampled Gaussian of sigma 0.735: its response at the Nyquist frequency is 0.14
    assert out[:, 8:-8].abs().max() < 0.15


def test_ghosts_lie_an_nth_of_the_field_of_view_away():
    image = torch.zeros(1, 60, 2)
    image[:, 28:33] = 100
    out = fx.ghosting(image, 0.5, context((1.0, 1.0), seed=1))
    ghost = (out - image)[0, :, 0].abs()
    far = torch.cat([ghost[:20], ghost[41:]])
    assert far.max() > 1
    assert float(out.mean()) == pytest.approx(float(image.mean()), rel=1e-5)


def test_gibbs_overshoots_a_step_by_nine_percent():
    # Wilbraham-Gibbs: a truncated Fourier series overshoots a jump by 8.95% of it.
    step = torch.zeros(1, 1024, 2)
    step[:, 256:768] = 1
    out = fx.gibbs(step, 0.8, context((1.0, 1.0)))
    assert float(out.max()) - 1 == pytest.approx(0.0895, abs=0.01)


def test_gamma_keeps_mean_and_spread():
    out = fx.gamma(blob(), 0.7, context())
    assert float(out.mean()) == pytest.approx(float(blob().mean()), abs=1e-3)
    assert float(out.std()) == pytest.approx(float(blob().std()), rel=1e-3)


def test_bias_field_is_smooth_and_bounded():
    flat = torch.ones(1, 32, 32, 32)
    flat[0, 0, 0, 0] = 0
    field = fx.bias_field(flat, 0.4, context())
    assert field[flat > 0].log().abs().max() <= 0.4 + 1e-5
    assert field[0, 1:, 1:, 1:].log().diff(dim=0).abs().max() < 0.1


def test_labels_are_rejected():
    with pytest.raises(ConfigError, match="are labels"):
        RandIntensityd(["image", "label"])
    with pytest.raises(LabelError, match="holds integers"):
        RandIntensityd("classes", effects=only("noise", 1, 1, 1))(
            {"classes": torch.ones(1, 4, 4, dtype=torch.int16)}
        )


def test_unknown_and_malformed_effects_are_rejected():
    with pytest.raises(ConfigError, match="unknown"):
        RandIntensityd("image", effects={"sparkle": (1, 0, 1)})
    with pytest.raises(ConfigError, match="needs"):
        RandIntensityd("image", effects={"noise": (1, 2)})
    for name in ("gamma", "low_resolution"):
        with pytest.raises(ConfigError, match="above 0"):
            RandIntensityd("image", effects={name: (1, -1, 1)})
