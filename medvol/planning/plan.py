"""`medvol plan`: fingerprint -> values with reasons -> bundle, sized by a short measurement."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medvol.bundle import write
from medvol.bundle.write import PLAN
from medvol.core.errors import ConfigError, OutputError
from medvol.core.files import write_json, write_text
from medvol.datasets import Manifest, locked_cases, training_cases
from medvol.engines.samplers import repeats
from medvol.planning.choices import draft_values, set_strength
from medvol.planning.designs import Design, choose_design
from medvol.planning.facts import Facts, find_facts
from medvol.planning.fingerprint import Fingerprint, measure
from medvol.planning.forecast import Costs, Forecast, Size, fill_budget
from medvol.planning.geometry import Sampling, choose_sampling
from medvol.planning.pages import card_text, values_text
from medvol.planning.probe import measure_costs
from medvol.planning.request import Draft, Request
from medvol.planning.speed import affordable_voxels, assumed_costs, gpu_excess, gpu_voxels

_TASK = "segmentation"
_PROBED = 6
_VALIDATED = 2
_RAM_SHARE = 0.5
_UNCOVERED = 0.25
#: Share of its processors below which a trial run tells little of a quiet machine.
_BUSY = 0.6
#: Spread of a voxel edge over its median from which the user is warned.
_MIXED = 0.25
#: Patches that are tried until the network that they lead to fits the GPU.
_TRIES = 6
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What came out.

    Attributes:
        folder: The bundle.
        values: The values file.
        draft: Values with reasons.
        forecast: Schedule, time and memory.
        costs: What was measured.
        notes: What the plan rests on, one remark each.
    """

    folder: Path
    values: Path
    draft: Draft
    forecast: Forecast
    costs: Costs
    notes: list[str]


