"""Random small cases, judged by loops (``judge.py``), scikit-learn, surface-distance and SciPy.

``MEDVOL_JUDGE_CASES=500`` judges more of them.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from medvol import metrics
from medvol.metrics.surface import ROUNDING
from tests.metrics import judge

CASES = int(os.environ.get("MEDVOL_JUDGE_CASES", "25"))
NORMS = ("euclidean", "taxicab", "chessboard")
steps_mm = st.sampled_from([0.3, 0.5, 0.7, 1.0, 1.25, 2.5, 5.0])


@st.composite
def mask_pairs(draw):
    """Two masks on one small grid with their spacing: blobs, single voxels, empty, full, equal."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = ("noise", "dense", "box", "voxel", "empty", "full", "checker")
    masks = [one_mask(draw(st.sampled_from(kinds)), shape, rng) for _ in range(2)]
    if draw(st.booleans()) and masks[0].any():
        masks[1] = np.roll(masks[0], draw(st.integers(-2, 2)), axis=draw(st.integers(0, 1)))
    return (*masks, tuple(draw(steps_mm) for _ in shape))


def one_mask(kind, shape, rng):
    mask = np.zeros(shape, bool)
    if kind in ("noise", "dense"):
        return rng.random(shape) < (0.2 if kind == "noise" else 0.7)
    if kind == "box":
        low = [int(rng.integers(0, n)) for n in shape]
        mask[tuple(slice(a, int(rng.integers(a, n)) + 1)
                   for a, n in zip(low, shape, strict=True))] = True  # fmt: skip
    if kind == "voxel":
        mask[tuple(int(rng.integers(0, n)) for n in shape)] = True
    if kind == "checker":
        mask = np.indices(shape).sum(axis=0) % 2 == 0
    return mask | (kind == "full")


