"""From probabilities to labels: laws and closed forms of the decision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvol.core.errors import ConfigError
from medvol.inferers import DecideLabelsd, Decision

# nnU-Net's order for brain tumours: whole tumour paints 1, core 2, enhancing 3.
REGIONS = [(1, 2, 3), (2, 3), (3,)]


@given(seed=st.integers(0, 99))
def test_perfect_nested_regions_give_the_label_map_back(seed):
    label = torch.randint(0, 4, (4, 5, 6), generator=torch.Generator().manual_seed(seed))
    probs = torch.stack([torch.isin(label, torch.tensor(members)) for members in REGIONS]).float()
    found = Decision("sigmoid", (1, 2, 3), overlaps=True).labels(probs)
    assert torch.equal(found.long(), label)


def test_a_region_below_the_threshold_paints_nothing():
    decision = Decision("sigmoid", (1, 2, 3), overlaps=True)
    probs = torch.tensor([0.6, 0.49, 0.5]).reshape(3, 1, 1)
    assert decision.labels(probs).item() == 3
    probs[2] = 0.49
    assert decision.labels(probs).item() == 1


def test_each_channel_has_its_own_threshold():
    probs = torch.tensor([[0.2, 0.3], [0.5, 0.3], [0.3, 0.4]]).reshape(3, 2, 1)
    found = Decision("softmax", (0, 1, 2), (0.0, 0.6, 0.4)).labels(probs)
    assert found.flatten().tolist() == [0, 2]


def test_channels_may_stand_for_any_label():
    decision = Decision("sigmoid", (4, 7), (0.5,))
    probability = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.3]])
    assert decision.labels(probability).tolist() == [4, 7, 0]


def test_a_factor_lets_a_channel_win_below_one_half():
    decision = Decision("softmax", factors=(1.0, 3.0))
    probability = torch.tensor([[0.9, 0.7, 0.2], [0.1, 0.3, 0.8]])
    assert decision.labels(probability).tolist() == [0, 1, 1]


@given(seed=st.integers(0, 99))
def test_without_thresholds_a_softmax_decision_is_the_arg_max(seed):
    probs = torch.rand((5, 3, 4, 2), generator=torch.Generator().manual_seed(seed)).softmax(0)
    assert torch.equal(Decision().labels(probs).long(), probs.argmax(0))
    values = (0, 9, 4, 4, 200)
    want = torch.tensor(values)[probs.argmax(0)]
    assert torch.equal(Decision(values=values).labels(probs).long(), want)


def test_training_decides_on_its_own_grid_as_prediction_does():
    logits = torch.randn(3, 4, 5, 6)
    found = DecideLabelsd("pred", Decision())({"pred": logits})["pred"]
    assert found.shape == (1, 4, 5, 6)
    assert torch.equal(found[0].long(), logits.argmax(0))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"activation": "relu"}, "activation"),
        ({"values": (0, 300)}, "8-bit"),
        ({"factors": (1.0, 0.0)}, "above 0"),
        ({"overlaps": True}, "sigmoid"),
        ({"resampled": "labels"}, "resampled"),
    ],
)
def test_a_decision_that_makes_no_sense_is_rejected(options, fault):
    with pytest.raises(ConfigError, match=fault):
        Decision(**options)


@pytest.mark.parametrize("name", ["values", "thresholds", "factors"])
def test_a_decision_for_other_channels_is_rejected(name):
    with pytest.raises(ConfigError, match=f"2 {name} for 3"):
        Decision(**{name: (1, 2)}).check(3)
