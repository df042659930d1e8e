"""`medvol data check`: every bad case before epoch 1, and every way around the anatomy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medvol.datasets.checking import CheckReport
    from medvol.datasets.leakage import LeakageReport


EXAMPLE = "medvol data check Task04_Hippocampus"


def run(
    dataset: Annotated[Path, typer.Argument(help="Folder, dataset.json or CSV.")],
    leakage: Annotated[bool, typer.Option("--leakage", help="Look for shortcuts too.")] = False,
    split: Annotated[Path | None, typer.Option(help="Split file to check for leaks.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for JSON, images and HTML.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of folds and permutations.", min=0, max=2**32 - 1)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every case of a data set; exit 1 if any is bad, or a leak found or suspected."""
    from medvol.cli._progress import Bars
    from medvol.datasets import read_dataset, read_split, require_known_cases
    from medvol.datasets.check_page import write_check_page
    from medvol.datasets.checking import check_dataset
    from medvol.datasets.split import shared_patients

    manifest = read_dataset(dataset, strict=False)
    locked = read_split(split) if split else None
    if locked:
        require_known_cases(manifest, locked, str(split))
    found = None
    with Bars(quiet=as_json) as bars:
        report = check_dataset(manifest, lambda done: bars("check", done, len(manifest.cases)))
        if locked and (new := sum(case.case not in locked.place for case in manifest.cases)):
            report.remarks.append(f"{new} cases are not in {split}; medvol data split extends it")
        if leakage:
            from medvol.datasets.leakage import check_leakage

            found = check_leakage(manifest, locked, seed=seed, progress=bars)
    torn = list(shared_patients(manifest, locked).values())
    bad = not report.is_clean or bool(torn) or (found is not None and found.verdict != "clean")
    answer: dict[str, Any] = {**report.to_dict(), "patients_on_both_sides": torn, "ok": not bad}
    if found:
        answer["leakage"] = found.to_dict()
    if output:
        answer["page"] = str(write_check_page(report, found, manifest, answer, output))
    print(json.dumps(answer) if as_json else _text(report, found, answer))
    if bad:
        raise typer.Exit(1)


def _text(report: CheckReport, found: LeakageReport | None, answer: dict[str, Any]) -> str:
    bad = len(answer["bad_cases"])
    lines = [f"{report.name} ({report.layout}): {report.n} cases, {bad} bad"]
    if report.faults:
        width = max(len(fault.kind) for fault in report.faults)
        lines += [f"  {fault.kind:{width}}  {fault.fault}" for fault in report.faults]
    lines += [f"  note: {remark}" for remark in report.remarks]
    if torn := answer["patients_on_both_sides"]:
        lines.append(
            f"  {len(torn)} patients on both sides of the split, e.g. {' and '.join(torn[0][:2])}"
        )
    if found:
        lines.append(f"leakage: {found.verdict}")
        lines += [f"  {line}" for line in found.findings]
    if "page" in answer:
        lines.append(f"written: {answer['page']}")
    return "\n".join(lines)
