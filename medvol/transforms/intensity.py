"""What scanners do to voxel values: noise, blur, drift, bias field, ghosts, truncated spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from medvol.core import ConfigError, LabelError, find_modality
from medvol.transforms.grid import local_frame
from medvol.transforms.separable import apply_matrices, axis_matrix, gaussian_matrix

LABEL_KEYS = ("label", "seg", "mask")


@dataclass(frozen=True)
class EffectContext:
    """What an effect may ask about the image that it changes.

    Attributes:
        spacing_mm: Voxel edge lengths.
        unit: Size of one physical unit (one HU), or of one standard deviation, in voxel values.
        random: The source of every draw.
    """

    spacing_mm: tuple[float, ...]
    unit: float
    random: np.random.RandomState

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise of an image's shape, on its device, from this context's source."""
        generator = torch.Generator(like.device).manual_seed(int(self.random.randint(2**31)))
        return torch.randn(like.shape, generator=generator, device=like.device)


Effect = Callable[[torch.Tensor, float, EffectContext], torch.Tensor]


class RandIntensityd(RandomizableTransform, MapTransform):
    """Vary voxel values as the modality's scanners do; never touches a label.

    Each effect happens with its own probability and one strength, drawn evenly from its range:

    ================== ========================================================================
    noise              standard deviation in HU for CT, else in standard deviations of the image
    speckle            standard deviation of a factor around 1
    blur               Gaussian sigma in millimetres, so that coarse axes blur less
    low_resolution     how many times coarser one axis is acquired
    shift              offset, in the unit of ``noise``
    brightness         factor on the values above the smallest
    contrast           factor on the distance from the mean, within the image's range
    gamma              exponent on the image's range, mean and spread kept
    bias_field         largest logarithm of a smooth factor (MR coils)
    ghosting           how much every n-th phase-encoding line is weakened (MR motion)
    gibbs              share of one axis' spectrum that is cut off (MR truncation)
    ================== ========================================================================

    Args:
        keys: Keys of channel-first images.
        modality: Row of ``medvol.core.modality`` whose effects are used.
        prob: Share of calls that change anything.
        effects: Rows that replace the modality's: name to (probability, smallest, largest
            strength), or to None to leave the effect out.
        window_hu: The window that normalisation maps to 0 and 1; without it, CT is in HU.
        allow_missing_keys: Skip keys that are absent.

    Raises:
        ConfigError: If an effect is unknown, or a key is that of a label.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str = "MR",
        prob: float = 1.0,
        *,
        effects: Mapping[str, Sequence[float] | None] | None = None,
        window_hu: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if labels := [key for key in self.keys if key in LABEL_KEYS]:
            raise ConfigError(f"RandIntensityd changes intensities; {labels} are labels")
        row = find_modality(modality)
        chosen = {**row.effects, **(effects or {})}
        if unknown := sorted(set(chosen) - set(EFFECTS)):
            raise ConfigError(f"effects {unknown} are unknown; known: {', '.join(sorted(EFFECTS))}")
        self.effects = {name: _row(name, r) for name, r in chosen.items() if r is not None}
        if window_hu is not None and window_hu[0] >= window_hu[1]:
            raise ConfigError(f"window_hu {list(window_hu)} does not run from low to high")
        self.unit = None if row.unit != "HU" else 1.0
        if window_hu is not None:
            self.unit = 1.0 / (window_hu[1] - window_hu[0])

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with every image changed by its own draws."""
        out = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return out
        for key in self.key_iterator(out):
            out[key] = self._change(key, out[key])
        return out

    def _change(self, key: Hashable, image: torch.Tensor) -> torch.Tensor:
        if not image.dtype.is_floating_point:
            raise LabelError(f"{key!r} holds integers ({image.dtype}); intensities must be floats")
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        drawn = [
            (name, self.R.uniform(low, high))
            for name, (prob, low, high) in self.effects.items()
            if self.R.rand() < prob
        ]
        if not drawn:
            return image
        context = EffectContext(_spacing(image), self.unit or float(values.std()) or 1.0, self.R)
        values = values.to(torch.float32)
        for name, strength in drawn:
            values = EFFECTS[name](values, strength, context)
        values = values.to(image.dtype)
        return MetaTensor(values).copy_meta_from(image) if isinstance(image, MetaTensor) else values


