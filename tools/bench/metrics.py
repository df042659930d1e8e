"""Metrics against MONAI and surface-distance: ``python -m tools.bench.metrics [--full] FOLDER``.

FOLDER holds ``kits_00005.nii.gz`` (kidney and tumour masks of KiTS19). Every contender runs once a
round, in turn; CPU time over all threads is what counts, since other work shares the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LABELS = (1, 2)
TAU_MM = 2.0
TARGETS = {"monai": 0.10, "surface-distance": 0.45, "scikit-learn loop": 0.1}


def main() -> int:
    """Print a table of CPU seconds and ratios; 1 if a target or an equality fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="full height, 834x512x512")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    ok = True
    pred, ref, spacing = load(options.folder / "kits_00005.nii.gz", None if options.full else 80)
    print(f"Dice, HD95, ASSD, voxel NSD of {len(LABELS)} labels, {pred.shape}")
    medvol(pred, ref, spacing)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak memory of loading and one pass: {peak:.2f} GB (limit 3)")
    contenders: dict[str, Callable[[], Any]] = {
        "medvol": lambda: medvol(pred, ref, spacing),
        "surface-distance": lambda: surface_distance(pred, ref, spacing),
        "monai": lambda: monai(pred, ref, spacing),
    }
    values, seconds = race(contenders, options.rounds)
    ok &= table(seconds) and peak < 3
    gap = largest_gap(values["medvol"], values["monai"])
    print(f"largest difference from MONAI's values: {gap:.1e}")
    _, seconds = race(bootstraps(), 1)
    print("10,000 clustered resamples of the AUC of 2,000 scores (the loop: 200, times 50)")
    ok &= table({k: [s * 50 for s in v] if "loop" in k else v for k, v in seconds.items()})
    return int(not ok or gap > 1e-5)


def load(path: Path, slices: int | None) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """A reference, and a plausible prediction: moved, partly relabelled, one far false alarm."""
    import nibabel
    from scipy.ndimage import binary_erosion

    image: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
    ref = np.ascontiguousarray(np.asarray(image.dataobj, np.uint8))
    if slices:
        middle = int(np.mean(np.nonzero((ref > 0).any((1, 2)))[0]))
        ref = np.ascontiguousarray(ref[max(0, middle - slices // 2) : middle + slices // 2])
    pred = np.roll(ref, (1, 2, -2), (0, 1, 2))
    pred[(pred == 2) & ~binary_erosion(pred == 2)] = 1
    z, y, x = np.argwhere(pred == 1)[0]
    pred[z : z + 6, y : y + 6, max(0, x - 20) : max(0, x - 20) + 6] = 1
    return pred, ref, tuple(float(step) for step in image.header.get_zooms())


def medvol(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> dict[str, list[float]]:
    """One pass of ours."""
    from medvol.metrics import surface_report

    report = surface_report(pred, ref, spacing, TAU_MM)
    names = ("dice", "hd95", "assd", "nsd_voxel")
    return {name: [report[label][name] for label in LABELS] for name in names}


def monai(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> dict[str, list[float]]:
    """The same by MONAI's functions."""
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    one_hot = [
        torch.from_numpy(np.stack([m == k for k in (0, *LABELS)]))[None] for m in (pred, ref)
    ]
    common = {"include_background": False, "spacing": spacing}
    taus = [TAU_MM] * len(LABELS)
    found = {
        "dice": compute_dice(*one_hot, include_background=False),
        "hd95": compute_hausdorff_distance(*one_hot, percentile=95, **common),
        "assd": compute_average_surface_distance(*one_hot, symmetric=True, **common),
        "nsd_voxel": compute_surface_dice(*one_hot, taus, **common),
    }
    return {name: value[0].tolist() for name, value in found.items()}


def surface_distance(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]
) -> dict[str, list[float]]:
    """The same quantities by surface-distance, on its own surfaces."""
    import surface_distance as peer

    found: dict[str, list[float]] = {"dice": [], "hd95": [], "assd": [], "nsd": []}
    for label in LABELS:
        a, b = ref == label, pred == label
        distances = peer.compute_surface_distances(a, b, spacing)
        found["dice"].append(float(peer.compute_dice_coefficient(a, b)))
        found["hd95"].append(float(peer.compute_robust_hausdorff(distances, 95)))
        found["assd"].append(float(np.mean(peer.compute_average_surface_distance(distances))))
        found["nsd"].append(float(peer.compute_surface_dice_at_tolerance(distances, TAU_MM)))
    return found


def bootstraps() -> dict[str, Callable[[], Any]]:
    """Ours, and a loop over scikit-learn, on 2,000 scores of 500 patients."""
    from sklearn.metrics import roc_auc_score

    from medvol.metrics import bootstrap_ci, weighted_auc

    rng = np.random.default_rng(0)
    y, patients = np.arange(2000) % 4 == 0, np.arange(2000) // 4
    score = rng.normal(y, 1.5)
    members = np.arange(2000).reshape(500, 4)

    def loop() -> None:
        for _ in range(200):
            rows = members[rng.integers(0, 500, 500)].ravel()
            roc_auc_score(y[rows], score[rows])

    def ours() -> None:
        bootstrap_ci(weighted_auc(y, score), 2000, groups=patients, resamples=10_000)

    return {"medvol": ours, "scikit-learn loop": loop}


def race(
    contenders: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Each contender's value and its CPU seconds, one run of each per round."""
    values, seconds = {}, {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            values[name] = run()
            seconds[name].append(time.process_time() - start)
    return values, seconds


def table(seconds: dict[str, list[float]]) -> bool:
    """Print best and median CPU seconds and the ratio of ours to each; whether targets are met."""
    ok = True
    ours = min(seconds["medvol"])
    for name, times in seconds.items():
        line = f"  {name:18} best {min(times):8.3f} s  median {statistics.median(times):8.3f} s"
        if name in TARGETS:
            ratio = ours / min(times)
            ok &= ratio <= TARGETS[name]
            line += f"  ratio {ratio:.3f} (target {TARGETS[name]})"
        print(line, flush=True)
    print(json.dumps({name: min(times) for name, times in seconds.items()}))
    return ok


def largest_gap(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """Largest absolute difference over all labels and metrics."""
    return max(abs(a - b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
