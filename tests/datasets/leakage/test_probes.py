import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medvol.datasets.leakage.features import CaseFeatures, shrink
from medvol.datasets.leakage.probes import aucs, clustered_interval, run_probes


@given(st.integers(0, 999), st.integers(2, 40), st.integers(1, 6))
def test_many_aucs_at_once_agree_with_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 5)) < 0.5
    truth[0], truth[1] = True, False
    scores = rng.integers(0, levels, (n, 5)).astype(float)  # with ties
    wanted = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(5)]
    assert aucs(truth, scores) == pytest.approx(wanted)


def test_interval_holds_the_estimate_and_is_wider_for_fewer_patients():
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2 == 0
    score = truth + rng.normal(0, 1.5, 200)
    alone = clustered_interval(truth, score, np.arange(200))
    (auc,) = aucs(truth[:, None], score[:, None])
    assert alone[0] < auc < alone[1]
    # Every patient repeated four times brings no information.
    repeated = [np.repeat(array, 4) for array in (truth, score, np.arange(200))]
    assert clustered_interval(*repeated) == pytest.approx(alone, abs=0.02)
    naive = clustered_interval(repeated[0], repeated[1], np.arange(800))
    assert naive[1] - naive[0] < 0.7 * (alone[1] - alone[0])


def test_perfect_separation_never_has_a_point_for_an_interval():
    truth = np.arange(60) < 20
    low, high = clustered_interval(truth, truth.astype(float), np.arange(60))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_shrinking_keeps_the_mean_whatever_the_sizes():
    for shape, cells in (((37, 50), 16), ((5, 7), 16), ((19, 23, 11), 8)):
        array = np.random.default_rng(1).random(shape)
        assert shrink(array, cells).mean() == pytest.approx(array.mean(), abs=1e-6)


def make_features(n=80, seed=0, **columns):
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        feature = CaseFeatures(f"c{k}", f"case:c{k}")
        feature.coarse = rng.random((16, 16)).astype(np.float32)
        feature.fine = rng.random((64, 64)).astype(np.float32)
        feature.spread = rng.random(19).astype(np.float32)
        feature.numbers = {key: float(values[k]) for key, values in columns.items()}
        found.append(feature)
    return found


def by_name(probes):
    return {probe.probe: probe for probe in probes}


def test_probe_finds_a_size_that_is_not_monotone_in_the_class():
    # Class a: 100 or 300, class b: 200. No line separates them; bins do.
    classes = ["ab"[k % 2] for k in range(80)]
    sizes = [200 if c == "b" else (100, 300)[k // 2 % 2] for k, c in enumerate(classes)]
    found = by_name(run_probes(make_features(**{"size:x": sizes}), classes))
    assert found["size"].auc == 1.0
    assert found["size"].fires
    assert found["size"].is_shortcut
    assert not found["thumbnail"].fires
    assert not found["frame"].fires


def test_frame_probe_sees_the_frame_only():
    classes = ["ab"[k % 2] for k in range(80)]
    inside, outside = make_features(seed=1), make_features(seed=2)
    for k in range(1, 80, 2):
        inside[k].coarse[4:12, 4:12] += 2
        outside[k].coarse[0] += 2
    found = by_name(run_probes(inside, classes))
    assert found["thumbnail"].fires
    assert not found["thumbnail"].is_shortcut
    assert not found["frame"].fires
    assert by_name(run_probes(outside, classes))["frame"].is_shortcut


def test_constant_columns_and_too_few_patients_state_why():
    features = make_features(**{"format:channels": [1.0] * 80})
    classes = ["ab"[k % 2] for k in range(80)]
    assert by_name(run_probes(features, classes))["format"].why_undefined == "one value throughout"
    few = run_probes(features, ["a"] * 77 + ["b"] * 3)
    assert {probe.why_undefined for probe in few} == {"only 3 patients in the smaller class"}
    assert run_probes(features, ["a"] * 80) == []


def test_patients_who_repeat_do_not_make_noise_fire():
    # 20 patients with 4 alike images each: image-wise permutation would call this significant.
    rng = np.random.default_rng(3)
    fired = 0
    for seed in range(6):
        features = make_features(seed=seed)
        kinds = rng.permutation(np.arange(20) % 2)
        for k, feature in enumerate(features):
            feature.group = f"patient:{k // 4}"
            feature.coarse = features[k // 4 * 4].coarse + rng.normal(0, 0.01, (16, 16)).astype(
                "f4"
            )
            feature.fine = features[k // 4 * 4].fine
            feature.spread = features[k // 4 * 4].spread
        probes = run_probes(features, ["ab"[kinds[k // 4]] for k in range(80)], seed=seed)
        fired += sum(probe.fires for probe in probes)
    assert fired <= 1


def test_noise_fires_in_at_most_one_probe_of_twenty():
    fired, ran = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(100 + seed)
        features = make_features(
            seed=seed, **{"bytes:bytes": rng.random(80), "size:x": rng.random(80)}
        )
        probes = run_probes(features, list(rng.permutation(["a", "b"] * 40)), seed=seed)
        fired, ran = fired + sum(p.fires for p in probes), ran + len(probes)
    assert ran == 60
    assert fired <= 0.05 * ran


def test_more_than_four_classes_go_one_against_the_rest():
    classes = ["abcdef"[k % 6] for k in range(80)]
    pairs = {probe.pair for probe in run_probes(make_features(), classes)}
    assert pairs == {f"{name} vs rest" for name in "abcdef"}


def test_equal_seeds_give_equal_probes():
    features, classes = make_features(), ["ab"[k % 2] for k in range(80)]
    assert run_probes(features, classes, seed=4) == run_probes(features, classes, seed=4)
