import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet

from medvol.core import ConfigError
from medvol.engines import SegmentationLoss

SHAPE = (2, 1, 6, 5, 4)


@pytest.fixture
def label():
    return torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(0))


def logits(channels, seed=1):
    made = torch.randn(2, channels, *SHAPE[2:], generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def dice_and_entropy(values, x, label):
    """MONAI's Dice plus PyTorch's binary cross-entropy, a sigmoid channel a value."""
    target = torch.cat([label == value for value in values], dim=1).to(x.dtype)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    return dice(x, target) + torch.nn.functional.binary_cross_entropy_with_logits(x, target)


def test_exclusive_labels_give_monais_dice_plus_cross_entropy(label):
    peer = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True,
                      smooth_nr=1e-5, smooth_dr=1e-5)  # fmt: skip
    x = logits(4)
    assert SegmentationLoss([[1], [2], [3]])(x, label).item() == pytest.approx(
        peer(x, label).item(), rel=1e-5
    )


def test_regions_of_one_label_give_the_sigmoid_loss(label):
    x = logits(3)
    ours = SegmentationLoss([[1], [2], [3]], is_exclusive=False)(x, label)
    assert ours.item() == pytest.approx(dice_and_entropy([1, 2, 3], x, label).item(), rel=1e-5)


def test_a_structure_that_the_batch_lacks_is_left_to_the_cross_entropy(label):
    # Faint probabilities of the absent label 9: Dice would pull at them many times as hard.
    x = (logits(2) - 4).detach()
    x[:, -1] -= 8
    x.requires_grad_()
    SegmentationLoss([[1], [9]], is_exclusive=False)(x, label).backward()
    assert x.grad is not None
    entropy = x.sigmoid()[:, -1].mean().item() / 2  # its gradient is p over the voxels
    assert x.grad[:, -1].sum().item() == pytest.approx(entropy, rel=1e-3)


def test_a_region_is_the_union_of_its_labels(label):
    x = logits(2)
    merged = torch.where(label == 3, 1, label)
    ours = SegmentationLoss([[1, 3], [2]], is_exclusive=False)(x, label)
    assert ours.item() == pytest.approx(dice_and_entropy([1, 2], x, merged).item(), rel=1e-5)


@pytest.mark.parametrize("is_exclusive", [True, False])
def test_ignored_voxels_change_neither_loss_nor_gradient(label, is_exclusive):
    loss = SegmentationLoss([[1], [2]], is_exclusive, ignore_label=3)
    x = logits(2 + is_exclusive)
    moved = (x + 5.0 * (label == 3) * torch.randn_like(x)).detach().requires_grad_()
    one, other = loss(x, label), loss(moved, label)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    one.backward()
    assert x.grad is not None
    assert x.grad[(label == 3).expand_as(x.grad)].abs().max() == 0
    assert x.grad.abs().max() > 0
    # ... while the same voxels count where nothing is ignored.
    counted = SegmentationLoss([[1], [2]], is_exclusive)
    assert counted(x, label).item() != pytest.approx(counted(moved, label).item(), rel=1e-3)


def test_supervised_levels_weigh_one_half_quarter(label):
    loss = SegmentationLoss([[1], [2], [3]])
    levels = [logits(4, seed) for seed in range(3)]
    wanted = sum(w * loss(x, label) for w, x in zip((4 / 7, 2 / 7, 1 / 7), levels, strict=True))
    assert loss(torch.stack(levels, 1), label).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_every_level_of_a_dynunet_receives_a_gradient():
    network = DynUNet(3, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[4, 8, 8, 8],
                      deep_supervision=True, deep_supr_num=2)  # fmt: skip
    image, target = torch.randn(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16)
    SegmentationLoss([[1]])(network.train()(image), target).backward()
    heads = [p for name, p in network.named_parameters() if "deep_supervision_heads" in name]
    assert len(heads) == 4
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in heads)
    assert network.eval()(image).shape == (1, 2, 16, 16, 16)


def test_overlap_without_sigmoids_and_a_wrong_width_are_refused(label):
    with pytest.raises(ConfigError, match="overlap"):
        SegmentationLoss([[1, 2], [2]])
    with pytest.raises(ConfigError, match="gives 2 channels, not 3"):
        SegmentationLoss([[1], [2]])(logits(2), label)
