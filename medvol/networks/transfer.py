"""Starting from published weights: renamed, fitted to channels and dimensions, accounted for."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from medvol.core import WeightsError
from medvol.networks.sources import find_source
from medvol.networks.weights import KeyReport, compare_keys, copy_weights, load_weights

Inflation = Literal["mean", "centre"]
log = logging.getLogger(__name__)

#: The last, class-specific layer of MONAI's classifiers.
HEADS = ("fc.*", "class_layers.out.*", "_fc.*", "classification_head.*", "last_linear.*")
#: Parameters that MONAI's transformers own and never use.
_UNUSED = ("*.norm_cross_attn.*",)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def init_weights(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    inflation: Inflation = "mean",
    keep_head: bool = False,
    minimum: float = 0.95,
    exact: bool = True,
) -> KeyReport:
    """Fill a classifier from a local checkpoint of it or of a network that it derives from.

    Known are torchvision's ResNet, DenseNet and EfficientNet, EfficientNet-PyTorch, MedicalNet,
    and timm's ViT alone or inside open_clip (BiomedCLIP). Kernels are summed over colours where
    the network has one channel, and inflated from 2D to 3D. The head is filled where its shape
    fits and left as it is otherwise.

    Args:
        network: The network to fill, in place; left as it was on an error.
        path: The checkpoint, read by :func:`medvol.networks.load_weights`.
        inflation: How a 2D kernel becomes a 3D one: ``mean`` spreads it along the new axis
            (Carreira & Zisserman 2017), ``centre`` puts it on the middle slice, which gives the
            2D network's output on a volume that repeats one image.
        keep_head: Leave the head as it is even where its shape fits.
        minimum: Share of the network's tensors, without its head, that must be filled.
        exact: Reject a network that differs from the source in a way that keys and shapes do not
            show (stride, padding, epsilon, dilation); False only logs it.

    Returns:
        What was loaded, adapted, missing, unexpected, of another shape and skipped.

    Raises:
        WeightsError: If too little fits, or the network is another function.

    Source:
        Carreira & Zisserman 2017, CVPR, doi:10.1109/CVPR.2017.502.
    """
    state = load_weights(path)
    source = find_source(state, network)
    renamed = source.rename(state, network)
    fitted, adapted = _fit_shapes(renamed, network, inflation)
    if keep_head:
        heads = tuple(head.removesuffix("*") for head in HEADS)
        fitted = {k: v for k, v in fitted.items() if not k.startswith(heads)}
    report = compare_keys(network, fitted, (*HEADS, *_UNUSED))
    report = dataclasses.replace(report, adapted=adapted, source=source.name)
    if report.share < minimum:
        raise WeightsError(
            f"{path}: fills {report.share:.1%} of {type(network).__name__}, "
            f"under {minimum:.0%}: {report}"
        )
    if faults := source.faults(network):
        line = f"{path}: the keys fit but {type(network).__name__} is another function than "
        line += f"{source.name}: {'; '.join(faults)}; build it with medvol.networks"
        if exact:
            raise WeightsError(line)
        log.warning(line)
    copy_weights(network, fitted, report.loaded)
    level = logging.WARNING if report.missing or report.mismatched else logging.INFO
    log.log(level, "%s: %s", path, report)
    return report


def pretrained(
    network: nn.Module, path: str | os.PathLike[str] | None = None, *, minimum: float = 0.95
) -> nn.Module:
    """``network`` after :func:`init_weights`, for a bundle's config; unchanged without a path."""
    if path:
        init_weights(network, path, minimum=minimum)
    return network


def merge_channels(kernel: Tensor, channels: int) -> Tensor:
    """A first kernel for another number of input channels.

    One channel: the sum, so that a grey image gives what its copy in every colour gave. More:
    the colours repeated in turn, scaled so that equal channels give the same sum.

    Args:
        kernel: Shape (out, in, ...).
        channels: Input channels needed.
    """
    have = kernel.shape[1]
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel.repeat(1, math.ceil(channels / have), *[1] * (kernel.ndim - 2))[:, :channels]
    return repeated * (have / channels)


def inflate_kernel(kernel: Tensor, depth: int, how: Inflation = "mean") -> Tensor:
    """A 2D kernel (out, in, X, Y) as a 3D one (out, in, X, Y, depth)."""
    if how == "mean":
        return (kernel / depth).unsqueeze(-1).repeat(1, 1, 1, 1, depth)
    inflated = kernel.new_zeros((*kernel.shape, depth))
    inflated[..., depth // 2] = kernel
    return inflated


def resize_positions(positions: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """Position embeddings of a patch grid on another one, repeated along a third axis.

    Args:
        positions: Shape (1, patches, width).
        grid: The grid that they are of.
        wanted: The grid to make them for, of as many axes or one more.
    """
    width = positions.shape[-1]
    field = positions.transpose(1, 2).reshape(1, width, *grid)
    mode = {2: "bicubic", 3: "trilinear"}[len(grid)]
    if tuple(wanted[: len(grid)]) != grid:
        field = F.interpolate(field, wanted[: len(grid)], mode=mode, align_corners=False)
    if len(wanted) > len(grid):
        field = field.unsqueeze(-1).expand(*field.shape, wanted[-1])
    return field.reshape(1, width, -1).transpose(1, 2).contiguous()


def _fit_shapes(
    state: Mapping[str, Tensor], network: nn.Module, inflation: Inflation
) -> tuple[dict[str, Tensor], dict[str, str]]:
    fitted, adapted = dict(state), {}
    convs = {f"{n}.weight": m for n, m in network.named_modules() if isinstance(m, _CONVS)}
    first = next(iter(convs), "")
    for name, conv in convs.items():
        kernel, wanted, done = fitted.get(name), conv.weight.shape, []
        if kernel is None or kernel.shape == wanted or kernel.ndim < 4:
            continue
        if name == first and kernel.shape[1] != wanted[1]:
            done.append(f"{kernel.shape[1]} to {wanted[1]} channels")
            kernel = merge_channels(kernel, wanted[1])
        if kernel.ndim == len(wanted) - 1:
            done.append("2D to 3D")
            kernel = inflate_kernel(kernel, wanted[-1], inflation)
        if kernel.shape == wanted and done:
            fitted[name], adapted[name] = kernel, ", ".join(done)
    _fit_positions(fitted, adapted, network)
    return fitted, adapted


def _fit_positions(fitted: dict[str, Tensor], adapted: dict[str, str], network: nn.Module) -> None:
    name = "patch_embedding.position_embeddings"
    own = network.state_dict().get(name)
    found = fitted.get(name)
    if own is None or found is None or own.shape == found.shape:
        return
    wanted = patch_grid(network)
    edge = math.isqrt(found.shape[1])
    if edge**2 != found.shape[1] or math.prod(wanted) != own.shape[1]:
        return
    fitted[name] = resize_positions(found, (edge, edge), wanted)
    adapted[name] = f"grid {edge}x{edge} to {'x'.join(map(str, wanted))}"


def patch_grid(network: nn.Module) -> tuple[int, ...]:
    """The patch grid of a :class:`medvol.networks.VisionTransformer`; empty for others."""
    return tuple(getattr(network, "patch_grid", ()))
