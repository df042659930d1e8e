import pytest
import torch
from torch import nn

from medvol.core import ConfigError
from medvol.uncertainty import ensemble, mc_dropout


def network(p=0.5, dims=2):
    torch.manual_seed(0)
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    drop = nn.Dropout2d if dims == 2 else nn.Dropout3d
    return nn.Sequential(conv(1, 8, 3, 1, 1), norm(8), nn.ReLU(), drop(p), conv(8, 3, 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_dropout_samples_differ_and_repeat_with_their_seed(dims):
    x = torch.randn(2, 1, *[6] * dims)
    first, again, other = (mc_dropout(network(dims=dims), x, samples=4, seed=s) for s in (1, 1, 2))
    assert first.shape == (4, 2, 3, *[6] * dims)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.sum(2), torch.ones_like(first[:, :, 0]))


def test_sampling_leaves_no_trace():
    net, x = network().train(), torch.randn(2, 1, 6, 6)
    net[1].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags, random = [m.training for m in net.modules()], torch.get_rng_state()
    mc_dropout(net, x)
    ensemble([net], x)
    assert flags == [m.training for m in net.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


def test_mean_of_many_dropout_samples_is_the_exact_average_over_masks():
    # One linear layer over two dropped inputs: four masks of equal weight.
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2, bias=False))
    nn.init.constant_(net[1].weight, 0)
    with torch.no_grad():
        net[1].weight[0] = torch.tensor([1.0, 2.0])
    masks = torch.tensor([[0.0, 0], [0, 2], [2, 0], [2, 2]])
    wanted = torch.stack([masks @ torch.tensor([1.0, 2.0]), torch.zeros(4)], 1).softmax(1).mean(0)
    found = mc_dropout(net, torch.ones(1, 2), samples=4000).mean(0)[0]
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("net", [nn.Conv2d(1, 2, 1), network(p=0.0)])
def test_network_without_dropout_is_refused(net):
    with pytest.raises(ConfigError, match="no dropout"):
        mc_dropout(net, torch.ones(1, 1, 4, 4))


def test_inferer_is_used_for_every_sample():
    calls = []

    def predict(x, net):
        calls.append(net.training)
        return net(x)

    mc_dropout(network(), torch.ones(1, 1, 4, 4), samples=3, predict=predict)
    assert len(calls) == 3


def test_ensemble_is_each_networks_own_prediction():
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    x = torch.randn(4, 3)
    found = ensemble(nets, x)
    for member, net in zip(found, nets, strict=True):
        torch.testing.assert_close(member, net(x).softmax(1).detach())
    with pytest.raises(ConfigError):
        ensemble([], x)
