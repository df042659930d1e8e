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


def test_a_perfect_outline_costs_nothing_beside_the_class():
    loss = OutlineLoss(WeightedCrossEntropy(), class_weight=0.0)
    classes, mask = target()
    assert float(loss((torch.zeros(1, 2), cells_of(mask)), (classes, mask))) < 1e-3


def test_a_larger_error_of_the_volume_costs_more_whatever_the_label_value():
    loss = OutlineLoss(WeightedCrossEntropy(), spread_ml=0.01, class_weight=0.0)
    truth = target(2)
    costs = [float(loss((torch.zeros(1, 2), cells_of(target(n)[1])), truth)) for n in (2, 4, 8)]
    assert costs[0] < costs[1] < costs[2]


def test_the_class_counts_with_its_weight():
    classes, mask = target()
    outputs = (torch.tensor([[2.0, -1.0]]), cells_of(mask))
    without, with_class = (
        float(OutlineLoss(WeightedCrossEntropy(), class_weight=w)(outputs, (classes, mask)))
        for w in (0.0, 0.5)
    )
    assert with_class - without == pytest.approx(
        0.5 * float(WeightedCrossEntropy()(outputs[0], classes)), abs=1e-5
    )


def test_a_network_without_an_outline_is_refused():
    with pytest.raises(ConfigError, match="no outline"):
        OutlineLoss(WeightedCrossEntropy())(torch.zeros(1, 2), target())


def test_batch_gives_the_image_and_both_targets():
    classes, mask = target()
    image, (label, outline) = outline_batch({"image": torch.ones(1, 1, 8, 8, 8), "label": classes,
                                             "mask": mask})  # fmt: skip
    assert image.shape == mask.shape
    assert label is classes
    assert torch.equal(outline, mask)
