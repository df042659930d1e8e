"""What a case will cost, from its header alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from medvol.core.errors import ConfigError
from medvol.core.geometry import Geometry
from medvol.inferers import MemoryPlan, PredictionPipeline, onednn_convolutions
from medvol.inferers.pipeline import source_of
from medvol.io import InputWarning, inspect_image
from medvol.runners.session import Session
from medvol.transforms import output_grid


@dataclass(frozen=True)
class RunEstimate:
    """What a run will cost.

    Attributes:
        ram_bytes: Peak of the process.
        seconds: Time in the network.
    """

    ram_bytes: int
    seconds: float

    def line(self, cases: int) -> str:
        """The estimate in one line for people."""
        return (
            f"all {cases} cases: {self.ram_bytes / 2**30:.2f} GiB RAM, about {self.seconds:.0f} s "
            "in the network"
        )


def header_grid(session: Session, path: str) -> Geometry | None:
    """The grid of an image from its headers; None where its format has none.

    Raises:
        InputError: Whatever reading would reject, as far as headers tell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # reading will warn
        return inspect_image(path, session.read_options).geometry


def plan_case(session: Session, source: Geometry | None) -> dict[str, Any]:
    """The plan for an image on a grid as plain values, for the record; empty if it is unknown.

    Raises:
        TooLargeError: If the ceilings cannot be kept.
        ConfigError: If the network's memory cannot be estimated but there is a ceiling.
    """
    plan = grid_plan(session, source) if source else None
    rows = asdict(plan) if plan else {}
    rows.pop("seconds", None)
    return rows


def job_plan(session: Session, path: str) -> MemoryPlan | None:
    """The plan for one image, from its header; None where that does not tell.

    Raises:
        TooLargeError: If the ceilings cannot be kept.
        ConfigError: If the network's memory cannot be estimated but there is a ceiling.
    """
    source = header_grid(session, path)
    return None if source is None else grid_plan(session, source)


def rehearse(session: Session, path: str) -> MemoryPlan | None:
    """What predicting an image would take, and whether it would be rejected.

    The image is read and prepared as in a run, and one window is timed; nothing is predicted.

    Raises:
        MedvolError: Whatever would stop the run for this image.
    """
    job_plan(session, path)  # a ceiling is checked before anything is read
    source = source_of(session.prepare(path)["image"])
    return grid_plan(session, source, is_timed=True)


def grid_plan(session: Session, source: Geometry, *, is_timed: bool = False) -> MemoryPlan | None:
    """The plan for an image on a grid; None where the network's memory cannot be estimated."""
    if session.is_whole(source):
        session = session.locator  # crops take less than the whole scan
    pipeline = session.pipeline
    if not isinstance(pipeline, PredictionPipeline):
        return None
    size = output_grid(session.preprocessing, source).shape
    options = session.options
    try:
        return pipeline.plan(
            source, size, session.predictor, session.in_channels,
            probabilities="probabilities" in options.formats, is_asked=True,
            window_s=window_seconds(session, size) if is_timed else 0.0,
        )  # fmt: skip
    except ConfigError:
        if options.max_ram or options.max_gpu:
            raise
        return None


def run_estimate(session: Session, plans: Sequence[MemoryPlan]) -> RunEstimate:
    """Cost of a whole run in this process, from its cases' plans in their order.

    Without a ceiling the next case is loaded and the last one written while one is in the
    network; under a ceiling cases run one after the other.
    """
    seconds = sum(plan.seconds for plan in plans)
    if session.options.max_ram is not None:
        return RunEstimate(max((plan.ram_bytes for plan in plans), default=0), seconds)
    base, peak = getattr(session.pipeline, "base_bytes", 0), 0
    for index, plan in enumerate(plans):
        after, before = plans[index + 1 : index + 2], plans[max(0, index - 1) : index]
        beside = [max(p.phases["load"], p.phases["prepare"]) for p in after]
        beside += [p.phases["write"] for p in before]
        peak = max(peak, plan.ram_bytes, base + plan.phases["infer"] + sum(beside))
    return RunEstimate(peak, seconds)


def window_seconds(session: Session, size: Sequence[int]) -> float:
    """Seconds for one window and one pass, measured with what the run will use."""
    inferer = session.own_pipeline.inferer
    window = torch.zeros((1, session.in_channels, *inferer.grid_over(size).roi))
    window = window.to(session.device)
    plain = type(inferer)(inferer.roi_size, 1, activation=inferer.activation)
    predict = plain.window_predictor(session.predictor, window)
    best = float("inf")
    with torch.no_grad(), onednn_convolutions():
        for _ in range(2):
            start = time.perf_counter()
            predict(window)
            if session.device.type == "cuda":
                torch.cuda.synchronize(session.device)
            best = min(best, time.perf_counter() - start)
    return best
