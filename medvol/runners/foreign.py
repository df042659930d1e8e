"""Bundles that others made: their own evaluator predicts, with our reader around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data.utils import list_data_collate

from medvol.core.errors import ConfigError, InputError, WeightsError
from medvol.inferers.pipeline import source_of
from medvol.inferers.source_grid import Prediction
from medvol.networks import load_weights


class EvaluatorPipeline:
    """The evaluator of a bundle that names no pipeline of ours.

    One output channel is a label map; where the metadata names overlapping regions instead of its
    values, labels are called by their values. Several channels are masks that may overlap: they
    are painted into one label map from the largest to the smallest, so that nested regions stay
    visible, and each structure's voxels are counted in its own mask.

    Args:
        parser: The bundle's inference config; its writer and data are replaced.
        labels: Label value to name, from ``network_data_format.outputs.pred.channel_def``.
        weights: The bundle's weights file.
        are_regions: Whether these name output channels that may overlap, background not among
            them.

    Raises:
        ConfigError: If the config names no evaluator.
        WeightsError: If there are no weights, or the bundle's own steps do not load them.
    """

    def __init__(
        self,
        parser: ConfigParser,
        labels: Mapping[int, str],
        weights: Path,
        *,
        are_regions: bool,
    ) -> None:
        if "evaluator" not in parser:
            raise ConfigError("the bundle's inference config names neither a pipeline nor an "
                              "evaluator, so that nothing can run it")  # fmt: skip
        steps = parser.get("postprocessing#transforms") or []
        parser["postprocessing#transforms"] = [
            step for step in steps if str(step.get("_target_", "")).split(".")[-1] != "SaveImaged"
        ]
        parser["evaluator#val_data_loader"] = [None]
        self.labels, self.are_regions = dict(labels), are_regions
        self.evaluator: Any = parser.get_parsed_content("evaluator")
        self._load(parser, weights)
        self.found: list[Any] = []
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._note)

    def _load(self, parser: ConfigParser, weights: Path) -> None:
        """Let the bundle load its weights, and make sure that it did."""
        state = load_weights(weights)
        if "initialize" in parser:
            parser.get_parsed_content("initialize")
        self.evaluator.fire_event(Events.STARTED)  # a checkpoint loader may wait for this
        found = self.evaluator.network.state_dict()
        if found.keys() != state.keys() or not all(
            torch.equal(found[name].cpu(), state[name]) for name in state
        ):
            raise WeightsError(f"{weights}: neither the config's initialize list nor its handlers "
                               "load these weights into the evaluator's network")  # fmt: skip

    @property
    def network(self) -> Any:
        """The bundle's network with its weights; another one may take its place."""
        return self.evaluator.network

    @network.setter
    def network(self, network: Any) -> None:
        self.evaluator.network = network

    def predict(self, data: Mapping[str, Any]) -> Prediction:
        """Predict a case as the bundle's preprocessing left it.

        Raises:
            InputError: If what comes out does not lie on the image's own grid.
        """
        source = source_of(data["image"])
        self.evaluator.data_loader = [list_data_collate([dict(data)])]
        self.evaluator.state.epoch_length = 1
        self.evaluator.run()
        output = np.asarray(self.found.pop())
        if output.ndim == 3 and source.shape[2] == 1:
            output = output[..., None]
        if output.shape[1:] != source.shape:
            raise InputError(
                f"the bundle's postprocessing gives shape {output.shape[1:]} for an image of "
                f"shape {source.shape}; it must bring its prediction back to the image's grid"
            )
        if len(output) == 1:
            prediction = Prediction(np.rint(output[0]).astype(np.uint8), source)
            values = {int(v) for v in np.unique(prediction.labels)} - {0}
            if self.are_regions or values - set(self.labels):
                prediction.names = {v: f"label {v}" for v in sorted(values)}
            return prediction
        return self._painted(output >= 0.5, source)

    def _painted(self, masks: np.ndarray, source: Any) -> Prediction:
        if len(masks) != len(self.labels):
            raise ConfigError(f"the bundle names {len(self.labels)} structures but predicts "
                              f"{len(masks)} channels")  # fmt: skip
        labels = np.zeros(source.shape, np.uint8)
        found = dict(zip(self.labels, masks, strict=True))
        for value in sorted(found, key=lambda value: -int(found[value].sum())):
            labels[found[value]] = value
        return Prediction(labels, source, masks=found)

    def _note(self, engine: Any) -> None:
        self.found = [engine.state.output[0]["pred"]]
