import pytest
import torch

from medvol.core import ConfigError
from medvol.engines import OutlineLoss, WeightedCrossEntropy, outline_batch


def target(volume=2):
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    mask[..., :volume, :4, :4] = 2
    return torch.tensor([1]), mask


def cells_of(mask, certainty=12.0):
    share = torch.nn.functional.avg_pool3d((mask > 0).float(), 2)
    return (share - 0.5) * 2 * certainty


def cost(scores, mask, truth, **arguments):
    loss = OutlineLoss(WeightedCrossEntropy(), **arguments)
    return loss((torch.tensor([scores]), cells_of(mask)), truth).item()


def test_a_perfect_outline_costs_nothing_beside_the_class():
    _, mask = target()
    assert cost([0.0, 0.0], mask, target(), class_weight=0.0) < 1e-3


def test_a_larger_error_of_the_volume_costs_more_whatever_the_label_value():
    costs = [
        cost([0.0, 0.0], target(n)[1], target(2), spread_ml=0.01, class_weight=0.0)
        for n in (2, 4, 8)
    ]
    assert costs[0] < costs[1] < costs[2]


def test_the_class_counts_with_its_weight():
    classes, mask = target()
    scores = [2.0, -1.0]
    without, beside = (cost(scores, mask, target(), class_weight=w) for w in (0.0, 0.5))
    alone = WeightedCrossEntropy()(torch.tensor([scores]), classes).item()
    assert beside - without == pytest.approx(0.5 * alone, abs=1e-5)


def test_a_network_without_an_outline_is_rejected():
    with pytest.raises(ConfigError, match="no outline"):
        OutlineLoss(WeightedCrossEntropy())(torch.zeros(1, 2), target())


def test_batch_gives_the_image_and_both_targets():
    classes, mask = target()
    batch = {"image": torch.ones(1, 1, 8, 8, 8), "label": classes, "mask": mask}
    image, (label, outline) = outline_batch(batch)
    assert image.shape == mask.shape
    assert label is classes
    assert torch.equal(outline, mask)
