import pytest
import torch
from torch import nn

from medvol.core import ConfigError
from medvol.explain import GradCAM, make_explainer
from medvol.networks import Ensemble


def members(n=3):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(4, 2))
        for _ in range(n)
    ]  # fmt: skip


def test_map_of_an_ensemble_is_the_mean_of_its_members_under_one_name():
    network = Ensemble(members())
    x = torch.randn(2, 1, 12, 12)
    raw = make_explainer(network, "gradcam", "1").raw_maps(x, 1)
    assert list(raw) == ["1"]
    every = GradCAM(network, [f"networks.{i}.1" for i in range(3)]).raw_maps(x, 1)
    torch.testing.assert_close(raw["1"], torch.stack(list(every.values())).mean(0))
    assert float(raw["1"].std()) > 0


def test_one_members_layer_can_still_be_named():
    network = Ensemble(members())
    x = torch.randn(1, 1, 12, 12)
    found = make_explainer(network, "gradcam", "networks.2.1").raw(x, 0)
    torch.testing.assert_close(found, GradCAM(network, "networks.2.1").raw(x, 0))


def test_scorecam_asks_for_one_layer_of_an_ensemble():
    with pytest.raises(ConfigError, match="3 are named"):
        make_explainer(Ensemble(members()), "scorecam", "1")
