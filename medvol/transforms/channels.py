"""Per-channel normalisation fitted on training data, with inverse; spectral indices."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from numpy.typing import ArrayLike, NDArray

from medvol.core import ConfigError, GridMismatchError, InputError

ChannelMethod = Literal["zscore", "percentile"]

#: Values per channel and image that percentiles are read from, evenly spaced.
_SAMPLES = 100_000


@dataclass(frozen=True)
class ChannelNormaliser:
    """One offset and scale per channel, the same for every image.

    Attributes:
        method: ``zscore`` (mean 0, standard deviation 1 over the training data) or ``percentile``
            (two percentiles become 0 and 1, values beyond are clipped).
        offset: Per channel, subtracted first.
        scale: Per channel, divided by then; positive.
    """

    method: ChannelMethod
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.method not in get_args(ChannelMethod):
            raise ConfigError(f"method {self.method!r} is unknown; choose zscore or percentile")
        if len(self.offset) != len(self.scale) or not all(s > 0 for s in self.scale):
            raise ConfigError("every channel needs an offset and a positive scale")

    @classmethod
    def fit(
        cls,
        images: Iterable[ArrayLike],
        method: ChannelMethod = "zscore",
        percentiles: tuple[float, float] = (2.0, 98.0),
    ) -> ChannelNormaliser:
        """Learn from training images, one pass, one image in memory.

        Args:
            images: Channel-first images with the same number of channels.
            method: See the class.
            percentiles: Which percentiles become 0 and 1.

        Raises:
            InputError: If there is no image, or a channel never varies.
        """
        if method == "zscore":
            offset, scale = _moments(images)
        else:
            offset, high = _spread(images, percentiles)
            scale = high - offset
        if flat := np.flatnonzero(~(scale > 0)).tolist():
            raise InputError(f"channels {flat} hold one value only and cannot be normalised")
        return cls(method, tuple(map(float, offset)), tuple(map(float, scale)))

    def transform(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise a channel-first image to float32."""
        offset, scale = self._columns(image)
        out = ((image.to(torch.float64) - offset) / scale).to(torch.float32)
        return out.clamp_(0, 1) if self.method == "percentile" else out

    def inverse(self, image: torch.Tensor) -> torch.Tensor:
        """Bring a normalised image back to the unit it came in; clipped values stay clipped."""
        offset, scale = self._columns(image)
        return (image.to(torch.float64) * scale + offset).to(torch.float32)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a bundle's values file."""
        return {"method": self.method, "offset": list(self.offset), "scale": list(self.scale)}

    def _columns(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if image.shape[0] != len(self.offset):
            raise GridMismatchError(
                f"the image has {image.shape[0]} channels, the normaliser {len(self.offset)}"
            )
        shape = (-1, *[1] * (image.ndim - 1))
        columns = torch.tensor([self.offset, self.scale], dtype=torch.float64, device=image.device)
        return columns[0].reshape(shape), columns[1].reshape(shape)


class NormaliseChannelsd(MapTransform):
    """Normalise every channel by numbers fitted on training data (``ChannelNormaliser.fit``).

    Args:
        keys: Keys of channel-first images.
        method: ``zscore`` or ``percentile``.
        offset: Per channel.
        scale: Per channel.
        allow_missing_keys: Skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        method: ChannelMethod,
        offset: Sequence[float],
        scale: Sequence[float],
        *,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normaliser = ChannelNormaliser(method, tuple(offset), tuple(scale))

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every image normalised."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = _like(out[key], self.normaliser.transform(_plain(out[key])))
        return out


class NormalisedDifferenced(MapTransform):
    """Append (first - second) / (first + second) of two raw channels, as NDVI does.

    Ratios of raw values are physical, ratios of normalised ones are not: put this first.

    Args:
        keys: Keys of channel-first images in raw, non-negative units.
        first: Index of the first channel (near infrared for NDVI).
        second: Index of the second channel (red for NDVI).
        allow_missing_keys: Skip keys that are absent.
    """

    def __init__(
        self, keys: KeysCollection, first: int, second: int, *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.first, self.second = first, second

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with one more channel, -1 to 1, 0 where both are 0.

        Raises:
            InputError: If a value is negative, that is, already normalised.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            values = _plain(out[key]).to(torch.float32)
            first, second = values[self.first], values[self.second]
            if float(torch.minimum(first, second).min()) < 0:
                raise InputError(f"{key!r} holds negative values; an index needs raw ones")
            total = first + second
            index = torch.where(total > 0, (first - second) / total.clamp_min(1e-30), total)
            out[key] = _like(out[key], torch.cat([values, index[None]]))
        return out


def _moments(images: Iterable[ArrayLike]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and standard deviation per channel, merged image by image (Chan et al. 1979)."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for image in images:
        values = _flat(image)
        n, m = values.shape[1], values.mean(axis=1)
        s = ((values - m[:, None]) ** 2).sum(axis=1)
        gap, total = m - mean, count + n
        squares = squares + s + gap**2 * count * n / total
        mean, count = mean + gap * n / total, total
    if not count:
        raise InputError("no training image to fit a normalisation on")
    return mean, np.sqrt(squares / count)


def _spread(
    images: Iterable[ArrayLike], percentiles: tuple[float, float]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    kept = []
    for image in images:
        values = _flat(image)
        kept.append(values[:, :: max(1, values.shape[1] // _SAMPLES)])
    if not kept:
        raise InputError("no training image to fit a normalisation on")
    low, high = np.percentile(np.concatenate(kept, axis=1), percentiles, axis=1)
    return low, high


def _flat(image: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(image, dtype=np.float64)
    return values.reshape(values.shape[0], -1)


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def _like(image: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return MetaTensor(values).copy_meta_from(image) if isinstance(image, MetaTensor) else values
