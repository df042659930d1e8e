import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from medvol.bundle import fork, load
from medvol.cli.main import main
from medvol.core import InputError, MissingInputError, NonFiniteError
from medvol.io import write_nifti
from medvol.metrics import Score
from medvol.monitoring import (
    DriftPlan,
    ReferenceProfile,
    benjamini_hochberg,
    cliffs_delta,
    find_drift,
    find_performance_drift,
    image_statistics,
    mmd_test,
    profile_images,
    profile_to_csv,
    read_profile,
)
from medvol.monitoring.two_sample import distribution_distance, rank_auc, separation

FAST = DriftPlan(permutations=199)


def profile(seed, n=60, shift=0.0, columns=("mean", "noise", "emb_0", "emb_1")):
    table = np.random.default_rng(seed).normal(size=(n, len(columns)))
    table[:, 0] += shift
    return ReferenceProfile(f"p{seed}", tuple(f"c{k}" for k in range(n)), columns, table)


def test_a_shift_is_found_where_it_is_and_named():
    rows = {(r.name, r.test): r for r in find_drift(profile(1, shift=1.5), profile(2), FAST).rows}
    alarms = {key for key, row in rows.items() if row.is_alarm}
    assert alarms == {("mean", "ks"), ("all columns", "mmd"), ("all columns", "classifier")}
    assert rows["mean", "ks"].effect > 0.4
    assert rows["mean", "ks"].shift > 0.5
    assert rows["emb_0", "ks"].what == "embedding"


@pytest.mark.parametrize("n", [5, 10, 30])
@pytest.mark.parametrize("columns", [1, 6])
def test_without_drift_the_level_is_kept_over_all_tests_at_once(n, columns):
    names = tuple(f"c{k}" for k in range(columns))
    runs = [
        find_drift(profile(2 * s, n, 0, names), profile(2 * s + 1, n, 0, names),
                   replace(FAST, seed=s))
        for s in range(100)
    ]  # fmt: skip
    found = sum(any(row.is_alarm for row in run.rows) for run in runs)
    assert found <= stats.binom.ppf(0.999, 100, 0.05)
    # Nothing but the effect holds an alarm back, so the level is used and not only kept.
    assert n == 5 or sum(any(row.q < 0.05 for row in run.rows) for run in runs) > 0


def _change(kind, x):
    off = np.zeros((len(x), 1))
    off[::5] = 50
    return {
        "spread": 5 * x,
        "two clusters": x + np.where(np.arange(len(x)) % 2, 4, -4)[:, None],
        "constant": np.zeros_like(x),
        "one in five": x + off,
        "tied columns": np.hstack([x[:, :1], x[:, :1], x[:, 2:]]),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["spread", "two clusters", "constant", "one in five", "tied columns"]
)
def test_a_change_that_leaves_the_middle_alone_is_found(kind):
    new = profile(1, 200)
    new = replace(new, table=_change(kind, new.table))
    rows = find_drift(new, profile(2, 300), FAST).rows
    assert any(row.is_alarm for row in rows)
    joint = [row for row in rows if row.what == "joint"]
    assert any(row.is_alarm for row in joint)
    assert kind == "tied columns" or all(row.is_alarm for row in rows)


def test_columns_that_only_one_side_has_are_reported():
    new, old = profile(1, columns=("mean", "noise")), profile(2, columns=("noise", "volume"))
    found = find_drift(new, old, FAST)
    assert (found.missing, found.added) == (("volume",), ("mean",))
    assert [row.name for row in found.rows if row.what == "input"] == ["noise"]


def test_the_verb_names_a_column_that_is_missing(tmp_path, capsys):
    for name, columns in (("new", ("mean", "noise")), ("old", ("mean", "volume"))):
        (tmp_path / f"{name}.csv").write_text(profile_to_csv(profile(4, 12, 0, columns)))
    arguments = ["drift", str(tmp_path / "new.csv"), "--reference", str(tmp_path / "old.csv")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "missing in the new cases: volume" in shown
    assert "not in the reference: noise" in shown
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["missing_columns"], found["new_columns"]) == (["volume"], ["noise"])


