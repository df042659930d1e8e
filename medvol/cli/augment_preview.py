"""`medvol augment preview`: what a bundle's augmentation does to one image, in figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from medvol.bundle import Bundle


EXAMPLE = "medvol augment preview hippocampus_mri_segmentation scan.nii.gz -o augment.html"


def run(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.")],
    image: Annotated[Path, typer.Argument(help="An image that the bundle can read.")],
    label: Annotated[Path | None, typer.Option(help="Its label map, to be outlined.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png or .html file.")] = Path(
        "augment.html"
    ),
    samples: Annotated[int, typer.Option(min=1, max=32, help="How many samples.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 0,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Draw augmented samples with signal, side and folding scores; exit 1 if one fails."""
    from medvol.bundle import load

    if output.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"{output}: preview writes .png or .html")
    for path in (image, label):
        if path is not None and not path.exists():
            raise MissingInputError(f"{path}: does not exist")
    found = load(bundle, is_trusted=trust_bundle or None)
    drawn = _draw(found, image, label, samples, seed)
    _write(output, drawn, found)
    scores = [
        {
            "signal": sample.score.signal,
            "sides": {k: None if math.isnan(v) else v for k, v in sample.score.sides.items()},
            "folding": sample.score.folding,
            "faults": list(sample.score.faults),
        }
        for sample in drawn
        if sample.score is not None
    ]
    failed = [score for score in scores if score["faults"]]
    if is_json:
        print(json.dumps({"bundle": found.name, "output": str(output), "samples": scores}))
    else:
        print(f"{output}: {len(scores)} samples, {len(failed)} failed")
        for score in failed:
            print(f"  {'; '.join(score['faults'])}")
    if failed:
        raise typer.Exit(1)


def _draw(bundle: Bundle, image: Path, label: Path | None, samples: int, seed: int) -> list[Any]:
    from monai.transforms.utils import allow_missing_keys_mode

    from medvol.transforms import AugmentationPolicy, AugmentationValidator
    from medvol.transforms.preview import preview

    if not bundle.config("train").get("train", {}).get("augmentation"):
        raise ConfigError(f"{bundle.name}: its train config has no train#augmentation")
    parser = bundle.parser("train" if label else "inference")
    prepare = parser.get_parsed_content("preprocessing")
    augment = bundle.parser("train").get_parsed_content("train#augmentation")
    case = {"image": str(image)} | ({"label": str(label)} if label else {})
    facts = bundle.metadata["medvol"]
    policy = AugmentationPolicy(facts["modality"], facts["body_part"], bundle.labels)
    data = prepare(case)
    with allow_missing_keys_mode(augment):
        return preview(augment, data, AugmentationValidator(policy), samples=samples, seed=seed)


def _write(output: Path, drawn: list[Any], bundle: Bundle) -> None:
    from medvol.core import write_bytes, write_text
    from medvol.transforms.preview import draw_html, draw_png

    title = f"{bundle.name} {bundle.version}: augmentation"
    if output.suffix.lower() == ".png":
        write_bytes(output, draw_png(drawn, bundle.labels, title))
    else:
        write_text(output, draw_html(drawn, bundle.labels, title))
