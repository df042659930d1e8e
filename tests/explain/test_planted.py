"""Networks trained on planted findings: the maps must point at what was planted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medvol.explain import (
    RANDOMISED_LIMIT,
    GradCAM,
    cascading_randomisation,
    deletion,
    energy_inside,
    energy_lift,
    insertion,
    points_into,
)

STRIDE = 4


class Classifier(nn.Module):
    def __init__(self, dims):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.features = nn.Sequential(
            conv(1, 8, 3, 2, 1), norm(8), nn.ReLU(), conv(8, 16, 3, 2, 1), norm(16), nn.ReLU()
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.features(x).flatten(2).mean(-1))


def planted(n, size, edge, seed, corner):
    """Noise; every second item carries a bright box, anywhere or always in the corner."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, *size, generator=generator) * 0.5
    classes, masks = torch.arange(n) % 2, torch.zeros_like(x)
    for item in range(1, n, 2):
        start = torch.randint(1, min(size) - edge - 1, (len(size),), generator=generator)
        box = tuple(slice(s, s + edge) for s in ([0] * len(size) if corner else start.tolist()))
        x[(item, 0, *box)] += 1.5
        masks[(item, 0, *box)] = 1
    return x, classes, masks


def train(size, edge, seed, corner, steps=60):
    torch.manual_seed(seed)
    network = Classifier(len(size))
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        x, classes, _ = planted(8, size, edge, 1000 * seed + step, corner)
        loss = F.cross_entropy(network(x), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module", params=range(5))
def lesion_case(request):
    network = train((24, 24, 24), 4, request.param, corner=False)
    x, classes, masks = planted(24, (24, 24, 24), 4, 1000 * request.param + 999, corner=False)
    return network, x[classes == 1], masks[classes == 1]


def test_map_points_at_a_lesion_planted_in_a_volume(lesion_case):
    network, x, masks = lesion_case
    cams = GradCAM(network, "features")(x, 1)
    hits = [points_into(c[0], m[0], STRIDE) for c, m in zip(cams, masks, strict=True)]
    lifts = [energy_lift(c[0], m[0]) for c, m in zip(cams, masks, strict=True)]
    assert np.mean(hits) >= 0.8
    assert np.mean(lifts) >= 5


def test_map_of_random_weights_forgets_the_lesion(lesion_case):
    network, x, _ = lesion_case
    before = [p.clone() for p in network.parameters()]
    steps = cascading_randomisation(network, lambda n: GradCAM(n, "features"), x, 1, steps=3)
    assert [step.layers for step in steps] == [2, 3, 5]
    assert np.isfinite(steps[-1].correlation).sum() >= 10
    assert steps[-1].median < RANDOMISED_LIMIT
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_corner_marker_draws_the_energy_to_itself(seed):
    size, edge = (48, 48), 6
    network = train(size, edge, seed, corner=True)
    x, classes, masks = planted(24, size, edge, 1000 * seed + 999, corner=True)
    cams = GradCAM(network, "features")(x[classes == 1], 1)
    grown = F.max_pool2d(masks[classes == 1], 2 * STRIDE + 1, 1, STRIDE)
    shares = [energy_inside(c[0], m[0]) for c, m in zip(cams, grown, strict=True)]
    assert float(grown[0].mean()) < 0.06
    assert np.mean(shares) >= 0.5


def test_hiding_what_the_map_ranks_first_costs_more_than_hiding_at_random(lesion_case):
    network, x, _ = lesion_case
    cam = GradCAM(network, "features")(x[:1], 1)
    hidden, shown = deletion(network, x[:1], cam, 1), insertion(network, x[:1], cam, 1)
    assert hidden.area < hidden.random_area
    assert shown.area > shown.random_area
    # Hiding all leaves the blurred copy, showing all leaves the input.
    assert hidden.probabilities[0] == pytest.approx(shown.probabilities[-1], abs=1e-6)
    assert hidden.probabilities[-1] == pytest.approx(shown.probabilities[0], abs=1e-6)
    assert hidden.shares[0] == 0
    assert hidden.shares[-1] == 1
