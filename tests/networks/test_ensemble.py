"""An ensemble in one network's place: mean probabilities, one state dict, one config node."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DynUNet

from medvol.core.errors import ConfigError, WeightsError
from medvol.networks import Ensemble, join_states, load_weights, with_weights

UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3,
        "channels": [4, 8], "strides": [2]}  # fmt: skip


def member(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


def activated(scores: torch.Tensor, activation: str) -> torch.Tensor:
    return scores.softmax(1) if activation == "softmax" else scores.sigmoid()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_activation_of_the_output_is_the_mean_of_the_members(activation, scale):
    nets, x = [member(s) for s in range(3)], scale * torch.randn(2, 1, 6, 6, 6)
    with torch.no_grad():
        want = torch.stack([activated(net(x), activation) for net in nets]).mean(0)
        got = Ensemble(nets, activation)(x)
        plain = Ensemble(nets, activation, returns="probabilities")(x)
    torch.testing.assert_close(activated(got, activation), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain, want, rtol=0, atol=1e-6)
    assert torch.isfinite(got).all()


def test_mean_of_certain_members_stays_finite():
    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x * 1e4, -x * 1e4], 1)

    for activation in ("softmax", "sigmoid"):
        got = Ensemble(Sure(), activation, count=2)(torch.ones(1, 1, 2, 2))
        assert torch.isfinite(got).all()
        assert float(got[0, 0].min()) > float(got[0, 1].max())


def test_half_precision_members_are_averaged_in_full_precision():
    net, x = member(0).half(), torch.randn(1, 1, 4, 4, 4).half()
    with torch.no_grad():
        got = Ensemble(net, "sigmoid", count=3)(x)
        want = net(x).float().sigmoid()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.sigmoid(), want, rtol=0, atol=1e-3)


def test_one_definition_repeated_takes_the_joined_weights_of_its_members(tmp_path):
    config = {"_target_": "medvol.networks.Ensemble", "networks": UNET, "count": 3}
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(ConfigParser({"n": UNET}).get_parsed_content("n").eval())
    torch.save(join_states([net.state_dict() for net in nets]), tmp_path / "model.pt")
    assert len(load_weights(tmp_path / "model.pt")) == 3 * len(nets[0].state_dict())
    bare = ConfigParser({"n": config}).get_parsed_content("n")
    ensemble = with_weights(bare, tmp_path / "model.pt").eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        want = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
        torch.testing.assert_close(ensemble(x).softmax(1), want, rtol=0, atol=1e-6)


def test_members_of_two_architectures_are_listed_in_a_config():
    other = {**UNET, "channels": [4, 8, 16], "strides": [2, 2]}
    config = {"_target_": "medvol.networks.Ensemble", "networks": [UNET, other]}
    ensemble = ConfigParser({"n": config}).get_parsed_content("n").eval()
    with torch.no_grad():
        assert ensemble(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_deeply_supervised_members_count_by_their_last_output():
    net = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], deep_supervision=True,
                  deep_supr_num=1)  # fmt: skip
    ensemble, x = Ensemble(net, count=2).eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        want = ensemble.networks[0](x).softmax(1)
        torch.testing.assert_close(ensemble(x).softmax(1), want, rtol=0, atol=1e-6)


def test_an_ensemble_of_none_is_rejected():
    with pytest.raises(ConfigError, match="at least one"):
        Ensemble([])


def test_a_count_beside_a_list_is_rejected():
    with pytest.raises(ConfigError, match="count 2"):
        Ensemble([member(0)], count=2)


def test_members_of_other_shapes_cannot_be_joined():
    with pytest.raises(WeightsError, match="member 1"):
        join_states([member(0).state_dict(), torch.nn.Conv3d(1, 2, 3).state_dict()])


@pytest.mark.parametrize(("built", "stored"), [(1, 3), (3, 1), (4, 2)])
@pytest.mark.parametrize("loader", ["with_weights", "load_state_dict"])
def test_an_ensemble_has_as_many_members_as_the_weights_it_is_given(
    built, stored, loader, tmp_path
):
    nets, x = [member(s) for s in range(stored)], torch.randn(1, 1, 6, 6, 6)
    state = join_states([net.state_dict() for net in nets])
    got = Ensemble(member(9), count=built)
    if loader == "with_weights":
        torch.save(state, tmp_path / "model.pt")
        got = with_weights(got, tmp_path / "model.pt")
    else:
        torch.nn.Sequential(got).load_state_dict({f"0.{k}": v for k, v in state.items()})
    assert len(got.networks) == stored
    torch.testing.assert_close(got(x), Ensemble(nets)(x))


def test_a_single_folds_weights_make_an_ensemble_of_one(tmp_path):
    net, x = member(3), torch.randn(1, 1, 6, 6, 6)
    torch.save(net.state_dict(), tmp_path / "fold.pt")
    got = with_weights(Ensemble(member(0), count=5), tmp_path / "fold.pt")
    torch.testing.assert_close(got(x).softmax(1), net(x).softmax(1))


def test_weights_of_another_architecture_are_rejected_by_name(tmp_path):
    torch.save(torch.nn.Conv3d(1, 2, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="do not fit Ensemble"):
        with_weights(Ensemble(member(0), count=2), tmp_path / "other.pt")


@pytest.mark.parametrize("averages", ["logits", "probabilities"])
@pytest.mark.parametrize("returns", ["logits", "probabilities"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_ensemble_compiles_to_torchscript(averages, returns, activation):
    member = torch.nn.Conv3d(1, 3, 1)
    net = Ensemble(member, activation, returns, count=2, averages=averages).eval()
    x = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(torch.jit.script(net)(x), net(x))


def test_training_starts_from_one_member_of_an_ensembles_weights_and_names_it(tmp_path, caplog):
    states = [member(n).state_dict() for n in range(3)]
    torch.save(join_states(states), tmp_path / "model.pt")
    with caplog.at_level("INFO"):
        network = with_weights(member(9), tmp_path / "model.pt", member=1)
    assert "holds 3 members; starting from member 1" in caplog.text
    assert not isinstance(network, Ensemble)
    for name, value in network.state_dict().items():
        assert torch.equal(value, states[1][name])
    with pytest.raises(WeightsError, match="holds 3 members, 0 to 2, not 3"):
        with_weights(member(9), tmp_path / "model.pt", member=3)
    torch.save(states[2], tmp_path / "one.pt")
    one = with_weights(member(9), tmp_path / "one.pt", member=0)
    assert torch.equal(next(iter(one.state_dict().values())), next(iter(states[2].values())))
