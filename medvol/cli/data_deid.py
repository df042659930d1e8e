"""`medvol data deid`: de-identified copies of DICOM files, and what may still tell who it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json

EXAMPLE = "medvol data deid dicom_folder -o deidentified"


def run(
    source: Annotated[Path, typer.Argument(help="A folder of DICOM files, or one file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder outside the source.")
    ],
    profile: Annotated[
        str, typer.Option(help="basic, shifted_dates, retain_device, or a .yaml file.")
    ] = "basic",
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret key for pseudonyms; created if missing. Keep it to yourself."),
    ] = None,
    faces: Annotated[
        bool, typer.Option("--faces/--no-faces", help="Look for faces in CT and MR voxels.")
    ] = True,
    is_json: Json = False,
) -> None:
    """De-identify DICOM files by PS3.15; exit 1 if something was left out."""
    from dataclasses import asdict

    from medvol.privacy import Pseudonyms, deidentify_folder, load_key, load_profile
    from medvol.privacy.deid import require_apart

    chosen = load_profile(profile)
    require_apart(source, output, key_file)  # before a key is written for nothing
    key, origin = load_key(key_file)

    def progress(done: int, total: int) -> None:
        if not is_json and sys.stderr.isatty():
            print(f"\r{done} of {total} files", end="" if done < total else "\n", file=sys.stderr)

    report = deidentify_folder(
        source, output, chosen, Pseudonyms(key), key_origin=origin, is_judging_faces=faces,
        on_file=progress,
    )  # fmt: skip
    if is_json:
        print(json.dumps({**asdict(report), "is_clean": report.is_clean}))
    else:
        print(f"{report.written} files written to {output} with profile {report.profile}; "
              f"key: {origin}")  # fmt: skip
        for row in report.left_out:
            print(f"  left out: DICOM file {row['file']}: {row['why']}")
        for row in report.residuals:
            print(f"  look at: {row['series']} {row['kind']} {row['where']}: {row['why']}")
    if report.left_out:
        raise typer.Exit(1)
