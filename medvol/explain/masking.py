"""Deletion and insertion: does the class probability follow the voxels that a map ranks first?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from medvol.core import GridMismatchError
from medvol.explain.capture import class_scores, undisturbed


@dataclass(frozen=True)
class MaskingCurve:
    """The class probability while the input is hidden or shown, most important voxels first.

    Attributes:
        shares: Share of voxels hidden or shown, 0 to 1.
        probabilities: Softmax probability of the class at each share.
        random: The same in random order: what no knowledge gives.
    """

    shares: tuple[float, ...]
    probabilities: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def area(self) -> float:
        """Area under the curve; deletion should be low, insertion high."""
        return float(np.trapezoid(self.probabilities, self.shares))

    @property
    def random_area(self) -> float:
        """Area under the random order's curve."""
        return float(np.trapezoid(self.random, self.shares))


def deletion(
    network: nn.Module, x: Tensor, cam: Tensor, class_index: int, *, steps: int = 16, seed: int = 0
) -> MaskingCurve:
    """Hide voxels behind a blurred copy of the input, the map's highest first.

    Args:
        network: Output (1, classes), logits.
        x: One item, shape (1, C, ...).
        cam: Its map on the input's grid, shape (1, 1, ...).
        class_index: The class whose probability is followed.
        steps: Forward passes per curve, less one.
        seed: Of the random order, drawn over blocks as coarse as a map usually is.

    Source:
        Petsiuk et al. 2018, BMVC (RISE), arXiv:1806.07421.
    """
    return _masking(network, x, cam, class_index, steps=steps, seed=seed, hide=True)


def insertion(
    network: nn.Module, x: Tensor, cam: Tensor, class_index: int, *, steps: int = 16, seed: int = 0
) -> MaskingCurve:
    """Show voxels of the input on a blurred copy, the map's highest first; as :func:`deletion`."""
    return _masking(network, x, cam, class_index, steps=steps, seed=seed, hide=False)


def _masking(
    network: nn.Module, x: Tensor, cam: Tensor, chosen: int, *, steps: int, seed: int, hide: bool
) -> MaskingCurve:
    if len(x) != 1 or cam.shape != (1, 1, *x.shape[2:]):
        raise GridMismatchError(
            f"one item and its map on the same grid are needed, not {tuple(x.shape)} "
            f"and {tuple(cam.shape)}"
        )
    x, cam = (torch.as_tensor(t).detach() for t in (x, cam))
    coarse = [max(1, n // 8) for n in x.shape[2:]]
    noise = torch.rand((1, 1, *coarse), generator=torch.Generator().manual_seed(seed))
    chance = F.interpolate(noise, tuple(x.shape[2:]), mode="nearest")
    hidden, shares = _blurred(x), np.linspace(0, 1, steps + 1).tolist()

    def probability(first: Tensor) -> float:
        shown = torch.where(first, hidden, x) if hide else torch.where(first, x, hidden)
        return float(class_scores(network(shown)).softmax(1)[0, chosen])

    with undisturbed(network):
        ranks = [_ranks(order).to(x.device) for order in (cam, chance)]
        curves = [tuple(probability(rank < share) for share in shares) for rank in ranks]
    return MaskingCurve(tuple(shares), *curves)


def _ranks(order: Tensor) -> Tensor:
    """Each voxel's place, 0 for the highest up to just below 1."""
    place = torch.empty(order.numel(), dtype=torch.float64)
    best_first = order.flatten().cpu().argsort(descending=True, stable=True)
    place[best_first] = torch.arange(order.numel(), dtype=torch.float64) / order.numel()
    return place.view(order.shape)


def _blurred(x: Tensor) -> Tensor:
    sigma = [0.0, 0.0, *[n / 8 for n in x.shape[2:]]]
    smooth = ndimage.gaussian_filter(x.cpu().numpy().astype(np.float32), sigma)
    return torch.as_tensor(smooth, dtype=x.dtype, device=x.device)
