"""A bundle made ready to predict: its preprocessing, network, window and decision."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import psutil
import torch
from monai.bundle.config_parser import ConfigParser
from monai.transforms.compose import Compose

from medvol.bundle import load
from medvol.bundle.lean import require_components
from medvol.core.errors import ConfigError
from medvol.core.files import sha256_file
from medvol.inferers import (
    Decision,
    Mirrors,
    SlidingWindowInferer,
)
from medvol.networks.ensemble import Activation
from medvol.runners.cost import footprint_or_none
from medvol.runners.engines import engine_predictor
from medvol.runners.members import joint_digest, member_identities, named_members, parts_of
from medvol.runners.record import PredictOptions
from medvol.transforms import Spacingd

logging.getLogger("monai.data").setLevel(logging.ERROR)  # tells of codecs nobody asked for
#: What the first case adds for good: modules that reading and planning import, and the kernels
#: that oneDNN compiles. Measured on a crop of 36x50x34 voxels and on 512x512x600.
FIRST_CASE_BYTES = 80 * 2**20
#: What of a bundle's inference config is built here.
_SECTIONS = ("network_def", "network", "inferer", "preprocessing", "postprocessing")
_ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True)
class Finish:
    """What a bundle does to network output, as far as it can be done slab by slab.

    Attributes:
        decision: None where the bundle's own postprocessing has to run on all probabilities.
        after: Transforms of the label map, on the source grid.
        whole: All transforms but the writer, for the other case.
    """

    decision: Decision | None
    after: list[dict[str, Any]] = field(default_factory=list)
    whole: list[dict[str, Any]] = field(default_factory=list)


class Session:
    """Everything of one bundle that a process needs, built once.

    Args:
        options: What to run and how.

    Raises:
        MedvolError: If the bundle is unknown, unsafe or incomplete.
    """

    def __init__(self, options: PredictOptions) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.options = options
        self.bundle = load(options.bundle, is_trusted=True if options.is_trusted else None)
        self.config_path = self.bundle.config_path("inference")
        self.config = self.bundle.config("inference")
        self.device = _device(options.device)
        self.parser = self.bundle.parser(
            "inference", device=str(self.device), **reader_overrides(self.config, options.reader)
        )
        require_components(self.config, _SECTIONS)
        self.labels = self.bundle.labels
        self.preprocessing: Compose = self._component("preprocessing")
        self.inferer: Any = self._inferer()
        self.finish = read_finish(self.config, self.inferer)
        self.network: torch.nn.Module = self._network().eval()
        self.predictor: Any = engine_predictor(self)
        self.base_bytes = psutil.Process().memory_info().rss + FIRST_CASE_BYTES
        self._footprints: dict[tuple[int, ...], Any] = {}

    @cached_property
    def in_channels(self) -> int:
        """Channels of the image."""
        inputs = self.bundle.metadata.get("network_data_format", {}).get("inputs", {})
        stated = inputs.get("image", {}).get("num_channels")
        return int(stated or self.config.get("network_def", {}).get("in_channels", 1))

    @property
    def members(self) -> list[Any]:
        """The members of the ensemble, for their disagreement; else the one predictor.

        An ensemble that averages logits counts as one: the mean of its members' probabilities
        is not what it says.
        """
        if self.predictor is not self.network or getattr(self.network, "averages", "") == "logits":
            return [self.predictor]
        return parts_of(self.network)

    def passes(self, inferer: Any) -> int:
        """Predictions per window."""
        return 2 ** len(inferer.mirrors.axes) if getattr(inferer, "mirrors", None) else 1

    def footprint(self, roi: tuple[int, ...]) -> Any:
        """Memory of one batch of windows, or None if the network cannot be followed."""
        if roi not in self._footprints:
            self._footprints[roi] = footprint_or_none(self, roi)
        return self._footprints[roi]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name, version and digests, as ``prediction.json`` carries them."""
        weights = sha256_file(self.bundle.weights) if self.bundle.has_weights else ""
        members = member_identities(self.options.ensemble)
        return {
            "name": self.bundle.name,
            "version": self.bundle.version,
            "config_sha256": sha256_file(self.config_path),
            "weights_sha256": joint_digest(members) if members else weights,
            **({"members": members} if members else {}),
            **({"postprocessing": chosen} if (chosen := self._chosen()) else {}),
        }

    @cached_property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Spacing of the network's grid, or None where the bundle keeps the image's."""
        for transform in self._transforms("preprocessing"):
            if str(transform.get("_target_", "")).rpartition(".")[2] == "Spacingd":
                given = transform["pixdim"]
                values = [given] if isinstance(given, (int, float)) else list(given)
                return tuple(float(v) for v in (values + [values[-1]] * 3)[:3])
        return None

    @cached_property
    def anti_alias(self) -> bool:
        """Whether the inverse of the bundle's preprocessing low-passes axes that shrink."""
        found = (t for t in self.preprocessing.transforms if isinstance(t, Spacingd))
        return any(transform.anti_alias for transform in found)

    def after(self) -> Compose:
        """Transforms of the label map, fresh."""
        return Compose([self._build(item) for item in self.finish.after])

    def whole(self) -> Compose:
        """The bundle's postprocessing without its writer, fresh."""
        return Compose([self._build(item) for item in self.finish.whole])

    def to_cpu(self) -> None:
        """Give the GPU up for the rest of the session: later cases run on the CPU as well."""
        self.network.to("cpu")
        self.device = torch.device("cpu")
        if isinstance(self.inferer, SlidingWindowInferer):
            self.inferer.amp = False
        self.inferer.sw_device = self.device

    def _component(self, name: str) -> Any:
        if name not in self.config:
            raise ConfigError(f"{self.config_path}: {name!r} is missing")
        return self.parser.get_parsed_content(name)

    def _chosen(self) -> dict[str, Any]:
        """Thresholds and clean-up of the bundle, and what they were chosen on."""
        steps = [*self.finish.after] if self.finish.decision else []
        clean = next((s for s in steps if str(s.get("_target_")).endswith("CleanLabelMapd")), None)
        if clean is None or self.finish.decision is None:
            return {}
        told = {k: v for k, v in clean.items() if k not in ("_target_", "keys")}
        basis = self.bundle.metadata.get("medvol", {}).get("postprocessing_basis", "")
        return {**told, "thresholds": list(self.finish.decision.thresholds or ()), "basis": basis}

    def _network(self) -> torch.nn.Module:
        if not self.options.ensemble:
            return self._component("network")
        activation = getattr(self.inferer, "activation", "softmax")
        return named_members(self.bundle, self.options.ensemble, activation, self.device)

    def _inferer(self) -> Any:
        inferer = self._component("inferer")
        if not isinstance(inferer, SlidingWindowInferer):
            if self.options.tta:
                raise ConfigError(f"--tta: this bundle's {type(inferer).__name__} has no mirrors")
            inferer.sw_device = self.device
            return inferer
        if self.options.tta is False:
            inferer.mirrors = None
        elif self.options.tta and inferer.mirrors is None:
            body_part = self.bundle.metadata.get("medvol", {}).get("body_part")
            inferer.mirrors = Mirrors.parse(True, body_part, self.labels)
        inferer.sw_device, inferer.amp = self.device, self.device.type == "cuda"
        return inferer

    def _transforms(self, name: str) -> Sequence[dict[str, Any]]:
        return [t for t in self.config[name].get("transforms", ()) if isinstance(t, Mapping)]  # pyright: ignore[reportReturnType]

    def _build(self, item: dict[str, Any]) -> Any:
        parser = ConfigParser({"item": copy.deepcopy(item), "preprocessing": self.preprocessing})
        return parser.get_parsed_content("item")


