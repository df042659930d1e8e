"""The least probability of each structure, where validation shows that the usual is not best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medvol.bundle import Bundle
from medvol.core.errors import ConfigError
from medvol.runners.evidence import (
    CaseMaps,
    Choice,
    Map,
    decision_place,
    gain_of,
    label_dice,
    mean_of,
)

_TRIED = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
#: Channel to threshold; channels that are not named keep the usual one.
Thresholds = dict[int, float]


@dataclass
class ThresholdRule:
    """How a bundle draws label maps, and which thresholds can be chosen for that.

    Attributes:
        step: The config of its transform, one that takes a threshold for every channel.
        names: Channel to name of its structure, background left out.
        usual: Threshold of a channel for which none was chosen; 0 where the largest channel wins
            whatever its probability.
    """

    step: dict[str, Any]
    names: dict[int, str]
    usual: float

    def __post_init__(self) -> None:
        self.known: dict[tuple[str, int, tuple[tuple[int, float], ...]], list[float]] = {}

    def step_with(self, chosen: Thresholds) -> dict[str, Any]:
        """The config of the transform with these thresholds."""
        channels = range(len(self.step["values"]))
        return {**self.step, "threshold": [chosen.get(n, self.usual) for n in channels]}

    def draw(self, maps: CaseMaps, chosen: Thresholds) -> Map:
        """A case's label map with these thresholds."""
        import torch
        from monai.bundle import ConfigParser

        with np.load(maps.probs) as found:  # pyright: ignore[reportArgumentType]
            probs = torch.from_numpy(found["probs"]).float() / 255
        decide = ConfigParser({"decide": self.step_with(chosen)}).get_parsed_content("decide")
        return np.asarray(decide({"pred": probs})["pred"][0]).astype(np.uint8)

    def dice(self, maps: CaseMaps, chosen: Thresholds, labels: Mapping[int, str]) -> float:
        """Mean Dice of a case over its labels; what was drawn before is not drawn again."""
        key = (maps.case, maps.fold, tuple(sorted(chosen.items())))
        if key not in self.known:
            self.known[key] = label_dice(self.draw(maps, chosen), maps.ref, labels)
        return mean_of(self.known[key])


def rule_of(bundle: Bundle) -> ThresholdRule:
    """The rule of a bundle's evaluation.

    Raises:
        ConfigError: If it has thresholds of its own, or decides in a way that is not known.
    """
    steps = bundle.config("evaluate")["postprocessing"]["transforms"]
    at = decision_place(steps)
    step = None if at is None else dict(steps[at])
    if step is None or _has_thresholds(step):
        raise ConfigError(f"{bundle.path}: its decision has thresholds already, or is not known; "
                          "select without --thresholds")  # fmt: skip
    is_exclusive = any(isinstance(s, dict) and s.get("softmax") is True for s in steps)
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    if str(step["_target_"]).rpartition(".")[2] == "AsDiscreted":
        step = {"_target_": "medvol.transforms.ToLabelMapd", "keys": step["keys"],
                "values": sorted(int(n) for n in channels)}  # fmt: skip
    names = {int(n): str(name) for n, name in channels.items() if int(n) or not is_exclusive}
    return ThresholdRule(step, names, 0.0 if is_exclusive else 0.5)


def choose_thresholds(
    pool: Sequence[CaseMaps], labels: Mapping[int, str], rule: ThresholdRule
) -> tuple[Thresholds, list[Choice]]:
    """The best threshold of each structure, taken where the gain's 95% interval lies above 0.

    Structures are taken in turn, each upon what was chosen before.

    Args:
        pool: Cases that their network never saw, with their probabilities.
        labels: Label value to name.
        rule: The bundle's.
    """
    chosen: Thresholds = {}
    steps: list[Choice] = []
    base = [rule.dice(maps, chosen, labels) for maps in pool]
    for channel, name in rule.names.items():
        trials = [{**chosen, channel: threshold} for threshold in _TRIED]
        dice = [[rule.dice(maps, trial, labels) for maps in pool] for trial in trials]
        rows = [gain_of(f"{name}: threshold {trial[channel]:g}", base, column, pool)
                for trial, column in zip(trials, dice, strict=True)]  # fmt: skip
        best = max(range(len(rows)), key=lambda index: rows[index].dice)
        is_taken = rows[best].is_chosen
        steps += [replace(row, is_chosen=is_taken and index == best)
                  for index, row in enumerate(rows)]  # fmt: skip
        if is_taken:
            chosen, base = trials[best], dice[best]
    return chosen, steps


def redrawn(pool: Sequence[CaseMaps], chosen: Thresholds, rule: ThresholdRule) -> list[CaseMaps]:
    """The cases with label maps at these thresholds."""
    return [replace(maps, pred=rule.draw(maps, chosen)) for maps in pool]


def insert_thresholds(steps: list[Any], rule: ThresholdRule, chosen: Thresholds) -> None:
    """Give a bundle's decision these thresholds."""
    at = decision_place(steps)
    if at is not None:
        steps[at] = rule.step_with(chosen)


def _has_thresholds(step: Mapping[str, Any]) -> bool:
    name = str(step["_target_"]).rpartition(".")[2]
    if name == "AsDiscreted":
        return step.get("argmax") is not True or "threshold" in step
    return step.get("threshold", 0.5) not in (0, 0.5)
