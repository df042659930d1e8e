"""A bundle made ready to predict: its preprocessing, network, pipeline and postprocessing."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.array import SpatialCrop

from medvol.bundle import load
from medvol.core.errors import ConfigError, MissingInputError
from medvol.core.files import sha256_file
from medvol.core.geometry import Geometry
from medvol.datasets import SeenCases, trained_on
from medvol.inferers import Prediction, PredictionPipeline
from medvol.inferers.pipeline import source_of
from medvol.io import MedvolReader, ReadOptions
from medvol.runners.backend import open_backend
from medvol.runners.cascade import Locates, find_structures, joined
from medvol.runners.foreign import EvaluatorPipeline
from medvol.runners.members import (
    joint_digest,
    member_identities,
    member_weights,
    named_members,
)
from medvol.runners.record import PredictOptions

logging.getLogger("monai.data").setLevel(logging.ERROR)  # it warns of codecs nobody asked for

#: Marks a loaded image that is a whole scan, to be cropped before it is prepared.
_WHOLE = "is_whole_scan"


class Session:
    """Everything of one bundle that a process needs, built once.

    Attributes:
        bundle: The bundle.
        labels: Label value to name.
        preprocessing: From a path to a prepared image.
        pipeline: From a prepared image to a prediction; the bundle's own evaluator where its
            config names no :class:`medvol.inferers.PredictionPipeline`.
        network: With weights, in evaluation mode.
        predictor: What predicts windows: the network, or its export to another engine.
        postprocessing: What follows on the label map, without the writer.

    Args:
        options: What to run and how.

    Raises:
        MedvolError: If the bundle is unknown, unsafe or incomplete.
    """

    def __init__(self, options: PredictOptions) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.options = options
        self.bundle = load(options.bundle, is_trusted=True if options.trust_bundle else None)
        self.config_path = self.bundle.config_path("inference")
        self.config = self.bundle.config("inference")
        family = self.bundle.metadata.get("medvol", {}).get("family", "segmentation")
        if family != "segmentation":
            raise ConfigError(f"{self.bundle.name}: is for {family} and predicts without windows; "
                              "this is supported for segmentation only")  # fmt: skip
        self.device = _device(options.device)
        self.labels, self.locates = self.bundle.labels, Locates.of(self.bundle)
        self.is_foreign = "pipeline" not in self.config
        self.parser = self.bundle.parser(
            "inference",
            device=str(self.device),
            **reader_overrides(self.config, self._reading),
            **({} if self.is_foreign else self._overrides()),
        )
        self.pipeline: PredictionPipeline | EvaluatorPipeline
        self.network: Any
        self.predictor: Any
        if self.is_foreign:
            self._require_plain()
            outputs = self.bundle.metadata.get("network_data_format", {}).get("outputs", {})
            first = str(outputs.get("pred", {}).get("channel_def", {}).get("0", "background"))
            self.pipeline = EvaluatorPipeline(
                self.parser,
                self.labels,
                self.bundle.weights,
                are_regions=first.lower() != "background",
            )
            self.network = self.predictor = self.pipeline.network
            self.postprocessing = Compose([])
        else:
            self.pipeline = self._component("pipeline")
            self.network = self._network().eval()
            self.predictor = self._predictor()
            self.postprocessing = self._component("postprocessing")
        self.preprocessing: Compose = self._component("preprocessing")

    def prepare(self, path: str) -> dict[str, Any]:
        """Read an image, and prepare it for the network unless it is a whole scan to crop."""
        if self.locates is None:
            data: Any = self.preprocessing({"image": path})
            return data
        loaded: Any = Compose(self.preprocessing.transforms[:1])({"image": path})
        if self.is_whole(source_of(loaded["image"])):
            return {**loaded, _WHOLE: True}
        return self._prepared(loaded)

    def is_whole(self, grid: Geometry) -> bool:
        """Whether an image on a grid is a whole scan of which the bundle takes crops."""
        return self.locates is not None and self.locates.is_whole(grid)

    @cached_property
    def locator(self) -> Session:
        """What finds the structures of a whole scan.

        Raises:
            MissingInputError: If the bundle that does it is not there.
        """
        assert self.locates is not None
        plain = replace(self.options, bundle=self.locates.bundle, formats=("nifti",), tta=None,
                        uncertainty=False, engine="torch", ensemble=())  # fmt: skip
        return Session(plain)

    def _prepared(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """The steps that follow on the loaded image."""
        data: Any = Compose(self.preprocessing.transforms[1:])(dict(loaded))
        return data

    def _predict_whole(self, data: Mapping[str, Any]) -> Prediction:
        """Locate, crop and predict each structure, and join them on the scan's grid."""
        assert self.locates is not None
        if "probabilities" in self.options.formats:
            raise ConfigError("probabilities are written for crops only: those of a whole scan's "
                              "structures exclude each other nowhere")  # fmt: skip
        image, locator = data["image"], self.locator
        name = str(image.meta.get("filename_or_obj", "the image"))
        located = locator.predict(locator._prepared({"image": image.clone()}))
        parts = []
        for found in find_structures(located, locator.labels, self.locates, name):
            crop = SpatialCrop(roi_slices=list(found.box))(image)
            parts.append((found, self.predict(self._prepared({"image": crop}))))
        return joined(parts, self.labels, self.locates)

    def predict(self, data: Mapping[str, Any]) -> Prediction:
        """Predict a prepared case, its postprocessing included; a whole scan crop by crop."""
        if data.get(_WHOLE):
            return self._predict_whole(data)
        if isinstance(self.pipeline, EvaluatorPipeline):
            self.pipeline.network = self.predictor
            return self.pipeline.predict(data)
        options = self.options
        prediction = self.pipeline.predict(
            data["image"],
            self.predictor,
            probabilities="probabilities" in options.formats,
            uncertainty=options.uncertainty,
        )
        if len(self.postprocessing.transforms):
            label = prediction.label_map_like(data["image"])
            done: Any = self.postprocessing({**data, "pred": label})
            prediction.labels = _labels_of(done["pred"], prediction.source.shape)
        return prediction

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        inputs = self.bundle.metadata.get("network_data_format", {}).get("inputs", {})
        stated = inputs.get("image", {}).get("num_channels")
        return int(stated or self.config.get("network_def", {}).get("in_channels", 1))

    @property
    def read_options(self) -> ReadOptions:
        """How the bundle's ``LoadImaged`` reads an image, with what the user states of it."""
        steps = self.config["preprocessing"]["transforms"]
        load = next((s for s in steps if str(s.get("_target_")).endswith("LoadImaged")), {})
        known = inspect.signature(MedvolReader).parameters
        named = {k: v for k, v in {**load, **self._reading}.items() if k in known}
        return MedvolReader(**named).options

    @property
    def _reading(self) -> dict[str, Any]:
        """What the user states of the inputs; a foreign bundle also reads by our reader."""
        if not self.is_foreign:
            return self.options.reader
        ours = {"reader": "medvol.io.MedvolReader", "channels": self.in_channels > 1}
        return {**ours, **self.options.reader}

    @property
    def window(self) -> tuple[int, ...]:
        """Channels and window of the network, for an export.

        Raises:
            ConfigError: If the window follows the image's size.
        """
        pipeline = self.pipeline
        is_own = isinstance(pipeline, PredictionPipeline)
        roi = getattr(pipeline.inferer if is_own else pipeline.evaluator.inferer, "roi_size", 0)
        if isinstance(roi, int) or min(roi) < 1:
            raise ConfigError(f"the window {roi} is not fixed; the network cannot be exported")
        return (self.in_channels, *(int(n) for n in roi))

    @property
    def own_pipeline(self) -> PredictionPipeline:
        """The pipeline of a segmentation bundle in medvol's form.

        Raises:
            ConfigError: If the bundle has another form.
        """
        if isinstance(self.pipeline, PredictionPipeline):
            return self.pipeline
        raise ConfigError(f"{self.bundle.name}: its config names no pipeline of medvol's, so that "
                          "this is not supported for it")  # fmt: skip

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
            **({"locates": self._locator_identity} if self.locates else {}),
            **self._decided_by(),
        }

    @property
    def _locator_identity(self) -> dict[str, str]:
        """Of the bundle that locates, which decides on whole scans; empty where it is not there."""
        assert self.locates is not None
        with suppress(MissingInputError):
            other = load(self.locates.bundle)
            weights = sha256_file(other.weights) if other.has_weights else ""
            return {"name": other.name, "version": other.version, "weights_sha256": weights}
        return {}

    def has_trained_on(self, path: str) -> bool | None:
        """Whether the weights were trained on an image; None where no record lies beside them."""
        seen = self._seen
        if any(part is not None and part.trained([{"image": path}]) for part in seen):
            return True
        return None if None in seen else False

    @cached_property
    def _seen(self) -> list[SeenCases | None]:
        places = member_weights(self.options.ensemble) or [self.bundle.weights]
        return [trained_on(place) for place in places]

    def _decided_by(self) -> dict[str, Any]:
        """Decision and cleaning of the bundle, and what they were chosen on."""
        if self.is_foreign:
            return {}
        decision = {k: v for k, v in self.config["decision"].items() if v is not None}
        decision.pop("_target_")
        basis = self.bundle.metadata.get("medvol", {}).get("postprocessing_basis", "")
        cleaning = [
            {"name": str(step["_target_"]).split(".")[-1],
             **{k: v for k, v in step.items() if k not in ("_target_", "keys")}}
            for step in self._cleaning
        ]  # fmt: skip
        return {"decision": decision, "cleaning": cleaning,
                **({"postprocessing_basis": basis} if basis else {})}  # fmt: skip

    @property
    def _cleaning(self) -> list[dict[str, Any]]:
        """The bundle's steps on the label map: neither the way back to the grid nor the writer."""
        steps = self.config.get("postprocessing", {}).get("transforms", [])
        around = ("ToSourceGridd", "SaveImaged")
        return [step for step in steps if str(step["_target_"]).split(".")[-1] not in around]

    def _component(self, name: str) -> Any:
        if name not in self.config:
            raise ConfigError(f"{self.config_path}: {name!r} is missing")
        return self.parser.get_parsed_content(name)

    def _overrides(self) -> dict[str, Any]:
        options = self.options
        found: dict[str, Any] = {
            "pipeline#max_ram": options.max_ram,
            "pipeline#max_gpu_mem": options.max_gpu,
            "pipeline#scratch_dir": options.output,
            "postprocessing#transforms": self._cleaning,
        }
        if options.tta is False:
            found["inferer#tta"] = None
        elif options.tta and not self.config["inferer"].get("tta"):
            body_part = self.bundle.metadata.get("medvol", {}).get("body_part")
            found |= {"inferer#tta": True, "inferer#body_part": body_part,
                      "inferer#labels": {str(k): v for k, v in self.labels.items()}}  # fmt: skip
        return found

    def _require_plain(self) -> None:
        """Reject options that only a pipeline of ours can follow."""
        plain = PredictOptions(self.options.bundle, self.options.output)
        for name in ("tta", "uncertainty", "max_ram", "max_gpu", "engine", "ensemble"):
            if getattr(self.options, name) != getattr(plain, name):
                raise ConfigError(f"--{name.replace('_', '-')} is not supported for "
                                  f"{self.bundle.name}, whose own evaluator predicts")  # fmt: skip
        if "probabilities" in self.options.formats:
            raise ConfigError(f"{self.bundle.name}: its own evaluator gives no probabilities")

    def _network(self) -> torch.nn.Module:
        if not self.options.ensemble:
            return self._component("network")
        activation = self.own_pipeline.decision.activation
        return named_members(self.bundle, self.options.ensemble, activation, self.device)

    def _predictor(self) -> Any:
        options = self.options
        if options.engine == "torch":
            return self.network
        return open_backend(
            self.bundle, self.network, options.engine, self.window,
            self.identity["weights_sha256"], options.threads,
        )  # fmt: skip


def _labels_of(pred: Any, shape: tuple[int, ...]) -> Any:
    plain = torch.as_tensor(pred)
    plain = plain.as_tensor() if isinstance(plain, MetaTensor) else plain
    return plain[0].reshape(shape).to(torch.uint8).numpy()


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
    """What the user states of the inputs, as arguments of the config's ``LoadImaged``."""
    steps = config["preprocessing"]["transforms"]
    return {
        f"preprocessing#transforms#{index}#{name}": value
        for index, step in enumerate(steps)
        if isinstance(step, dict) and step.get("_target_") == "LoadImaged"
        for name, value in reader.items()
    }
