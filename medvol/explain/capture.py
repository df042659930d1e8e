"""One forward pass whose inner layers can be asked for values and gradients, leaving no trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medvol.core import ConfigError

ClassIndex = int | Sequence[int] | Tensor | None


class Capture:
    """Activations of named layers, and the scores that they led to.

    The part of the network before the first named layer runs without a graph, which saves its
    memory and its backward pass; from there on a graph is kept, even where every parameter is
    frozen. Parameters, their gradients, hooks, training flags and batch statistics are as before
    when the block ends.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(network.named_modules())
        for layer in layers:
            if layer not in modules or not layer:
                close = difflib.get_close_matches(layer, modules, 3, 0.3)
                raise ConfigError(
                    f"layer {layer!r} is not in {type(network).__name__}; "
                    f"close to it: {', '.join(filter(None, close)) or 'none'}"
                )
        if not layers:
            raise ConfigError("no layer is named")
        self.network = network
        self.modules = {layer: modules[layer] for layer in layers}
        self.activations: dict[str, Tensor] = {}

    def forward(self, x: Tensor, *, graph: bool) -> Tensor:
        """Run the network and return its scores, shape (B, classes)."""
        self.activations.clear()
        handles = [
            module.register_forward_hook(self._keep(layer, graph))
            for layer, module in self.modules.items()
        ]
        try:
            with undisturbed(self.network):
                scores = class_scores(self.network(x))
        finally:
            for handle in handles:
                handle.remove()
        if unused := [layer for layer in self.modules if layer not in self.activations]:
            raise ConfigError(f"layer {unused[0]!r} took no part in the network's forward pass")
        return scores

    def gradients(self, scores: Tensor, class_index: ClassIndex) -> dict[str, Tensor]:
        """Derivative of each item's class score by each layer's activation, shaped like it."""
        names, tensors = list(self.activations), list(self.activations.values())
        with torch.inference_mode(False), torch.enable_grad():
            score = pick_scores(scores, class_index).sum()
            if not score.requires_grad:
                raise ConfigError(f"the class score does not depend on layer {names[0]!r}")
            found = torch.autograd.grad(score, tensors, allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                raise ConfigError(f"the class score does not depend on layer {name!r}")
        return dict(zip(names, found, strict=True))

    def _keep(self, layer: str, graph: bool) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ConfigError(
                    f"layer {layer!r} returns {type(output).__name__}, not one tensor"
                )
            if not graph:
                self.activations[layer] = output.detach().clone()
                return output
            torch.set_grad_enabled(True)
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            self.activations[layer] = output
            return output.clone()  # what follows may write in place

        return hook


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without a graph; every module's own training flag is restored."""
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def class_scores(output: Any) -> Tensor:
    """The (B, classes) scores in a network's output.

    Of several outputs the first one counts (MONAI's ViT adds its hidden states). Scores of a
    segmentation network are summed over its voxels.

    Source:
        Vinogradova et al. 2020, AAAI 34:13943 (Seg-Grad-CAM), doi:10.1609/aaai.v34i10.7244.
    """
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ConfigError("the network's output is not a tensor of shape (batch, classes)")
    return output.flatten(2).sum(-1) if output.ndim > 2 else output


def pick_scores(scores: Tensor, class_index: ClassIndex) -> Tensor:
    """The score of each item's own class, shape (B,).

    Args:
        scores: Shape (B, classes).
        class_index: One class for all, one per item, or None for each item's highest score.
    """
    return scores.gather(1, class_indices(scores, class_index)[:, None])[:, 0]


def class_indices(scores: Tensor, class_index: ClassIndex) -> Tensor:
    """``class_index`` as one integer per item, shape (B,).

    Raises:
        ConfigError: If a class does not exist or their number is not the batch's.
    """
    batch, classes = scores.shape
    if class_index is None:
        return scores.detach().argmax(1)
    index = torch.as_tensor(class_index, device=scores.device)
    if index.dtype.is_floating_point or index.dtype == torch.bool or index.ndim > 1:
        raise ConfigError(f"class_index must be integers, one or one per item, not {class_index}")
    index = index.long().reshape(-1)
    if len(index) not in (1, batch):
        raise ConfigError(f"{len(index)} class indices were given for a batch of {batch}")
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= classes):
        raise ConfigError(f"class_index {index.tolist()} lies outside 0 to {classes - 1}")
    return index.expand(batch)
