"""The probability from which each structure is drawn, where validation shows that 0.5 is not it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from medvol.bundle import Bundle
from medvol.core.errors import ConfigError
from medvol.inferers import Decision
from medvol.runners.evidence import CaseMaps, Choice, Map, gain_of, label_dice, mean_of

_TRIED = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
#: Channel to threshold; channels that are not named keep 0.5.
Thresholds = dict[int, float]


@dataclass
class ThresholdRule:
    """The decision of a bundle, and the channels whose thresholds can be chosen.

    Attributes:
        decision: The bundle's.
        names: Channel to name of its structure, background left out.
    """

    decision: Decision
    names: dict[int, str]
    known: dict[Any, list[float]] = field(default_factory=dict, repr=False)

    def at(self, chosen: Thresholds, channels: int) -> Decision:
        """The decision with these thresholds.

        Where channels exclude each other, a structure that reaches its threshold beats what is
        left for background: its channel is multiplied by (1 - t) / t before the largest is
        sought. Where they do not, each channel is compared with its own threshold.
        """
        least = [chosen.get(channel, 0.5) for channel in range(channels)]
        if self.decision.activation == "softmax":
            factors = tuple(round((1 - t) / t, 6) for t in least)
            return replace(self.decision, factors=factors)
        factors = None if self.decision.overlaps else tuple(round(0.5 / t, 6) for t in least)
        return replace(self.decision, thresholds=tuple(least), factors=factors)

    def draw(self, maps: CaseMaps, chosen: Thresholds) -> Map:
        """A case's label map with these thresholds."""
        import torch

        with np.load(maps.probs) as found:  # pyright: ignore[reportArgumentType]
            probs = torch.from_numpy(found["probs"]).float() / 255
        return self.at(chosen, len(probs)).labels(probs).numpy()

    def dice(self, maps: CaseMaps, chosen: Thresholds, labels: Mapping[int, str]) -> float:
        """Mean Dice of a case over its labels; what was drawn before is not drawn again."""
        key = (maps.case, maps.fold, tuple(sorted(chosen.items())))
        if key not in self.known:
            self.known[key] = label_dice(self.draw(maps, chosen), maps.ref, labels)
        return mean_of(self.known[key])


def rule_of(bundle: Bundle) -> ThresholdRule:
    """The decision of a bundle.

    Raises:
        ConfigError: If it has thresholds of its own.
    """
    given = dict(bundle.config("inference").get("decision") or {})
    given.pop("_target_", None)
    decision = Decision(**given)
    if decision.factors or any(t not in (0, 0.5) for t in decision.thresholds or ()):
        raise ConfigError(f"{bundle.path}: its decision has thresholds already; select without "
                          "--thresholds")  # fmt: skip
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    has_background = decision.activation == "softmax"
    names = {int(n): str(name) for n, name in channels.items() if int(n) or not has_background}
    return ThresholdRule(decision, names)


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


def insert_thresholds(
    config: dict[str, Any], rule: ThresholdRule, chosen: Thresholds, channels: int
) -> None:
    """Write the decision with these thresholds into a task's config."""
    made = {k: list(v) if isinstance(v, tuple) else v
            for k, v in asdict(rule.at(chosen, channels)).items() if v is not None}  # fmt: skip
    config["decision"] = {"_target_": config["decision"]["_target_"], **made}
