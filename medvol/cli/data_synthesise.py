"""`medvol data synthesise`: images of random contrast and resolution from label maps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zlib import crc32

import typer

from medvol.cli._options import Json
from medvol.core.errors import ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from monai.data.meta_tensor import MetaTensor

    from medvol.transforms import RandSpatiald, RandSynthesised


EXAMPLE = "medvol data synthesise label_maps -o synthetic -n 4 --seed 1"


def run(
    labels: Annotated[Path, typer.Argument(help="A NIfTI label map, or a folder of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for images and labels.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Images per map.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    mirrored: Annotated[
        str, typer.Option(help="Label pairs of left and right, as 2:41,3:42; allows mirrors.")
    ] = "",
    removed: Annotated[
        str, typer.Option(help="Labels hidden in half of the images, as 500,501 (skull, scalp).")
    ] = "",
    deform: Annotated[
        bool, typer.Option("--deform/--no-deform", help="Move the anatomy, or keep it.")
    ] = True,
    is_json: Json = False,
) -> None:
    """Write pairs of a synthetic image and its label map, each on its label map's grid."""
    from medvol.datasets import find_label_maps
    from medvol.engines.data import sample_seed
    from medvol.io import formats, write_nifti

    pairs = _pairs(mirrored)
    hidden = [_number(text, "--removed") for text in removed.split(",") if text.strip()]
    maps = find_label_maps(labels)
    move, render = _steps(pairs, hidden)
    targets = {path: formats.split_name(path.name)[0] for path in maps}
    _require_free(targets, output, count)
    for path in maps:  # all of them, before the first file is written
        _read(path)
    written = []
    for path in maps:
        source = _read(path)
        for number in range(count):
            # of the name, so that a map's images do not depend on which others lie beside it
            draw = sample_seed(seed, crc32(targets[path].encode()), number)
            label = source
            if deform:  # a head of its own, on the grid of the map that it was made from
                move.set_random_state(seed=draw)
                label = type(label)(move({"label": label})["label"]).copy_meta_from(label)
            render.set_random_state(seed=draw)
            made = render({"label": label})
            name = f"{targets[path]}_{number:03d}.nii.gz"
            for kind in ("image", "label"):
                target = output / f"{kind}s" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                write_nifti(target, made[kind][0].numpy(), source.affine.numpy())
            written.append(name)
    if is_json:
        print(json.dumps({"output": str(output), "maps": len(maps), "pairs": written}))
        return
    print(f"{output}: {len(written)} images of {len(maps)} label maps, in images/ and labels/")


def _steps(pairs: list[tuple[int, int]], hidden: list[int]) -> tuple[RandSpatiald, RandSynthesised]:
    """What moves a label map, with SynthSeg's ranges, and what makes its image."""
    from medvol.transforms import RandSpatiald, RandSynthesised

    move = RandSpatiald(
        "label", rotate_range=math.radians(15), scale_range=[0.15] * 3, shear_range=0.012,
        elastic_magnitude_mm=(0.0, 6.0), swap_labels=pairs,
        flip_axes=["left-right"] if pairs else [], body_part="brain" if pairs else None,
    )  # fmt: skip
    removed = [(0.5, hidden)] if hidden else []
    return move, RandSynthesised(tied_labels=pairs, removed_labels=removed)


def _read(path: Path) -> MetaTensor:
    import numpy as np
    import torch

    from medvol.io.checks import shown
    from medvol.io.image import read_scan, to_metatensor

    scan = read_scan(path)
    whole = np.rint(scan.array)
    if np.abs(scan.array - whole).max(initial=0) > 1e-3:
        raise InputError(f"{shown(path)}: holds fractions; a label map holds whole numbers")
    if whole.min(initial=0) < 0 or whole.max(initial=0) > 65535:
        raise InputError(f"{shown(path)}: labels run from {whole.min():g} to {whole.max():g}; "
                         "0 to 65535 are supported")  # fmt: skip
    tensor = to_metatensor(scan)
    whole = np.ascontiguousarray(whole.astype(np.int32))
    return type(tensor)(torch.from_numpy(whole)).copy_meta_from(tensor)


def _require_free(names: dict[Path, str], output: Path, count: int) -> None:
    seen: dict[str, Path] = {}
    for path, name in names.items():
        if name in seen:
            raise OutputError(f"{path} and {seen[name]} would share the name {name}; rename one")
        seen[name] = path
        for number in range(count):
            for kind in ("images", "labels"):
                target = output / kind / f"{name}_{number:03d}.nii.gz"
                if target.exists():
                    raise OutputError(f"{target}: exists already; choose another --output")


def _pairs(text: str) -> list[tuple[int, int]]:
    pairs = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        left, colon, right = part.partition(":")
        if not colon:
            raise ConfigError(f"--mirrored {part!r} is not a pair such as 2:41")
        pairs.append((_number(left, "--mirrored"), _number(right, "--mirrored")))
    return pairs


def _number(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise ConfigError(f"{option}: {text.strip()!r} is not a label value of 0 or more")
    return int(text)
