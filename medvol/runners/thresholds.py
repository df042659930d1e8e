"""The probability from which each structure is drawn, where validation says that 0.5 is not it."""

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
#: Channel to threshold; channels that are not named keep 0.5.
Thresholds = dict[int, float]


@dataclass
class Decision:
    """What a bundle does to make probabilities a label map.

    Attributes:
        step: The config of its transform.
        names: Channel to name of its structure, background left out.
        is_exclusive: Channels sum to 1; otherwise each is a probability of its own.
    """

    step: dict[str, Any]
    names: dict[int, str]
    is_exclusive: bool

    def __post_init__(self) -> None:
        self.known: dict[tuple[str, int, tuple[tuple[int, float], ...]], list[float]] = {}

    def factors(self, chosen: Thresholds) -> list[float]:
        """What each channel is multiplied by, so that the decision is as if at its threshold.

        Where channels exclude each other, a structure that reaches its threshold beats what is
        left for background; where they do not, the threshold comes to lie at 0.5.
        """
        count = len(self.names) + self.is_exclusive
        found = []
        for channel in range(count):
            threshold = chosen.get(channel, 0.5)
            wanted = (1 - threshold) / threshold if self.is_exclusive else 0.5 / threshold
            found.append(round(wanted, 6))
        return found

    def draw(self, maps: CaseMaps, chosen: Thresholds) -> Map:
        """A case's label map with these thresholds."""
        import torch
        from monai.bundle import ConfigParser

        from medvol.transforms import ScaleChannelsd

        with np.load(maps.probs) as found:  # pyright: ignore[reportArgumentType]
            probs = torch.from_numpy(found["probs"]).float() / 255
        scaled = ScaleChannelsd("pred", self.factors(chosen))({"pred": probs})
        decide = ConfigParser({"decide": dict(self.step)}).get_parsed_content("decide")
        return np.asarray(decide(scaled)["pred"][0]).astype(np.uint8)

    def dice(self, maps: CaseMaps, chosen: Thresholds, labels: Mapping[int, str]) -> float:
        """Mean Dice of a case over its labels; what was drawn before is not drawn again."""
        key = (maps.case, maps.fold, tuple(sorted(chosen.items())))
        if key not in self.known:
            self.known[key] = label_dice(self.draw(maps, chosen), maps.ref, labels)
        return mean_of(self.known[key])


def decision_of(bundle: Bundle) -> Decision:
    """The decision of a bundle's evaluation.

    Raises:
        ConfigError: If it has thresholds of its own, or decides in a way that is not known.
    """
    steps = bundle.config("evaluate")["postprocessing"]["transforms"]
    at = decision_place(steps)
    step = None if at is None else steps[at]
    if step is None or _has_thresholds(step):
        raise ConfigError(f"{bundle.path}: its decision has thresholds already, or is not known; "
                          "select without --thresholds")  # fmt: skip
    is_exclusive = any(isinstance(s, dict) and s.get("softmax") is True for s in steps)
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    names = {int(n): str(name) for n, name in channels.items() if int(n) or not is_exclusive}
    return Decision(step, names, is_exclusive)


def choose_thresholds(
    pool: Sequence[CaseMaps], labels: Mapping[int, str], decision: Decision
) -> tuple[Thresholds, list[Choice]]:
    """The best threshold of each structure, taken where the gain's 95% interval lies above 0.

    Structures are taken in turn, each upon what was chosen before.

    Args:
        pool: Cases that their network never saw, with their probabilities.
        labels: Label value to name.
        decision: The bundle's.
    """
    chosen: Thresholds = {}
    steps: list[Choice] = []
    base = [decision.dice(maps, chosen, labels) for maps in pool]
    for channel, name in decision.names.items():
        trials = [{**chosen, channel: threshold} for threshold in _TRIED]
        dice = [[decision.dice(maps, trial, labels) for maps in pool] for trial in trials]
        rows = [gain_of(f"{name}: threshold {trial[channel]:g}", base, column, pool)
                for trial, column in zip(trials, dice, strict=True)]  # fmt: skip
        best = max(range(len(rows)), key=lambda index: rows[index].dice)
        is_taken = rows[best].is_chosen
        steps += [replace(row, is_chosen=is_taken and index == best)
                  for index, row in enumerate(rows)]  # fmt: skip
        if is_taken:
            chosen, base = trials[best], dice[best]
    return chosen, steps


def redrawn(pool: Sequence[CaseMaps], chosen: Thresholds, decision: Decision) -> list[CaseMaps]:
    """The cases with label maps at these thresholds."""
    return [replace(maps, pred=decision.draw(maps, chosen)) for maps in pool]


def insert_thresholds(steps: list[Any], decision: Decision, chosen: Thresholds) -> None:
    """Put the factors of the thresholds before a bundle's decision."""
    step = {"_target_": "medvol.transforms.ScaleChannelsd", "keys": "pred",
            "factors": decision.factors(chosen)}  # fmt: skip
    at = decision_place(steps)
    steps.insert(len(steps) if at is None else at, step)


def _has_thresholds(step: Mapping[str, Any]) -> bool:
    name = str(step["_target_"]).rpartition(".")[2]
    if name == "AsDiscreted":
        return step.get("argmax") is not True or "threshold" in step
    return step.get("threshold", 0.5) not in (0, 0.5)
