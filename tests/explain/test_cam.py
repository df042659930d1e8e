import copy

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets import ViT, densenet121, resnet10
from monai.visualize import GradCAM as MonaiGradCAM
from torch import nn

from medvol.core import ConfigError
from medvol.explain import GradCAM, GradCAMPlusPlus, HiResCAM, ScoreCAM

GRADIENT_METHODS = [GradCAM, GradCAMPlusPlus, HiResCAM]


def by_autograd(network, layer, x, classes):
    """Activation and gradient of one item at a time, by retain_grad on the module's output."""
    values, gradients = [], []
    network = copy.deepcopy(network).double().eval()
    for item, chosen in zip(x.double(), classes, strict=True):
        kept = []

        def keep(_m, _i, out, kept=kept):
            kept.append(out)
            return out.clone()

        handle = network.get_submodule(layer).register_forward_hook(keep)
        score = network(item[None])
        score = score[0] if isinstance(score, tuple) else score
        (gradient,) = torch.autograd.grad(score[0, chosen], kept[-1])
        handle.remove()
        values.append(kept[-1].detach()[0])
        gradients.append(gradient[0])
    return torch.stack(values).numpy(), torch.stack(gradients).numpy()


def expected(method, values, gradients):
    axes = tuple(range(2, values.ndim))
    if method is HiResCAM:
        return np.maximum((gradients * values).sum(1, keepdims=True), 0)
    if method is GradCAM:
        weights = gradients.mean(axes, keepdims=True)
    else:
        below = 2 * gradients**2 + values.sum(axes, keepdims=True) * gradients**3
        with np.errstate(invalid="ignore", divide="ignore"):
            alpha = np.where(below != 0, gradients**2 / below, 0)
        weights = (alpha * np.maximum(gradients, 0)).sum(axes, keepdims=True)
    return np.maximum((weights * values).sum(1, keepdims=True), 0)


def relative_error(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("layer", ["first", "second", "act"])
def test_raw_map_equals_its_formula_on_autograds_gradients(tiny, batch, dims, method, layer):
    network, x, classes = tiny(dims), batch(dims), [0, 1, 2, 1]
    values, gradients = by_autograd(network, layer, x, classes)
    wanted = expected(method, values, gradients)
    assert wanted.max() > 0
    # In double precision the formula itself is tested, in single the usual use.
    double = method(copy.deepcopy(network).double(), layer).raw(x.double(), classes)
    assert relative_error(double.numpy(), wanted) < 1e-9
    if method is GradCAM:
        assert relative_error(method(network, layer).raw(x, classes).numpy(), wanted) < 1e-5


@pytest.mark.parametrize(
    ("network", "layer", "shape"),
    [
        (lambda: densenet121(spatial_dims=2, in_channels=1, out_channels=2), "class_layers.relu",
         (2, 1, 64, 64)),
        (lambda: densenet121(spatial_dims=3, in_channels=1, out_channels=2), "features.norm5",
         (2, 1, 48, 32, 32)),
        (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), "layer4",
         (2, 1, 32, 32, 32)),
        (lambda: ViT(1, (32, 32), (8, 8), 16, 32, 2, 4, classification=True, spatial_dims=2),
         "blocks.1.norm1", (2, 1, 32, 32)),
    ],
    ids=["DenseNet 2D", "DenseNet 3D", "ResNet 3D", "ViT"],
)  # fmt: skip
def test_map_of_monais_networks_equals_autograd(network, layer, shape):
    torch.manual_seed(3)
    network, x = network(), torch.randn(shape)
    values, gradients = by_autograd(network, layer, x, [0, 1])
    if values.ndim == 3:  # tokens: the class token leads, the rest lie row by row
        values, gradients = (v[:, 1:].swapaxes(1, 2).reshape(2, -1, 4, 4)
                             for v in (values, gradients))  # fmt: skip
    found = GradCAM(network.double(), layer).raw(x.double(), [0, 1])
    assert found.shape == (2, 1, *values.shape[2:])
    assert relative_error(found.numpy(), expected(GradCAM, values, gradients)) < 1e-5


@pytest.mark.parametrize("method", [*GRADIENT_METHODS, ScoreCAM])
def test_batch_of_mixed_classes_equals_single_items(tiny, batch, dims, method):
    explain, x, classes = method(tiny(dims), "act"), batch(dims), [2, 0, 1, 0]
    together = explain.raw(x, torch.tensor(classes))
    alone = torch.cat([explain.raw(x[i : i + 1], c) for i, c in enumerate(classes)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6 * float(alone.max()))


def test_monais_batch_mixes_classes_where_ours_does_not(tiny, batch, dims):
    network, x = tiny(dims).eval(), batch(dims, n=8)
    with torch.no_grad():
        network.head[2].bias -= network(x).mean(0)
    best = network(x).argmax(1)
    assert len(best.unique()) > 1
    ours = GradCAM(network, "act").raw(x)
    alone = torch.cat([GradCAM(network, "act").raw(x[i : i + 1]) for i in range(8)])
    monai = MonaiGradCAM(copy.deepcopy(network), "act").compute_map(x)
    scale = alone.flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (dims + 1))
    assert float(((ours - alone) / scale).abs().max()) < 1e-5
    wrong = ((monai - alone) / scale).abs().flatten(1).amax(1) > 0.05
    assert bool(wrong[best != best[-1]].any())


def test_class_none_is_each_items_best_class(tiny, batch, dims):
    network, x = tiny(dims).eval(), batch(dims)
    best = network(x).argmax(1)
    assert torch.equal(GradCAM(network, "act").raw(x), GradCAM(network, "act").raw(x, best))


