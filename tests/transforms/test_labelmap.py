import torch
from hypothesis import given
from hypothesis import strategies as st

from medvol.transforms import RandSpatiald, RegionsToLabelMapd

# nnU-Net's order for brain tumours: whole tumour paints 1, core 2, enhancing 3.
REGIONS = [(1, 2, 3), (2, 3), (3,)]


@given(seed=st.integers(0, 99))
def test_perfect_nested_regions_give_the_label_map_back(seed):
    label = torch.randint(0, 4, (1, 4, 5, 6), generator=torch.Generator().manual_seed(seed))
    probs = torch.cat([torch.isin(label, torch.tensor(members)) for members in REGIONS]).float()
    found = RegionsToLabelMapd("pred", [1, 2, 3])({"pred": probs})["pred"]
    assert torch.equal(found.long(), label)


def test_a_region_below_the_threshold_paints_nothing():
    probs = torch.tensor([0.6, 0.49, 0.5]).reshape(3, 1, 1)
    assert RegionsToLabelMapd("pred", [1, 2, 3])({"pred": probs})["pred"].item() == 3
    probs[2] = 0.49
    assert RegionsToLabelMapd("pred", [1, 2, 3])({"pred": probs})["pred"].item() == 1


def test_a_small_structure_centres_as_many_crops_as_a_large_one():
    label = torch.zeros(1, 32, 32, 32)
    label[:, 4:20, 4:20, 4:20] = 1  # 4096 voxels
    label[:, 28, 28, 28] = 2
    label[:, 2, 30, 2] = 3  # never asked for
    crop = RandSpatiald(["label"], prob=0.0, spatial_size=(6, 6, 6), foreground_key="label",
                        foreground_prob=1.0, foreground_values=(1, 2))  # fmt: skip
    crop.set_random_state(0)
    seen = [int(crop({"label": label})["label"].max()) for _ in range(200)]
    # Binomial with n = 200, p = 1/2: five standard deviations are 35.
    assert 65 <= seen.count(2) <= 135
    assert 3 not in seen
