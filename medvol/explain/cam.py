"""Class activation maps: which parts of a layer's grid speak for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.explain.capture import Capture, ClassIndex, class_indices, class_scores, undisturbed
from medvol.explain.grid import as_spatial, scale_to_unit, upsample


@dataclass(frozen=True)
class Explanation:
    """What an explainer found.

    Attributes:
        unit: On the input's grid, 0 to 1, shape (B, 1, ...).
        raw: Layer to unnormalised map at the layer's resolution.
    """

    unit: Tensor
    raw: dict[str, Tensor]


class Explainer:
    """What every map of this package can do: ``raw`` on its own grid, a call on the input's.

    Subclasses define :meth:`raw_maps`. The network is never changed: see
    :class:`medvol.explain.capture.Capture`.
    """

    network: nn.Module

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """Unnormalised maps at each layer's resolution, shape (B, 1, ...) each."""
        raise NotImplementedError

    def raw(self, x: Tensor, class_index: ClassIndex = None) -> Tensor:
        """The unnormalised map of the one layer, shape (B, 1, ...) at that layer's resolution.

        Args:
            x: Batch of inputs, shape (B, C, ...), 2D or 3D.
            class_index: One class for all, one per item, or None for each item's highest score.

        Returns:
            Zero or positive, as a plain tensor.

        Raises:
            ConfigError: If several layers were named; ask :meth:`raw_maps` for each one's map.
        """
        maps = self.raw_maps(x, class_index)
        if len(maps) > 1:
            raise ConfigError(f"{len(maps)} layers are named; call raw_maps for each one's map")
        return next(iter(maps.values()))

    def __call__(self, x: Tensor, class_index: ClassIndex = None) -> Tensor:
        """The map on the input's grid, 0 (no evidence) to 1 (the item's own maximum).

        Maps of several layers are scaled one by one and averaged. The scale is each item's own:
        to compare items use :meth:`raw`.

        Returns:
            Shape (B, 1, ...); a MetaTensor with the input's affine where the input is one.
        """
        return self.explain(x, class_index).unit

    def explain(self, x: Tensor, class_index: ClassIndex = None) -> Explanation:
        """The map on the input's grid together with the unnormalised maps that it came from."""
        raw = self.raw_maps(x, class_index)
        size = x.shape[2:]
        unit = torch.stack([scale_to_unit(upsample(m, size)) for m in raw.values()]).mean(0)
        if isinstance(x, MetaTensor):
            unit = MetaTensor(unit).copy_meta_from(x)
        return Explanation(unit, raw)


class GradCAM(Explainer):
    """Gradient-weighted class activation map, ``relu(sum_c mean(grad_c) * activation_c)``.

    Args:
        network: Any network with output (B, classes), frozen or not, in any mode.
        layer: Name of the layer as in ``network.named_modules()``, or several names. The last
            layer before the pooling is usual: ``class_layers.relu`` in MONAI's DenseNet,
            ``layer4`` in its ResNet, ``blocks.11.norm1`` in its ViT.

    Source:
        Selvaraju et al. 2017, ICCV, doi:10.1109/ICCV.2017.74.
    """

    def __init__(self, network: nn.Module, layer: str | Sequence[str]) -> None:
        self.network = network
        self.layers = (layer,) if isinstance(layer, str) else tuple(layer)
        Capture(network, self.layers)  # rejects unknown names at once

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """Unnormalised maps, one per layer, zero or positive."""
        x, capture = plain_input(x), Capture(self.network, self.layers)
        scores = capture.forward(x, graph=True)
        gradients = capture.gradients(scores, class_index)
        with torch.no_grad():
            return {
                layer: torch.relu(
                    self._combine(
                        as_spatial(value.detach(), x.shape[2:]),
                        as_spatial(gradients[layer], x.shape[2:]),
                    )
                )
                for layer, value in capture.activations.items()
            }

    def _combine(self, values: Tensor, gradients: Tensor) -> Tensor:
        return (_mean(gradients) * values).sum(1, keepdim=True)


class GradCAMPlusPlus(GradCAM):
    """Grad-CAM++: channels weighted by their positive gradients, with second-order coefficients.

    Source:
        Chattopadhay et al. 2018, WACV, doi:10.1109/WACV.2018.00097, eq. 19; the factor
        ``exp(score)`` is left out, it is one positive number per item.
    """

    def _combine(self, values: Tensor, gradients: Tensor) -> Tensor:
        square = gradients.square()
        below = 2 * square + _sum(values) * square * gradients
        alpha = torch.where(below != 0, square / torch.where(below != 0, below, 1.0), 0.0)
        return (_sum(alpha * torch.relu(gradients)) * values).sum(1, keepdim=True)


class HiResCAM(GradCAM):
    """HiResCAM, ``relu(sum(grad * activation))``: faithful where one linear layer follows.

    Source:
        Draelos & Carin 2020, arXiv:2011.08891.
    """

    def _combine(self, values: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * values).sum(1, keepdim=True)


class ScoreCAM(Explainer):
    """Score-CAM: each channel's weight is the class score of the input seen through it alone.

    Needs no gradient and one forward pass per channel.

    Args:
        network: As for :class:`GradCAM`.
        layer: One layer's name.
        batch_size: Masked inputs per forward pass.

    Source:
        Wang et al. 2020, CVPR workshops, doi:10.1109/CVPRW50498.2020.00020.
    """

    def __init__(self, network: nn.Module, layer: str, *, batch_size: int = 8) -> None:
        self.network, self.layer, self.batch_size = network, layer, batch_size
        Capture(network, (layer,))

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """The unnormalised map of the one layer."""
        x, capture = plain_input(x), Capture(self.network, (self.layer,))
        scores = capture.forward(x, graph=False)
        values = as_spatial(capture.activations[self.layer], x.shape[2:])
        chosen = class_indices(scores, class_index).tolist()
        with undisturbed(self.network):
            items = zip(x, values, chosen, strict=True)
            weights = torch.stack([self._weights(*item) for item in items])
            weights = weights.view(*weights.shape, *[1] * (x.ndim - 2))
            return {self.layer: torch.relu((weights * values).sum(1, keepdim=True))}

    def _weights(self, x: Tensor, values: Tensor, chosen: int) -> Tensor:
        masks = upsample(values[:, None], x.shape[1:])
        low = masks.flatten(1).amin(1).view(-1, *[1] * x.ndim)
        masks = masks - low
        constant = masks.flatten(1).amax(1) <= 0
        masked = (
            class_scores(self.network(x[None] * part))[:, chosen]
            for part in scale_to_unit(masks).split(self.batch_size)
        )
        scores = torch.cat(list(masked)).masked_fill(constant, -torch.inf)
        return torch.zeros_like(scores) if bool(constant.all()) else scores.softmax(0)


def plain_input(x: Tensor) -> Tensor:
    """``x`` as a plain detached tensor that may enter a graph, without a copy where possible."""
    tensor = x.as_tensor() if isinstance(x, MetaTensor) else x
    if tensor.ndim not in (4, 5):
        raise ConfigError(
            f"an input of shape {tuple(x.shape)} is not a batch of images or volumes (B, C, ...)"
        )
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def _mean(values: Tensor) -> Tensor:
    return values.mean(tuple(range(2, values.ndim)), keepdim=True)


def _sum(values: Tensor) -> Tensor:
    return values.sum(tuple(range(2, values.ndim)), keepdim=True)
