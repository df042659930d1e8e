"""`medvol drift`: new inputs, or new scores, against the bundle's reference profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError

if TYPE_CHECKING:
    from medvol.bundle import Bundle
    from medvol.metrics import Score
    from medvol.monitoring import Drift, ReferenceProfile


EXAMPLE = "medvol drift new_scans --reference hippocampus_mri_segmentation -o drift"


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
    level: Annotated[float, typer.Option(help="Chance of a false alarm among the inputs.")] = 0.05,
    min_effect: Annotated[
        float, typer.Option(help="Smallest distance of two distributions (0 to 1) of an alarm.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the permutations.", min=0)] = 0,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Test for drift; exit 1 if an alarm is raised."""
    if save_profile is not None:
        _save(new, save_profile, _network(embed, trust_bundle), is_json)
        return
    if reference is None:
        raise ConfigError("medvol drift needs --reference (or --save-profile)")
    if (scores is None) != (reference_scores is None):
        raise ConfigError("--scores and --reference-scores belong together")
    profile, known = _profiles(new, _place(reference), embed, trust_bundle)
    from medvol.monitoring import DriftPlan, find_drift, find_performance_drift

    plan = DriftPlan(level=level, min_effect=min_effect, seed=seed)
    found = find_drift(profile, known, plan)
    rows = found.rows
    if scores is not None and reference_scores is not None:
        rows = rows + find_performance_drift(_scores(scores), _scores(reference_scores), plan)
    _print(replace(found, rows=rows), output, is_json)
    if any(row.is_alarm for row in rows):
        raise typer.Exit(1)


def _profiles(
    new: Path, reference: Path, embed: str | None, trust_bundle: bool
) -> tuple[ReferenceProfile, ReferenceProfile]:
    """Numbers per case of the new and the reference cases, by the same network if by any."""
    from medvol.monitoring import read_profile

    known = read_profile(reference) if _keeps_profile(reference) else None
    if embed is None and known is not None and reference.is_dir():
        # The bundle's profile holds embeddings: new images need those of the same network.
        embed = str(reference) if any(c.startswith("emb_") for c in known.columns) else None
    network = _network(embed, trust_bundle)
    return read_profile(new, network), known or read_profile(reference, network)


def _network(embed: str | None, trust_bundle: bool) -> Bundle | None:
    from medvol.bundle import load

    return None if embed is None else load(embed, is_trusted=trust_bundle or None)


def _save(new: Path, target: Path, network: Bundle | None, is_json: bool) -> None:
    from medvol.core.files import write_text
    from medvol.monitoring import profile_to_csv, read_profile

    target = _profile_file(target)
    write_text(target, profile_to_csv(read_profile(new, network)))
    print(json.dumps({"profile": str(target)}) if is_json else f"wrote {target}")


def _scores(path: Path) -> list[Score]:
    from medvol.evaluation.rows import read_text
    from medvol.metrics import scores_from_csv

    return scores_from_csv(read_text(path), str(path))


def _print(found: Drift, output: Path | None, is_json: bool) -> None:
    from medvol.core.files import write_json

    rows = found.rows
    alarms = sum(row.is_alarm for row in rows)
    result = {
        "alarms": alarms,
        "rows": [row.to_json() for row in rows],
        "missing_columns": list(found.missing),
        "new_columns": list(found.added),
    }
    if output is not None:
        write_json(output / "drift.json", result)
    if is_json:
        print(json.dumps(result, allow_nan=False))
        return
    for row in rows:
        mark = "ALARM" if row.is_alarm else "ok"
        print(
            f"{mark:6} {row.what:12} {row.name:24} {row.test:12} effect {row.effect:.3f}  "
            f"p={row.p:.3g}  q={row.q:.3g}  n={row.n_new} against {row.n_reference}"
        )
    if found.missing:
        print(f"not tested, missing in the new cases: {', '.join(found.missing)}")
    if found.added:
        print(f"not tested, not in the reference: {', '.join(found.added)}")
    print(f"{alarms} alarms in {len(rows)} tests")


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
