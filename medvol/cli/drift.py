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
        str | None, typer.Option(help="Bundle, images, data set or CSV to hold them against.")
    ] = None,
    embed: Annotated[
        str | None, typer.Option(help="Bundle whose network adds embeddings of the images.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="scores.csv of the new cases.")] = None,
    reference_scores: Annotated[Path | None, typer.Option(help="Reference scores.csv.")] = None,
    save_profile: Annotated[
        Path | None, typer.Option(help="Write NEW's profile to a CSV or into a bundle, and stop.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write.")] = None,
    level: Annotated[float, typer.Option(help="False discovery rate.")] = 0.05,
    min_effect: Annotated[float, typer.Option(help="Smallest |Cliff's delta| of an alarm.")] = 0.33,
    seed: Annotated[int, typer.Option(help="Of the permutations.")] = 0,
    trust_bundle: Annotated[
        bool, typer.Option("--trust-bundle", help="Run code in a bundle that is not shipped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test for drift; exit 1 if an alarm is raised."""
    from medvol.bundle import load
    from medvol.core.files import write_json, write_text
    from medvol.metrics import scores_from_csv
    from medvol.monitoring import (
        DriftPlan,
        find_drift,
        find_performance_drift,
        profile_to_csv,
        read_profile,
    )

    place = _place(reference) if reference is not None else None
    known = read_profile(place) if place is not None and _keeps_profile(place) else None
    if embed is None and known is not None and place is not None and place.is_dir():
        # The bundle's profile holds embeddings: new images need those of the same network.
        embed = str(place) if any(c.startswith("emb_") for c in known.columns) else None
    network = load(embed, is_trusted=trust_bundle or None) if embed is not None else None
    profile = read_profile(new, network)
    if save_profile is not None:
        save_profile = _profile_file(save_profile)
        write_text(save_profile, profile_to_csv(profile))
        print(json.dumps({"profile": str(save_profile)}) if as_json else f"wrote {save_profile}")
        return
    if place is None:
        raise ConfigError("medvol drift needs --reference (or --save-profile)")
    if (scores is None) != (reference_scores is None):
        raise ConfigError("--scores and --reference-scores belong together")
    plan = DriftPlan(level=level, min_effect=min_effect, seed=seed)
    rows = find_drift(profile, known or read_profile(place, network), plan)
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


def _place(reference: str) -> Path:
    """A path as it is, or the folder of a shipped bundle of that name."""
    from medvol.bundle import find_bundle

    return Path(reference) if Path(reference).exists() else find_bundle(reference)


def _keeps_profile(place: Path) -> bool:
    from medvol.monitoring import IN_BUNDLE

    return (place / IN_BUNDLE).is_file() or (place.is_file() and place.suffix == ".csv")


def _profile_file(target: Path) -> Path:
    """The file to write: inside a bundle it is where ``--reference BUNDLE`` looks for it."""
    from medvol.monitoring import IN_BUNDLE

    return target / IN_BUNDLE if (target / "configs" / "metadata.json").is_file() else target
