"""Data sets with a JSON index: Medical Segmentation Decathlon, nnU-Net raw, datalists, BIDS."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError, MissingInputError
from medvol.datasets.listing import has_image_suffix, stem
from medvol.datasets.manifest import Case, Manifest
from medvol.datasets.tables import case_from_row, name_cases
from medvol.io import formats

logger = logging.getLogger(__name__)
_SECTIONS = {
    "training": None,
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
#: Data sets whose file names tell which cases are one patient, though their index does not.
#: MSD Task04 holds both hippocampi of a subject as numbers 2k-1 and 2k: such neighbours share
#: intensity percentiles to 0.05 in log units (others 0.28), and their detail correlates at 0.38
#: (others 0.21; 208 cases).
_PAIRED = {"Hippocampus": re.compile(r"hippocampus_(\d{3})$")}
_CHANNEL = re.compile(r"_(\d{4})$")


def read_json_datalist(path: Path, content: Any) -> Manifest:
    """MSD's ``dataset.json``, a MONAI datalist, or a bare JSON list of rows."""
    if isinstance(content, list):
        content = {"training": content}
    if not isinstance(content, dict) or not any(name in content for name in _SECTIONS):
        raise InputError(
            f"{path}: names no 'training' list, and is not an nnU-Net or medvol manifest"
        )
    cases = [
        _listed_case(path, item, split)
        for section, split in _SECTIONS.items()
        for item in _require_list(path, section, content.get(section, []))
    ]
    _compare_count(path, content, sum(case.split is None for case in cases))
    labels, regions, ignore = parse_labels(path, content.get("labels", {}))
    name = str(content.get("name") or path.parent.name)
    return Manifest(
        name=name,
        root=path.parent,
        layout="msd" if "modality" in content and "numTraining" in content else "datalist",
        cases=_with_known_patients(name, name_cases(path.parent, cases)),
        labels=labels,
        regions=regions,
        ignore_label=ignore,
        channels=_channels(path, content.get("modality", content.get("channel_names", {}))),
        licence=str(content.get("licence", content.get("license", ""))),
    )


def read_nnunet(path: Path, content: dict[str, Any]) -> Manifest:
    """nnU-Net raw (version 2): ``imagesTr/X_0000.nii.gz`` per channel, ``labelsTr/X.nii.gz``."""
    root = path.parent
    channels = _channels(path, content.get("channel_names", content.get("modality", {})))
    ending = str(content.get("file_ending", ".nii.gz"))
    if listed := content.get("dataset"):
        cases = _nnunet_listed(path, listed)
    else:
        cases = _nnunet_folder(root, "imagesTr", "labelsTr", ending, None)
        if not cases:
            raise MissingInputError(f"{root / 'imagesTr'}: holds no image ending in _0000{ending}")
        if (root / "imagesTs").is_dir():
            cases += _nnunet_folder(root, "imagesTs", "labelsTs", ending, "test")
    _compare_count(path, content, sum(case.split is None for case in cases))
    is_colour = len(channels) == 3 and ending.lower() in formats.FLAT  # one file holds all
    for case in cases:
        if (
            channels
            and len(case.images) != len(channels)
            and not (is_colour and len(case.images) == 1)
        ):
            raise MissingInputError(
                f"{case.image}: case {case.case!r} has {len(case.images)} of "
                f"{len(channels)} channels"
            )
    labels, regions, ignore = parse_labels(path, content.get("labels", {}))
    return Manifest(
        name=str(content.get("name") or root.name),
        root=root,
        layout="nnunet",
        cases=tuple(cases),
        labels=labels,
        regions=regions,
        region_labels=_region_labels(path, content, regions),
        ignore_label=ignore,
        channels=channels,
        licence=str(content.get("licence", content.get("license", ""))),
    )


def read_bids(root: Path, description: Any) -> Manifest:
    """BIDS: images below ``sub-*``, label maps (``*_dseg``, ``*_mask``) in there or in derivatives.

    A label map belongs to the image of the same subject and session whose further entities it
    repeats; ``space-``, ``desc-`` and ``label-`` entities do not tell which image it is.
    """
    files = [
        p
        for p in sorted(root.rglob("sub-*"))
        if p.is_file()
        and has_image_suffix(p)
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
    ]
    masks = [path for path in files if _bids_suffix(path) in ("dseg", "mask", "probseg")]
    raw = [
        path
        for path in files
        if path not in set(masks) and "derivatives" not in path.relative_to(root).parts
    ]
    raw = raw or [path for path in files if path not in set(masks)]
    if not raw:
        raise MissingInputError(f"{root}: holds no BIDS image (sub-*/.../sub-*.nii.gz)")
    if not any(_bids_suffix(path) == "dseg" for path in masks):
        chosen = [path for path in masks if _bids_suffix(path) == "mask"]
    else:
        chosen = [path for path in masks if _bids_suffix(path) == "dseg"]
    cases = _bids_cases(root, raw, chosen)
    name = description.get("Name") if isinstance(description, dict) else None
    licence = description.get("License", "") if isinstance(description, dict) else ""
    channels = tuple(sorted({_bids_suffix(path) for path in raw}))
    if len(first := cases[0].images) > 1:
        channels = tuple(_contrast(path) for path in first)
    return Manifest(
        str(name or root.name),
        root,
        "bids",
        cases,
        _bids_labels(root),
        channels=channels if len(channels) == len(cases[0].images) else (),
        licence=str(licence),
    )


