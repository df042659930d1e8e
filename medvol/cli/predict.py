"""`medvol predict`: images in, label maps on their own grid out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError
from medvol.core.pages import ask_for_huge_pages

Formats = Annotated[str, typer.Option("--format", help="nifti,dicomseg,sr,probabilities")]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medvol.runners import CaseInput, PredictOptions, Record


def run(
    bundle: Annotated[str, typer.Argument(help="Shipped name or folder of a bundle.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, DICOM trees.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for one folder per case.")],
    formats: Formats = "nifti",
    max_ram: Annotated[
        str, typer.Option(help="Ceiling to keep, as 6GB; of all workers together.")
    ] = "",
    max_gpu_mem: Annotated[str, typer.Option(help="Ceiling on the GPU.")] = "",
    tta: Annotated[
        bool | None, typer.Option("--tta/--no-tta", help="Average allowed mirrors.")
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write maps, intervals and a review flag.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; default: a GPU if any.")] = "",
    engine: Annotated[
        str, typer.Option(help="torch, openvino, onnx, torchscript, tensorrt.")
    ] = "torch",
    ensemble: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint or bundle; repeat it: their mean replaces BUNDLE's weights."),
    ] = None,
    runner: Annotated[str, typer.Option(help="local, workers, ray, torchrun or slurm.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes, actors or jobs.")] = 2,
    address: Annotated[str, typer.Option(help="Ray cluster; empty starts one here.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads per process; 0: as set.")] = 0,
    series: Annotated[str, typer.Option(help="Series of a DICOM folder with several.")] = "",
    volume: Annotated[int, typer.Option(min=0, help="Time point of a 4D series, from 1.")] = 0,
    resample_tilt: Annotated[
        bool, typer.Option("--resample-tilt", help="Put a tilted gantry's slices on a grid.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost; predict nothing.")
    ] = False,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Label every image with a bundle; resumable, and one bad image stops no other."""
    from medvol.bundle.lean import import_monai

    ask_for_huge_pages()
    import_monai()
    from medvol.runners import PredictOptions, find_cases

    cases = find_cases(inputs, out)
    options = PredictOptions(
        bundle=bundle, out=out, formats=tuple(f for f in formats.split(",") if f), device=device,
        tta=tta, uncertainty=uncertainty, is_trusted=trust_bundle, threads=threads, engine=engine,
        max_ram=_bytes(max_ram), max_gpu=_bytes(max_gpu_mem),
        reader=_reader(series, volume, resample_tilt), ensemble=tuple(ensemble or ()),
    )  # fmt: skip
    if dry_run:
        _dry_run(cases, options, is_json)
        return
    _require_writable(out)
    chosen = _chosen(runner, options)
    if records := chosen(cases, options, workers, address, _Progress(len(cases))):  # else: a rank
        _refuse_if_all_are(records, out)
        _finish(records, is_json)


class _Progress:
    """One line per finished case on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, record: Record) -> None:
        self.count += 1
        state = "kept" if record.is_resumed else record.status
        seconds = sum(record.seconds.values())
        tail = f": {record.reason}" if record.reason else f" in {seconds:.1f} s"
        tail = "" if record.is_resumed else tail
        flag = f"; review: {record.review['reason']}" if record.review.get("flag") else ""
        print(f"[{self.count}/{self.total}] {record.case} {state}{tail}{flag}", file=sys.stderr)


def _classify(cases: Any, options: Any, _workers: int, _address: str, report: Any) -> Any:
    from medvol.runners import run_classification

    return run_classification(cases, options, report)


def _reader(series: str, volume: int, resample_tilt: bool) -> dict[str, Any]:
    said = {"series": series, "volume": volume, "resample_tilt": resample_tilt}
    return {name: value for name, value in said.items() if value}


def _bytes(text: str) -> int | None:
    from medvol.inferers import parse_bytes

    return parse_bytes(text) if text else None


def _chosen(name: str, options: Any) -> Any:
    from medvol.runners import is_classification

    runner = _runner(name)  # refuses a name that is none
    if not is_classification(options):
        return runner
    if name != "local":
        raise ConfigError(f"--runner {name} is not for {options.bundle}, a classification")
    return _classify


def _runner(name: str) -> Any:
    if name == "local":
        from medvol.runners import run_local

        return lambda cases, options, _workers, _address, report: run_local(cases, options, report)
    if name == "workers":
        from medvol.runners import run_workers

        return lambda cases, options, workers, _address, report: run_workers(
            cases, options, workers, report
        )
    if name == "ray":
        from medvol.runners import run_ray

        return run_ray
    if name == "torchrun":
        from medvol.runners import run_torchrun

        return lambda cases, options, _workers, _address, report: run_torchrun(
            cases, options, report
        )
    if name == "slurm":
        from medvol.runners import run_slurm

        return lambda cases, options, workers, address, report: run_slurm(
            cases, options, workers, address or "slurm", report
        )
    raise ConfigError(f"runner {name!r} is unknown; choose local, workers, ray, torchrun or slurm")


def _dry_run(cases: Sequence[CaseInput], options: PredictOptions, is_json: bool) -> None:
    from dataclasses import asdict

    from medvol.core.errors import MedvolError
    from medvol.runners import Session, job_plan, run_estimate

    session, rows, plans, is_refused = Session(options), [], [], False
    for case in cases:
        try:
            plan = job_plan(session, case.path, is_timed=True)
        except MedvolError as error:
            rows.append({"case": case.name, "refused": str(error)})
            is_refused = True
            line = f"refused: {error}"
        else:
            rows.append({"case": case.name, "plan": asdict(plan) if plan else None})
            plans += [plan] if plan else []
            line = plan.line() if plan else "its header does not tell its size"
        if not is_json:
            print(f"{case.name}: {line}")
    whole = run_estimate(session, plans)
    if is_json:
        print(json.dumps({"cases": rows, "run": asdict(whole)}, indent=2))
    elif len(cases) > 1:
        print(whole.line(len(plans)))
    if is_refused:
        raise typer.Exit(1)


def _require_writable(out: str) -> None:
    """Refuse before the work and not after it."""
    import tempfile
    from pathlib import Path

    from medvol.core.errors import OutputError

    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error


def _refuse_if_all_are(records: list[Record], out: str) -> None:
    """Where no input was usable there is no run to record: nothing of it stays, exit code 2."""
    from contextlib import suppress
    from pathlib import Path

    from medvol.core.errors import InputError
    from medvol.runners.record import case_folder, sweep

    if not records or any(record.status != "refused" for record in records):
        return
    for record in records:
        sweep(out, record.case)
    for folder in [*(case_folder(out, record.case) for record in records), Path(out)]:
        with suppress(OSError):  # it holds something else, or is where the user stands
            folder.rmdir()
    more = f" (and {len(records) - 1} more inputs refused)" if len(records) > 1 else ""
    raise InputError(f"{records[0].reason}{more}")


def _finish(records: list[Record], is_json: bool) -> None:
    from medvol.runners import summary

    counts = summary(records)
    bad = [r for r in records if r.status != "done"]
    if is_json:
        rows = [
            {"case": r.case, "status": r.status, "reason": r.reason, "kept": r.is_resumed,
             "seconds": r.seconds, "review": r.review}
            for r in records
        ]  # fmt: skip
        print(json.dumps({"counts": counts, "cases": rows}, indent=2))
    else:
        print(", ".join(f"{n} {state}" for state, n in counts.items() if n))
        for record in bad:
            print(f"{record.case}: {record.reason}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)
