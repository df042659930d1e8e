"""What names tell about a data set: modality, body part, and regions that labels make up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from medvol.core import ConfigError, anatomy_rule, find_modality
from medvol.datasets import Manifest
from medvol.datasets.manifest import guess_modality
from medvol.planning.fingerprint import Fingerprint

#: Words in the name of a data set or label -> body part, the first match counts.
_WORDS: tuple[tuple[str, str], ...] = (
    ("hippocamp", "hippocampus"), ("phantom", "phantom"), ("prostat", "prostate"),
    ("brain|glioma|brats|ventricle|cerebr|edema|white_matter|grey_matter|gray_matter", "brain"),
    ("spleen|liver|hepatic|pancrea|kidney|colon|stomach|gallbladder|abdom", "abdomen"),
    ("heart|atri|ventricular|myocard|aorta", "heart"), ("lung|nodule|pulmon", "lung"),
    ("chest|thora", "chest"), ("breast|mammo", "breast"), ("knee|menisc|cartilage", "knee"),
    ("vertebra|spine|spinal|disc", "spine"), ("pelvi|bladder|uter|rectum", "pelvis"),
    ("retina|fundus|optic|eye", "eye"), ("skin|derm|naevus|melanoma", "skin"),
    ("neck|parotid|thyroid|larynx", "neck"), ("head|skull|mandib", "head"),
    ("cell|nuclei|histolog|tissue", "tissue"),
)  # fmt: skip
_AIR_HU = -900.0
#: What the core of a brain tumour beside its enhancing part is called.
_DARK = re.compile(r"tumou?r|necro|core|enhanc|^ncr|^net")


@dataclass(frozen=True)
class Facts:
    """What the plan takes as given, with the reason for each.

    Attributes:
        modality: Row of ``medvol.core.modality``; MULTI where channels differ.
        channel_modalities: One per channel.
        body_part: Row of ``medvol.core.anatomy``.
        regions: Region name to label values; empty where labels are predicted as they are.
        region_labels: Label value that each region paints, in the same order.
        ignore_label: Value of voxels that count nowhere.
        why: Reason by field.
    """

    modality: str
    channel_modalities: tuple[str, ...]
    body_part: str
    regions: dict[str, tuple[int, ...]]
    region_labels: tuple[int, ...]
    ignore_label: int | None
    why: dict[str, str] = field(default_factory=dict)


def find_facts(
    manifest: Manifest,
    fingerprint: Fingerprint,
    modality: str | None = None,
    body_part: str | None = None,
) -> Facts:
    """Read names; what the user states comes first.

    Raises:
        ConfigError: If neither the user nor channel names or voxel values state the modality, or
            a body part has no row.
    """
    why: dict[str, str] = {}
    channels = _channel_modalities(manifest, fingerprint, modality, why)
    whole = channels[0] if len(set(channels)) == 1 else "MULTI"
    names = [manifest.name, *fingerprint.labels.values(), *manifest.regions]
    part = body_part or _body_part(names, why)
    anatomy_rule(part)
    why.setdefault("body_part", "as given")
    regions, order = _regions(manifest, fingerprint, why)
    return Facts(whole, channels, part, regions, order, manifest.ignore_label, why)


def _channel_modalities(
    manifest: Manifest, fingerprint: Fingerprint, given: str | None, why: dict[str, str]
) -> tuple[str, ...]:
    if given is not None:
        why["modality"] = "as given"
        return (find_modality(given).name,) * fingerprint.channels
    names = manifest.channels or ("",)
    found = [guess_modality(name) for name in names]
    found = found * fingerprint.channels if len(found) == 1 else found
    if len(found) == fingerprint.channels and all(found):
        why["modality"] = f"channels are named {', '.join(names)}"
        return tuple(str(name) for name in found)
    if fingerprint.dims == 2 and fingerprint.channels == 3:
        why["modality"] = "2D images with three channels"
        return ("RGB",) * 3
    least = [case.least for case in fingerprint.cases]
    if (
        fingerprint.dims == 3
        and max(least) <= _AIR_HU
        and all(c.is_whole for c in fingerprint.cases)
    ):
        why["modality"] = f"whole numbers from {min(least):g}: air in Hounsfield units"
        return ("CT",) * fingerprint.channels
    raise ConfigError(
        f"{manifest.root}: the modality does not follow from channel names ({', '.join(names)}); "
        "pass --modality, for example CT, MR, XR, US or RGB"
    )


def _body_part(names: Iterable[str], why: dict[str, str]) -> str:
    for name in names:
        key = re.sub(r"[^a-z]+", "_", name.lower())
        for words, part in _WORDS:
            if found := re.search(words, key):
                why["body_part"] = f"{name!r} names {found.group(0)!r}"
                return part
    why["body_part"] = "no name tells it, so no mirror is allowed; pass --body-part to allow more"
    return "unknown"


def _regions(
    manifest: Manifest, fingerprint: Fingerprint, why: dict[str, str]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    if manifest.regions:
        regions, order = manifest.regions, manifest.region_labels
        why["regions"] = "the data set's own regions"
        if not order:
            regions = dict(sorted(regions.items(), key=lambda item: -len(item[1])))
            order = _paint_order(list(regions.values()))
        keys = [_key(name) for name in regions]
        are_unique = all(keys) and len(set(keys)) == len(keys)  # names of any alphabet
        return dict(zip(keys if are_unique else regions, regions.values(), strict=True)), order
    return _tumour_regions(fingerprint, why)


def _tumour_regions(
    fingerprint: Fingerprint, why: dict[str, str]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """The nested regions of the brain tumour challenges, where the labels are theirs."""
    values = {_key(name): value for value, name in fingerprint.labels.items()}
    edema = next((v for n, v in values.items() if "edema" in n or "oedema" in n), None)
    bright = next((v for n, v in values.items() if "enhanc" in n and "non" not in n), None)
    rest = {name: value for name, value in values.items() if value not in (edema, bright)}
    # With more labels than regions one could not be painted, and an organ is not a tumour.
    if edema is None or bright is None or len(rest) != 1 or not _DARK.search(next(iter(rest))):
        return {}, ()
    dark = next(iter(rest.values()))
    why["regions"] = "edema around enhancing tumour: scored as nested regions in the challenges"
    regions = {
        "whole_tumour": tuple(sorted(values.values())),
        "tumour_core": tuple(sorted((dark, bright))),
        "enhancing_tumour": (bright,),
    }
    return regions, (edema, dark, bright)


def _paint_order(members: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Per region, the label that no later region holds; its last label if there is none."""
    order = []
    for place, values in enumerate(members):
        later = {value for row in members[place + 1 :] for value in row}
        own = [value for value in values if value not in later]
        order.append(own[0] if own else values[-1])
    return tuple(order)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
