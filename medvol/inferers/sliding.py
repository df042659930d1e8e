"""Sliding-window inference: MONAI's result, sooner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer as MonaiSlidingWindowInferer
from monai.utils.type_conversion import convert_to_dst_type

from medvol.core.errors import ConfigError
from medvol.inferers.convolution import onednn_convolutions
from medvol.inferers.emptiness import body_box, fill_unseen, outside_values
from medvol.inferers.ensemble import (
    Blended,
    UncertainPrediction,
    entropy,
    is_mean,
    member_mean,
    members_of,
)
from medvol.inferers.mirrors import Mirrors
from medvol.inferers.stitching import (
    Network,
    OtherSizeError,
    WindowSource,
    blend,
    outputs_of,
    packed,
    padded,
)
from medvol.inferers.windows import Box, WindowGrid, importance_map, is_sliced
from medvol.networks.ensemble import Activation, check_activation, logits, probabilities

_MONAI_KEYS = ("device", "buffer_steps", "buffer_dim", "condition")


class SlidingWindowInferer(MonaiSlidingWindowInferer):
    """Drop-in for MONAI's inferer of that name: same arguments, same result to 1e-5.

    It is faster on a CPU, where windows take oneDNN's convolutions even one at a time and
    stitching is one multiply-add per window, and it can average over mirror images. Windows blend
    a single network's outputs, as MONAI does; where mirrors or an ensemble's members are averaged
    they blend mean probabilities.

    Args:
        roi_size: Window size; components that are not positive mean the image's own size. Two
            components over a 3D image run a 2D network slice by slice across the last axis.
        sw_batch_size: Windows per forward pass.
        overlap: Share of a window that its neighbour covers as well, at least 0, under 1.
        mode: ``constant`` or ``gaussian`` weights, or ``nnunet``, its Gaussian without a bound.
        sigma_scale: Standard deviation of the Gaussian over the window size.
        padding_mode: How an image smaller than the window is enlarged.
        cval: Padding value of ``padding_mode: constant``.
        sw_device: Where windows are predicted; default the image's device.
        device: Where they are stitched; default the image's device.
        progress: Show a progress bar.
        cache_roi_weight_map: Accepted for compatibility: weight maps are always kept.
        cpu_thresh: Stitch on the CPU above this number of voxels.
        buffer_steps: As in MONAI, whose code then runs.
        buffer_dim: As in MONAI.
        with_coord: Hand window coordinates to the network, as in MONAI, whose code then runs.
        tta: Patient axes (``left-right``, ``anterior-posterior``, ``superior-inferior``) or array
            axes to mirror along; True for every mirror that the anatomy allows.
        body_part: Row of the anatomy rule that ``tta`` is checked against.
        labels: Structure names, or a mapping of label value to name; a name with a side forbids
            the left-right mirror.
        activation: ``softmax`` or ``sigmoid``: turns network output into the probabilities that
            are averaged.
        averages: ``probabilities``, or ``logits`` as nnU-Net does.
        returns: What a call returns where probabilities are averaged: ``logits`` whose activation
            gives them, so that the bundle's own activation stays right, or ``probabilities``.
        background: Declares that voxels which are not above this value hold nothing: the image is
            cropped to the rest and windows without any are skipped, which is no longer MONAI's
            result near the crop. None predicts everything.
        overlap_slack: How much less windows may overlap along an axis where that saves a row of
            them, such as 0.03; they are spaced evenly there, which is no longer MONAI's result.
        evenly_spaced: Space windows evenly along every axis, as nnU-Net does.
        amp: Half precision on CUDA, bfloat16 where the device has it; the CPU ignores it.

    Raises:
        ConfigError: If an argument is out of range.
        PolicyError: If the anatomy or a label forbids a mirror.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: str = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
        *,
        tta: bool | str | int | Sequence[str | int] | None = None,
        body_part: str | None = None,
        labels: Iterable[str] | Mapping[Any, str] = (),
        activation: str = "softmax",
        averages: str = "probabilities",
        returns: Literal["logits", "probabilities"] = "logits",
        background: float | None = None,
        overlap_slack: float = 0.0,
        evenly_spaced: bool = False,
        amp: bool = False,
    ) -> None:
        if sw_batch_size < 1:
            raise ConfigError(f"sw_batch_size must be at least 1, got {sw_batch_size}")
        for name, given in (("returns", returns), ("averages", averages)):
            if given not in get_args(Blended):
                raise ConfigError(f"{name} must be logits or probabilities, got {given!r}")
        super().__init__(
            roi_size, sw_batch_size, overlap, "gaussian" if mode == "nnunet" else mode,
            sigma_scale, padding_mode, cval, sw_device, device, progress, False, cpu_thresh,
            buffer_steps, buffer_dim, with_coord,
        )  # fmt: skip
        self.weights = mode
        self.cache_roi_weight_map = cache_roi_weight_map
        self.mirrors = Mirrors.parse(tta, body_part, labels)
        self.activation: Activation = check_activation(activation)
        self.averages, self.returns = averages, returns
        self.background, self.overlap_slack, self.amp = background, float(overlap_slack), amp
        self.evenly_spaced = evenly_spaced

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Predict ``inputs`` (B, C, spatial...) window by window and blend.

        Args:
            inputs: Image batch; a MetaTensor keeps its affine.
            network: Called with (windows, C, roi...); returns a tensor, or a sequence or mapping
                of tensors.
            args: Passed to the network.
            kwargs: Passed to the network; ``device``, ``buffer_steps``, ``buffer_dim`` and
                ``condition`` mean the same as in MONAI.
        """
        steps = kwargs.get("buffer_steps", self.buffer_steps)
        if self.with_coord or steps or kwargs.get("condition") is not None:
            return super().__call__(inputs, network, *args, **kwargs)
        device = kwargs.get("device", self.device)
        if device is None and self.cpu_thresh and inputs.shape[2:].numel() > self.cpu_thresh:
            device = "cpu"
        rest = {k: v for k, v in kwargs.items() if k not in _MONAI_KEYS}
        predictor = self.window_predictor(network, inputs)

        def predict(windows: torch.Tensor) -> Any:
            return predictor(windows, *args, **rest)

        try:
            keys, parts = self._whole(inputs, predict, torch.device(device or inputs.device),
                                      self.blended(network))  # fmt: skip
        except OtherSizeError:
            return super().__call__(inputs, network, *args, **kwargs)
        if self.blended(network) == "probabilities" and self.returns == "logits":
            parts = [logits(part, self.activation) for part in parts]
        target = inputs
        if isinstance(inputs, MetaTensor):
            target = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
        return convert_to_dst_type(packed(keys, parts), target, device=parts[0].device)[0]

    def uncertain(self, inputs: torch.Tensor, network: Network) -> UncertainPrediction:
        """Probabilities of ``inputs`` (B, C, spatial...) on their own grid, with uncertainty."""
        predict = self.window_predictor(network, inputs, with_entropy=True)
        device = torch.device(self.device or inputs.device)
        _, (mean, aleatoric) = self._whole(inputs, predict, device, self.blended(network))
        if self.blended(network) == "logits":
            mean = probabilities(mean, self.activation)
        epistemic = (entropy(mean, self.activation) - aleatoric).clamp_min(0)
        return UncertainPrediction(mean, aleatoric, epistemic)

    def blended(self, network: Network) -> Blended:
        """What windows blend of a network."""
        if self.averages == "logits":
            return "logits"
        return "probabilities" if self.mirrors or is_mean(network) else "logits"

    def window_predictor(
        self, network: Network, inputs: torch.Tensor, *, with_entropy: bool = False
    ) -> Network:
        """The predictor of windows that :meth:`blended` values come from.

        Args:
            network: A network, an :class:`medvol.networks.Ensemble`, or any predictor.
            inputs: Image batch whose affine tells where the mirrors lie.
            with_entropy: See :func:`member_mean`.
        """
        flips = self.mirrors.combinations(inputs) if self.mirrors else [()]
        predictor: Network = network
        if self.blended(network) == "probabilities" or with_entropy or len(flips) > 1:
            predictor = member_mean(
                members_of(network), flips, self.activation, self.blended(network),
                at_once=self.sw_batch_size, with_entropy=with_entropy,
            )  # fmt: skip
        return _by_slice(predictor) if is_sliced(self.roi_size, inputs.ndim - 2) else predictor

    def grid_over(self, size: Sequence[int]) -> WindowGrid:
        """The windows over an image of spatial ``size``."""
        return WindowGrid.over(
            size, self.roi_size, self.overlap, self.overlap_slack, evenly_spaced=self.evenly_spaced
        )

    def windows(self, image: torch.Tensor) -> tuple[WindowSource, Box]:
        """The windows of one image (C, spatial...), and the box of it that they cover."""
        box: Box = tuple(slice(0, n) for n in image.shape[1:])
        grid = self.grid_over(image.shape[1:])
        if self.background is not None:
            box = body_box(image, self.background, grid.roi)
            image = image[(slice(None), *box)]
            grid = self.grid_over(image.shape[1:])
        mode = str(getattr(self.padding_mode, "value", self.padding_mode))
        image = padded(image, grid, mode, self.cval)
        device = torch.device(self.sw_device or image.device)
        return WindowSource(image, grid, self.sw_batch_size, device, self.background, self.amp), box

    def weight(self, source: WindowSource, device: torch.device) -> torch.Tensor:
        """How much each voxel of a window counts."""
        scale = self.sigma_scale
        sigma = tuple(scale) if isinstance(scale, Sequence) else float(scale)
        mode = str(getattr(self.weights, "value", self.weights))
        return importance_map(source.grid.roi, mode, sigma, device, source.image.dtype)

    def _whole(
        self, inputs: torch.Tensor, predict: Network, device: torch.device, blended: Blended
    ) -> tuple[Any, list[torch.Tensor]]:
        """Keys and blended tensors (B, C, spatial...) of the network's outputs."""
        keys: list[Any] = []

        def noted(windows: torch.Tensor) -> Any:
            out = predict(windows)
            keys[:] = [outputs_of(out)[0]]
            return out

        items = []
        with onednn_convolutions():
            plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
            for image in plain:
                items.append(self._item(image, noted, device, blended))
        return keys[0], [torch.stack(parts) for parts in zip(*items, strict=True)]

    def _item(
        self, image: torch.Tensor, predict: Network, device: torch.device, blended: Blended
    ) -> list[torch.Tensor]:
        source, box = self.windows(image)
        axis, found = source.grid.shallow_axis, []

        def receive(sums: list[torch.Tensor], share: torch.Tensor, _: int) -> None:
            for index, total in enumerate(sums):
                values = total.new_zeros(len(total))  # entropies are nothing where nothing is
                if index == 0 or len(total) > 1:
                    values = outside_values(
                        len(total), total, activation=self.activation,
                        is_probability=blended == "probabilities",
                    )  # fmt: skip
                weights = share.clone() if index < len(sums) - 1 else share
                fill_unseen(total, weights, values)
                part = total.div_(weights).movedim(1, axis + 1)
                if self.background is not None:
                    whole = part.new_empty((len(part), *image.shape[1:]))
                    whole[:] = values.reshape(-1, *[1] * (part.ndim - 1))
                    whole[(slice(None), *box)] = part
                    part = whole
                found.append(part.contiguous())

        blend(source, predict, self.weight(source, device), receive, whole=True,
              shown=self.progress)  # fmt: skip
        return found


def _by_slice(predictor: Network) -> Network:
    """A 2D network as a predictor of windows that are one voxel deep."""

    def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, parts = outputs_of(predictor(windows[..., 0], *args, **kwargs))
        return packed(keys, [part[..., None] for part in parts])

    return predict
