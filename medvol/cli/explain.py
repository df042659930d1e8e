"""`medvol explain`: where a classifier looked, and whether its maps may be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError

EXAMPLE = "medvol explain chest_xray_classification xray.png -o maps --checks"


_METHODS = "gradcam, gradcam++, hirescam, scorecam, occlusion or rollout."
_Class = Annotated[str | None, typer.Option("--class", help="Class to explain; else the bundle's.")]
_Masks = Annotated[Path | None, typer.Option(help="Masks named like the images: pointing game.")]
_Checks = Annotated[bool, typer.Option("--checks", help="Deletion, insertion, randomisation.")]
_Weights = Annotated[Path | None, typer.Option(help="Weights instead of the bundle's own.")]


def run(
    bundle: Annotated[str, typer.Argument(help="A classifier or Grad-CAM bundle, or its folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    method: Annotated[str, typer.Option(help=_METHODS)] = "gradcam",
    layer: Annotated[str, typer.Option(help="Layer of the maps; else the bundle's.")] = "",
    class_name: _Class = None,
    masks: _Masks = None,
    checks: _Checks = False,
    weights: _Weights = None,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Write, for every image, a map of what spoke for the class, on the image's own grid."""
    from medvol.bundle import load
    from medvol.datasets import list_images
    from medvol.explain import Classifier, ExplainOptions, explain_files
    from medvol.networks import with_weights

    loaded = load(bundle, is_trusted=True if trust_bundle else None)
    parser = loaded.parser("inference")
    config = loaded.config("inference")
    if not isinstance(config.get("labels"), dict) or "num_classes" not in config:
        raise ConfigError(f"{loaded.path}: is not a classification bundle")
    network = with_weights(
        parser.get_parsed_content("network_def"), weights or loaded.weights
    ).eval()
    modality = str(loaded.metadata.get("medvol", {}).get("modality", ""))
    classifier = Classifier(
        network, parser.get_parsed_content("preprocessing"), config["labels"], modality
    )
    inferer = config.get("inferer", {})
    options = ExplainOptions(
        method,  # pyright: ignore[reportArgumentType]
        layer or str(inferer.get("layer", "")),
        classifier.number_of(class_name) if class_name else config.get("explain_class"),
        masks,
        checks,
    )
    paths = [path for given in images for path in list_images(given)]
    rows = explain_files(classifier, paths, output, options)
    failed = [row for row in rows if row.get("randomisation", {}).get("is_passed") is False]
    print(json.dumps(rows, indent=2) if is_json else "\n".join(_line(row) for row in rows))
    if failed:
        raise typer.Exit(1)


def _line(row: dict) -> str:
    parts = [f"{row['case']}: {row['class']} {row['probability']:.3f}"]
    if row["is_empty"]:
        parts.append("nothing speaks for it")
    else:
        parts.append(f"peak {row['peak_mm']} mm")
        if row["energy_outside_body"] is not None:
            parts.append(f"{row['energy_outside_body']:.0%} outside the body")
    if (found := row.get("mask")) is not None:
        hit = "hits" if found["points_into"] else "misses"
        parts.append(f"{hit} the mask, {found['energy_lift']:.1f} times its share")
    if (found := row.get("randomisation")) is not None:
        verdict = {True: "passed", False: "FAILED", None: "undecided"}[found["is_passed"]]
        parts.append(f"randomisation {verdict}")
    return ", ".join(parts)