def test_neither_unit_nor_an_outlier_changes_the_joint_tests():
    new, old = profile(1, 20), profile(2, 30)
    scaled = [replace(p, table=np.exp(3 * p.table)) for p in (new, old)]
    for a, b in zip(find_drift(new, old, FAST).rows, find_drift(*scaled, FAST).rows, strict=True):
        assert (a.q, a.effect) == (b.q, b.effect)


def test_many_cases_alone_are_not_an_alarm():
    # A tiny shift becomes significant with enough cases; the effect keeps it quiet.
    columns = ("mean",)
    new, old = (profile(s, 1900, shift, columns) for s, shift in ((1, 0.15), (2, 0.0)))
    row = find_drift(new, old, FAST).rows[0]
    assert row.q < 0.05
    assert not row.is_alarm


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_distance_of_distributions_is_scipys(seed, ties):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=7), rng.normal(size=9)
    a, b = (a.round(), b.round()) if ties else (a, b)
    labels = np.repeat([1.0, 0.0], [7, 9])[None]
    found = distribution_distance(np.append(a, b), labels)[0]
    assert found == pytest.approx(stats.ks_2samp(a, b).statistic)
    above = separation(np.append(a, b), labels[0])
    assert above == pytest.approx(stats.ks_2samp(a, b, alternative="less").statistic)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_auc_by_ranks_is_sklearns(seed):
    rng = np.random.default_rng(seed)
    scores, y = rng.integers(0, 4, 12).astype(float), rng.permutation([1.0] * 5 + [0.0] * 7)
    assert rank_auc(scores[None], y[None])[0] == pytest.approx(roc_auc_score(y, scores))


@settings(max_examples=40)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_false_discovery_control_is_scipys(p):
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_cliffs_delta_counts_all_pairs(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 7), rng.integers(0, 6, 9)
    want = np.sign(a[:, None] - b[None]).mean()
    assert cliffs_delta(a, b) == pytest.approx(want)


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(1, 1, (5, 2))
    both = np.vstack([x, y])
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    k = np.exp(-squared / np.median(squared[squared > 0]))
    off = [k[i, j] for i in range(6) for j in range(6) if i != j]
    own = [k[i, j] for i in range(6, 11) for j in range(6, 11) if i != j]
    want = np.mean(off) + np.mean(own) - 2 * k[:6, 6:].mean()
    found = mmd_test(x, y, 300, 0)
    assert found["mmd"] == pytest.approx(want)
    assert 0 < found["p"] <= 1


def test_only_a_worsening_of_performance_alarms():
    rng = np.random.default_rng(0)
    good, bad = rng.uniform(0.8, 0.95, 40), rng.uniform(0.5, 0.9, 40)
    tables = [
        [Score(f"c{k}", "liver", "dice", float(v)) for k, v in enumerate(x)] for x in (good, bad)
    ]
    assert find_performance_drift(tables[1], tables[0], FAST)[0].is_alarm
    assert not find_performance_drift(tables[0], tables[1], FAST)[0].is_alarm


def test_a_fifth_of_failures_is_a_worsening_though_the_middle_stays():
    rng = np.random.default_rng(0)
    old = [Score(f"c{k}", "liver", "dice", float(v)) for k, v in enumerate(rng.beta(40, 4, 200))]
    new = [replace(row, value=0.0 if k % 5 == 0 else row.value) for k, row in enumerate(old)]
    assert find_performance_drift(new, old, FAST)[0].is_alarm


def test_misses_count_as_worse_distances():
    old = [Score(f"c{k}", "liver", "hd95", 2.0 + 0.1 * k, "mm") for k in range(20)]
    new = [Score(f"c{k}", "liver", "hd95", np.inf if k < 15 else 2.0, "mm") for k in range(20)]
    assert find_performance_drift(new, old, FAST)[0].is_alarm


def test_performance_that_cannot_be_tested_is_not_passed_over():
    few = [Score(f"c{k}", "liver", "dice", 0.8) for k in range(4)]
    with pytest.raises(InputError, match="5 defined scores on both sides"):
        find_performance_drift(few, few, FAST)