def parse_labels(
    path: Path, labels: Any
) -> tuple[dict[int, str], dict[str, tuple[int, ...]], int | None]:
    """Label names, regions and ignore label, written either way round (MSD or nnU-Net)."""
    if isinstance(labels, list):
        labels = {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise InputError(f"{path}: 'labels' is not a table of values and names")
    if all(re.fullmatch(r"-?\d{1,9}", str(key)) for key in labels):
        table = {int(value): str(name) for value, name in labels.items()}
        return {v: n for v, n in table.items() if v > 0}, {}, None
    single, regions, ignore = {}, {}, None
    for name, value in labels.items():
        values = [
            _label_value(path, name, v) for v in (value if isinstance(value, list) else [value])
        ]
        if not values:
            raise InputError(f"{path}: label {name!r} has no value")
        if name == "ignore":
            ignore = values[0]
        elif len(values) > 1:
            regions[str(name)] = tuple(values)
        elif values[0] > 0:
            if values[0] in single:
                raise InputError(
                    f"{path}: label value {values[0]} has two names, "
                    f"{single[values[0]]!r} and {name!r}"
                )
            single[values[0]] = str(name)
    for value in sorted({v for members in regions.values() for v in members} - set(single) - {0}):
        single[value] = f"label_{value}"
    if regions:  # as listed: nnU-Net's regions_class_order goes by that order
        regions = {
            str(n): regions.get(str(n), (v,) if isinstance(v, int) else tuple(v))
            for n, v in labels.items()
            if n != "ignore" and v not in (0, [0])
        }
    return dict(sorted(single.items())), regions, ignore


def _region_labels(
    path: Path, content: dict[str, Any], regions: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    order = content.get("regions_class_order")
    if order is None or not regions:
        return ()
    known = {value for members in regions.values() for value in members}
    is_order = isinstance(order, list) and len(order) == len(regions)
    if not is_order or not all(type(value) is int and value in known for value in order):
        raise InputError(
            f"{path}: 'regions_class_order' is {order!r}; it must name one label value for each "
            f"of the {len(regions)} regions"
        )
    return tuple(order)


def _compare_count(path: Path, content: Mapping[str, Any], n: int) -> None:
    stated = content.get("numTraining")
    if isinstance(stated, int) and stated != n:
        logger.warning("%s: numTraining is %d, but %d training cases are there", path, stated, n)


def _listed_case(path: Path, item: Any, split: str | None) -> Case:
    if isinstance(item, str):
        item = {"image": item}
    if not isinstance(item, dict):
        raise InputError(f"{path}: entry {str(item)[:80]!r} is neither a path nor a table")
    return case_from_row(path, item, split)


def _with_known_patients(name: str, cases: tuple[Case, ...]) -> tuple[Case, ...]:
    pattern = _PAIRED.get(name.title())
    if pattern is None or any(case.patient for case in cases):
        return cases
    numbers = [pattern.match(case.case) for case in cases]
    if not all(numbers):
        return cases
    return tuple(
        replace(case, patient=f"pair_{(int(number[1]) + 1) // 2:03d}")
        for case, number in zip(cases, numbers, strict=True)
        if number
    )


def _require_list(path: Path, section: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {section!r} is not a list")
    return value


def _channels(path: Path, table: Any) -> tuple[str, ...]:
    if isinstance(table, str):
        return (table,)
    if isinstance(table, list):
        return tuple(str(name) for name in table)
    if not isinstance(table, dict):
        raise InputError(f"{path}: the channel names are not a table")
    try:
        return tuple(str(table[key]) for key in sorted(table, key=int))
    except ValueError as error:
        raise InputError(f"{path}: channel keys must be 0, 1, 2 ..., not {list(table)}") from error


def _label_value(path: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{path}: label {name!r} has the value {value!r}, which is not an integer")
    return value


def _nnunet_folder(
    root: Path, images: str, labels: str, ending: str, split: str | None
) -> list[Case]:
    grouped: dict[str, list[Path]] = {}
    if not (root / images).is_dir():
        raise MissingInputError(f"{root / images}: no such folder")
    for image in sorted((root / images).iterdir()):
        bare = image.name[: -len(ending)]
        if not image.name.startswith(".") and image.name.endswith(ending) and _CHANNEL.search(bare):
            grouped.setdefault(_CHANNEL.sub("", bare), []).append(image)
    cases = []
    for name, paths in grouped.items():
        numbers = [int(_CHANNEL.search(p.name[: -len(ending)])[1]) for p in paths]  # pyright: ignore[reportOptionalSubscript]
        if numbers != list(range(len(paths))):
            raise MissingInputError(f"{paths[0]}: case {name!r} has channels {numbers}, a gap")
        label: Path | None = root / labels / f"{name}{ending}"
        if split == "test" and not label.exists():
            label = None
        cases.append(Case(name, tuple(paths), label, split=split))
    return cases


def _nnunet_listed(path: Path, listed: Any) -> list[Case]:
    if not isinstance(listed, dict):
        raise InputError(f"{path}: 'dataset' is not a table of cases")
    cases = []
    for name, row in listed.items():
        if not isinstance(row, dict) or "images" not in row:
            raise InputError(f"{path}: case {name!r} lists no 'images'")
        cases.append(
            case_from_row(
                path, {"case": name, "image": row["images"], "label": row.get("label")}, None
            )
        )
    return cases


def _bids_suffix(path: Path) -> str:
    return stem(path).rsplit("_", 1)[-1]


def _entities(path: Path) -> dict[str, str]:
    parts = [part.split("-", 1) for part in stem(path).split("_") if "-" in part]
    return {part[0]: part[1] for part in parts}


def _bids_cases(root: Path, raw: list[Path], masks: list[Path]) -> tuple[Case, ...]:
    cases = []
    for image in raw:
        entities = _entities(image)
        fitting = [mask for mask in masks if _belongs(_entities(mask), entities)]
        if len(fitting) > 1:
            raise InputError(
                f"{image}: {len(fitting)} label maps fit it, for example "
                f"{fitting[0].name} and {fitting[1].name}"
            )
        study = entities.get("ses")
        cases.append(
            Case(
                stem(image),
                (image,),
                fitting[0] if fitting else None,
                patient=f"sub-{entities.get('sub', stem(image))}",
                study=study,
            )
        )
    labelled = [case for case in cases if case.label is not None]
    return _joined_channels(labelled) or tuple(labelled or cases)


def _contrast(image: Path) -> str:
    return "_".join(filter(None, (_entities(image).get("ce"), _bids_suffix(image))))


def _joined_channels(cases: list[Case]) -> tuple[Case, ...]:
    """Images that share a label map as channels of one case; none where that is not so everywhere.

    The images of a label map differ in their contrast alone (``ce-`` and suffix), and each label
    map has the same contrasts.
    """
    groups: dict[Path, dict[str, Case]] = {}
    for case in cases:
        contrast = "_".join(
            filter(None, (_entities(case.image).get("ce"), _bids_suffix(case.image)))
        )
        group = groups.setdefault(case.label or case.image, {})
        if contrast in group:
            return ()
        group[contrast] = case
    contrasts = {tuple(sorted(group)) for group in groups.values()}
    if len(contrasts) != 1 or len(names := contrasts.pop()) < 2:
        return ()
    found = []
    for group in groups.values():
        images = [group[name].image for name in names]
        shared = [part for part in stem(images[0]).split("_")[:-1] if not part.startswith("ce-")]
        found.append(replace(group[names[0]], case="_".join(shared), images=tuple(images)))
    return tuple(found)


def _belongs(mask: dict[str, str], image: dict[str, str]) -> bool:
    ignored = ("space", "desc", "label", "seg", "res", "den", "atlas", "hemi")
    named = {key: value for key, value in mask.items() if key not in ignored}
    return (
        named.get("sub") == image.get("sub")
        and named.get("ses") == image.get("ses")
        and all(image.get(key) == value for key, value in named.items())
    )


def _bids_labels(root: Path) -> dict[int, str]:
    for table in sorted(root.rglob("*dseg.tsv")):
        try:
            rows = [line.split("\t") for line in table.read_text("utf-8-sig").splitlines() if line]
            if len(rows) > 1 and {"index", "name"} <= set(rows[0]):
                index, name = rows[0].index("index"), rows[0].index("name")
                return {int(row[index]): row[name] for row in rows[1:] if int(row[index]) > 0}
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{table}: is not a valid table of labels: {error}") from error
    return {}