def plan_dataset(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: Request,
    *,
    modality: str | None = None,
    body_part: str | None = None,
    split: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan a bundle for a data set and write it.

    Args:
        dataset: Anything that :func:`medvol.datasets.read_dataset` reads, with label maps.
        output: The bundle's folder; its name is completed to end in the task's word.
        request: What the plan has to fit.
        modality: Where channel names do not tell it.
        body_part: Where names do not tell it.
        split: A split file outside the data set's folder; its test cases are not looked at.
        progress: Called with phase, done and total.

    Raises:
        MedvolError: If a case is rejected, something must be given, or the budget holds no epoch.
    """
    show = progress or (lambda phase, done, total: None)
    folder = bundle_folder(output)
    opened = locked_cases(dataset, split)
    manifest = opened.manifest
    cache = folder / PLAN / "fingerprint.json"
    _require_folds(manifest, request.folds)
    fingerprint = measure(manifest, cache, lambda done, total: show("fingerprint", done, total))
    facts = find_facts(manifest, fingerprint, modality, body_part)
    values = folder / PLAN / f"{folder.name}.yaml"
    share = 1.0
    for _ in range(_TRIES):
        sampling, design = _shape(fingerprint, facts, request, share)
        draft = draft_values(fingerprint, facts, request, sampling, design)
        meta = _meta(manifest, facts, draft)
        _write(values, draft, meta, ["not sized yet"], manifest.name)
        over = gpu_excess(folder, fingerprint, request)
        if over <= 1:
            break
        share *= 0.95 / over
    else:
        raise ConfigError(f"{request.gpu_mem_gb:g} GB hold no sensible patch; allow more memory")
    started = time.perf_counter()
    cases = training_cases(dataset, fingerprint.labels, 0, request.folds, request.seed, split=split)
    dealing_s = time.perf_counter() - started
    show("trial run", 0, 1)
    costs = _costs(folder, cases, fingerprint, request, dealing_s)
    show("trial run", 1, 1)
    size = _size(cases, fingerprint, draft, costs)
    forecast = fill_budget(costs, size, request.budget_s)
    _schedule(draft, forecast, size, request)
    notes = _notes(fingerprint, sampling, request, forecast, costs)
    notes += [f"{opened}."] if opened.names else []
    notes += _doubts(manifest, fingerprint)
    _write(values, draft, meta, notes, manifest.name)
    write_json(folder / PLAN / "forecast.json", {"costs": asdict(costs), **asdict(forecast)})
    return Plan(folder, values, draft, forecast, costs, notes)


def bundle_folder(output: str | os.PathLike[str]) -> Path:
    """The bundle's folder: ``output``, with the word that tells MONAI Label the task at its end.

    Raises:
        OutputError: If the folder holds something that no plan wrote, or trained weights, which
            another plan's preprocessing would not fit.

    >>> bundle_folder("work/planned").name
    'planned_segmentation'
    """
    path = Path(os.path.abspath(output))
    if path.name.rsplit("_", 1)[-1] != _TASK:
        path = path.with_name(f"{path.name}_{_TASK}")
    if path.is_dir() and any(path.iterdir()) and not (path / PLAN).is_dir():
        raise OutputError(f"{path}: exists and was not planned; choose another folder")
    if (path / "models" / "model.pt").exists():
        raise OutputError(f"{path}: holds trained weights; choose another folder")
    return path


def _require_folds(manifest: Manifest, folds: int) -> None:
    """Reject before hours of measuring what the split would reject after them."""
    labelled = [case for case in manifest.training if case.label is not None]
    patients = len({case.group for case in labelled})
    if 0 < patients < folds and not all(case.fold is not None for case in labelled):
        more = f"pass --folds {patients}, or add" if patients > 1 else "add"
        raise ConfigError(
            f"{manifest.root}: {patients} patient(s) with labels cannot fill {folds} folds; "
            f"{more} patients"
        )


def _shape(
    fingerprint: Fingerprint, facts: Facts, request: Request, share: float
) -> tuple[Sampling, Design]:
    """Patch and network; ``share`` of the voxels that fit into memory beside the usual network."""
    outputs = len(facts.regions) or len(fingerprint.labels) + 1
    if request.device == "cuda":
        most = share * gpu_voxels(fingerprint, request, outputs)
        sampling = choose_sampling(fingerprint, most, may_coarsen=False)
    else:
        most = affordable_voxels(fingerprint, request, outputs)
        sampling = choose_sampling(fingerprint, most, may_coarsen=True)
    design = choose_design(request, sampling.patch, sampling.spacing_mm)
    return sampling, design


def _costs(
    folder: Path,
    cases: dict[str, list[dict[str, Any]]],
    fingerprint: Fingerprint,
    request: Request,
    dealing_s: float,
) -> Costs:
    size = {row.case: math.prod(row.shape) for row in fingerprint.cases}
    train = _spread(sorted(cases["train"], key=lambda c: size[c["case"]]), _PROBED)
    validate = _spread(sorted(cases["validate"], key=lambda c: size[c["case"]]), _VALIDATED)
    if _is_absent(request.device):
        return assumed_costs(folder, fingerprint)
    costs = measure_costs(folder, train, validate, request.device)
    return replace(costs, startup_s=costs.startup_s + dealing_s)


def _is_absent(device: str) -> bool:
    import torch

    return device == "cuda" and not torch.cuda.is_available()


def _spread(ordered: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Entries evenly spaced through an order, so that their mean is about that of all."""
    if len(ordered) <= count:
        return ordered
    return [ordered[int((k + 0.5) * len(ordered) / count)] for k in range(count)]


def _size(
    cases: dict[str, list[dict[str, Any]]], fingerprint: Fingerprint, draft: Draft, costs: Costs
) -> Size:
    import psutil

    train, validate = len(cases["train"]), len(cases["validate"])
    samples = train
    if "least_share" in draft:
        held = {row.case: row.voxels for row in fingerprint.cases}
        samples = sum(repeats([held[c["case"]] for c in cases["train"]], draft["least_share"]))
    available = _RAM_SHARE * psutil.virtual_memory().total
    wanted = costs.case_bytes * (train + validate)
    rate = 1.0 if wanted <= available else round(available / wanted, 2)
    draft.set("cache_rate", rate, "all cases fit into half of this machine's memory"
              if rate == 1.0 else "what fits into half of this machine's memory")  # fmt: skip
    return Size(train, validate, -(-samples // draft["batch_size"]), rate)


def _schedule(draft: Draft, forecast: Forecast, size: Size, request: Request) -> None:
    steps = forecast.epochs * size.steps
    why = f"{steps} steps: what {request.budget_s / 60:g} minutes hold, see the forecast"
    draft.set("max_epochs", forecast.epochs, why)
    why = "stops half way down: better on hippocampus folds than annealing to zero"
    draft.set("cosine_epochs", 2 * forecast.epochs, why)
    draft.set("val_interval", forecast.interval, f"{forecast.validations} validations")
    draft.set("patience", forecast.epochs, "the schedule is as long as the budget: no early end")
    decay = min(0.998, round(1 - 1 / max(10.0, 0.05 * steps), 4))
    draft.set("ema_decay", decay, f"averages about the last {1 / (1 - decay):.0f} steps")
    set_strength(draft, forecast.epochs)


def _notes(
    fingerprint: Fingerprint,
    sampling: Sampling,
    request: Request,
    forecast: Forecast,
    costs: Costs,
) -> list[str]:
    where = "GPU" if request.device == "cuda" else "process"
    source = "a trial run of a few steps"
    if _is_absent(request.device):
        source = "arithmetic, not measured: this machine has no GPU; plan again where there is one"
    notes = [
        f"Fingerprint: {len(fingerprint.cases)} labelled cases, {fingerprint.channels} channel(s), "
        f"median spacing {_plain(fingerprint.spacing_mm())}, median shape "
        f"{_plain(fingerprint.shape(fingerprint.spacing_mm()), 0)}.",
        f"Forecast for one fold: {forecast.total_s / 60:.1f} minutes of "
        f"{request.budget_s / 60:g}; a step {costs.step_s:.3g} s; the {where} takes "
        f"{forecast.peak_bytes / 2**20:.0f} MiB (from {source}).",
    ]
    if costs.share < _BUSY:
        notes.append(
            f"Other programs were using this machine: the trial run got {costs.share:.0%} of its "
            "processors. Plan again when they are done, or train with --budget to end by the clock."
        )
    if sampling.cover < _UNCOVERED:
        notes.append(
            f"A patch covers {sampling.cover:.0%} of the median case: plan a coarse bundle too "
            "(--network folded, or a shorter budget), and choose by folds."
        )
    return notes


def _doubts(manifest: Manifest, fingerprint: Fingerprint) -> list[str]:
    """What the user may not know of the data set."""
    found = []
    if bare := [case.case for case in manifest.training if case.label is None]:
        found.append(f"{len(bare)} case(s) without a label map are left out: {bare[0]} ...")
    absent = [
        name for value, name in fingerprint.labels.items() if not fingerprint.prevalence(value)
    ]
    if absent:
        found.append(f"No case holds {', '.join(absent)}: that cannot be learned or scored.")
    shares = (
        np.ptp([row.spacing_mm for row in fingerprint.cases], axis=0) / fingerprint.spacing_mm()
    )
    if shares.max() > _MIXED:
        low, high = fingerprint.spacing_mm(0), fingerprint.spacing_mm(100)
        found.append(
            f"Spacings are mixed, {_plain(low)} to {_plain(high)} mm: every case is resampled."
        )
    return found


def _meta(manifest: Manifest, facts: Facts, draft: Draft) -> dict[str, Any]:
    labels: dict[int, str] = draft["labels"]
    structures = ", ".join(labels.values())
    outputs = list(draft["regions"]) if "regions" in draft else list(labels.values())
    return {
        "version": "0.1.0",
        "title": f"{manifest.name} segmentation",
        "task": f"Segmentation of {structures} in {facts.modality}",
        "description": f"Planned by medvol from the fingerprint of {manifest.name}; labels "
        f"{structures}. It ships no weights until it is trained.",
        "data_source": f"{manifest.name}{', ' + manifest.licence if manifest.licence else ''}",
        "data_type": "nibabel",
        "image_classes": f"{draft['in_channels']} channel(s) of {facts.modality}"
        + (f": {', '.join(manifest.channels)}" if manifest.channels else ""),
        "label_classes": "single channel label map, "
        + ", ".join(f"{value} is {name}" for value, name in labels.items()),
        "pred_classes": f"{len(outputs)} structures: {', '.join(outputs)}",
        "intended_use": "Research only; not a medical device and not for clinical decisions.",
        "changelog": {"0.1.0": "planned"},
    }


def _write(values: Path, draft: Draft, meta: dict[str, Any], notes: list[str], data: str) -> None:
    name = values.stem
    title = f"{meta['title']}: planned by medvol, every choice with its reason."
    write_text(values, values_text(draft, title, notes, meta))
    write_text(values.with_suffix(".md"), card_text(draft, name, meta["title"], notes, data))
    write(values)


def _plain(values: Any, digits: int = 3) -> str:
    return " x ".join(f"{float(v):.{digits}f}".rstrip("0").rstrip(".") if digits else f"{v:.0f}"
                      for v in values)  # fmt: skip


def plan_report(plan: Plan) -> dict[str, Any]:
    """The plan for ``--json``."""
    values = {key: value for rows in plan.draft.sections for key, (value, _) in rows.items()}
    return {
        "bundle": str(plan.folder),
        "values_file": str(plan.values),
        "values": json.loads(json.dumps(values)),
        "epochs": plan.forecast.epochs,
        "validations": plan.forecast.validations,
        "seconds": round(plan.forecast.total_s, 1),
        "peak_mib": round(plan.forecast.peak_bytes / 2**20),
        "notes": plan.notes,
    }
