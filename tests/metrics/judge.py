"""Slow metrics that are right by inspection: loops over voxels, pairs and thresholds.

None of them uses a distance transform, a tree, a labelling routine or the code under test. They
judge small random cases only.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

NAN, INF = math.nan, math.inf


def voxels(mask):
    """Indices of the mask as a set of tuples."""
    return {tuple(int(v) for v in row) for row in np.argwhere(mask)}


def ratio(part, whole):
    return part / whole if whole else NAN


def overlap(pred, ref):
    """Every ratio of volumes."""
    p, r = voxels(pred), voxels(ref)
    both, size = len(p & r), pred.size
    return {
        "dice": ratio(2 * both, len(p) + len(r)),
        "iou": ratio(both, len(p | r)),
        "volume_similarity": 1 - ratio(abs(len(p) - len(r)), len(p) + len(r)),
        "relative_volume_difference": ratio(len(p) - len(r), len(r)),
        "sensitivity_voxel": ratio(both, len(r)),
        "precision_voxel": ratio(both, len(p)),
        "specificity_voxel": ratio(size - len(p | r), size - len(r)),
    }


def across(mask):
    """The axis across a single slice, which has no surface; None of images and volumes."""
    return mask.shape.index(1) if mask.ndim == 3 and 1 in mask.shape else None


def steps(mask):
    """To the face neighbours."""
    axes = [axis for axis in range(mask.ndim) if axis != across(mask)]
    return [tuple(s * (a == k) for k in range(mask.ndim)) for a in axes for s in (-1, 1)]


def edge(mask):
    """Voxels with a face neighbour that is background or outside the array."""
    inside = voxels(mask)
    return sorted(
        v for v in inside
        if any(tuple(np.add(v, s).tolist()) not in inside for s in steps(mask))
    )  # fmt: skip


def distance(a, b, spacing, norm="euclidean"):
    gaps = [abs(x - y) * h for x, y, h in zip(a, b, spacing, strict=True)]
    if norm == "taxicab":
        return sum(gaps)
    return max(gaps) if norm == "chessboard" else math.sqrt(sum(g * g for g in gaps))


def directed(pred, ref, spacing, norm="euclidean"):
    """Distances from each edge voxel of pred to the nearest of ref, and the reverse."""
    p, r = edge(pred), edge(ref)
    return (
        [min(distance(a, b, spacing, norm) for b in r) for a in p],
        [min(distance(a, b, spacing, norm) for a in p) for b in r],
    )


def percentile(values, q):
    """Linear interpolation between order statistics."""
    x = sorted(values)
    at = (len(x) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(x) - 1)
    return x[low] + (x[high] - x[low]) * (at - low)


def surface(pred, ref, spacing, *, tau, q, norm="euclidean"):
    """Every distance between voxel surfaces."""
    if not (pred.any() or ref.any()):
        return dict.fromkeys(SURFACE, NAN)
    if not (pred.any() and ref.any()):
        return {name: 0.0 if name == "nsd_voxel" else INF for name in SURFACE}
    there, back = directed(pred, ref, spacing, norm)
    both = there + back
    return {
        "hausdorff": max(percentile(there, q), percentile(back, q)),
        "directed": percentile(there, q),
        "hd95": max(percentile(there, 95), percentile(back, 95)),
        "hd95_pooled": percentile(both, 95),
        "asd": math.fsum(there) / len(there),
        "assd": math.fsum(both) / len(both),
        "masd": (math.fsum(there) / len(there) + math.fsum(back) / len(back)) / 2,
        "nsd_voxel": sum(d <= tau + 1e-9 for d in both) / len(both),
    }


SURFACE = ("hausdorff", "directed", "hd95", "hd95_pooled", "asd", "assd", "masd", "nsd_voxel")


def boundary_iou(pred, ref, spacing, width):
    """Bands of voxels no further than width from a background voxel, outside included."""
    if not (pred.any() or ref.any()):
        return NAN
    bands = []
    for mask in (pred, ref):
        inside = voxels(mask)
        reach = [int(axis != across(mask)) for axis in range(mask.ndim)]
        around = itertools.product(
            *(range(-r, n + r) for n, r in zip(mask.shape, reach, strict=True))
        )
        outside = [v for v in around if v not in inside]
        bands.append(
            {v for v in inside if min(distance(v, o, spacing) for o in outside) <= width + 1e-9}
        )
    union = len(bands[0] | bands[1])
    return len(bands[0] & bands[1]) / union if union else 0.0


def lesions(mask, reach):
    """Components by flood fill; neighbours differ by 1 along at most ``reach`` axes."""
    left, found = voxels(mask), []
    around = [d for d in itertools.product((-1, 0, 1), repeat=mask.ndim)
              if 0 < sum(map(abs, d)) <= reach]  # fmt: skip
    while left:
        stack, part = [left.pop()], set()
        while stack:
            here = stack.pop()
            part.add(here)
            for step in around:
                there = tuple(np.add(here, step).tolist())
                if there in left:
                    left.remove(there)
                    stack.append(there)
        found.append(part)
    return found


def lesion_overlap(pred, ref, reach):
    """Counts by any shared voxel."""
    ours, theirs = lesions(pred, reach), lesions(ref, reach)
    p, r = voxels(pred), voxels(ref)
    hit_ref, hit_pred = [x for x in theirs if x & p], [x for x in ours if x & r]
    sensitivity, precision = ratio(len(hit_ref), len(theirs)), ratio(len(hit_pred), len(ours))
    f1 = NAN if not (ours or theirs) else 0.0
    if hit_ref and hit_pred:
        f1 = 2 * sensitivity * precision / (sensitivity + precision)
    return {
        "n_ref": len(theirs), "n_pred": len(ours), "tp_ref": len(hit_ref),
        "tp_pred": len(hit_pred), "sensitivity": sensitivity, "precision": precision, "f1": f1,
        "fp_voxels": sum(len(x) for x in ours if not x & r),
        "fn_voxels": sum(len(x) for x in theirs if not x & p),
    }  # fmt: skip


def panoptic(pred, ref, threshold):
    """The best assignment by trying all of them; instance maps of at most a few instances."""
    ours = [voxels(pred == k) for k in np.unique(pred) if k]
    theirs = [voxels(ref == k) for k in np.unique(ref) if k]
    table = [[len(a & b) / len(a | b) for b in theirs] for a in ours]
    best: tuple[float, int] = (0.0, 0)

    def search(row, used, total, count):
        nonlocal best
        if row == len(ours):
            best = max(best, (total, count))
            return
        search(row + 1, used, total, count)
        for k, value in enumerate(table[row]):
            if k not in used and value > threshold:
                search(row + 1, used | {k}, total + value, count + 1)

    search(0, frozenset(), 0.0, 0)
    total, tp = best
    weight = (len(ours) + len(theirs)) / 2
    return {
        "tp": tp, "fp": len(ours) - tp, "fn": len(theirs) - tp, "rq": ratio(tp, weight),
        "sq": ratio(total, tp), "pq": ratio(total, weight),
    }  # fmt: skip


def counts(y, score, threshold):
    called = [s >= threshold for s in score]
    pairs = list(zip(y, called, strict=True))
    return {
        "tp": sum(1 for t, c in pairs if t and c), "fp": sum(1 for t, c in pairs if not t and c),
        "fn": sum(1 for t, c in pairs if t and not c),
        "tn": sum(1 for t, c in pairs if not t and not c),
    }  # fmt: skip


def clinical(tp, fp, fn, tn):
    sens, spec = ratio(tp, tp + fn), ratio(tn, tn + fp)
    ppv = ratio(tp, tp + fp)
    four = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    above, below = sens, 1 - spec
    plus = NAN if math.isnan(above + below) or above == below == 0 else (
        above / below if below else INF)  # fmt: skip
    above, below = 1 - sens, spec
    minus = NAN if math.isnan(above + below) or above == below == 0 else (
        above / below if below else INF)  # fmt: skip
    return {
        "sensitivity": sens, "specificity": spec, "ppv": ppv, "npv": ratio(tn, tn + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn), "accuracy": ratio(tp + tn, tp + fp + fn + tn),
        "balanced_accuracy": (sens + spec) / 2, "mcc": ratio(tp * tn - fp * fn, four),
        "lr_plus": plus, "lr_minus": minus, "youden": sens + spec - 1,
    }  # fmt: skip


def won(a, b):
    return 1.0 if a > b else 0.5 if a == b else 0.0


def auc(y, score):
    pos = [s for s, t in zip(score, y, strict=True) if t]
    neg = [s for s, t in zip(score, y, strict=True) if not t]
    return ratio(sum(won(a, b) for a in pos for b in neg), len(pos) * len(neg))


def delong_covariance(y, first, second):
    """Covariance of two AUC by the definition: placements of each case among the others."""
    pos, neg = [k for k, t in enumerate(y) if t], [k for k, t in enumerate(y) if not t]
    if len(pos) < 2 or len(neg) < 2:
        return NAN

    def placements(s):
        return (
            [sum(won(s[i], s[j]) for j in neg) / len(neg) for i in pos],
            [sum(won(s[i], s[j]) for i in pos) / len(pos) for j in neg],
        )

    def covariance(a, b):
        x, z = sum(a) / len(a), sum(b) / len(b)
        return sum((p - x) * (q - z) for p, q in zip(a, b, strict=True)) / (len(a) - 1)

    (a, b), (c, d) = placements(first), placements(second)
    return covariance(a, c) / len(pos) + covariance(b, d) / len(neg)


def average_precision(y, score):
    """Step sum over distinct thresholds."""
    total, before, n_pos = 0.0, 0.0, sum(map(bool, y))
    if not n_pos:
        return NAN
    for t in sorted(set(score), reverse=True):
        c = counts(y, score, t)
        recall = c["tp"] / n_pos
        total += (recall - before) * c["tp"] / (c["tp"] + c["fp"])
        before = recall
    return total


def threshold_at(y, score, target, which):
    """Highest threshold that reaches a sensitivity, or lowest that reaches a specificity."""
    reached = []
    for t in sorted(set(score), reverse=True):
        c = counts(y, score, t)
        value = ratio(c["tp"], c["tp"] + c["fn"]) if which == "sensitivity" else ratio(
            c["tn"], c["tn"] + c["fp"])  # fmt: skip
        if value >= target - 1e-12:
            reached.append(t)
    if which == "sensitivity":
        return max(reached) if any(y) else NAN
    return (min(reached) if reached else INF) if not all(y) else NAN


def ece(y, prob, bins):
    """Bins closed above; 0 belongs to the first."""
    total = 0.0
    for k in range(bins):
        inside = [i for i, p in enumerate(prob)
                  if (k / bins < p <= (k + 1) / bins) or (k == 0 and p == 0)]  # fmt: skip
        if inside:
            total += abs(sum(bool(y[i]) for i in inside) - math.fsum(prob[i] for i in inside))
    return ratio(total, len(prob))
