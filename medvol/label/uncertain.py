"""How uncertain a bundle is about one image: what active learning sorts by."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medvol.inferers import Mirrors, SlidingWindowInferer

_FOREGROUND = 0.5


@dataclass(frozen=True)
class ImageUncertainty:
    """Means over the predicted foreground, in nats.

    Attributes:
        entropy: Entropy of the probabilities averaged over mirror images and members.
        mutual_information: Its part that the predictions disagree on, one for each network and
            mirror image; 0 where there is one of both.
        foreground_voxels: Voxels where foreground is at least as likely as not.
    """

    entropy: float
    mutual_information: float
    foreground_voxels: int


def image_uncertainty(
    inferer: SlidingWindowInferer,
    image: Tensor,
    network: nn.Module,
    *,
    body_part: str | None = None,
    labels: Sequence[str] = (),
) -> ImageUncertainty:
    """Uncertainty of one image, averaged over the mirrors that the anatomy allows.

    The mean is taken inside the predicted foreground: over a whole volume it would measure how
    much background there is. An image in which no foreground is found scores highest of all,
    log(classes): the structure is a false negative, and a label teaches most.

    Args:
        inferer: The bundle's inferer.
        image: Preprocessed, (1, C, spatial...), a MetaTensor where mirrors are wanted.
        network: A network or an :class:`medvol.networks.Ensemble`.
        body_part: Row of the anatomy rule; None mirrors only as the inferer does already.
        labels: Label names; a name with a side forbids the left-right mirror.

    Source:
        Gal, Islam & Ghahramani 2017, ICML, "Deep Bayesian active learning with image data".
    """
    mirrored = copy.copy(inferer)
    if mirrored.mirrors is None and body_part:
        mirrored.mirrors = Mirrors.parse(True, body_part, labels)
    activation = mirrored.activation
    with torch.no_grad():
        found = mirrored.uncertain(image, network)
    probabilities = _plain(found.probabilities)
    inside = _foreground(probabilities, activation)
    if not bool(inside.any()):
        return ImageUncertainty(math.log(max(2, probabilities.shape[1])), 0.0, 0)
    return ImageUncertainty(
        float(_plain(found.total)[:, 0][inside].mean()),
        float(_plain(found.epistemic)[:, 0][inside].mean()),
        int(inside.sum()),
    )


def _foreground(probabilities: Tensor, activation: str) -> Tensor:
    if activation == "sigmoid":
        return probabilities.amax(1) >= _FOREGROUND
    return 1 - probabilities[:, 0] >= _FOREGROUND


def _plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)
