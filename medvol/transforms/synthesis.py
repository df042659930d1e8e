"""Images synthesised from label maps: every contrast, resolution and artefact, no scan needed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from numpy.typing import NDArray

from medvol.core import ConfigError, LabelError
from medvol.transforms.grid import local_frame
from medvol.transforms.separable import apply_matrices, axis_matrix, gaussian_matrix

Pair = Sequence[float]

#: Labels are looked up in tables of this many rows at most.
_LARGEST_LABEL = 65535
#: Quantiles are read from about this many voxels.
_QUANTILE_VOXELS = 100_000


class RandSynthesised(RandomizableTransform, MapTransform):
    """Make an image of random contrast and resolution from a label map; the labels stay as given.

    Every label gets a Gaussian of random mean and spread, multiplied by a smooth bias field. The
    image is then acquired: blurred by the point spread of a random voxel size, read at that
    voxel size, given noise, and interpolated back onto the label map's grid. Last, it is scaled
    between two percentiles and bent by a gamma. Move, mirror and crop the labels before, with
    ``RandSpatiald``, so that anatomy is deformed once and by one resample.

    Args:
        keys: Key of one channel-first integer label map, (1, X, Y, Z) or (1, X, Y).
        image_key: Where the image goes, float32 in [0, 1].
        prob: Share of calls that make an image.
        mean_range: Bounds of a label's mean; SynthSeg: 0 to 250 of 255.
        std_range: Bounds of a label's standard deviation; SynthSeg: 0 to 30 of 255.
        tied_labels: Groups of labels that share one Gaussian (left and right of a structure),
            as SynthSeg's generation classes do.
        dark_background_prob: Share of images whose label 0 is dark (mean up to 15 / 255, spread up
            to 5 / 255). SynthSeg: 0.3; a scan in the wild shows air more often than not.
        removed_labels: Pairs of (probability, labels): with that probability the labels become
            background in the image, though not in the label map. Whole-brain training removes
            skull and scalp, as after skull-stripping.
        bias_std_range: Spread of the logarithm of the bias field at its 4 x 4 x 4 control points;
            SynthSeg: 0 to 0.5 (0.7 in later versions).
        isotropic_prob: Share of images with cubic voxels; the others have one coarse axis.
            SynthSeg: 0.1.
        isotropic_mm: Voxel size of cubic voxels; SynthSeg: 1 to 4 mm.
        slice_mm: Spacing along the coarse axis; SynthSeg: 1 to 8 mm.
        in_plane_mm: Voxel size along the other axes; SynthSeg: 1 mm.
        point_spread: Sigma of the blur as a share of the acquired voxel, but of the grid's own
            voxel where that is larger; SynthSeg: 0.5 on the finest grid and 0.75 below it.
        noise_range: Standard deviation of the noise of the acquired voxels, in the range of means.
        percentiles: Intensities that become 0 and 1; those beyond are clipped.
        gamma_std: Spread of the logarithm of gamma; SynthSeg: 0.4.

    Raises:
        ConfigError: If a range does not run from low to high, or a label is in two groups.
        LabelError: If the label map is not one channel of whole numbers from 0 to 65535.

    Source:
        Billot et al. 2023, Medical Image Analysis 86:102789, doi:10.1016/j.media.2023.102789;
        the values are those of its code (github.com/BBillot/SynthSeg, Apache-2.0).
    """

    def __init__(
        self,
        keys: Hashable = "label",
        image_key: Hashable = "image",
        prob: float = 1.0,
        *,
        mean_range: Pair = (0.0, 1.0),
        std_range: Pair = (0.0, 30 / 255),
        tied_labels: Sequence[Sequence[int]] = (),
        dark_background_prob: float = 0.7,
        removed_labels: Sequence[tuple[float, Sequence[int]]] = (),
        bias_std_range: Pair = (0.0, 0.5),
        isotropic_prob: float = 0.4,
        isotropic_mm: Pair = (1.0, 4.0),
        slice_mm: Pair = (1.0, 8.0),
        in_plane_mm: Pair = (0.5, 2.0),
        point_spread: Pair = (0.25, 0.75),
        noise_range: Pair = (0.0, 0.06),
        percentiles: Pair = (0.5, 99.5),
        gamma_std: float = 0.4,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 1:
            raise ConfigError(f"RandSynthesised reads one label map, found keys {list(self.keys)}")
        self.image_key = image_key
        self.mean_range = _range("mean_range", mean_range)
        self.std_range = _range("std_range", std_range)
        self.dark_background_prob = dark_background_prob
        self.bias_std_range = _range("bias_std_range", bias_std_range)
        self.isotropic_prob = isotropic_prob
        self.isotropic_mm = _range("isotropic_mm", isotropic_mm, above=0.0)
        self.slice_mm = _range("slice_mm", slice_mm, above=0.0)
        self.in_plane_mm = _range("in_plane_mm", in_plane_mm, above=0.0)
        self.point_spread = _range("point_spread", point_spread)
        self.noise_range = _range("noise_range", noise_range)
        self.percentiles = _range("percentiles", percentiles)
        self.gamma_std = float(gamma_std)
        self.removed_labels = [(float(p), [int(v) for v in group]) for p, group in removed_labels]
        self.tied_labels = [tuple(int(v) for v in group) for group in tied_labels]
        tied = [value for group in self.tied_labels for value in group]
        if twice := sorted({value for value in tied if tied.count(value) > 1}):
            raise ConfigError(f"tied_labels name {twice} in two groups; a label has one Gaussian")

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return a copy of ``data`` with an image of its label map."""
        out = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return out
        label = out[self.keys[0]]
        values = _checked(label, self.keys[0])
        image = self.render(values, _spacing(label))
        if isinstance(label, MetaTensor):
            image = MetaTensor(image).copy_meta_from(label)
        out[self.image_key] = image
        return out

    def render(self, label: torch.Tensor, spacing_mm: Sequence[float]) -> torch.Tensor:
        """One image of a label map, (1, ...) of int64 to float32 in [0, 1]."""
        size = max(int(label.max()) + 1, 2)
        mean, std = (torch.from_numpy(t).to(label.device) for t in self._contrast(size))
        flat = label.reshape(-1)
        image = mean[flat].addcmul_(std[flat], self._normal(flat)).reshape(label.shape)
        image = self._acquired(image * self._bias(image), spacing_mm)
        return self._scaled(image)

    def _contrast(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and spread of every label value below ``size``.

        One pair is drawn for every possible value, so that a label's contrast does not depend on
        which other labels are in sight.
        """
        mean = self.R.uniform(*self.mean_range, _LARGEST_LABEL + 1)[:size]
        std = self.R.uniform(*self.std_range, _LARGEST_LABEL + 1)[:size]
        is_dark = self.R.rand() < self.dark_background_prob
        dark = self.R.uniform(0, 15 / 255), self.R.uniform(0, 5 / 255)
        if is_dark:
            mean[0], std[0] = dark
        for first, *others in self.tied_labels:
            source = first if first < size else min((v for v in others if v < size), default=0)
            for value in others:
                if value < size:
                    mean[value], std[value] = mean[source], std[source]
        for prob, group in self.removed_labels:
            if self.R.rand() < prob:
                gone = [value for value in group if value < size]
                mean[gone], std[gone] = mean[0], std[0]
        return mean.astype(np.float32), std.astype(np.float32)

    def _bias(self, image: torch.Tensor) -> torch.Tensor:
        ndim = image.ndim - 1
        strength = self.R.uniform(*self.bias_std_range)
        control = torch.from_numpy(self.R.normal(0, strength, (1, *[4] * ndim)))
        matrices = [axis_matrix(4, n, 3 / max(n - 1, 1), "cubic", False) for n in image.shape[1:]]
        return apply_matrices(control.to(image.device), matrices).exp_()

    def _voxel_mm(self, ndim: int) -> NDArray[np.floating]:
        """The drawn size of an acquired voxel along every axis."""
        cubic, coarse = self.R.uniform(*self.isotropic_mm), self.R.uniform(*self.slice_mm)
        plane, axis = self.R.uniform(*self.in_plane_mm), self.R.randint(ndim)
        if self.R.rand() < self.isotropic_prob:
            return np.full(ndim, cubic)
        voxel = np.full(ndim, plane)
        voxel[axis] = max(coarse, plane)
        return voxel

    def _acquired(self, image: torch.Tensor, spacing_mm: Sequence[float]) -> torch.Tensor:
        """Blur, read at the acquired voxel size, add noise, and interpolate back."""
        spread = self.R.uniform(*self.point_spread)
        noise = self.R.uniform(*self.noise_range)
        steps = np.maximum(self._voxel_mm(image.ndim - 1) / np.asarray(spacing_mm), 1.0)
        down, up = [], []
        for size, step in zip(image.shape[1:], steps, strict=True):
            blur = gaussian_matrix(size, max(spread * step, 1e-3))
            coarse = max(round((size - 1) / step) + 1, 2)
            if coarse >= size or size < 3:
                down.append(blur if size > 1 else None)
                up.append(None)
                continue
            stride = (size - 1) / (coarse - 1)
            down.append(axis_matrix(size, coarse, stride, "bilinear", False) @ blur)
            up.append(axis_matrix(coarse, size, 1 / stride, "bilinear", False))
        image = apply_matrices(image, down)
        image = image.add_(self._normal(image), alpha=noise)
        return apply_matrices(image, up)

    def _scaled(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.reshape(-1)
        seen = flat[:: max(len(flat) // _QUANTILE_VOXELS, 1)]
        share = torch.tensor(self.percentiles, device=image.device) / 100
        low, high = torch.quantile(seen, share).tolist()
        gamma = float(np.exp(self.R.normal(0, self.gamma_std)))
        return ((image - low) / max(high - low, 1e-6)).clamp_(0, 1).pow_(gamma)

    def _normal(self, like: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(like.device).manual_seed(int(self.R.randint(2**31)))
        return torch.randn(like.shape, generator=generator, device=like.device)


def _checked(label: torch.Tensor, key: Hashable) -> torch.Tensor:
    values = label.as_tensor() if isinstance(label, MetaTensor) else label
    if values.ndim not in (3, 4) or len(values) != 1:
        raise LabelError(
            f"{key!r} has shape {tuple(values.shape)}; an image is synthesised from one channel, "
            "(1, X, Y, Z) or (1, X, Y)"
        )
    whole = values.to(torch.int64)
    if values.is_floating_point() and not bool((whole == values).all()):
        raise LabelError(f"{key!r} holds fractions; a label map holds whole numbers")
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high > _LARGEST_LABEL:
        raise LabelError(f"{key!r} holds labels {low} to {high}; 0 to {_LARGEST_LABEL} are allowed")
    return whole


def _spacing(label: torch.Tensor) -> list[float]:
    n = label.ndim - 1
    if not isinstance(label, MetaTensor):
        return [1.0] * n
    return np.linalg.norm(local_frame(np.asarray(label.affine), n), axis=0).tolist()


def _range(name: str, bounds: Pair, above: float | None = None) -> tuple[float, float]:
    if len(bounds) != 2 or bounds[0] > bounds[1] or bounds[0] < 0:
        raise ConfigError(f"{name} must run from low to high and not below 0, found {list(bounds)}")
    if above is not None and bounds[0] <= above:
        raise ConfigError(f"{name} must lie above {above:g}, found {list(bounds)}")
    return float(bounds[0]), float(bounds[1])
