"""`medvol export`: a bundle's network for other engines, checked on masks of real cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError


def run(
    bundle: Annotated[str, typer.Argument(help="Shipped name or folder of a bundle.")],
    to: Annotated[str, typer.Option(help="onnx,openvino,torchscript,tensorrt")],
    cases: Annotated[
        str, typer.Option(help="Data set (or images) on which masks are compared.")
    ] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder; default: the bundle's models.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most cases to compare.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0: as set.")] = 0,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Export, then compare Dice and HD95 before and after; exit 1 where they moved."""
    from medvol.runners.export import as_rows, compare_engines, export_bundle, open_for_export

    engines = [name for name in to.split(",") if name]
    if not engines:
        raise ConfigError("--to names no engine; choose from onnx, openvino, torchscript, tensorrt")
    session = open_for_export(bundle, trust_bundle, threads)
    folder = Path(out) if out else session.bundle.path / "models"
    chosen = _cases(cases)[:limit] if cases else []
    result, is_moved = [], False
    for engine in engines:
        path = export_bundle(session, engine, folder)
        rows = as_rows(compare_engines(session, engine, path, chosen))
        is_moved |= any(not row["is_equivalent"] for row in rows)
        result.append({"engine": engine, "file": path.name, "cases": rows})
        if not is_json:
            print(f"{engine}: {path}" + ("" if chosen else "; not compared: no --cases"))
            for row in rows:
                verdict = "same" if row["is_equivalent"] else "MOVED"
                print(
                    f"  {row['case']} {row['label']}: Dice {row['dice'][0]:.5} -> "
                    f"{row['dice'][1]:.5}, HD95 {row['hd95_mm'][0]:.5} -> "
                    f"{row['hd95_mm'][1]:.5} mm against {row['against']}: {verdict}"
                )
    if is_json:
        print(json.dumps({"exports": result}, indent=2))
    if is_moved:
        raise typer.Exit(1)


def _cases(place: str) -> list[dict[str, str]]:
    """Labelled cases of a data set, or else the images found there."""
    from medvol.core.errors import InputError
    from medvol.datasets import read_dataset
    from medvol.runners import find_cases

    try:
        labelled = [row for row in read_dataset(place).datalist() if "label" in row]
    except InputError:
        labelled = []
    return labelled or [{"case": c.name, "image": c.path} for c in find_cases([place])]
