from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import ConfigError
from medvol.engines import BalancedSampler, CaseDataset, OversamplingSampler, PrevalenceSampler

uneven = st.lists(st.integers(0, 3), min_size=3, max_size=60).filter(lambda c: len(set(c)) > 1)


def dataset(n):
    return CaseDataset([{"case": i} for i in range(n)], transform=lambda case: case)


@given(classes=uneven)
def test_oversampling_shows_every_case_and_every_class_equally_often(classes):
    sampler = OversamplingSampler(dataset(len(classes)), classes)
    seen = Counter(sampler)
    assert set(seen) == set(range(len(classes)))
    per_class = Counter()
    for case, times in seen.items():
        per_class[classes[case]] += times
    assert len(set(per_class.values())) == 1
    for number in per_class:
        times = [seen[i] for i, c in enumerate(classes) if c == number]
        assert max(times) - min(times) <= 1


def test_balanced_draws_have_equal_class_frequencies():
    classes = [0] * 900 + [1] * 100
    sampler = BalancedSampler(dataset(1000), classes, seed=1)
    drawn = torch.tensor([classes[token % 1000] for _ in range(10) for token in sampler])
    # 10,000 draws with p = 1/2: five standard deviations are 0.025.
    assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.025)
    assert len(sampler) == 1000


@pytest.mark.parametrize("kind", [BalancedSampler, OversamplingSampler])
def test_order_depends_on_seed_and_epoch_alone(kind):
    classes = [0, 0, 0, 0, 0, 1, 1]

    def epochs(seed, start=0):
        sampler = kind(dataset(7), classes, seed=seed)
        sampler.set_epoch(start)
        return [list(sampler), list(sampler)]

    straight = epochs(3)
    assert straight == epochs(3)
    assert straight[1] == epochs(3, start=1)[0]  # a resumed run
    assert straight != epochs(4)
    assert [t % 7 for t in straight[0]] != [t % 7 for t in straight[1]]
    assert {t // 7 for t in straight[1]} == {1}  # the index carries the epoch


@pytest.mark.parametrize("kind", [BalancedSampler, OversamplingSampler])
def test_ranks_share_the_order_and_get_whole_batches(kind):
    classes = [0] * 9 + [1] * 4
    whole = list(kind(dataset(13), classes, batch_size=8))
    parts = []
    for rank in range(2):
        sampler = kind(dataset(13), classes, batch_size=4)
        sampler.rank, sampler.world = rank, 2
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler)
        assert len(sampler) % 4 == 0
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_wrong_classes_are_rejected():
    with pytest.raises(ConfigError, match="3 classes were given for 4 cases"):
        BalancedSampler(dataset(4), [0, 1, 0])
    with pytest.raises(ConfigError, match="of one class"):
        OversamplingSampler(dataset(4), [1, 1, 1, 1])


def labelled(n, rare):
    """n cases of which the first ``rare`` hold label 2 beside label 1."""
    cases = [{"label": torch.tensor([0, 1, 2 if i < rare else 1])} for i in range(n)]
    return CaseDataset(cases, transform=lambda case: case)


@given(n=st.integers(10, 80), rare=st.integers(1, 8), seed=st.integers(0, 9))
def test_a_rare_label_comes_often_enough_and_no_case_is_left_out(n, rare, seed):
    sampler = PrevalenceSampler(labelled(n, rare), [1, 2], least_share=0.2, seed=seed,
                                most_repeats=10)  # fmt: skip
    tokens = list(sampler)
    seen = Counter(token % n for token in tokens)
    assert set(seen) == set(range(n))
    turns = seen[0]
    assert turns <= 10
    assert all(seen[i] == (turns if i < rare else 1) for i in range(n))
    assert turns == 10 or turns * rare >= 0.2 * n
    # a repeat is another sample: its token seeds another augmentation
    assert len(set(tokens)) == len(tokens)


def test_repeats_change_nothing_where_no_label_is_rare():
    plain = PrevalenceSampler(labelled(9, 9), [1, 2], batch_size=2)
    assert len(plain) == 10
    assert sorted(token % 9 for token in list(plain)[:9]) == list(range(9))


def test_reseeding_in_place_gives_the_states_of_monai():
    import monai.transforms as mt

    from medvol.engines.data import _own_random

    def steps():
        inner = mt.OneOf([mt.RandGaussianNoised("x", 1.0), mt.RandShiftIntensityd("x", 0.5, 1.0)])
        return mt.Compose([mt.RandScaleIntensityd("x", 0.5, 1.0), mt.Compose([inner]), inner])

    ours, theirs = steps(), steps()
    for seed in (3, 2**32 - 1):
        theirs.set_random_state(seed=seed)
        before = torch.random.get_rng_state()
        with _own_random(ours, seed):
            drawn = torch.rand(3)
            image = {"x": torch.ones(1, 4, 4, 4)}
            assert torch.equal(ours(dict(image))["x"], theirs(dict(image))["x"])
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(seed)))