def read_finish(config: Mapping[str, Any], inferer: Any) -> Finish:
    """Read a bundle's postprocessing: activation, inverse, decision, what follows, writer."""
    transforms = list(_flat(config.get("postprocessing", {}).get("transforms", ())))
    names = [str(t.get("_target_", "")).rpartition(".")[2] for t in transforms]
    kept = [t for t, n in zip(transforms, names, strict=True) if n != "SaveImaged"]
    names = [n for n in names if n != "SaveImaged"]
    if names[:2] != ["Activationsd", "Invertd"] or len(names) < 3:
        return Finish(None, whole=kept)
    activation: Activation | None = next((a for a in _ACTIVATIONS if kept[0].get(a) is True), None)
    if not isinstance(inferer, SlidingWindowInferer):
        return Finish(None, whole=kept)
    linear = kept[1].get("nearest_interp") is False
    decision = _decision(names[2], kept[2], activation)
    if activation is None or not linear or decision is None:
        return Finish(None, whole=kept)
    inferer.activation = activation
    return Finish(decision, kept[3:], kept)


def _flat(transforms: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The transforms in their order, nested ``Compose`` blocks opened."""
    for item in transforms:
        if str(item.get("_target_", "")).rpartition(".")[2] == "Compose":
            yield from _flat(item["transforms"])
        else:
            yield item


def _decision(name: str, item: Mapping[str, Any], activation: Activation | None) -> Decision | None:
    if name == "AsDiscreted" and item.get("argmax") is True and "threshold" not in item:
        return Decision(activation)
    if name == "AsDiscreted" and isinstance(item.get("threshold"), (int, float)):
        return Decision(activation, (float(item["threshold"]),), (1,))
    if name == "ToLabelMapd":
        least = item.get("threshold", 0.5)
        values = tuple(int(v) for v in item["values"])
        thresholds = least if isinstance(least, list) else [least]
        return Decision(activation, tuple(float(v) for v in thresholds), values)
    return None


def _device(asked: str) -> torch.device:
    """The device that was asked for, or a GPU if there is one."""
    try:
        device = torch.device(asked or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device {asked!r} is unknown; write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {asked!r}: PyTorch finds no such CUDA device here")
    return device


def reader_overrides(config: Mapping[str, Any], reader: Mapping[str, Any]) -> dict[str, Any]:
    """What the user said of the inputs, as arguments of the config's ``LoadImaged``."""
    steps = config["preprocessing"]["transforms"]
    return {
        f"preprocessing#transforms#{index}#{name}": value
        for index, step in enumerate(steps)
        if isinstance(step, dict) and step.get("_target_") == "LoadImaged"
        for name, value in reader.items()
    }
