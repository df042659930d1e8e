"""Classifiers made for a few hundred cases: oriented gradients, and a measured volume."""

import pytest
import torch

from medvol.core import ConfigError
from medvol.networks import (
    Ensemble,
    GradientClassifier,
    OrientedGradients,
    VolumeClassifier,
    join_states,
    member_layers,
    members_in,
    with_weights,
)


def stripes(turned=False):
    wave = torch.sin(torch.arange(32.0) / 2).expand(32, 32)
    return (wave.T if turned else wave)[None, None].clone()


def test_stripes_vote_for_the_direction_across_them():
    stem = OrientedGradients(cell=8, bins=8)
    for turned, strongest in ((False, 0), (True, 4)):
        cells = stem(stripes(turned))
        assert cells.shape == (1, 17, 4, 4)
        assert cells[0, :8, 1:3, 1:3].mean((1, 2)).argmax() == strongest


def test_normalised_directions_do_not_change_with_contrast():
    stem = OrientedGradients()
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    one, three = stem(image)[:, :8], stem(3 * image)[:, :8]
    torch.testing.assert_close(one, three, atol=2e-3, rtol=0)


def test_the_parts_of_the_classifier_make_the_whole():
    network = GradientClassifier((32, 32), num_classes=3, places=2).eval()
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(network.rest(network.stem(image)), network(image))
    assert network(image).shape == (2, 3)


@pytest.mark.parametrize("wrong", [{"roi_size": (30, 32)}, {"in_channels": 3}, {"cell": 1}])
def test_images_that_hold_no_whole_cells_are_rejected(wrong):
    with pytest.raises(ConfigError):
        GradientClassifier(**({"roi_size": (32, 32)} | wrong))


@torch.no_grad()
def test_score_of_the_small_class_falls_as_the_outlined_volume_grows():
    torch.manual_seed(0)
    network = VolumeClassifier(channels=(4, 8), cutoff_ml=0.5).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    scores = []
    for bias in (-4.0, 0.0, 4.0):
        torch.nn.init.constant_(network.cells.bias, bias)
        volume = network.volume_ml(network.outline(image))
        assert float(volume) == pytest.approx(
            float(network.outline(image).sigmoid().sum()) * 0.008, rel=1e-5
        )
        scores.append(float(network(image)[0, 1]))
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.parametrize("size", [(16, 16, 16), (18, 22, 14)])
def test_outline_has_a_cell_for_every_two_voxels(size):
    network = VolumeClassifier(channels=(4, 8, 8)).train()
    scores, cells = network(torch.randn(1, 1, *size))
    assert scores.shape == (1, 2)
    assert cells.shape[2:] == tuple(-(-n // 2) for n in size)


def test_a_file_of_members_makes_an_ensemble_of_the_one_network(tmp_path):
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(GradientClassifier((32, 32), places=2).eval())
    state = join_states([member.state_dict() for member in members])
    torch.save(state, tmp_path / "model.pt")
    assert members_in(state) == 3
    assert members_in(members[0].state_dict()) == 0
    found = with_weights(GradientClassifier((32, 32), places=2), tmp_path / "model.pt").eval()
    assert isinstance(found, Ensemble)
    assert member_layers(found, "block") == tuple(f"networks.{i}.block" for i in range(3))
    image = torch.randn(2, 1, 32, 32)
    mean = torch.stack([member(image).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(found(image).softmax(1), mean)


@pytest.mark.parametrize(
    ("member", "size"),
    [
        (lambda: GradientClassifier((32, 32), places=2), (1, 32, 32)),
        (lambda: VolumeClassifier(channels=(4, 8, 8)), (1, 16, 16, 16)),
    ],
)
def test_an_ensemble_of_classifiers_compiles_to_torchscript_and_scores_alike(member, size):
    network = Ensemble([member().eval() for _ in range(2)]).eval()
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-5)
