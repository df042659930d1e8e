import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.losses import FocalLoss as MonaiFocalLoss

from medvol.core import ConfigError
from medvol.engines import FocalLoss, WeightedCrossEntropy, class_weights


def case(classes=3, n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(n, classes, generator=generator)
    return scores, torch.randint(classes, (n,), generator=generator)


@given(classes=st.integers(2, 5), gamma=st.floats(0, 4), alpha=st.floats(0, 1),
       seed=st.integers(0, 99))  # fmt: skip
def test_focal_loss_is_monais_without_its_division_by_the_classes(classes, gamma, alpha, seed):
    scores, target = case(classes, seed=seed)
    monai = MonaiFocalLoss(gamma=gamma, alpha=alpha, use_softmax=True, to_onehot_y=True)
    wanted = monai(scores, target[:, None]) * classes
    torch.testing.assert_close(
        FocalLoss(alpha, gamma)(scores, target), wanted, rtol=1e-4, atol=1e-6
    )


def test_focal_loss_of_two_classes_is_the_papers_binary_one():
    scores, target = case(2)
    p = torch.sigmoid(scores[:, 1] - scores[:, 0])
    p_t = torch.where(target == 1, p, 1 - p)
    alpha_t = torch.where(target == 1, 0.25, 0.75)
    wanted = (-alpha_t * (1 - p_t) ** 2 * p_t.log()).mean()
    torch.testing.assert_close(FocalLoss()(scores, target), wanted, rtol=1e-5, atol=1e-7)


def test_focal_loss_without_focus_is_cross_entropy():
    scores, target = case()
    torch.testing.assert_close(FocalLoss(None, 0)(scores, target), F.cross_entropy(scores, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_scores_give_finite_losses_and_gradients(gamma):
    scores = torch.tensor([[100.0, -100], [-100, 100]], requires_grad=True)
    for target in ([0, 1], [1, 0]):
        loss = FocalLoss(0.25, gamma)(scores, torch.tensor(target))
        (gradient,) = torch.autograd.grad(loss, scores)
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(gradient).all())


@given(counts=st.lists(st.integers(1, 500), min_size=2, max_size=5))
def test_inverse_weights_give_every_class_the_same_total(counts):
    weights = class_weights(counts).double()
    totals = weights * torch.tensor(counts)
    torch.testing.assert_close(totals, totals.mean().expand_as(totals), rtol=1e-5, atol=1e-5)
    assert float(totals.sum()) == pytest.approx(sum(counts), rel=1e-5)


def test_effective_weights_lie_between_none_and_inverse():
    inverse, effective = class_weights([900, 100]), class_weights([900, 100], "effective")
    assert 1 < float(effective[1] / effective[0]) < float(inverse[1] / inverse[0])
    near = class_weights([900, 100], "effective", beta=0.0)
    assert torch.equal(near, torch.ones(2))


def test_weighted_cross_entropy_is_the_weighted_mean_of_item_losses():
    scores, target = case()
    weights = class_weights([5, 2, 9])[target]
    items = F.cross_entropy(scores, target, reduction="none")
    wanted = (weights * items).sum() / weights.sum()
    torch.testing.assert_close(WeightedCrossEntropy([5, 2, 9])(scores, target), wanted)
    torch.testing.assert_close(WeightedCrossEntropy()(scores, target), items.mean())


@pytest.mark.parametrize("loss", [FocalLoss(), WeightedCrossEntropy([1, 2, 3])])
def test_labels_as_loaders_give_them_are_taken(loss):
    scores, target = case()
    wanted = loss(scores, target)
    assert torch.equal(loss(scores, target[:, None].float()), wanted)
    found = loss(MetaTensor(scores), MetaTensor(target[:, None]))
    assert type(found) is torch.Tensor
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FocalLoss(1.5), "must lie in 0 to 1"),
        (lambda: FocalLoss(0.5, -1), "gamma -1"),
        (lambda: FocalLoss([0.1, 0.2])(*case()), "2 weights for 3 classes"),
        (lambda: FocalLoss()(case()[0], torch.zeros(3)), "3 class numbers"),
        (lambda: WeightedCrossEntropy([3, 0]), "every class needs a training item"),
        (lambda: WeightedCrossEntropy([3, 1])(*case()), "2 class counts for 3 classes"),
        (lambda: class_weights([1, 2], "odd"), "'odd'"),
    ],
)
def test_wrong_weights_and_shapes_are_rejected(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
