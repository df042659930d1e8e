import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import CacheDataset, Dataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import RandGaussianNoised

from medvol.core import ConfigError
from medvol.transforms import RandIntensityd, RandSpatiald, SeededDataset

CASES = [
    {"case": f"case{i}", "image": MetaTensor(torch.full((1, 12, 10, 8), float(i)).cumsum(1))}
    for i in range(5)
]


def chain():
    return Compose([
        RandSpatiald("image", elastic_magnitude_mm=1, elastic_spacing_mm=6),
        RandIntensityd("image", effects={"noise": (0.8, 0.1, 1.0)}),
        RandGaussianNoised("image", prob=0.5),
    ])  # fmt: skip


def epochs(dataset, workers, count=2):
    loader = DataLoader(dataset, batch_size=1, num_workers=workers)
    return [np.concatenate([np.asarray(b["image"]) for b in loader]) for _ in range(count)]


@pytest.mark.parametrize("kind", [Dataset, lambda d, t: CacheDataset(d, t, progress=False)])
def test_any_number_of_workers_gives_the_same_samples(kind):
    alone = epochs(SeededDataset(kind(CASES, chain()), seed=3), 0)
    shared = epochs(SeededDataset(kind(CASES, chain()), seed=3), 2)
    assert np.array_equal(alone, shared)
    assert not np.array_equal(alone[0], alone[1])


def test_a_sample_does_not_depend_on_the_order_of_reading():
    forward, backward = (SeededDataset(Dataset(CASES, chain()), seed=1) for _ in "ab")
    there = [forward[i]["image"] for i in range(5)]
    back = [backward[i]["image"] for i in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(there, back, strict=True))


def test_epoch_can_be_set_for_a_resume():
    straight = epochs(SeededDataset(Dataset(CASES, chain())), 0, count=3)
    resumed = SeededDataset(Dataset(CASES, chain()))
    resumed.set_epoch(2)
    assert np.array_equal(epochs(resumed, 0, count=1)[0], straight[2])


def test_another_seed_or_case_name_gives_another_sample():
    one, other = (SeededDataset(Dataset(CASES, chain()), seed=s)[2]["image"] for s in (0, 1))
    assert not torch.equal(one, other)
    renamed = [dict(case, case="x") for case in CASES]
    assert not torch.equal(one, SeededDataset(Dataset(renamed, chain()))[2]["image"])


def test_a_data_set_without_random_transforms_is_refused():
    with pytest.raises(ConfigError, match="no random transform"):
        SeededDataset(Dataset(CASES))
