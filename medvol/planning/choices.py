"""From a fingerprint to values: every choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvol.core import anatomy_rule
from medvol.core.anatomy import PATIENT_AXES
from medvol.planning.designs import Design
from medvol.planning.facts import Facts
from medvol.planning.fingerprint import Fingerprint
from medvol.planning.geometry import THICK, Sampling
from medvol.planning.request import Draft, Request
from medvol.transforms import AugmentationPolicy

_MASKED = 0.25
_RARE, _VERY_RARE = 0.2, 0.05
_TINY = 0.01
_WHOLE = 0.9
#: Voxels of a batch below which gradients of 2D images get noisy.
_BATCH_PIXELS = 150_000


@dataclass(frozen=True)
class Strength:
    """How strongly a run augments.

    Attributes:
        rotate: Largest rotation in radians, where anatomy does not set a smaller one.
        scale: Largest change of size.
        elastic_prob: Share of samples that are bent.
        intensity_prob: Share of samples whose intensities are changed.
    """

    rotate: float
    scale: float
    elastic_prob: float
    intensity_prob: float


#: Fewest epochs from which each strength holds, weakest first: the one place that decides it.
STRENGTHS = (
    (0, Strength(rotate=0.2, scale=0.12, elastic_prob=0.3, intensity_prob=0.5)),
    (60, Strength(rotate=0.3, scale=0.2, elastic_prob=0.5, intensity_prob=0.5)),
)


def draft_values(
    fingerprint: Fingerprint,
    facts: Facts,
    request: Request,
    sampling: Sampling,
    design: Design,
) -> Draft:
    """Everything but the schedule, which waits for a measurement of the machine."""
    draft = Draft()
    _what(draft, fingerprint, facts, design)
    _grid(draft, fingerprint, sampling, design)
    _normalisation(draft, fingerprint, facts)
    draft.section()
    for key, (value, why) in design.values.items():
        draft.set(key, value, why)
    _augmentation(draft, fingerprint, facts, sampling)
    draft.section()
    draft.set("batch_size", *_batch(fingerprint, request, design))
    draft.set("learning_rate", 0.005 if design.part == "folded" else 0.001,
              "AdamW with warm-up and cosine; what the hippocampus folds learned best with"
              if design.part == "folded" else "AdamW with warm-up and cosine")  # fmt: skip
    draft.set("weight_decay", 0.01)
    draft.set("max_epochs", 1)
    draft.set("cosine_epochs", 2)
    draft.set("val_interval", 1)
    draft.set("patience", 1)
    draft.set("ema_decay", 0.9)
    draft.set("cache_rate", 1.0)
    draft.set("seed", request.seed)
    draft.set("folds", request.folds, "patients never cross; stratified by labelled volume")
    draft.set("split_seed", request.seed)
    draft.section()
    draft.set("sw_batch_size", 2)
    draft.set("overlap", 0.5)
    draft.set("padding_mode", "constant")
    mirrors = list(draft["flip_axes"])
    if fingerprint.slice_axis is None:
        why = "averaged with the mirror image" if mirrors else "no mirror"
        draft.set("tta", mirrors or None, why)
    return draft


def _what(draft: Draft, fingerprint: Fingerprint, facts: Facts, design: Design) -> None:
    draft.set("family", "segmentation")
    draft.set("tasks", ["train", "evaluate", "inference", "multi_gpu_train"])
    draft.set("modality", facts.modality, facts.why["modality"])
    draft.set("body_part", facts.body_part, facts.why["body_part"])
    draft.set("labels", dict(fingerprint.labels), _prevalences(fingerprint))
    if facts.regions:
        regions = {name: list(values) for name, values in facts.regions.items()}
        draft.set("regions", regions, facts.why["regions"])
        draft.set("region_labels", list(facts.region_labels), "what each region paints, in order")
    if facts.ignore_label is not None:
        draft.set("ignore_label", facts.ignore_label, "counts neither in the loss nor in scores")
    draft.set("network", design.part, design.why)
    if facts.regions:
        draft.set("output", "regions", "regions overlap: a sigmoid each")
    else:
        draft.set("output", "exclusive", "labels exclude each other")
    is_slice = fingerprint.slice_axis is not None
    draft.set("augmentation", "policy_slice" if is_slice else "policy")
    draft.set("inferer", "slices" if is_slice else "window",
              "every case is a single slice: a 2D network" if is_slice else "")  # fmt: skip
    shares = [fingerprint.prevalence(value) for value in fingerprint.labels]
    rarest = min(share for share in shares if share)  # no sampling finds what no case holds
    if rarest < _RARE:
        draft.set("sampler", "prevalence", f"a label is in {rarest:.0%} of the cases only")
        least = _RARE if rarest >= _VERY_RARE else 1.5 * _RARE
        draft.set("least_share", round(least, 2), "of the samples shall hold each label")


def _prevalences(fingerprint: Fingerprint) -> str:
    parts = [
        f"{name} in {fingerprint.prevalence(value):.0%} of {len(fingerprint.cases)} cases, median "
        f"{_volume(fingerprint, value)}"
        for value, name in fingerprint.labels.items()
    ]
    return "; ".join(parts)


def _volume(fingerprint: Fingerprint, value: int) -> str:
    found = fingerprint.volume_mm(value)
    if math.isnan(found):
        return "none"
    return f"{found / 1000:.3g} ml" if fingerprint.dims == 3 else f"{found:.0f} pixels"


def _grid(draft: Draft, fingerprint: Fingerprint, sampling: Sampling, design: Design) -> None:
    draft.section()
    draft.set("spatial_dims", fingerprint.dims)
    draft.set("in_channels", fingerprint.channels)
    axis = fingerprint.slice_axis
    across = [] if axis is None else [0.0]  # 0 keeps the thickness of the slice
    draft.set("spacing_mm", [*sampling.spacing_mm, *across], sampling.why_spacing)
    draft.set("roi_size", list(design.roi_size), sampling.why_patch)
    least = np.floor(fingerprint.shape(sampling.spacing_mm, 0))
    half = [n // 2 for n in design.roi_size]
    least_size = [min(h, max(1, int(n) - 1)) for h, n in zip(half, least, strict=True)]
    draft.set("min_size", [*least_size, *(1 for _ in across)], "half a patch, or the smallest case")
    if axis is not None:
        codes = "RAS"[:axis] + "RAS"[axis + 1 :] + "RAS"[axis]
        draft.set("axcodes", codes, "the slice's own axis last")
    elif fingerprint.dims == 2:
        draft.set("axcodes", "RA")


def _normalisation(draft: Draft, fingerprint: Fingerprint, facts: Facts) -> None:
    window: list[float] | None = None
    if facts.modality == "CT" and fingerprint.channels == 1:
        low, _, high = fingerprint.inside(0)[:3]
        window = [round(float(low)), round(max(float(high), float(low) + 50.0))]
        draft.set("normalisation", "window", "Hounsfield units mean the same in every scan")
    elif facts.modality in ("CT", "MULTI"):
        inside = [fingerprint.inside(channel) for channel in range(fingerprint.channels)]
        draft.set("normalisation", "channels", "channels have units of their own")
        draft.set("channel_method", "percentile")
        draft.set("channel_offset", [float(row[0]) for row in inside], "0.5% inside structures")
        draft.set("channel_scale", [max(1e-3, float(row[2] - row[0])) for row in inside],
                  "to 99.5% inside structures")  # fmt: skip
    elif fingerprint.zero_share > _MASKED or fingerprint.channels > 1:
        draft.set(
            "normalisation", "zscore_channels", "no unit: each channel to mean 0, deviation 1"
        )
        draft.set("normalise_nonzero", fingerprint.zero_share > _MASKED,
                  f"{fingerprint.zero_share:.0%} of the voxels are 0")  # fmt: skip
    else:
        draft.set("normalisation", "zscore", "no unit: each scan to mean 0, deviation 1")
    draft.set("window_hu", window, "0.5 to 99.5% of the voxels inside structures" if window else "")


def _augmentation(draft: Draft, fingerprint: Fingerprint, facts: Facts, sampling: Sampling) -> None:
    draft.section()
    policy = AugmentationPolicy(facts.modality, facts.body_part, fingerprint.labels)
    is_placed = fingerprint.dims == 3 or fingerprint.slice_axis is not None
    mirrors = [] if not is_placed and facts.body_part == "unknown" else policy.mirrors
    if fingerprint.slice_axis is not None:
        mirrors = [axis for axis in mirrors if axis != PATIENT_AXES[fingerprint.slice_axis]]
    patch_mm = np.multiply(draft["roi_size"], sampling.spacing_mm)
    control_mm = float(f"{patch_mm.min() / 3.5:.3g}")
    draft.set("spatial_prob", 0.9)
    draft.set("rotate_range", _rotation(facts, sampling.spacing_mm), "radians, by the body part")
    draft.set("scale_range", [STRENGTHS[-1][1].scale] * fingerprint.dims)
    draft.set("flip_axes", list(mirrors), "what the body part and the labels' sides allow")
    draft.set("elastic_magnitude_mm", [round(0.06 * control_mm, 3), round(0.3 * control_mm, 3)])
    draft.set("elastic_spacing_mm", control_mm, "two to four control points across the patch")
    draft.set("elastic_prob", STRENGTHS[-1][1].elastic_prob)
    draft.set("foreground_prob", *_foreground(fingerprint, sampling))
    draft.set("intensity_prob", STRENGTHS[-1][1].intensity_prob)


def _rotation(facts: Facts, spacing_mm: Sequence[float]) -> Any:
    legal = math.radians(anatomy_rule(facts.body_part).max_rotation_deg)
    angle = math.floor(1e4 * min(STRENGTHS[-1][1].rotate, legal)) / 1e4
    if len(spacing_mm) == 2 or max(spacing_mm) / min(spacing_mm) < THICK:
        return angle
    thick = int(np.argmax(spacing_mm))
    return [angle if axis == thick else 0.0 for axis in range(3)]  # within the slices


def _foreground(fingerprint: Fingerprint, sampling: Sampling) -> tuple[float, str]:
    if sampling.cover >= _WHOLE:
        return 0.0, "a patch holds nearly the whole case"
    share = fingerprint.smallest_share
    found = 0.5 if share < _TINY else 0.33
    return found, f"of the patches lie on a structure; the smallest fills {share:.2%} of a case"


def _batch(fingerprint: Fingerprint, request: Request, design: Design) -> tuple[int, str]:
    voxels = math.prod(design.roi_size)
    if fingerprint.dims == 2:
        return int(np.clip(_BATCH_PIXELS // voxels, 2, 16)), "2D images, up to 16"
    del request
    return 2, "more steps beat larger batches at equal time"


def set_strength(draft: Draft, epochs: int) -> None:
    """Weaken augmentation where each case is seen too rarely to be learned by heart."""
    strength = next(row for least, row in reversed(STRENGTHS) if epochs >= least)
    why = "" if strength is STRENGTHS[-1][1] else (
        f"weaker: {epochs} epochs are too few to learn cases by heart"
    )  # fmt: skip
    rotation = draft["rotate_range"]  # legal angles at full strength
    full = STRENGTHS[-1][1].rotate
    softer: Any = (
        [round(angle * strength.rotate / full, 4) for angle in rotation]
        if isinstance(rotation, list)
        else round(rotation * strength.rotate / full, 4)
    )
    draft.set("rotate_range", softer, f"radians; {why}" if why else "")
    draft.set("scale_range", [strength.scale] * draft["spatial_dims"], why)
    draft.set("elastic_prob", strength.elastic_prob, why)
    draft.set("intensity_prob", strength.intensity_prob)
