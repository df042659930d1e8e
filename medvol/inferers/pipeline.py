"""The one way from a prepared image to a prediction on the scan's own grid."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import decollate_batch, list_data_collate
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, InputError, TooLargeError
from medvol.core.geometry import Geometry
from medvol.inferers.convolution import onednn_convolutions
from medvol.inferers.decision import Decision
from medvol.inferers.fallback import Attempt, with_fallback
from medvol.inferers.footprint import Footprint, window_footprint
from medvol.inferers.grid_map import Inverse
from medvol.inferers.memory import Job, MemoryPlan, parse_bytes, plan_job
from medvol.inferers.sliding import SlidingWindowInferer
from medvol.inferers.source_grid import (
    MAPS,
    ON_SOURCE_GRID,
    Allocate,
    Prediction,
    SourceGridWriter,
)
from medvol.inferers.stitching import blend
from medvol.inferers.windows import is_sliced

#: What the first case adds for good: modules that reading and planning import, and the kernels
#: that oneDNN compiles. Measured on a crop of 36x50x34 voxels and on 512x512x600.
FIRST_CASE_BYTES = 80 * 2**20


class PredictionPipeline(Inferer):
    """Windows, blending, mirrors, members, the way back to the scan's grid, decision and memory.

    Everything that predicts with a bundle calls this: ``medvol predict``, the evaluator of
    ``monai.bundle run``, MONAI Label, ``export``'s comparison, ``select`` and studies. Called as
    an inferer it returns the label map (1, 1, X, Y, Z) on the source grid; :meth:`predict` also
    gives probabilities and uncertainty, which change no label: they are read from the same planes
    that the labels are decided on.

    Args:
        inferer: Windows, mirrors, and what they blend.
        decision: How probabilities become labels.
        max_ram: Ceiling of the process's memory, in bytes or as text such as ``6GB``.
        max_gpu_mem: Ceiling of GPU memory.
        scratch_dir: Folder for probabilities that do not fit under the ceiling; default the
            system's.

    Raises:
        ConfigError: If inferer and decision apply different activations.
    """

    def __init__(
        self,
        inferer: SlidingWindowInferer,
        decision: Decision,
        max_ram: int | str | None = None,
        max_gpu_mem: int | str | None = None,
        scratch_dir: str | None = None,
    ) -> None:
        super().__init__()
        if inferer.activation != decision.activation:
            raise ConfigError(f"the inferer averages by {inferer.activation}, but the decision "
                              f"is made by {decision.activation}; name one")  # fmt: skip
        if decision.resampled == "logits" and inferer.averages != "logits":
            raise ConfigError("logits can be resampled only where the inferer averages logits")
        self.inferer, self.decision, self.scratch_dir = inferer, decision, scratch_dir
        self.max_ram, self.max_gpu_mem = (
            parse_bytes(v) if isinstance(v, str) else v for v in (max_ram, max_gpu_mem)
        )
        self.base_bytes = 0  # of the process before its first image
        self._footprints: dict[tuple[int, ...], Footprint] = {}

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> MetaTensor:
        """The label map of a batch (B, C, spatial...), (B, 1, spatial of the source...)."""
        labels = []
        for image in _images_of(inputs):
            try:
                labels.append(self.predict(image, network).label_map_like(image))
            except TooLargeError as error:
                name = image.meta.get("filename_or_obj", "the image")
                raise TooLargeError(f"{name}: {error}") from error
        batch: Any = list_data_collate(labels)
        return batch

    def predict(
        self,
        image: torch.Tensor,
        network: Any,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Predict one image.

        Args:
            image: MetaTensor (C, X, Y, Z) or (C, X, Y) on the network's grid, as the bundle's
                preprocessing leaves it; its meta holds the source grid.
            network: A network on its device, an ensemble, or a predictor of windows.
            probabilities: Also return every channel's probability on the source grid.
            uncertainty: Also return aleatoric and epistemic maps and volume intervals.

        Raises:
            TooLargeError: If the ceilings cannot be kept, or memory runs out however little is
                asked of it.
            InputError: If the image has no grid.
        """
        source = source_of(image)
        volume, grid = _volume_of(image)
        device = _device_of(network)
        plan = self.plan(source, grid.shape, network, len(image), probabilities=probabilities,
                         loaded_bytes=image.numel() * image.element_size())  # fmt: skip
        first = Attempt(
            plan.batch if plan else self.inferer.sw_batch_size,
            torch.device("cpu") if plan and plan.stitch_on == "cpu" else device,
            device,
        )

        allocate = None
        if probabilities:
            allocate = self._mapped if plan and plan.mode == "mapped" else _zeros

        def run(attempt: Attempt) -> Prediction:
            with _placed(network, device, attempt.network_on):
                prediction = Prediction(np.zeros(source.shape, np.uint8), source)
                if uncertainty:
                    prediction.maps = {name: np.zeros(source.shape, np.float32) for name in MAPS}
                self._fill(prediction, volume, grid, Inverse.of(image), network, attempt, allocate)
                return prediction

        with torch.no_grad():
            prediction, attempt = with_fallback(first, run)
        prediction.fallback = attempt.name
        return prediction

    def plan(
        self,
        source: Geometry,
        network_size: Sequence[int],
        network: Any,
        in_channels: int,
        *,
        probabilities: bool = False,
        loaded_bytes: int = 0,
        window_s: float = 0.0,
        is_asked: bool = False,
    ) -> MemoryPlan | None:
        """How an image will be predicted, and what that takes; None where nobody needs to know.

        Args:
            source: The image's own grid.
            network_size: Its shape on the network's grid.
            network: What will predict.
            in_channels: Channels of the image.
            probabilities: Whether they are asked for.
            loaded_bytes: What of the image is in memory already.
            window_s: Seconds of one pass of one window, where a time is wanted.
            is_asked: Plan even without a ceiling.

        Raises:
            TooLargeError: If the ceilings cannot be kept.
            ConfigError: If there are any, but the network's memory cannot be estimated.
        """
        if self.base_bytes == 0:
            self.base_bytes = psutil.Process().memory_info().rss - loaded_bytes + FIRST_CASE_BYTES
        if self.max_ram is None and self.max_gpu_mem is None and not is_asked:
            return None
        flips = 2 ** len(self.inferer.mirrors.axes) if self.inferer.mirrors else 1
        inferer = self.inferer
        job = Job(
            source.shape, tuple(network_size), inferer.grid_over(network_size),
            self.footprint(network, network_size, in_channels), batch=inferer.sw_batch_size,
            in_channels=in_channels, passes=flips, base_bytes=self.base_bytes, window_s=window_s,
            on_gpu=_device_of(network).type == "cuda",
        )  # fmt: skip
        return plan_job(job, keeps_probabilities=probabilities, max_ram=self.max_ram,
                        max_gpu=self.max_gpu_mem)  # fmt: skip

    def footprint(self, network: Any, size: Sequence[int], in_channels: int) -> Footprint:
        """Memory of one batch of windows over an image of ``size`` voxels.

        Raises:
            ConfigError: If the network cannot be followed, as one of another engine.
        """
        roi = self.inferer.grid_over(size).roi
        network = getattr(network, "original", network)  # of an exported one
        key = (id(network), in_channels, *roi)
        if key not in self._footprints:
            if not isinstance(network, torch.nn.Module):
                raise ConfigError("the memory of this network cannot be estimated, so that no "
                                  "ceiling can be kept; leave out --max-ram")  # fmt: skip
            window = roi[:2] if is_sliced(self.inferer.roi_size, len(size)) else roi
            self._footprints[key] = window_footprint(
                network, window, in_channels=in_channels, batch=self.inferer.sw_batch_size
            )
        return self._footprints[key]

    def _fill(
        self,
        prediction: Prediction,
        volume: torch.Tensor,
        grid: Geometry,
        inverse: Inverse,
        network: Any,
        attempt: Attempt,
        allocate: Allocate | None,
    ) -> None:
        inferer = copy.copy(self.inferer)
        inferer.sw_batch_size, inferer.sw_device = attempt.batch, attempt.network_on
        inferer.amp = attempt.network_on.type == "cuda"
        windows, box = inferer.windows(volume)
        writer = SourceGridWriter(
            prediction, _cropped(grid, box), windows.grid.shallow_axis, self.decision,
            inferer.blended(network), inverse, allocate,
        )  # fmt: skip
        located = MetaTensor(volume[None], affine=torch.from_numpy(grid.affine))
        predict = inferer.window_predictor(network, located, with_entropy=bool(prediction.maps))
        weight = inferer.weight(windows, attempt.stitch_on)
        is_oblique = writer.grid_map is None
        with onednn_convolutions():
            blend(windows, predict, weight, writer.add, whole=is_oblique, shown=inferer.progress)
        writer.close()

    def _mapped(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array in a file without a name, which vanishes with the array."""
        with tempfile.TemporaryFile(dir=self.scratch_dir) as file:
            return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


class ToSourceGridd(MapTransform):
    """Blended outputs of a whole image become the label map on the source grid.

    The first step of a bundle's postprocessing, where something else than the pipeline has run
    the inferer, such as MONAI Label's own task; the pipeline's label map passes unchanged.

    Args:
        keys: Keys of outputs (C, spatial...) on the network's grid.
        decision: How they become labels.
        image_key: Key of the image as the preprocessing left it.
    """

    def __init__(
        self, keys: KeysCollection, decision: Decision, image_key: Hashable = "image"
    ) -> None:
        super().__init__(keys)
        self.decision, self.image_key = decision, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        image = case[self.image_key]
        for key in self.key_iterator(case):
            if getattr(case[key], "meta", {}).get(ON_SOURCE_GRID):
                continue
            source = source_of(image)
            prediction = Prediction(np.zeros(source.shape, np.uint8), source)
            _, grid = _volume_of(image)
            outputs = torch.as_tensor(case[key]).as_subclass(torch.Tensor).detach().cpu().float()
            outputs = outputs.reshape(len(outputs), *grid.shape).clone()
            writer = SourceGridWriter(
                prediction, grid, 0, self.decision, "logits", Inverse.of(image)
            )
            writer.add([outputs], outputs.new_ones(grid.shape), 0)
            writer.close()
            case[key] = prediction.label_map_like(image)
        return case


def _images_of(batch: Any) -> list[Any]:
    """The images (C, spatial...) of a batch.

    ``image[None]``, as MONAI Label makes a batch, keeps the image's own meta, which
    ``decollate_batch`` would cut apart: an affine into rows, a shape into numbers.
    """
    is_collated = getattr(batch, "is_batch", False)
    images: Any = decollate_batch(batch) if is_collated else [batch[i] for i in range(len(batch))]
    return images


def source_of(image: Any) -> Geometry:
    """The grid of the scan that a prepared image comes from; one slice for a 2D image.

    Raises:
        InputError: If the image has no affine.
    """
    if not isinstance(image, MetaTensor) or image.ndim not in (3, 4):
        raise InputError("a prediction needs an image (C, X, Y) or (C, X, Y, Z) with an affine")
    shape = [int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel().tolist()]
    x, y, z = (*shape, 1)[:3]
    return Geometry((x, y, z), np.asarray(image.meta["original_affine"], np.float64))


def _volume_of(image: Any) -> tuple[torch.Tensor, Geometry]:
    """The image as a plain volume (C, X, Y, Z) on the CPU, and its grid."""
    volume = image.as_tensor().detach().cpu()
    volume = volume if volume.ndim == 4 else volume[..., None]
    x, y, z = volume.shape[1:]
    affine = np.asarray(torch.as_tensor(image.affine).cpu(), np.float64)
    return volume, Geometry((x, y, z), affine)


def _cropped(grid: Geometry, box: Sequence[slice]) -> Geometry:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [place.start for place in box]
    x, y, z = (place.stop - place.start for place in box)
    return Geometry((x, y, z), affine)


def _device_of(network: Any) -> torch.device:
    """Where a network's weights are; the CPU for other engines."""
    if isinstance(network, torch.nn.Module):
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def _placed(network: Any, home: torch.device, wanted: torch.device) -> Iterator[None]:
    """The network on another device for one attempt; it returns home for the next case."""
    if home == wanted:
        yield
        return
    network.to(wanted)
    try:
        yield
    finally:
        network.to(home)


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)