def noise(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Add white noise of ``strength`` units."""
    return image + context.normal(image) * (strength * context.unit)


def speckle(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Multiply the signal above its smallest value by noise around 1."""
    floor = image.min()
    return floor + (image - floor) * (1 + strength * context.normal(image))


def blur(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Smooth with a Gaussian of ``strength`` millimetres."""
    sigmas = [strength / spacing for spacing in context.spacing_mm]
    matrices = [
        gaussian_matrix(size, sigma) if sigma > 0.1 and size > 1 else None
        for size, sigma in zip(image.shape[1:], sigmas, strict=True)
    ]
    return apply_matrices(image, matrices)


def low_resolution(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Acquire one axis ``strength`` times coarser and interpolate back."""
    axis = _some_axis(image, context)
    size = image.shape[axis]
    coarse = max(round((size - 1) / strength) + 1, 2)
    if size < 3 or coarse >= size:
        return image
    step = (size - 1) / (coarse - 1)
    down = axis_matrix(size, coarse, step, "bilinear", True)
    up = axis_matrix(coarse, size, 1 / step, "cubic", False)
    matrices: list[Any] = [None] * (image.ndim - 1)
    matrices[axis - 1] = up @ down
    return apply_matrices(image, matrices)


def shift(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Add a constant of ``strength`` units."""
    return image + strength * context.unit


def brightness(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Multiply the signal above its smallest value."""
    del context
    floor = image.min()
    return floor + (image - floor) * strength


def contrast(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Spread values about their mean, within the image's own range."""
    del context
    low, high, mean = image.min(), image.max(), image.mean()
    return ((image - mean) * strength + mean).clamp(low, high)


def gamma(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Bend the image's range by an exponent, then restore mean and spread."""
    del context
    low, span = image.min(), image.max() - image.min()
    if span <= 0:
        return image
    bent = ((image - low) / span).clamp_(0, 1) ** strength
    spread = bent.std()
    if spread <= 0:
        return image
    return (bent - bent.mean()) * (image.std() / spread) + image.mean()


def bias_field(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Multiply the signal above its smallest value by a smooth field, exp(-s) to exp(s)."""
    field = torch.from_numpy(context.random.uniform(-1, 1, [4] * (image.ndim - 1)))
    matrices = [axis_matrix(4, n, 3 / max(n - 1, 1), "cubic", False) for n in image.shape[1:]]
    field = apply_matrices(field[None], matrices).to(image.device)
    field = field * (strength / field.abs().max().clamp_min(1e-6))
    floor = image.min()
    return floor + (image - floor) * field.exp()


def ghosting(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Weaken every n-th phase-encoding line (n = 2 to 6); the centre of k-space is kept."""
    axis = _some_axis(image, context)
    size = image.shape[axis]
    lines = np.arange(size)
    weaken = lines % int(context.random.randint(2, 7)) == 0
    weaken &= np.minimum(lines, size - lines) > max(size // 50, 1)
    weaken |= weaken[(-lines) % size]  # conjugate lines alike, so that the image stays real
    weights = torch.from_numpy(np.where(weaken, 1 - strength, 1.0).astype(np.float32))
    return _filter_axis(image, axis, weights[: size // 2 + 1])


def gibbs(image: torch.Tensor, strength: float, context: EffectContext) -> torch.Tensor:
    """Cut off the highest frequencies of one axis: ringing at edges."""
    axis = _some_axis(image, context)
    count = image.shape[axis] // 2 + 1
    kept = max(math.ceil(count * (1 - strength)), 1)
    return _filter_axis(image, axis, (torch.arange(count) < kept).to(torch.float32))


EFFECTS: dict[str, Effect] = {
    effect.__name__: effect
    for effect in (
        low_resolution, blur, bias_field, ghosting, gibbs, gamma, contrast, brightness, shift,
        speckle, noise,
    )
}  # fmt: skip


def _filter_axis(image: torch.Tensor, axis: int, weights: torch.Tensor) -> torch.Tensor:
    size = image.shape[axis]
    spectrum = torch.fft.rfft(image, dim=axis)
    shape = [1] * image.ndim
    shape[axis] = -1
    spectrum *= weights.to(image.device).reshape(shape)
    return torch.fft.irfft(spectrum, n=size, dim=axis)


def _some_axis(image: torch.Tensor, context: EffectContext) -> int:
    long = [axis for axis in range(1, image.ndim) if image.shape[axis] > 2]
    return long[context.random.randint(len(long))] if long else 1


def _spacing(image: torch.Tensor) -> tuple[float, ...]:
    n = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return (1.0,) * n
    return tuple(np.linalg.norm(local_frame(np.asarray(image.affine), n), axis=0))


def _row(name: str, row: Sequence[float]) -> tuple[float, float, float]:
    if len(row) != 3 or not 0 <= row[0] <= 1 or row[1] > row[2]:
        raise ConfigError(f"effect {name!r} needs [probability, low, high], found {list(row)}")
    if name in ("gamma", "low_resolution") and row[1] <= 0:
        raise ConfigError(f"effect {name!r} needs strengths above 0, found {list(row)}")
    return float(row[0]), float(row[1]), float(row[2])
