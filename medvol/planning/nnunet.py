"""A folder that nnU-Net v2 trained becomes a bundle with the same network and preprocessing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.bundle import write
from medvol.core.anatomy import anatomy_rule, flip_objection
from medvol.core.errors import ConfigError
from medvol.core.files import write_text
from medvol.core.modality import find_modality
from medvol.datasets.manifest import guess_modality
from medvol.planning.nnunet_files import Model, read_model

#: Patient axis that our array axes follow in files stored as RAS or LPS, as nearly all are.
_NOMINAL = ("left-right", "anterior-posterior", "superior-inferior")
_NORMS = ("InstanceNorm2d", "InstanceNorm3d")


@dataclass(frozen=True)
class Imported:
    """What became of an nnU-Net folder.

    Attributes:
        folder: The bundle.
        folds: nnU-Net's folds that are its members.
        notes: What the user should know, one line each.
    """

    folder: Path
    folds: tuple[str, ...]
    notes: tuple[str, ...]


def import_nnunet(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    body_part: str,
    *,
    modality: str | None = None,
    folds: Sequence[int] | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> Imported:
    """Write a bundle whose network gives nnU-Net's logits for nnU-Net's preprocessed input.

    Kernels are turned to our order of axes, so that no image is; several folds become members of
    one ensemble that averages their logits, as nnU-Net does. Mirrors at inference are those that
    nnU-Net allowed and the anatomy allows.

    Args:
        source: nnU-Net's folder of one configuration (``plans.json``, ``dataset.json``,
            ``fold_0`` ...), or one that holds it.
        output: The new bundle's folder; its name ends in ``segmentation``.
        body_part: Row of :mod:`medvol.core.anatomy`.
        modality: Where channel names do not tell it.
        folds: Folds to take; all that are there by default.
        checkpoint: File in each fold's folder.

    Raises:
        MissingInputError: If a file is missing.
        ConfigError: If the model is of a kind that has no equal here, or the output exists.
        WeightsError: If a checkpoint is damaged or would run code.
    """
    anatomy_rule(body_part)
    target = Path(output)
    if not target.name.endswith("segmentation"):
        raise ConfigError(f"{target}: the name must end in 'segmentation', or MONAI Label cannot "
                          "tell what the bundle does")  # fmt: skip
    if target.exists():
        raise ConfigError(f"{target}: exists; choose another folder")
    try:
        model = read_model(Path(source), folds, checkpoint)
        values, notes = _values(model, body_part, modality)
    except KeyError as error:
        raise ConfigError(f"{source}: plans.json or dataset.json lacks {error}") from error
    from medvol.engines import save_checkpoint
    from medvol.networks import join_states, nnunet_state

    states = [nnunet_state(weights, model.axes) for weights in model.weights.values()]
    save_checkpoint(target / "models" / "model.pt", join_states(states))
    plan = target / "plan" / f"{target.name}.yaml"
    write_text(plan, _values_text(values, model))
    write_text(plan.with_suffix(".md"), _card(target.name, values, model, notes))
    write(plan)
    return Imported(target, tuple(model.weights), tuple(notes))


def _values(model: Model, body_part: str, modality: str | None) -> tuple[dict[str, Any], list[str]]:
    plan, facts = model.configuration, model.dataset
    channels = list((facts.get("channel_names") or facts.get("modality") or {}).values())
    network = _network(plan["architecture"], model.axes)
    axes = range(len(model.axes))
    patch = [int(plan["patch_size"][model.axes[a]]) for a in axes]
    spacing = [float(plan["spacing"][model.axes[a]]) for a in axes]
    labels = _labels(facts)
    kept, notes = _mirrors(model, body_part, list(labels["labels"].values()))
    values = {
        "family": "segmentation",
        "tasks": ["evaluate", "inference"],
        "modality": _modality(channels, modality),
        "body_part": body_part,
        **labels,
        "network": "nnunet",
        "normalisation": "none",
        "augmentation": "none",
        "inferer": "nnunet",
        "resampled": "logits",
        "grid": "nnunet",
        "spatial_dims": len(patch),
        "in_channels": len(channels),
        "spacing_mm": spacing,
        "roi_size": patch,
        "min_size": [0] * len(patch),
        "nnunet": _preprocessing(plan, model, len(channels)),
        **network,
        "members_count": len(model.weights),
        "folds": 5,
        "split_seed": 0,
        "sw_batch_size": 2,
        "overlap": 0.5,
        "padding_mode": "constant",
        "tta": kept or None,
    }
    return values, notes


def _modality(channels: Sequence[str], given: str | None) -> str:
    if given is not None:
        return find_modality(given).name
    found = {guess_modality(str(name)) for name in channels}
    if None in found or not found:
        raise ConfigError("the modality does not follow from channel names "
                          f"({', '.join(channels)}); "
                          "pass --modality, for example CT, MR or PT")  # fmt: skip
    return str(found.pop()) if len(found) == 1 else "MULTI"


def _network(architecture: Mapping[str, Any], axes: Sequence[int]) -> dict[str, Any]:
    name = str(architecture["network_class_name"]).rpartition(".")[2]
    given = architecture["arch_kwargs"]
    is_residual = name == "ResidualEncoderUNet"
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        raise ConfigError(f"nnU-Net's network {name} has no equal here; PlainConvUNet and "
                          "ResidualEncoderUNet have")  # fmt: skip
    norm, act = (str(given.get(key)).rpartition(".")[2] for key in ("norm_op", "nonlin"))
    odd = [f"{key} {given[key]}" for key in ("dropout_op", "block", "bottleneck_channels",
           "stem_channels", "nonlin_first") if given.get(key)]  # fmt: skip
    odd += [] if norm in _NORMS and act == "LeakyReLU" else [f"{norm} with {act}"]
    odd += [] if given.get("conv_bias") else ["convolutions without bias"]
    if odd:
        raise ConfigError(f"nnU-Net's network has {odd[0]}, which has no equal here")
    stages = int(given["n_stages"])
    return {
        "channels": [int(v) for v in _spread(given["features_per_stage"], stages)],
        "kernels": _turned(given["kernel_sizes"], stages, axes),
        "strides": _turned(given["strides"], stages, axes),
        "convs": _spread(given["n_blocks_per_stage" if is_residual else "n_conv_per_stage"],
                         stages),
        "decoder_convs": _spread(given["n_conv_per_stage_decoder"], stages - 1),
        "is_residual": is_residual,
        "slope": float((given.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)),
        "eps": float((given.get("norm_op_kwargs") or {}).get("eps", 1e-5)),
    }  # fmt: skip


def _preprocessing(plan: Mapping[str, Any], model: Model, channels: int) -> dict[str, Any]:
    if plan["resampling_fn_data"] != "resample_data_or_seg_to_shape":
        raise ConfigError(f"nnU-Net's resampling {plan['resampling_fn_data']!r} has no equal here")
    given = plan["resampling_fn_data_kwargs"]
    wanted = ("mean", "std", "percentile_00_5", "percentile_99_5")
    known = model.plans.get("foreground_intensity_properties_per_channel", {})
    return {
        "schemes": list(plan["normalization_schemes"]),
        "masked": [bool(v) for v in plan["use_mask_for_norm"]],
        "intensities": [{key: float(known[str(i)][key]) for key in wanted if key in known[str(i)]}
                        for i in range(channels) if str(i) in known],
        "order": int(given.get("order", 3)),
        "order_z": int(given.get("order_z", 0)),
        "separate_z": given.get("force_separate_z"),
    }  # fmt: skip


def _labels(facts: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in facts["labels"].items() if value != 0}
    ignored = given.pop("ignore", None)
    found: dict[str, Any] = {} if ignored is None else {"ignore_label": int(ignored)}
    if not any(isinstance(value, (list, tuple)) for value in given.values()):
        labels = {int(value): name for name, value in given.items()}
        return {"labels": labels, "output": "softmax", **found}
    members = {name: list(v) if isinstance(v, (list, tuple)) else [v] for name, v in given.items()}
    order = [int(value) for value in facts["regions_class_order"]]
    known = sorted({int(v) for values in members.values() for v in values})
    names = {value: next((n for n, v in members.items() if v == [value]), f"label {value}")
             for value in known}  # fmt: skip
    return {"labels": names, "regions": members, "region_labels": order, "output": "regions",
            **found}  # fmt: skip


def _mirrors(model: Model, body_part: str, names: list[str]) -> tuple[list[str], list[str]]:
    kept, notes = [], []
    for ours, theirs in enumerate(model.axes):
        if theirs not in model.mirror_axes:
            continue
        axis: Any = _NOMINAL[ours]
        objection = flip_objection(body_part, axis, names)
        if objection is None:
            kept.append(axis)
        else:
            notes.append(f"nnU-Net mirrored {axis} at inference; not done here: {objection}")
    return kept, notes


def _turned(values: Any, stages: int, axes: Sequence[int]) -> list[list[int]]:
    rows = _spread(values, stages)
    full = [row if isinstance(row, (list, tuple)) else [row] * len(axes) for row in rows]
    return [[int(row[axis]) for axis in axes] for row in full]


def _spread(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def _values_text(values: Mapping[str, Any], model: Model) -> str:
    import yaml

    title = f"{model.name} by nnU-Net v2"
    meta = {
        "version": "0.1.0", "title": title, "task": f"Segmentation as trained by {model.name}",
        "description": "A network that nnU-Net v2 trained, with nnU-Net's preprocessing.",
        "data_source": model.name, "data_type": "nibabel",
        "image_classes": ", ".join(f"channel {i}" for i in range(values["in_channels"])),
        "label_classes": ", ".join(f"{v} {n}" for v, n in values["labels"].items()),
        "pred_classes": "one channel a class, background first, or one a region",
        "intended_use": "Research only; not a medical device and not for clinical decisions.",
        "changelog": {"0.1.0": "imported"},
    }  # fmt: skip
    head = f"# {title}; every value is nnU-Net's own, axes in our order.\n"
    return head + yaml.safe_dump({**values, "meta": meta}, sort_keys=False, allow_unicode=True)


def _card(name: str, values: Mapping[str, Any], model: Model, notes: Sequence[str]) -> str:
    remarks = "".join(f"- {note}\n" for note in notes)
    folds = ", ".join(model.weights)
    return f"""# {name}

Imported from nnU-Net v2 ({model.name}; folds {folds}) by `medvol plan --from-nnunet`. Network,
weights, normalisation and resampling are nnU-Net's; for the same preprocessed input the logits are
the same. Images are not reoriented: give them stored as they were for nnU-Net.

Mirror images at inference: {", ".join(values["tta"] or []) or "none"}; probabilities are averaged
over them, where nnU-Net averages logits.

{remarks}
Measured accuracy: see the folds' own `validation/summary.json` of nnU-Net. Research only; not a
medical device and not for clinical decisions.
"""
