"""What a bundle's own network makes of an image: a short vector that follows what it looks at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from medvol.bundle import Bundle
    from medvol.monitoring.profile import Paths

#: Slices that stand for a volume where the network takes images.
_SLICES = 16


def embed_images(bundle: Bundle, images: Mapping[str, Paths]) -> dict[str, NDArray[np.float32]]:
    """The mean activation of each channel of the network's widest convolution, per image.

    The image goes through the bundle's own preprocessing; its middle, as large as the network's
    window, goes through the network once. A network of slices sees up to 16 of them.

    Args:
        bundle: A bundle with weights.
        images: Case to image, or to its files where each holds one channel.

    Returns:
        Case to a vector with a number per channel.

    Raises:
        ConfigError: If the network has no convolution.
        WeightsError: If the bundle has no weights.
    """
    import torch
    from monai.transforms.croppad.array import ResizeWithPadOrCrop

    network = bundle.network()
    prepare: Any = bundle.parser("inference").get_parsed_content("preprocessing")
    window = _window(bundle)
    fit, seen = ResizeWithPadOrCrop(window), []
    layer = _widest(network)
    hook = layer.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    vectors = {}
    try:
        with torch.inference_mode():
            for case, path in images.items():
                batch = torch.stack([fit(view) for view in _views(prepare, path, len(window))])
                seen.clear()
                network(batch)
                mean = seen[-1].mean(dim=(0, *range(2, seen[-1].ndim)))
                vectors[case] = np.asarray(mean.cpu(), np.float32)
    finally:
        hook.remove()
    return vectors


def _window(bundle: Bundle) -> tuple[int, ...]:
    shape = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return tuple(int(n) for n in shape)


def _views(prepare: Any, paths: Paths, ndim: int) -> Sequence[torch.Tensor]:
    """The prepared image, or evenly spread slices of it where the network has an axis less."""
    import torch

    one = isinstance(paths, (str, os.PathLike)) or len(paths) == 1
    files = str(paths if isinstance(paths, (str, os.PathLike)) else paths[0]) if one else paths
    image = torch.as_tensor(prepare({"image": files})["image"], dtype=torch.float32)
    if image.ndim - 1 == ndim:
        return [image]
    count = image.shape[-1]
    index = np.unique(np.linspace(0, count - 1, min(_SLICES, count)).round().astype(int))
    return [image[..., int(k)] for k in index]


def _widest(network: torch.nn.Module) -> torch.nn.Module:
    """The convolution with the most channels, the last of equals: the bottom of a U-Net."""
    import torch

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    found = [module for module in network.modules() if isinstance(module, kinds)]
    if not found:
        raise ConfigError("the network has no convolution to take an embedding from")
    widest = max(module.out_channels for module in found)
    return [module for module in found if module.out_channels == widest][-1]