@st.composite
def scored(draw, least=0):
    """Truth and probabilities: ties, constant scores, one class only, separated classes."""
    n = draw(st.integers(least, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    kind = draw(st.sampled_from(["fine", "ties", "constant", "separated", "bins"]))
    score = {
        "fine": rng.random(n), "ties": rng.integers(0, 4, n) / 4, "constant": np.full(n, 0.5),
        "separated": 0.4 * rng.random(n) + 0.5 * y, "bins": rng.integers(0, 11, n) / 10,
    }[kind]  # fmt: skip
    return y.tolist(), score.tolist()


def close(want, tolerance=1e-9):
    return pytest.approx(float(want), rel=tolerance, abs=tolerance, nan_ok=True)


@settings(max_examples=CASES)
@given(mask_pairs())
def test_volume_ratios_are_those_of_sets_of_voxels(case):
    pred, ref, spacing = case
    for name, want in judge.overlap(pred, ref).items():
        assert getattr(metrics, name)(pred, ref, spacing) == close(want), name
    if pred.ndim == 3:
        want = abs(int(pred.sum()) - int(ref.sum())) * math.prod(spacing) / 1000
        assert metrics.absolute_volume_difference(pred, ref, spacing) == close(want)


@settings(max_examples=CASES)
@given(mask_pairs(), st.sampled_from(NORMS), st.sampled_from([0, 5, 50, 90, 100]),
       st.sampled_from([0.0, 0.5, 1.0, 2.5, 3.0]))  # fmt: skip
def test_surface_distances_are_minima_over_all_pairs(case, norm, q, tau):
    pred, ref, spacing = case
    want = judge.surface(pred, ref, spacing, tau=tau, q=q, norm=norm)
    for name in ("hausdorff", "asd", "assd", "masd", "nsd_voxel"):
        params = {"norm": norm}
        params |= {"hausdorff": {"percentile": q}, "nsd_voxel": {"tau": tau}}.get(name, {})
        assert getattr(metrics, name)(pred, ref, spacing, **params) == close(want[name]), name
    got = metrics.hausdorff(pred, ref, spacing, percentile=q, norm=norm, directed=True)
    assert got == close(want["directed"]), "directed"
    if norm == "euclidean":
        for name in ("hd95", "hd95_pooled"):
            assert getattr(metrics, name)(pred, ref, spacing) == close(want[name]), name


@settings(max_examples=CASES)
@given(mask_pairs(), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_boundary_bands_are_distances_to_all_background_voxels(case, width):
    pred, ref, spacing = case
    want = judge.boundary_iou(pred, ref, spacing, width)
    assert metrics.boundary_iou(pred, ref, spacing, width_mm=width) == close(want)


@settings(max_examples=CASES)
@given(mask_pairs(), st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from([50, 95, 100]))
@pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning")
def test_surfels_are_those_of_surface_distance(case, tau, q):
    import surface_distance as peer

    pred, ref, spacing = case
    assume(pred.any() and ref.any())
    if (axis := judge.across(pred)) is not None:  # the peer's way with an image: two axes
        masks = [mask.squeeze(axis) for mask in (ref, pred)]
        distances = peer.compute_surface_distances(*masks, np.delete(spacing, axis).tolist())
    else:
        distances = peer.compute_surface_distances(ref, pred, spacing)
    want = peer.compute_surface_dice_at_tolerance(distances, tau * (1 + 1e-9))
    assert metrics.nsd_surfel(pred, ref, spacing, tau=tau) == close(want, 1e-6), "nsd"
    # What reaches q but for rounding reaches it; the peer, at q itself, would go on.
    want = peer.compute_robust_hausdorff(distances, q * (1 - ROUNDING))
    assert metrics.hausdorff_surfel(pred, ref, spacing, percentile=q) == close(want, 1e-6)
    averages = peer.compute_average_surface_distance(distances)
    for got, want in zip(metrics.asd_surfel(pred, ref, spacing), averages, strict=True):
        assert got == close(want, 1e-6), "asd"


@settings(max_examples=CASES)
@given(mask_pairs(), st.integers(1, 3))
def test_lesions_are_what_a_flood_fill_finds(case, reach):
    pred, ref, spacing = case
    reach = min(reach, pred.ndim)
    found = metrics.lesion_overlap(pred, ref, spacing, connectivity=reach)
    want = judge.lesion_overlap(pred, ref, reach)
    for name, value in want.items():
        assert found[name] == close(value), name
    assert dict(metrics.lesion_overlap(pred, ref, spacing)).keys() == want.keys()


@settings(max_examples=CASES)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7]))
def test_panoptic_matches_are_the_best_of_all_assignments(seed, threshold):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, 2 + seed % 2))
    ref = rng.choice([0, 1, 2, 5], shape)
    change = rng.random(shape) < rng.choice([0.0, 0.2, 0.6])
    pred = np.where(change, rng.choice([0, 3, 4, 9], shape), ref)
    assume(max(pred.max(), ref.max()) > 1)
    found = metrics.panoptic(pred, ref, iou_threshold=threshold)
    for name, value in judge.panoptic(pred, ref, threshold).items():
        if name not in ("tp", "fp", "fn", "rq", "sq") or threshold >= 0.5:
            assert found[name] == close(value), name


@settings(max_examples=CASES)
@given(mask_pairs(), st.lists(st.sampled_from([0.5, 2.0]), min_size=3, max_size=3))
def test_a_report_of_labels_is_the_metric_of_each_label_alone(case, taus):
    first, second, spacing = case
    pred = first.astype(int) + 2 * np.roll(second, 1, axis=0)
    ref = second.astype(int) + 2 * np.roll(first, 1, axis=1)
    names = ("dice", "hd95", "assd", "nsd_voxel", "nsd_surfel", "masd", "iou")
    report = metrics.surface_report(
        pred, ref, spacing, dict(zip((1, 2, 3), taus, strict=True)), names, labels=(1, 2, 3)
    )
    for label, tau in zip((1, 2, 3), taus, strict=True):
        for name in names:
            params = {"tau": tau} if name.startswith("nsd") else {}
            want = getattr(metrics, name)(pred == label, ref == label, spacing, **params)
            assert report[label][name] == close(want), f"{label} {name}"


