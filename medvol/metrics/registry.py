"""Where a metric's name, unit, direction and empty-case rule live: the decorator on its function.

A decorated function is all that a new metric takes: the command line, the ignite handler, the
report's columns and the law suite read the registry.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from medvol.core.errors import ConfigError
from medvol.metrics.masks import MaskLike, MaskPair, SpacingMm

Direction = Literal["higher", "lower", "zero", "none"]
Kind = Literal["mask", "instances", "score", "counts"]
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

_MODULES = (
    "calibration", "classification", "conformal", "intervals", "lesions", "operating", "overlap",
    "paired", "surface", "surfel",
)  # fmt: skip


@dataclass(frozen=True)
class EmptyRule:
    """What a mask metric returns, without being computed, where a mask holds no voxel."""

    both: Any = math.nan
    pred: Any = math.nan
    ref: Any = math.nan


#: Overlap: a false negative or false positive structure scores 0; nothing to find is undefined.
OVERLAP = EmptyRule(both=math.nan, pred=0.0, ref=0.0)
#: Distance: a false negative or false positive structure lies infinitely far off.
DISTANCE = EmptyRule(both=math.nan, pred=math.inf, ref=math.inf)


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    Attributes:
        name: The function's name, which is also its column in ``scores.csv``.
        function: The public function.
        kind: ``mask`` (two masks), ``instances`` (two instance maps), ``score`` (truth and
            scores) or ``counts`` (numbers).
        unit: Unit of the value, empty for ratios.
        direction: Whether ``higher`` or ``lower`` is better, or closer to ``zero``.
        is_scalar: Whether the value is one number.
        params: Names of the further parameters and their defaults (``inspect.Parameter.empty``
            where the caller must choose).
        of_pair: The same metric on a ``MaskPair``, so that metrics share one pass; None unless
            ``kind`` is ``mask``.
        empty: The empty-case rule; None if the formula covers empty masks.
    """

    name: str
    function: Callable[..., Any]
    kind: Kind
    unit: str
    direction: Direction
    is_scalar: bool
    params: dict[str, Any] = field(default_factory=dict)
    of_pair: Callable[..., Any] | None = None
    empty: EmptyRule | None = None

    def why_undefined(self, pair: MaskPair) -> str:
        """Which empty mask, if any, the empty rule applies to; empty text otherwise."""
        return _EMPTY_TEXT.get((pair.n_pred == 0, pair.n_ref == 0), "")


#: What ``why_undefined`` calls a structure that only one of two masks holds.
FALSE_NEGATIVE, FALSE_POSITIVE = "false negative", "false positive"
_EMPTY_TEXT = {
    (True, True): "prediction and reference are empty",
    (True, False): f"prediction is empty: {FALSE_NEGATIVE}",
    (False, True): f"reference is empty: {FALSE_POSITIVE}",
}
_REGISTRY: dict[str, Metric] = {}


class MaskFunction(Protocol[P, R_co]):
    """What ``mask_metric`` makes of a function on a pair."""

    __name__: str

    def __call__(
        self,
        pred: MaskLike,
        ref: MaskLike,
        spacing_mm: SpacingMm | None = None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R_co:
        """Check the masks, apply the empty rule, then the formula."""
        ...


def mask_metric(
    *, unit: str, direction: Direction, empty: EmptyRule | None
) -> Callable[[Callable[Concatenate[MaskPair, P], R]], MaskFunction[P, R]]:
    """Register a metric of two masks.

    The decorated function is written on a checked, cropped ``MaskPair`` of which neither mask is
    empty (unless ``empty`` is None); users call it as ``f(pred, ref, spacing_mm, **params)``.

    Args:
        unit: Unit of the value, empty for ratios.
        direction: Whether higher or lower is better, or closer to zero.
        empty: Values for empty masks.
    """

    def decorate(function: Callable[Concatenate[MaskPair, P], R]) -> MaskFunction[P, R]:
        def of_pair(pair: MaskPair, *args: P.args, **kwargs: P.kwargs) -> R:
            if empty is not None and (not pair.n_pred or not pair.n_ref):
                if pair.n_pred == pair.n_ref:
                    return empty.both
                return empty.ref if pair.n_pred else empty.pred
            return function(pair, *args, **kwargs)

        @functools.wraps(function)
        def called(
            pred: MaskLike,
            ref: MaskLike,
            spacing_mm: SpacingMm | None = None,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> R:
            return of_pair(MaskPair.of(pred, ref, spacing_mm), *args, **kwargs)

        called.__signature__ = _mask_signature(function)  # pyright: ignore[reportAttributeAccessIssue]
        row = _row(called, "mask", unit, direction)
        _add(replace(row, of_pair=of_pair, empty=empty))
        return called  # pyright: ignore[reportReturnType]

    return decorate


def metric(*, kind: Kind, unit: str = "", direction: Direction = "none") -> Callable[[F], F]:
    """Register a function that is not of two masks; the function itself stays unchanged."""

    def decorate(function: F) -> F:
        _add(_row(function, kind, unit, direction))
        return function

    return decorate


def find_metric(name: str) -> Metric:
    """The registry's row of that name.

    Raises:
        ConfigError: If no metric has that name.
    """
    rows = all_metrics()
    if name not in rows:
        raise ConfigError(f"metric {name!r} is unknown; known: {', '.join(sorted(rows))}")
    return rows[name]


def all_metrics(kind: Kind | None = None) -> dict[str, Metric]:
    """Every registered metric by name, of one kind or of all."""
    for module in _MODULES:
        importlib.import_module(f"medvol.metrics.{module}")
    return {name: row for name, row in _REGISTRY.items() if kind in (None, row.kind)}


def _row(function: Callable[..., Any], kind: Kind, unit: str, direction: Direction) -> Metric:
    signature = inspect.signature(function)
    params = {
        name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    is_scalar = signature.return_annotation in ("float", float)
    return Metric(function.__name__, function, kind, unit, direction, is_scalar, params)


def _add(row: Metric) -> None:
    if row.name in _REGISTRY:
        raise ConfigError(f"metric {row.name!r} is registered twice")
    _REGISTRY[row.name] = row


def _mask_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature that callers see: masks and spacing in place of the pair."""
    inner = inspect.signature(function)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    outer = [
        inspect.Parameter("pred", kind, annotation="MaskLike"),
        inspect.Parameter("ref", kind, annotation="MaskLike"),
        inspect.Parameter("spacing_mm", kind, default=None, annotation="SpacingMm | None"),
    ]
    return inner.replace(parameters=[*outer, *list(inner.parameters.values())[1:]])
