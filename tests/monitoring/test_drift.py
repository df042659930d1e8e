import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter

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

FAST = DriftPlan(permutations=200)


def profile(seed, n=60, shift=0.0, columns=("mean", "noise", "emb_0", "emb_1")):
    table = np.random.default_rng(seed).normal(size=(n, len(columns)))
    table[:, 0] += shift
    return ReferenceProfile(f"p{seed}", tuple(f"c{k}" for k in range(n)), columns, table)


def test_a_shift_is_found_where_it_is_and_named():
    rows = {(r.name, r.test): r for r in find_drift(profile(1, shift=1.5), profile(2), FAST)}
    alarms = {key for key, row in rows.items() if row.is_alarm}
    assert alarms == {("mean", "ks"), ("all columns", "mmd"), ("all columns", "classifier")}
    assert rows["mean", "ks"].effect > 0.5
    assert rows["emb_0", "ks"].what == "embedding"


def test_no_drift_raises_an_alarm_in_few_of_many_runs():
    runs = [find_drift(profile(2 * s), profile(2 * s + 1), FAST) for s in range(20)]
    assert sum(any(row.is_alarm for row in rows) for rows in runs) <= 2


def test_many_cases_alone_are_not_an_alarm():
    # A tiny shift becomes significant with enough cases; the effect keeps it quiet.
    columns = ("mean",)
    new, old = (profile(s, 4000, shift, columns) for s, shift in ((1, 0.2), (2, 0.0)))
    row = find_drift(new, old, FAST)[0]
    assert row.q < 1e-6
    assert not row.is_alarm


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
    value, p = mmd_test(x, y, 300, 0)
    assert value == pytest.approx(want)
    assert 0 < p <= 1


def test_only_a_worsening_of_performance_alarms():
    rng = np.random.default_rng(0)
    good, bad = rng.uniform(0.8, 0.95, 40), rng.uniform(0.5, 0.9, 40)
    tables = [
        [Score(f"c{k}", "liver", "dice", float(v)) for k, v in enumerate(x)] for x in (good, bad)
    ]
    assert find_performance_drift(tables[1], tables[0], FAST)[0].is_alarm
    assert not find_performance_drift(tables[0], tables[1], FAST)[0].is_alarm


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
        for k in range(6):
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
        assert main(arguments) == 2  # its config is code
        assert "trust-bundle" in capsys.readouterr().err
        arguments.append("--trust-bundle")
        assert main(arguments) == code
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert any(row["what"] == "embedding" for row in rows)
