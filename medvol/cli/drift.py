"""`medvol drift`: new inputs, or new scores, against the bundle's reference profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.core.errors import ConfigError


def run(
    new: Annotated[Path, typer.Argument(help="Images, a data set, or a CSV of numbers per case.")],
    reference: Annotated[
        Path | None, typer.Option(help="Bundle, images, data set or CSV to hold them against.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="scores.csv of the new cases.")] = None,
    reference_scores: Annotated[Path | None, typer.Option(help="Reference scores.csv.")] = None,
    save_profile: Annotated[
        Path | None, typer.Option(help="Write the profile of NEW here and stop.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    level: Annotated[float, typer.Option(help="False discovery rate.")] = 0.05,
    min_effect: Annotated[float, typer.Option(help="Smallest |Cliff's delta| of an alarm.")] = 0.33,
    seed: Annotated[int, typer.Option(help="Of the permutations.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test for drift; exit 1 if an alarm is raised."""
    from medvol.core.files import write_json, write_text
    from medvol.metrics import scores_from_csv
    from medvol.monitoring import (
        DriftPlan,
        find_drift,
        find_performance_drift,
        profile_to_csv,
        read_profile,
    )

    profile = read_profile(new)
    if save_profile is not None:
        write_text(save_profile, profile_to_csv(profile))
        print(json.dumps({"profile": str(save_profile)}) if as_json else f"wrote {save_profile}")
        return
    if reference is None:
        raise ConfigError("medvol drift needs --reference (or --save-profile)")
    if (scores is None) != (reference_scores is None):
        raise ConfigError("--scores and --reference-scores belong together")
    plan = DriftPlan(level=level, min_effect=min_effect, seed=seed)
    rows = find_drift(profile, read_profile(reference), plan)
    if scores is not None and reference_scores is not None:
        tables = [
            scores_from_csv(path.read_text(encoding="utf-8"), str(path))
            for path in (scores, reference_scores)
        ]
        rows += find_performance_drift(tables[0], tables[1], plan)
    alarms = [row for row in rows if row.is_alarm]
    result = {"alarms": len(alarms), "rows": [row.to_json() for row in rows]}
    if output is not None:
        write_json(output / "drift.json", result)
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        for row in rows:
            mark = "ALARM" if row.is_alarm else "ok"
            print(
                f"{mark:6} {row.what:12} {row.name:24} {row.test:12} effect {row.effect:+.3f}  "
                f"p={row.p:.3g}  q={row.q:.3g}  n={row.n_new} against {row.n_reference}"
            )
        print(f"{len(alarms)} alarms in {len(rows)} tests")
    if alarms:
        raise typer.Exit(1)
