"""What a training run will cost, and the schedule that fills its budget."""

from __future__ import annotations

from dataclasses import dataclass

from medvol.core.errors import ConfigError

_VALIDATION_SHARE = 0.1
_MOST_VALIDATIONS = 10
#: A budget counts as used from this share on; more validations then matter more.
_FULL = 0.95


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of the parts of a run, as measured by a short one.

    Attributes:
        startup_s: From the start of the process to the first case.
        case_s: Loading and preparing a case.
        step_s: One optimizer step with its samples.
        epoch_s: What an epoch takes beside its steps: checkpoint, table.
        validation_case_s: Validating one case.
        peak_bytes: Largest memory of the measured run.
        case_bytes: A prepared case in the cache.
        cached: Cases that the measured run held.
        share: Part of the processors that the measured run was given.
    """

    startup_s: float
    case_s: float
    step_s: float
    epoch_s: float
    validation_case_s: float
    peak_bytes: int
    case_bytes: int
    cached: int
    share: float = 1.0


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        train: Training cases of a fold.
        validate: Validation cases of a fold.
        steps: Optimizer steps an epoch.
        cache_rate: Share of the cases that stay in memory.
    """

    train: int
    validate: int
    steps: int
    cache_rate: float = 1.0


@dataclass(frozen=True)
class Forecast:
    """A schedule and what it takes.

    Attributes:
        epochs: Training epochs.
        interval: Epochs between validations.
        total_s: Wall-clock time of the run.
        peak_bytes: Largest memory of the process (of the GPU where one trains).
    """

    epochs: int
    interval: int
    total_s: float
    peak_bytes: int

    @property
    def validations(self) -> int:
        """How often the run validates."""
        return self.epochs // self.interval


def fill_budget(costs: Costs, size: Size, budget_s: float) -> Forecast:
    """The run that uses the budget and validates most often; it ends with a validation.

    Validation takes at most a tenth of the budget, or happens once.

    Raises:
        ConfigError: If not even one epoch fits.
    """
    fixed = costs.startup_s + costs.case_s * (size.train + size.validate)
    reading = costs.case_s * (1 - size.cache_rate)
    epoch = size.steps * costs.step_s + size.train * reading + costs.epoch_s
    validation = size.validate * (costs.validation_case_s + reading)
    found: list[Forecast] = []
    for count in range(1, _MOST_VALIDATIONS + 1):
        if count > 1 and count * validation > _VALIDATION_SHARE * budget_s:
            break
        interval = int((budget_s - fixed - count * validation) / epoch / count)
        total = fixed + count * (interval * epoch + validation)
        if interval >= 1:
            found.append(Forecast(interval * count, interval, total, _peak(costs, size)))
    best = max(found, key=lambda f: (min(f.total_s, _FULL * budget_s), f.validations), default=None)
    if best is None:
        least = fixed + epoch + validation
        cases = size.train + size.validate
        raise ConfigError(
            f"the budget of {budget_s:.0f} s holds no epoch: loading {cases} cases, one epoch and "
            f"one validation take {least:.0f} s here; give more, or fewer cases"
        )
    return best


def _peak(costs: Costs, size: Size) -> int:
    held = round((size.train + size.validate) * size.cache_rate)
    return costs.peak_bytes + costs.case_bytes * max(0, held - costs.cached)
