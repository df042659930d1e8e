"""Voxels to network range by named preset: windows, z-score, percentiles, SUV, N4, CLAHE."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray

from medvol.core import ConfigError, Preset, find_preset
from medvol.transforms.clahe import equalise

#: Signal under this share of the 99.5th percentile counts as air around the body.
_AIR = 0.1


class NormaliseIntensityd(MapTransform):
    """Bring images to network range by a named preset of ``medvol.core.modality``.

    ``window`` maps its two ends to 0 and 1 and clips; ``zscore`` gives mean 0 and standard
    deviation 1 per channel; ``percentile`` and ``unit`` map two percentiles to 0 and 1 and clip;
    ``suv`` multiplies by ``suv_factor`` in the metadata where there is one, then maps like a
    window. A channel without any spread becomes 0. Deliberately not invertible in MONAI's meaning:
    ``Invertd`` would apply the inverse to a prediction.

    Args:
        keys: Keys of channel-first images.
        preset: Name of the preset, such as ``ct_liver``, ``mr_zscore`` or ``xr_clahe``.
        low: Replaces the preset's lower end.
        high: Replaces the preset's upper end.
        inside_body: Replaces the preset's choice of leaving the background out.
        allow_missing_keys: Skip keys that are absent.

    Raises:
        ConfigError: If the preset is unknown or its range is empty.
    """

    def __init__(
        self,
        keys: KeysCollection,
        preset: str,
        *,
        low: float | None = None,
        high: float | None = None,
        inside_body: bool | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        asked = {"low": low, "high": high, "inside_body": inside_body}
        self.preset = replace(
            find_preset(preset), **{k: v for k, v in asked.items() if v is not None}
        )
        if self.preset.low >= self.preset.high:
            raise ConfigError(
                f"{preset}: {self.preset.low:g} to {self.preset.high:g} is not a range"
            )

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every image as float32 in network range."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            plain = image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)
            meta = image.meta if isinstance(image, MetaTensor) else {}
            values = normalise(plain, self.preset, float(meta.get("suv_factor", 1.0)))
            is_meta = isinstance(image, MetaTensor)
            out[key] = MetaTensor(values).copy_meta_from(image) if is_meta else values
        return out


def normalise(image: torch.Tensor, preset: Preset, suv_factor: float = 1.0) -> torch.Tensor:
    """Normalise one channel-first image; see ``NormaliseIntensityd``."""
    values = image.to(torch.float32)
    if preset.n4:
        values = torch.stack([remove_bias(channel) for channel in values])
    if preset.method == "suv":
        values = values * suv_factor
    if preset.method in ("window", "suv"):
        values = ((values - preset.low) / (preset.high - preset.low)).clamp_(0, 1)
    else:
        values = torch.stack([_by_statistics(channel, preset) for channel in values])
    if preset.clahe:
        values = torch.stack([
            torch.from_numpy(equalise(channel.cpu().numpy())).to(values.device)
            for channel in values
        ])  # fmt: skip
    return values


def body(channel: torch.Tensor) -> torch.Tensor:
    """Mask of what gives signal: above a tenth of the 99.5th percentile; all where none is air."""
    if float(channel.min()) < 0:
        return torch.ones_like(channel, dtype=torch.bool)
    mask = channel > _AIR * percentiles(channel, [99.5])[0]
    return mask if bool(mask.any()) else torch.ones_like(mask)


def percentiles(values: torch.Tensor, wanted: Sequence[float]) -> NDArray[np.floating]:
    """Linear percentiles, any number of values (``torch.quantile`` rejects over 16 million)."""
    return np.percentile(values.detach().cpu().numpy(), list(wanted))


def remove_bias(channel: torch.Tensor, shrink: int = 4) -> torch.Tensor:
    """Divide by the smooth field that N4 estimates on a shrunken copy (Tustison et al. 2010)."""
    import SimpleITK as sitk

    values = channel.detach().cpu().numpy().astype(np.float32)
    mask = body(channel).cpu().numpy().astype(np.uint8)
    factors = [min(shrink, max(1, size // 8)) for size in values.shape[::-1]]
    image = sitk.GetImageFromArray(values)
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetMaximumNumberOfIterations([30, 30, 30])
    correct.SetNumberOfThreads(torch.get_num_threads())
    correct.Execute(sitk.Shrink(image, factors), sitk.Shrink(sitk.GetImageFromArray(mask), factors))
    field = sitk.GetArrayFromImage(sitk.Exp(correct.GetLogBiasFieldAsImage(image)))
    return torch.from_numpy(values / field).to(channel.device)


def _by_statistics(channel: torch.Tensor, preset: Preset) -> torch.Tensor:
    counted = channel[body(channel)] if preset.inside_body else channel
    if preset.method == "zscore":
        spread = counted.std(correction=0)
        centred = channel - counted.mean()
        return centred / spread if float(spread) > 0 else torch.zeros_like(channel)
    low, high = percentiles(counted, [preset.low, preset.high])
    if high <= low:
        return torch.zeros_like(channel)
    return ((channel - float(low)) / float(high - low)).clamp_(0, 1)
