"""Whether a map depends on what the network learned: cascading randomisation of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from medvol.explain.cam import Explainer
from medvol.explain.capture import ClassIndex, class_indices, class_scores, undisturbed

#: A median |rank correlation| below this means that the map depends on the learned weights.
RANDOMISED_LIMIT = 0.3


@dataclass(frozen=True)
class RandomisationStep:
    """One stage of :func:`cascading_randomisation`.

    Attributes:
        layers: How many weighted layers are random, counted from the output.
        of: How many weighted layers the network has.
        correlation: |Spearman| between the maps, one per item and seed; ``nan`` where either
            map has no variance.
    """

    layers: int
    of: int
    correlation: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the maps with variance; ``nan`` if there is none."""
        known = [value for value in self.correlation if not math.isnan(value)]
        return float(np.median(known)) if known else math.nan


def cascading_randomisation(
    network: nn.Module,
    build: Callable[[nn.Module], Explainer],
    x: Tensor,
    class_index: ClassIndex = None,
    *,
    steps: int = 4,
    seeds: Iterable[int] = (0, 1, 2),
) -> list[RandomisationStep]:
    """Correlate maps before and after layers are re-initialised, from the output downwards.

    A map that survives this shows the input's edges, not what the network learned.

    Args:
        network: Is copied, never changed.
        build: Makes the explainer for a network, for example ``lambda n: GradCAM(n, "layer4")``.
        x: Batch of inputs, shape (B, C, ...).
        class_index: As for the explainer; the classes stay those of the trained network.
        steps: Stages, evenly spaced over the weighted layers; the last has all of them random.
        seeds: One run each.

    Source:
        Adebayo et al. 2018, NeurIPS 31:9505 (arXiv:1810.03292).
    """
    with undisturbed(network):
        chosen = class_indices(class_scores(network(x)), class_index)
    before = _rows(build(network).raw(x, chosen))
    names = [
        name for name, module in network.named_modules() if [*module.parameters(recurse=False)]
    ]
    bounds = np.unique(np.linspace(0, len(names), steps + 1).round().astype(int))[1:]
    found: dict[int, list[float]] = {int(bound): [] for bound in bounds}
    for seed in seeds:
        copied = copy.deepcopy(network)
        generator = torch.Generator().manual_seed(int(seed))
        done = 0
        for bound in found:
            for name in names[len(names) - bound : len(names) - done]:
                randomise(copied.get_submodule(name), generator)
            done = bound
            after = _rows(build(copied).raw(x, chosen))
            found[bound] += [_correlation(a, b) for a, b in zip(before, after, strict=True)]
    return [RandomisationStep(n, len(names), tuple(values)) for n, values in found.items()]


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's own parameters again; batch statistics are kept.

    Matrices and kernels become normal with variance 2 / inputs, so that signals neither die nor
    explode; scales and biases are permuted, which keeps their distribution.

    Source:
        He et al. 2015, ICCV, doi:10.1109/ICCV.2015.123.
    """
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                inputs = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=generator) * (2 / inputs) ** 0.5
                parameter.copy_(drawn)
            else:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _rows(maps: Tensor) -> NDArray[np.float64]:
    return maps.detach().flatten(1).double().cpu().numpy()


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return abs(float(spearmanr(first, second).statistic))  # pyright: ignore[reportAttributeAccessIssue]