def test_statistics_follow_the_scanner():
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(20.0), np.arange(20.0))[..., None] * np.ones(12)
    noisy = smooth + rng.normal(0, 5, smooth.shape)
    clean, dirty = (image_statistics(x, (1, 1, 2.5)) for x in (smooth, noisy))
    assert clean["noise"] == pytest.approx(0, abs=1e-9)
    assert dirty["noise"] > 5
    assert clean["extent_z_mm"] == 30
    assert image_statistics(smooth[..., 0], (1, 1))["extent_y_mm"] == 20


def test_every_channel_of_an_image_is_profiled_in_one_file_or_in_several(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 9, 7))
    second += 9
    names = [tmp_path / f"{k}.nii.gz" for k in range(2)]
    for name, array in zip(names, (first, second), strict=True):
        write_nifti(name, array.astype(np.float32), np.eye(4))
    found = profile_images({"c": names})
    single = [profile_images({"c": name}) for name in names]
    means = [one.select(["mean"])[0, 0] for one in single]
    assert found.select(["mean", "ch1_mean"])[0].tolist() == means
    assert found.columns.count("spacing_x_mm") == 1
    assert "ch1_spacing_x_mm" not in found.columns


def test_a_profile_survives_its_file_and_bad_files_are_named(tmp_path):
    path = tmp_path / "profile.csv"
    path.write_text(profile_to_csv(profile(3)))
    again = read_profile(path)
    assert np.array_equal(again.table, profile(3).table)
    assert again.cases[1] == "c1"
    path.write_text("case,mean\na,low\n")
    with pytest.raises(InputError, match="numbers only"):
        read_profile(path)
    path.write_text("case,mean\na,nan\n")
    with pytest.raises(NonFiniteError, match="line 2: mean"):
        read_profile(path)
    with pytest.raises(MissingInputError):
        read_profile(tmp_path / "none.csv")
    with pytest.raises(InputError, match="at least 5"):
        find_drift(profile(1, 4), profile(2), FAST)
    with pytest.raises(InputError, match="no column"):
        find_drift(profile(1, columns=("a",)), profile(2), FAST)


def test_embeddings_are_the_means_of_the_widest_layer_and_follow_the_image(tmp_path):
    bundle = load("hippocampus_mri_segmentation")
    rng = np.random.default_rng(0)
    images = {}
    for k in range(3):
        image = gaussian_filter(rng.normal(size=(40, 56, 40)), 2 + 8 * (k == 2)) * 100
        images[f"c{k}"] = tmp_path / f"c{k}.nii.gz"
        write_nifti(images[f"c{k}"], image.astype(np.float32), np.eye(4))
    found = profile_images(images, bundle)
    columns = [name for name in found.columns if name.startswith("emb_")]
    vectors = found.select(columns)
    assert vectors.shape == (
        3,
        max(bundle.config("inference")["network_def"]["networks"]["channels"]),
    )
    gaps = [np.linalg.norm(vectors[0] - vectors[k]) for k in (1, 2)]
    assert gaps[1] > 1.5 * gaps[0]  # another smoothness looks different, another draw does not
    assert "mean" in found.columns


def test_a_bundles_profile_brings_its_own_embedding_to_new_images(tmp_path, capsys):
    home = fork("hippocampus_mri_segmentation", tmp_path / "my_segmentation")
    for folder, smooth, noise in (("old", 2, 0), ("new", 2, 0.1), ("odd", 5, 0)):
        for k in range(8):
            # The same draws again, a little noisier: no test may see drift by chance.
            rng = np.random.default_rng(k)
            image = gaussian_filter(rng.normal(size=(40, 56, 40)), smooth)
            image = 100 * image / image.std() + 500 + noise * rng.normal(size=image.shape)
            (tmp_path / folder).mkdir(exist_ok=True)
            write_nifti(tmp_path / folder / f"c{k}.nii.gz", image.astype(np.float32), np.eye(4))
    arguments = ["drift", str(tmp_path / "old"), "--embed", "hippocampus_mri_segmentation"]
    assert main([*arguments, "--save-profile", str(home)]) == 0
    assert (home / "docs" / "reference_profile.csv").is_file()
    capsys.readouterr()
    for folder, code in (("new", 0), ("odd", 1)):
        arguments = ["drift", str(tmp_path / folder), "--reference", str(home), "--json"]
        assert main(arguments) == code
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert any(row["what"] == "embedding" for row in rows)