@pytest.mark.parametrize("method", [*GRADIENT_METHODS, ScoreCAM])
def test_explaining_leaves_no_trace(tiny, batch, dims, method):
    network, x = tiny(dims), batch(dims)
    network.train()
    network.first[1].eval()  # a normalisation frozen on purpose must stay so
    x.requires_grad_()
    network(x).sum().backward()
    x_grad = x.grad.clone()
    before = {
        "gradients": [p.grad.clone() for p in network.parameters()],
        "state": copy.deepcopy(network.state_dict()),
        "training": [m.training for m in network.modules()],
        "hooks": [(len(m._forward_hooks), len(m._backward_hooks)) for m in network.modules()],
        "inplace": [getattr(m, "inplace", None) for m in network.modules()],
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }
    method(network, "first")(x, 1)
    assert all(torch.equal(g, p.grad) for g, p in zip(before["gradients"], network.parameters(),
                                                      strict=True))  # fmt: skip
    state = network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in before["state"].items())
    assert before["training"] == [m.training for m in network.modules()]
    assert before["hooks"] == [
        (len(m._forward_hooks), len(m._backward_hooks)) for m in network.modules()
    ]
    assert before["inplace"] == [getattr(m, "inplace", None) for m in network.modules()]
    assert torch.equal(before["random"], torch.get_rng_state())
    assert before["grad mode"] == torch.is_grad_enabled()
    assert torch.equal(x_grad, x.grad)


def test_a_failing_forward_pass_leaves_no_trace(tiny, dims):
    network = tiny(dims).train()
    with pytest.raises(RuntimeError):
        GradCAM(network, "act")(torch.randn(2, 5, *[16] * dims))
    assert network.training
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_frozen_network_under_no_grad_gives_the_same_map(tiny, batch, dims, mode):
    network, x = tiny(dims), batch(dims)
    free = GradCAM(network, "second")(x, 1)
    network.requires_grad_(False)
    with mode():
        frozen = GradCAM(network, "second")(x.clone(), 1)
    torch.testing.assert_close(free, frozen)
    assert not any(p.requires_grad for p in network.parameters())


def test_several_layers_are_averaged_and_each_equals_its_own(tiny, batch, dims):
    network, x = tiny(dims), batch(dims)
    both = GradCAM(network, ["first", "second"])
    maps = both.raw_maps(x, 1)
    for layer in ("first", "second"):
        torch.testing.assert_close(maps[layer], GradCAM(network, layer).raw(x, 1))
    mean = (GradCAM(network, "first")(x, 1) + GradCAM(network, "second")(x, 1)) / 2
    torch.testing.assert_close(both(x, 1), mean)
    with pytest.raises(ConfigError, match="call raw_maps"):
        both.raw(x, 1)


def test_call_is_on_the_inputs_grid_from_0_to_1_and_carries_the_affine(tiny, batch):
    affine = torch.tensor([[0.8, 0.2, 0, -5], [-0.1, 1.5, 0, 7], [0, 0, 3, 1], [0, 0, 0, 1]])
    x = MetaTensor(batch(3), affine=affine, meta={"filename_or_obj": "a"})
    found = GradCAM(tiny(3), "second")(x, 0)
    assert isinstance(found, MetaTensor)
    assert found.shape == (4, 1, *x.shape[2:])
    assert torch.equal(found.affine, x.affine)
    peaks = found.as_tensor().flatten(1).amax(1)
    assert bool(((peaks == 1) | (peaks == 0)).all())
    assert float(found.min()) >= 0
    plain = GradCAM(tiny(3), "second")(x.as_tensor(), 0)
    assert not isinstance(plain, MetaTensor)
    assert torch.equal(plain, found.as_tensor())


def test_class_without_evidence_gives_zeros_not_nan(tiny, batch, dims):
    network = tiny(dims)
    nn.init.zeros_(network.head[2].weight)
    assert torch.equal(GradCAM(network, "act")(batch(dims), 0), torch.zeros_like(batch(dims)))


def test_score_cam_weighs_channels_by_the_score_of_what_they_show():
    # The score is the sum of the input's left half; channel 0 shows left, channel 1 right.
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            left = torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], 1).expand_as(x)
            self.layer(torch.cat([left, 1 - left], 1))
            return torch.stack([(x * left).flatten(1).sum(1), (x - x * left).flatten(1).sum(1)], 1)

    x = torch.ones(2, 1, 8, 8)
    found = ScoreCAM(Halves(), "layer")(x, [0, 1])
    assert float(found[0, 0, :, :4].min()) > 0.99
    assert float(found[0, 0, :, 4:].max()) < 0.01
    assert float(found[1, 0, :, :4].max()) < 0.01


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda n: GradCAM(n, "secnod"), "'secnod' is not in TinyClassifier; close to it: second"),
        (lambda n: GradCAM(n, []), "no layer is named"),
        (lambda n: GradCAM(n, "act").raw(torch.ones(1, 1, 9, 9), 3), "outside 0 to 2"),
        (lambda n: GradCAM(n, "act").raw(torch.ones(1, 1, 9, 9), -1), "outside 0 to 2"),
        (lambda n: GradCAM(n, "act").raw(torch.ones(3, 1, 9, 9), [0, 1]), "batch of 3"),
        (lambda n: GradCAM(n, "act").raw(torch.ones(1, 1, 9, 9), 1.0), "must be integers"),
        (lambda n: GradCAM(n, "act").raw(torch.ones(1, 9, 9)), "not a batch"),
        (lambda n: GradCAM(n, "head").raw(torch.ones(1, 1, 9, 9)), "before the pooling"),
    ],
)
def test_wrong_questions_are_rejected_in_one_line(tiny, build, words):
    with pytest.raises(ConfigError, match=words):
        build(tiny(2))