@settings(max_examples=CASES)
@given(scored(least=1), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_decisions_are_counted_case_by_case(case, threshold):
    y, score = case
    want = judge.counts(y, score, threshold)
    assert dict(metrics.confusion(y, score, threshold=threshold)) == want
    found = metrics.clinical(**want)
    for name, value in judge.clinical(**want).items():
        assert found[name] == close(value), name
    assert metrics.brier(y, score) == close(
        np.mean([(s - t) ** 2 for s, t in zip(score, y, strict=True)])
    )
    for bins in (1, 10, 15):
        assert metrics.ece(y, score, bins=bins) == close(judge.ece(y, score, bins)), f"ece {bins}"
    if threshold < 1:
        gain = (want["tp"] - want["fp"] * threshold / (1 - threshold)) / len(y)
        assert metrics.net_benefit(y, score, threshold=threshold) == close(gain)


@settings(max_examples=CASES)
@given(scored(), st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_rankings_are_counted_pair_by_pair(case, target):
    from sklearn.metrics import average_precision_score, roc_auc_score

    y, score = case
    assert metrics.auc_roc(y, score) == close(judge.auc(y, score))
    assert metrics.average_precision(y, score) == close(judge.average_precision(y, score))
    if 0 < sum(y) < len(y):
        assert metrics.auc_roc(y, score) == close(roc_auc_score(y, score))
        assert metrics.average_precision(y, score) == close(average_precision_score(y, score))
    for which in ("sensitivity", "specificity"):
        found = getattr(metrics, f"threshold_at_{which}")(y, score, target=target)
        assert found.threshold == close(judge.threshold_at(y, score, target, which)), which
    found = metrics.threshold_at_youden(y, score)
    if 0 < sum(y) < len(y):
        values = {t: judge.clinical(**judge.counts(y, score, t))["youden"] for t in score}
        assert found.sensitivity + found.specificity - 1 == close(max(values.values()))
        assert found.threshold == max(t for t, v in values.items()
                                      if v > max(values.values()) - 1e-12)  # fmt: skip


@st.composite
def many_scored(draw):
    """Truth as classes or as labels, and their scores: ties, no cases, classes without cases."""
    n, classes = draw(st.integers(0, 20)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = (
        rng.integers(0, 5, (n, classes)) / 4 if draw(st.booleans()) else rng.random((n, classes))
    )
    if draw(st.booleans()):
        return rng.random((n, classes)) < draw(st.sampled_from([0.0, 0.3, 1.0])), score
    return rng.integers(0, draw(st.integers(1, classes)), n), score


@settings(max_examples=CASES)
@given(many_scored())
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_many_classes_and_many_labels_are_judged_class_by_class(case):
    y, score = case
    n, classes = score.shape
    truth = [[bool(y[i][k]) if y.ndim == 2 else y[i] == k for k in range(classes)]
             for i in range(n)]  # fmt: skip
    columns = [([row[k] for row in truth], score[:, k].tolist()) for k in range(classes)]
    for name, judged in (("auc_roc", judge.auc), ("average_precision", judge.average_precision)):
        function = getattr(metrics, name)
        want = [judged(*column) for column in columns]
        got = metrics.one_vs_rest(y, score, function)
        assert [float(v) for v in got] == [close(v) for v in want]
        assert metrics.one_vs_rest(y, score, function, average="macro") == close(
            sum(want) / classes
        )
        pooled = judged([v for row in truth for v in row], score.ravel().tolist())
        assert metrics.one_vs_rest(y, score, function, average="micro") == close(pooled)
        sizes = [sum(column[0]) for column in columns]
        total = sum(v * s for v, s in zip(want, sizes, strict=True) if s)
        weighted = metrics.one_vs_rest(y, score, function, average="weighted")
        assert weighted == close(judge.ratio(total, sum(sizes)))
    if y.ndim == 1:
        called = score.argmax(axis=1)
        pairs = list(zip(y.tolist(), called.tolist(), strict=True))
        want = [[pairs.count((i, j)) for j in range(classes)] for i in range(classes)]
        assert metrics.confusion_matrix(y, called, classes).tolist() == want


@settings(max_examples=CASES)
@given(scored(least=1), st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([0.01, 0.3, 0.9]))
def test_predictive_values_at_a_prevalence_are_those_of_reweighted_cases(case, threshold, share):
    y, score = case
    found = metrics.clinical(**judge.counts(y, score, threshold))
    ppv, npv = metrics.predictive_values(found.sensitivity, found.specificity, share)
    if not 0 < sum(y) < len(y):
        assert math.isnan(ppv)
        assert math.isnan(npv)
        return
    weights = [share / sum(y) if t else (1 - share) / (len(y) - sum(y)) for t in y]
    for value, side in ((ppv, True), (npv, False)):
        called = [(t, w) for t, s, w in zip(y, score, weights, strict=True)
                  if (s >= threshold) == side]  # fmt: skip
        right = sum(w for t, w in called if bool(t) == side)
        assert value == close(judge.ratio(right, sum(w for _, w in called)))


@settings(max_examples=CASES)
@given(scored(least=1), st.integers(0, 2**32 - 1))
def test_delong_is_the_covariance_of_placements(case, seed):
    y, first = case
    rng = np.random.default_rng(seed)
    second = np.round(np.asarray(first) + rng.normal(0, 0.2, len(y)), 1).tolist()
    one = metrics.delong_ci(y, first)
    assert one.auc == close(judge.auc(y, first))
    var = judge.delong_covariance(y, first, first)
    assert one.var == close(var)
    half = norm.ppf(0.975) * math.sqrt(max(var, 0)) if not math.isnan(var) else math.nan
    assert one.lower == close(np.clip(one.auc - half, 0, 1))
    assert one.upper == close(np.clip(one.auc + half, 0, 1))
    test = metrics.delong_test(y, first, second)
    spread = var + judge.delong_covariance(y, second, second)
    spread -= 2 * judge.delong_covariance(y, first, second)
    assert test.difference == close(judge.auc(y, first) - judge.auc(y, second))
    if spread > 1e-12:  # false for nan
        z = test.difference / math.sqrt(spread)
        assert test.z == close(z, 1e-7), "z"
        assert test.p == close(2 * norm.sf(abs(z)), 1e-7), "p"
    wide = metrics.auc_ci(y, first)
    if 0 < sum(y) < len(y):
        assert wide.lower < wide.upper  # never 1.000 to 1.000


@settings(max_examples=CASES)
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([0.8, 0.95, 0.99]))
def test_proportions_and_mcnemar_are_scipys(k, n, confidence):
    k = min(k, n)
    for name, method in (("wilson", "wilson"), ("clopper_pearson", "exact")):
        want = binomtest(k, n).proportion_ci(confidence, method)
        found = getattr(metrics, name)(k, n, confidence=confidence)
        assert found.lower == close(want.low), name
        assert found.upper == close(want.high), name
    if n:
        assert metrics.mcnemar_exact(k, n - k).p == close(binomtest(k, n).pvalue), "mcnemar"


@settings(max_examples=CASES)
@given(st.lists(st.floats(0, 1), max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]))
def test_a_conformal_threshold_leaves_out_no_more_than_alpha(scores, alpha):
    got = metrics.split_conformal_quantile(scores, alpha)
    # The smallest score such that at least (n + 1)(1 - alpha) of the n scores are not above it.
    enough = [s for s in sorted(scores)
              if sum(v <= s for v in scores) >= (len(scores) + 1) * (1 - alpha) - 1e-9]  # fmt: skip
    assert got == (enough[0] if enough else math.inf)


def test_every_metric_of_the_shared_cases_is_judged_here(shared_data):
    table = json.loads((shared_data / "metric_cases.json").read_text())
    names = {check["metric"] for case in table["cases"] for check in case["checks"]}
    text = Path(__file__).read_text() + Path(judge.__file__).read_text()
    text += "threshold_at_sensitivity threshold_at_specificity"  # built by f"threshold_at_{which}"
    assert len(names) == 33
    assert [name for name in sorted(names) if name not in text] == []
