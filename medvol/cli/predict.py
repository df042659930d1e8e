"""`medvol predict`: images in, label maps on their own grid out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError
from medvol.core.pages import ask_for_huge_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medvol.runners import CaseInput, PredictOptions, Record

EXAMPLE = "medvol predict hippocampus_mri_segmentation scan.nii.gz -o out --max-ram 6GB"
_RUNNERS = ("local", "workers", "ray")


@dataclass(frozen=True)
class _Place:
    """Where the cases run: in which processes, and which part of them here."""

    runner: str
    workers: int
    address: str
    shard: str


def run(
    bundle: Annotated[str, typer.Argument(help="Shipped name or folder of a bundle.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, DICOM trees.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for one folder per case.")],
    formats: Annotated[
        str, typer.Option("--format", help="nifti,dicomseg,sr,probabilities")
    ] = "nifti",
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
    runner: Annotated[str, typer.Option(help="local, workers or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes or Ray actors.")] = 2,
    address: Annotated[str, typer.Option(help="Ray cluster; empty starts one here.")] = "",
    shard: Annotated[
        str, typer.Option(help="i/n: every n-th case from the i-th; one process for each i.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads per process; 0: as set.")] = 0,
    series: Annotated[str, typer.Option(help="Series of a DICOM folder with several.")] = "",
    volume: Annotated[int, typer.Option(min=0, help="Time point of a 4D series, from 1.")] = 0,
    resample_tilt: Annotated[
        bool, typer.Option("--resample-tilt", help="Put a tilted gantry's slices on a grid.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="End with a page: slices, volumes, what to look at.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate memory and time; predict nothing.")
    ] = False,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Label every image with a bundle; resumable, and one bad image stops no other."""
    ask_for_huge_pages()
    from medvol.evaluation import write_volumes
    from medvol.runners import PredictOptions, find_cases, shard_of

    place = _Place(runner, workers, address, shard)
    every = find_cases(inputs, output)
    cases = shard_of(every, shard)
    options = PredictOptions(
        bundle=bundle, output=output, formats=tuple(f for f in formats.split(",") if f), tta=tta,
        device=device, uncertainty=uncertainty, trust_bundle=trust_bundle, threads=threads,
        max_ram=_bytes(max_ram), max_gpu=_bytes(max_gpu_mem), engine=engine,
        reader=_reader(series, volume, resample_tilt), ensemble=tuple(ensemble or ()),
    )  # fmt: skip
    if not cases:
        print(f"--shard {shard}: there are only {len(every)} cases; none is left for this shard",
              file=sys.stderr)  # fmt: skip
        _finish([], is_json)
    elif dry_run:
        _dry_run(cases, options, is_json)
    else:
        _require_writable(output)
        records = _predict(cases, options, place)
        _reject_if_all_are(records, output)
        write_volumes(output)
        if report:
            _report(output)
        _finish(records, is_json)


def _report(output: str) -> None:
    """Write the page and print where it is."""
    from pathlib import Path

    from medvol.cli._progress import Bars
    from medvol.reporting import write_prediction_report

    with Bars(unit="case") as bars:
        page = write_prediction_report(Path(output), Path(output) / "report", progress=bars).page
    print(f"report: {page}", file=sys.stderr)


class _Progress:
    """One line per finished case on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, record: Record) -> None:
        self.count += 1
        state = "kept" if record.is_resumed else record.status
        seconds = sum(record.seconds.values())
        tail = f": {record.reason}" if record.reason else f" in {seconds:.1f} s"
        if record.located:
            tail += f"; located {', '.join(one['structure'] for one in record.located)}"
        tail = "" if record.is_resumed else tail
        flag = f"; review: {record.review['reason']}" if record.review.get("flag") else ""
        print(f"[{self.count}/{self.total}] {record.case} {state}{tail}{flag}", file=sys.stderr)


def _reader(series: str, volume: int, resample_tilt: bool) -> dict[str, Any]:
    given = {"series": series, "volume": volume, "resample_tilt": resample_tilt}
    return {name: value for name, value in given.items() if value}


def _bytes(text: str) -> int | None:
    from medvol.inferers import parse_bytes

    return parse_bytes(text) if text else None


def _predict(cases: Sequence[CaseInput], options: PredictOptions, place: _Place) -> list[Record]:
    """Predict where the user asked for it; Ctrl-C ends with what is kept."""
    if place.runner not in _RUNNERS:
        raise ConfigError(f"--runner {place.runner!r} is unknown; choose {', '.join(_RUNNERS)}")
    report = _Progress(len(cases))
    try:
        return _run_at(place, cases, options, report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {report.count} of {len(cases)} cases are finished in {options.output}, "
            "and the same command continues with the others"
        ) from None


def _run_at(
    place: _Place, cases: Sequence[CaseInput], options: PredictOptions, report: _Progress
) -> list[Record]:
    from medvol.runners import (
        is_classification,
        run_classification,
        run_local,
        run_ray,
        run_workers,
    )

    if is_classification(options):
        if place.runner != "local" or place.shard:
            asked = f"--runner {place.runner}" if place.runner != "local" else "--shard"
            raise ConfigError(f"{asked} is not supported for {options.bundle}, a classification: "
                              "it writes one table of all cases")  # fmt: skip
        return run_classification(cases, options, report)
    if place.runner == "workers":
        return run_workers(cases, options, place.workers, report)
    if place.runner == "ray":
        return run_ray(cases, options, place.workers, place.address, report)
    return run_local(cases, options, report)


def _dry_run(cases: Sequence[CaseInput], options: PredictOptions, is_json: bool) -> None:
    from dataclasses import asdict

    from medvol.core.errors import MedvolError, error_line
    from medvol.runners import Session, rehearse, run_estimate

    session, rows, plans, is_rejected = Session(options), [], [], False
    for case in cases:
        try:
            plan = rehearse(session, case.path)
        except (MedvolError, RuntimeError, ValueError, OSError) as error:
            if (fault := error_line(error)) is None:
                raise
            rows.append({"case": case.name, "rejected": fault})
            is_rejected = True
            line = f"rejected: {fault}"
        else:
            rows.append({"case": case.name, "plan": asdict(plan) if plan else None})
            plans += [plan] if plan else []
            line = plan.line() if plan else "its memory cannot be estimated"
        if not is_json:
            print(f"{case.name}: {line}")
    whole = run_estimate(session, plans)
    if is_json:
        print(json.dumps({"cases": rows, "run": asdict(whole)}, indent=2))
    elif len(cases) > 1:
        print(whole.line(len(plans)))
    if is_rejected:
        raise typer.Exit(1)


def _require_writable(out: str) -> None:
    """Reject before the work and not after it."""
    import tempfile
    from pathlib import Path

    from medvol.core.errors import OutputError

    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error


def _reject_if_all_are(records: list[Record], out: str) -> None:
    """Where no input was usable there is no run to record: nothing of it stays, exit code 2."""
    from contextlib import suppress
    from pathlib import Path

    from medvol.core.errors import InputError
    from medvol.runners.record import case_folder, sweep

    if not records or any(record.status != "rejected" for record in records):
        return
    for record in records:
        sweep(out, record.case)
    for folder in [*(case_folder(out, record.case) for record in records), Path(out)]:
        with suppress(OSError):  # it holds something else, or is where the user stands
            folder.rmdir()
    more = f" (and {len(records) - 1} more inputs rejected)" if len(records) > 1 else ""
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
