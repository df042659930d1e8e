"""Temperature fitted on validation cases, its effect on test cases, and its place in the bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvol.core.errors import ConfigError, InputError, MissingInputError
from medvol.core.files import sha256_file, write_json
from medvol.evaluation.cases import groups_by
from medvol.evaluation.classification import require_other_cases
from medvol.evaluation.predictions import Predictions, read_predictions
from medvol.evaluation.summary import BootstrapPlan
from medvol.metrics import (
    apply_temperature,
    bootstrap_ci,
    calibration_line,
    ece,
    fit_temperature,
    from_cases,
    weighted_mean,
)
from medvol.metrics.calibration import as_logits
from medvol.metrics.result import Fields
from medvol.uncertainty import Coverage, coverage_report, fit_conformal, fit_operating

#: What a bundle's configs read: temperature, threshold, conformal sets.
OPERATING = Path("models") / "operating.json"
#: Where a bundle keeps what its temperature did on test cases.
IN_BUNDLE = Path("models") / "calibration.json"


@dataclass(frozen=True)
class CalibrationRow(Fields):
    """One number on the test cases before or after scaling, with its interval and n."""

    when: str
    metric: str
    value: float
    lower: float
    upper: float
    n: int


@dataclass(frozen=True)
class CoverageRow(Fields):
    """How often conformal sets hold the truth in one group of test cases.

    Attributes:
        group: ``all``, or column and value such as ``sex=F``.
        n: Cases.
        patients: Patients among them.
        coverage: Share of cases whose set holds the truth.
        expected_lower: Lower end of the 95% range of the coverage of that many patients if the
            promise holds.
        expected_upper: Upper end.
        mean_size: Classes per set, on average.
        is_kept: Whether the coverage reaches the lower end; if not, the promise is broken here.
    """

    group: str
    n: int
    patients: int
    coverage: float
    expected_lower: float
    expected_upper: float
    mean_size: float
    is_kept: bool


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it did.

    Attributes:
        temperature: What logits are divided by.
        n_validation: Cases that it was fitted on.
        rows: Log loss, Brier score, ECE and calibration slope, before and after, on test cases.
        validation_sha256: Digest of the file that it was fitted on.
        alpha: Share of cases, within each class, whose conformal set may miss the truth.
        coverage: How often the sets hold the truth on the test cases.
    """

    temperature: float
    n_validation: int
    rows: tuple[CalibrationRow, ...]
    validation_sha256: str
    alpha: float = 0.1
    coverage: tuple[CoverageRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        coverage = [row.to_json() for row in self.coverage]
        return {
            **asdict(self), "rows": [row.to_json() for row in self.rows], "coverage": coverage
        }  # fmt: skip


def calibrate(
    validation: Path,
    test: Path,
    *,
    plan: BootstrapPlan | None = None,
    by: Sequence[str] = (),
    alpha: float = 0.1,
) -> Calibration:
    """Fit a temperature and conformal sets on one file of logits and measure them on another.

    Args:
        validation: Cases to fit on.
        test: Cases of other patients.
        plan: Of the bootstrap.
        by: Columns of the test file to report the coverage of sets by.
        alpha: Share of cases, within each class, whose set may miss the truth.

    Raises:
        ConfigError: If the test file lacks a column of ``by``.
        InputError: If a file has no logits or truth, the files share patients or name other
            classes, or no finite temperature fits best.
    """
    plan = plan or BootstrapPlan(resamples=2000)
    fitted_on, measured_on = read_predictions(validation), read_predictions(test)
    require_other_cases(fitted_on, measured_on)
    scores, known = _logits(fitted_on), fitted_on.known_truth
    if fitted_on.classes != measured_on.classes:
        raise InputError(f"{test}: its classes {measured_on.classes} are not {fitted_on.classes} "
                         f"of {validation}, in this order")  # fmt: skip
    try:
        temperature = fit_temperature(scores, known)
    except InputError as error:
        raise InputError(f"{validation}: {error}") from None
    logits, truth = _logits(measured_on), measured_on.known_truth
    rows: list[CalibrationRow] = []
    for when, t in (("before", 1.0), ("after", temperature)):
        prob = apply_temperature(logits, t)
        rows += _rows(when, prob, truth, measured_on.patients, plan)
    sets = fit_conformal(
        apply_temperature(scores, temperature), known, fitted_on.patients.tolist(),
        alpha=alpha, by_class=True,
    )  # fmt: skip
    groups = {column: ["unknown"] * len(measured_on.cases) for column in by}
    place = {info.case: k for k, info in enumerate(measured_on.cases)}
    for (column, value), members in groups_by(measured_on.cases, by).items():
        for info in members:
            groups[column][place[info.case]] = value
    coverage = coverage_report(
        sets, apply_temperature(logits, temperature), truth, measured_on.patients.tolist(), groups
    )
    return Calibration(
        temperature, len(fitted_on.cases), tuple(rows), sha256_file(validation), alpha,
        tuple(_named(row, measured_on.classes) for row in coverage),
    )  # fmt: skip


def store(
    calibration: Calibration, bundle: Path, validation: Path, *, sensitivity: float = 0.95
) -> tuple[Path, Path]:
    """Make a classifier's bundle use the temperature from its next prediction on.

    The file that ``inference.json`` and ``evaluate.json`` read, ``models/operating.json``, is
    fitted again on the same validation cases: the temperature, and with it the threshold, the
    conformal sets and the intervals that rest on calibrated probabilities.
    ``models/calibration.json`` keeps what the temperature did on the test cases.

    Args:
        calibration: What :func:`calibrate` found.
        bundle: The bundle's folder.
        validation: The file that the temperature was fitted on.
        sensitivity: Reached by the threshold on the validation cases, of two classes.

    Returns:
        Both files.

    Raises:
        MissingInputError: If there is no bundle.
        ConfigError: If the bundle has other classes than the file.
    """
    data = read_predictions(validation)
    classes = _bundle_classes(bundle)
    operating = fit_operating(
        _in_order_of(data, classes), _numbers_of(data, classes), classes, data.patients.tolist(),
        sensitivity=sensitivity, alpha=calibration.alpha,
        source=f"{len(data.cases)} cases of {len(set(data.patients.tolist()))} patients in "
        f"{validation.name}, SHA-256 {calibration.validation_sha256[:16]}",
    )  # fmt: skip
    target = bundle / IN_BUNDLE
    operating.save(bundle / OPERATING)
    write_json(target, calibration.to_json())
    return bundle / OPERATING, target


def _named(row: Coverage, classes: Sequence[str]) -> CoverageRow:
    column, _, value = row.group.partition("=")
    group = f"class={classes[int(value)]}" if column == "class" else row.group
    return CoverageRow(
        group, row.n, row.patients, row.coverage, *row.band, row.mean_size, row.is_kept
    )


def _bundle_classes(bundle: Path) -> tuple[str, ...]:
    if not (bundle / "configs" / "metadata.json").is_file():
        raise MissingInputError(f"{bundle}: is not a bundle: configs/metadata.json is missing")
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    if "operating" not in config:
        raise ConfigError(f"{bundle}: gives no classes, so no temperature could be used by it")
    return tuple(str(name) for _, name in sorted(config["labels"].items(), key=_first_number))


def _first_number(item: tuple[str, str]) -> int:
    return int(item[0])


def _in_order_of(data: Predictions, classes: tuple[str, ...]) -> NDArray[np.float64]:
    """Logits with a column per class of the bundle, in its order."""
    if set(data.classes) != set(classes):
        raise ConfigError(f"{data.source}: its classes {data.classes} are not the bundle's "
                          f"{classes}")  # fmt: skip
    return _logits(data)[:, [data.classes.index(name) for name in classes]]


def _numbers_of(data: Predictions, classes: tuple[str, ...]) -> NDArray[np.int64]:
    return np.array([classes.index(data.classes[int(k)]) for k in data.known_truth])


def _rows(
    when: str,
    prob: NDArray[np.float64],
    truth: NDArray[np.int64],
    patients: NDArray[np.str_],
    plan: BootstrapPlan,
) -> list[CalibrationRow]:
    n = len(truth)
    own = np.clip(prob[np.arange(n), truth], 1e-300, 1)
    one_hot = np.eye(prob.shape[1])[truth]
    halves = 2 if prob.shape[1] == 2 else 1
    is_binary = prob.shape[1] == 2
    top = prob[:, 1] if is_binary else prob.max(axis=1)
    right = truth == 1 if is_binary else prob.argmax(axis=1) == truth
    statistics = {
        "log_loss": weighted_mean(-np.log(own)),
        "brier": weighted_mean(((prob - one_hot) ** 2).sum(axis=1) / halves),
        "ece": from_cases(lambda rows: ece(right[rows], top[rows])),
        "slope": from_cases(lambda rows: _slope(right[rows], top[rows])),
    }
    found = []
    for metric, statistic in statistics.items():
        resamples = plan.resamples if metric in ("log_loss", "brier") else min(300, plan.resamples)
        interval = bootstrap_ci(
            statistic, n, groups=patients, method="percentile", resamples=resamples,
            confidence=plan.confidence, seed=plan.seed,
        )  # fmt: skip
        found.append(
            CalibrationRow(when, metric, interval.estimate, interval.lower, interval.upper, n)
        )
    return found


def _slope(right: NDArray[np.bool_], prob: NDArray[np.float64]) -> float:
    slope = calibration_line(right, prob).slope
    return slope if math.isfinite(slope) else math.nan


def _logits(data: Predictions) -> NDArray[np.float64]:
    if data.logits is None:
        raise InputError(
            f"{data.source}: has no logits; a temperature needs columns logit_<class> (or logit)"
        )
    return as_logits(data.logits)
