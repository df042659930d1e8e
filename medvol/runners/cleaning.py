"""Steps that clean label maps, taken where validation shows that they help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from medvol.runners.evidence import CaseMaps, Choice, gain_of, label_dice, mean_of

#: Least volumes that are tried, as shares of the smallest volume that the label has in any case.
_SHARES = (0.05, 0.2, 0.5)
Cleaning = dict[str, Any]


def choose_cleaning(
    pool: Sequence[CaseMaps], labels: Mapping[int, str]
) -> tuple[Cleaning, list[Choice]]:
    """Cleaning steps that raise validation Dice, label by label, each upon those taken before.

    Args:
        pool: Cases that their network never saw.
        labels: Label value to name.

    Returns:
        Arguments of :class:`medvol.transforms.CleanLabelMapd`, and what every step tried gained.
    """
    chosen: Cleaning = {}
    steps = []
    base = [mean_dice(maps, labels) for maps in pool]
    for value, name in labels.items():
        for what, option in _options(pool, value):
            trial = _with(chosen, value, option)
            dice = [mean_dice(maps, labels, trial) for maps in pool]
            step = gain_of(f"{name}: {what}", base, dice, pool)
            steps.append(step)
            if step.is_chosen:
                chosen, base = trial, dice
    return chosen, steps


def mean_dice(maps: CaseMaps, labels: Mapping[int, str], cleaning: Cleaning | None = None) -> float:
    """Mean Dice over the labels of a case, those in neither map left out; nan if there is none."""
    pred = _cleaned(maps, cleaning) if cleaning else maps.pred
    return mean_of(label_dice(pred, maps.ref, labels))


def insert_cleaning(steps: list[Any], cleaning: Cleaning) -> None:
    """Put a bundle's cleaning right after its decision, before the writer."""
    step = {"_target_": "medvol.transforms.CleanLabelMapd", "keys": "pred",
            **{k: ({str(v): n for v, n in a.items()} if isinstance(a, dict) else a)
               for k, a in cleaning.items()}}  # fmt: skip
    names = [str(s.get("_target_", "")).rpartition(".")[2] if isinstance(s, dict) else ""
             for s in steps]  # fmt: skip
    at = names.index("SaveImaged") if "SaveImaged" in names else len(steps)
    steps.insert(at, step)


def _cleaned(maps: CaseMaps, cleaning: Cleaning) -> NDArray[Any]:
    import torch
    from monai.data.meta_tensor import MetaTensor

    from medvol.transforms import CleanLabelMapd

    edge_mm = maps.voxel_mm3 ** (1 / maps.pred.ndim)
    affine = torch.diag(torch.tensor([edge_mm] * 3 + [1.0], dtype=torch.float64))
    label = MetaTensor(torch.from_numpy(maps.pred)[None], affine=affine)
    return CleanLabelMapd("pred", **cleaning)({"pred": label})["pred"].numpy()[0]


def _options(pool: Sequence[CaseMaps], value: int) -> list[tuple[str, Cleaning]]:
    volumes = [float((maps.ref == value).sum()) * maps.voxel_mm3 for maps in pool]
    least = min((v for v in volumes if v > 0), default=0.0)
    sizes = [float(f"{share * least:.3g}") for share in _SHARES if least]
    return [
        ("largest piece only", {"largest": True}),
        *((f"pieces of {size:g} mm3 or more", {"min_mm3": size}) for size in sizes),
        ("holes filled", {"fill_holes": True}),
    ]


def _with(chosen: Cleaning, value: int, option: Cleaning) -> Cleaning:
    trial: Cleaning = {"largest": list(chosen.get("largest", [])),
                       "fill_holes": list(chosen.get("fill_holes", [])),
                       "min_mm3": dict(chosen.get("min_mm3", {}))}  # fmt: skip
    for name in ("largest", "fill_holes"):
        if option.get(name):
            trial[name].append(value)
    if "min_mm3" in option:
        trial["min_mm3"][value] = option["min_mm3"]
    return trial
