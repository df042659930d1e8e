"""Sliding-window inference: MONAI's answer, sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer as MonaiSlidingWindowInferer
from monai.inferers.utils import _flatten_struct, _pack_struct
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, GridMismatchError, InputError
from medvol.core.geometry import Geometry
from medvol.inferers.convolution import onednn_convolutions
from medvol.inferers.emptiness import body_box, outside_values
from medvol.inferers.mirrors import Mirrors, averaged
from medvol.inferers.slabs import Decision, GridMap, LayerRun, SlabWriter, slab_axis, stitch_slabs
from medvol.inferers.stitching import Network, Stitcher, WindowSource, padded
from medvol.inferers.windows import Box, WindowGrid, importance_map
from medvol.networks.ensemble import Activation, check_activation, logits

_MONAI_KEYS = ("device", "buffer_steps", "buffer_dim", "condition")


class SlidingWindowInferer(MonaiSlidingWindowInferer):
    """Drop-in for MONAI's inferer of that name: same arguments, same result to 1e-5.

    It is faster on a CPU, where windows take oneDNN's convolutions even one at a time and
    stitching is one multiply-add per window, and it can average over mirror images.

    Args:
        roi_size: Window size; components that are not positive mean the image's own size.
        sw_batch_size: Windows per forward pass.
        overlap: Share of a window that its neighbour covers as well, at least 0, under 1.
        mode: ``constant`` or ``gaussian`` weights.
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
            ``tta`` averages.
        returns: What comes out where ``tta`` is on: ``logits`` whose activation gives the averaged
            probabilities, so that the bundle's own activation stays right, or ``probabilities``.
        background: Declares that voxels which are not above this value hold nothing: the image is
            cropped to the rest and windows without any are skipped, which is no longer MONAI's
            answer near the crop. None predicts everything.
        overlap_slack: How much less windows may overlap along an axis where that saves a row of
            them, such as 0.03; they are spaced evenly there, which is MONAI's answer no longer.
        amp: Half precision on CUDA, bfloat16 where the device has it; the CPU ignores it.
        scratch_dir: Blend in a file of this folder, mapped into memory, instead of in memory.

    Attributes:
        sees_probabilities: Set it where networks return probabilities and not what ``activation``
            is still to be applied to.

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
        returns: Literal["logits", "probabilities"] = "logits",
        background: float | None = None,
        overlap_slack: float = 0.0,
        amp: bool = False,
        scratch_dir: str | None = None,
    ) -> None:
        if sw_batch_size < 1:
            raise ConfigError(f"sw_batch_size must be at least 1, got {sw_batch_size}")
        if returns not in ("logits", "probabilities"):
            raise ConfigError(f"returns must be logits or probabilities, got {returns!r}")
        super().__init__(
            roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, sw_device,
            device, progress, False, cpu_thresh, buffer_steps, buffer_dim, with_coord,
        )  # fmt: skip
        self.cache_roi_weight_map = cache_roi_weight_map
        self.mirrors = Mirrors.parse(tta, body_part, labels)
        self.activation: Activation = check_activation(activation)
        self.returns = returns
        self.background, self.overlap_slack = background, float(overlap_slack)
        self.amp, self.scratch_dir = amp, scratch_dir
        self.sees_probabilities = False

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Predict ``inputs`` (B, C, spatial...) window by window and blend.

        Args:
            inputs: Image batch; a MetaTensor keeps its affine.
            network: Called with (windows, C, roi...); returns a tensor, or a sequence or mapping
                of tensors.
            args: Handed to the network.
            kwargs: Handed to the network; ``device``, ``buffer_steps``, ``buffer_dim`` and
                ``condition`` are read as MONAI does.
        """
        if self.mirrors:
            network = self._averaged(network, inputs)
        with onednn_convolutions():
            out = self._blend(inputs, network, args, dict(kwargs))
        if self.mirrors and self.returns == "logits":
            return _each(out, lambda p: logits(p, self.activation))
        return out

    def _blend(
        self, inputs: torch.Tensor, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        steps = kwargs.get("buffer_steps", self.buffer_steps)
        if self.with_coord or steps or kwargs.get("condition") is not None:
            return super().__call__(inputs, network, *args, **kwargs)
        device = kwargs.get("device", self.device)
        if device is None and self.cpu_thresh and inputs.shape[2:].numel() > self.cpu_thresh:
            device = "cpu"
        call_kwargs = {k: v for k, v in kwargs.items() if k not in _MONAI_KEYS}
        source, box = self._windows(inputs)
        stitch_on = torch.device(device or inputs.device)
        stitcher = Stitcher(
            source.grid,
            self._weight(source, stitch_on),
            len(inputs),
            skips=self.background is not None,
            scratch_dir=self.scratch_dir,
        )

        def predictor(windows: torch.Tensor) -> Any:
            return network(windows, *args, **call_kwargs)

        places = source.places() or [(0, source.grid.boxes()[0])]
        for some, out in source.predict(places, predictor, to=stitch_on, shown=self.progress):
            if not stitcher.add(some, out):
                return super().__call__(inputs, network, *args, **kwargs)
            del out  # so that it is not held while the next is predicted
        outside = partial(
            outside_values, activation=self.activation,
            is_probability=self.mirrors is not None or self.sees_probabilities,
        )  # fmt: skip
        stitcher.finish(outside)
        return stitcher.result(inputs, box, outside)

    def label_map(
        self,
        inputs: torch.Tensor,
        network: Network,
        source: Geometry,
        decision: Decision | None = None,
        out: NDArray[np.uint8] | None = None,
        *,
        anti_alias: bool = False,
    ) -> NDArray[np.uint8]:
        """Labels of one 3D image on its source grid, without ever holding all probabilities.

        The same as blending, activation, linear resampling of the probabilities to ``source`` and
        decision, one after the other; memory is one window's depth of the network's grid.

        Args:
            inputs: MetaTensor (1, C, X, Y, Z) on the network's grid.
            network: Returns one tensor of the window's size.
            source: Grid of the labels; its axes must be parallel to the network's.
            decision: How probabilities become labels; default: the largest wins.
            out: Array to fill, for example memory-mapped; zeroed here.
            anti_alias: See :class:`GridMap`.

        Raises:
            GridMismatchError: If the grids lie obliquely to each other.
        """
        decision = decision or Decision(self.activation)
        if self.mirrors:
            network = self._averaged(network, inputs)
            decision = replace(decision, activation=None)
        windows, box = self._windows(inputs)
        labels = np.zeros(source.shape, np.uint8) if out is None else out
        labels[:] = 0
        stitch_on = torch.device(self.device or inputs.device)
        axis, skips = slab_axis(windows.grid), self.background is not None
        grid_map = _map_to(source, inputs, box, anti_alias)
        writer = SlabWriter(grid_map, axis, decision, labels, self.activation)
        run = LayerRun(windows, network, stitch_on)
        with torch.no_grad(), onednn_convolutions():
            weight = self._weight(windows, stitch_on)
            stitch_slabs(windows.grid, weight, axis, run, writer.add, skips=skips)
        return labels

    def grid_over(self, size: Sequence[int]) -> WindowGrid:
        """The windows over an image of spatial ``size``."""
        return WindowGrid.over(size, self.roi_size, self.overlap, self.overlap_slack)

    def _averaged(self, network: Network, inputs: torch.Tensor) -> Network:
        flips = self.mirrors.combinations(inputs) if self.mirrors else [()]
        return averaged(network, flips, self.activation, self.sw_batch_size)

    def _windows(self, inputs: torch.Tensor) -> tuple[WindowSource, Box | None]:
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        grid, box = self.grid_over(plain.shape[2:]), None
        if self.background is not None:
            box = body_box(plain, self.background, grid.roi)
            plain = plain[(slice(None), slice(None), *box)]
            grid = self.grid_over(plain.shape[2:])
        mode = str(getattr(self.padding_mode, "value", self.padding_mode))
        image = padded(plain, grid, mode, self.cval)
        device = torch.device(self.sw_device or plain.device)
        source = WindowSource(image, grid, self.sw_batch_size, device, self.background, self.amp)
        return source, box

    def _weight(self, source: WindowSource, device: torch.device) -> torch.Tensor:
        scale = self.sigma_scale
        sigma = tuple(scale) if isinstance(scale, Sequence) else float(scale)
        mode = str(getattr(self.mode, "value", self.mode))
        return importance_map(source.grid.roi, mode, sigma, device, source.image.dtype)


def _map_to(source: Geometry, inputs: torch.Tensor, box: Box | None, anti_alias: bool) -> GridMap:
    if not isinstance(inputs, MetaTensor) or inputs.ndim != 5 or len(inputs) != 1:
        raise InputError(
            "label_map needs one 3D image with an affine: a MetaTensor of shape (1, C, X, Y, Z)"
        )
    affine = np.asarray(inputs.affine, dtype=np.float64).reshape(4, 4).copy()
    places = box or tuple(slice(0, n) for n in inputs.shape[2:])
    affine[:3, 3] += affine[:3, :3] @ [place.start for place in places]
    x, y, z = (place.stop - place.start for place in places)
    network = Geometry((x, y, z), affine)
    if (found := GridMap.between(network, source, anti_alias=anti_alias)) is None:
        raise GridMismatchError(
            "the source grid lies obliquely to the network's grid; blend all probabilities and "
            "resample them instead (Invertd)"
        )
    return found


def _each(out: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    keys, parts = _flatten_struct(out)
    return _pack_struct([change(part) for part in parts], keys)
