"""Maps in place of scores: what a Grad-CAM bundle's config names as its inferer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.explain.cam import Explainer, GradCAM, GradCAMPlusPlus, HiResCAM, ScoreCAM
from medvol.explain.capture import ClassIndex, class_scores, undisturbed
from medvol.explain.occlusion import Occlusion
from medvol.explain.rollout import AttentionRollout
from medvol.networks import member_layers

Method = Literal["gradcam", "gradcam++", "hirescam", "scorecam", "occlusion", "rollout"]
_METHODS: dict[str, Callable[..., Explainer]] = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "hirescam": HiResCAM,
    "scorecam": ScoreCAM,
}


def make_explainer(
    network: nn.Module,
    method: Method = "gradcam",
    layer: str | Sequence[str] = "",
    window: int = 16,
) -> Explainer:
    """An explainer by its name.

    Args:
        network: The classifier.
        method: ``gradcam``, ``gradcam++``, ``hirescam``, ``scorecam``, ``occlusion``, ``rollout``.
        layer: Layer name for the activation maps; occlusion and rollout need none. Of an
            ensemble the layer of that name in every member, and the map is their mean.
        window: Edge of the hidden box for occlusion.

    Raises:
        ConfigError: If the method or the layer is unknown.
    """
    if method == "occlusion":
        return Occlusion(network, window)
    if method == "rollout":
        return AttentionRollout(network)
    if method not in _METHODS:
        known = ", ".join([*_METHODS, "occlusion", "rollout"])
        raise ConfigError(f"explanation method {method!r} is unknown; known: {known}")
    names = (layer,) if isinstance(layer, str) else tuple(layer)
    members = {name: member_layers(network, name) for name in names}
    layers = [found for group in members.values() for found in group]
    if method == "scorecam" and len(layers) > 1:
        raise ConfigError(f"scorecam explains one layer, {len(layers)} are named: {layers[0]} ...")
    explainer = _METHODS[method](network, layers[0] if len(layers) == 1 else layers)
    return explainer if len(layers) == len(names) else MemberMean(explainer, members)


class MemberMean(Explainer):
    """The mean over an ensemble's members of each one's map of the same layer.

    Args:
        explainer: Gives the maps of all members' layers.
        members: Layer to its names in the members.
    """

    def __init__(self, explainer: Explainer, members: Mapping[str, Sequence[str]]) -> None:
        self.network, self.explainer, self.members = explainer.network, explainer, members

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """Unnormalised maps, one per layer."""
        found = self.explainer.raw_maps(x, class_index)
        return {
            layer: torch.stack([found[name] for name in names]).mean(0)
            for layer, names in self.members.items()
        }


class CAMInferer(Inferer):
    """An inferer that returns the map of one class on the network input's grid, 0 to 1.

    After a call, ``raw`` holds the last batch's unnormalised maps by layer and ``probabilities``
    its softmax scores: what a written explanation quotes.

    Args:
        method: As for :func:`make_explainer`.
        layer: As for :func:`make_explainer`.
        class_index: The class to explain; None explains each item's highest score.
        window: For occlusion.
    """

    def __init__(
        self,
        method: Method = "gradcam",
        layer: str | Sequence[str] = "",
        class_index: int | None = None,
        window: int = 16,
    ) -> None:
        super().__init__()
        self.method: Method = method
        self.layer, self.window = layer, window
        self.class_index: ClassIndex = class_index
        self.raw: dict[str, Tensor] = {}
        self.probabilities = torch.empty(0)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Maps of shape (B, 1, ...) for a batch (B, C, ...)."""
        explainer = make_explainer(network, self.method, self.layer, self.window)
        with undisturbed(network):
            self.probabilities = class_scores(network(inputs)).as_subclass(Tensor).softmax(1)
        found = explainer.explain(inputs, self.class_index)
        self.raw = found.raw
        return found.unit
