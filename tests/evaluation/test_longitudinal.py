import csv
import math

import numpy as np
import pytest

from medvol.core import ConfigError, InputError, MissingInputError
from medvol.evaluation import follow, follow_pairs, repeatability_limit, rerun
from medvol.reporting import draw_changes


def boxes(*corners):
    labels = np.zeros((40, 20, 20), np.uint8)
    for x, size in corners:
        labels[x : x + size, 2 : 2 + size, 2 : 2 + size] = 1
    return labels


def test_lesions_are_matched_and_told_apart():
    before = boxes((1, 4), (12, 4), (20, 6))
    after = boxes((1, 6), (20, 4), (32, 3))
    rows = follow("c", before, after, (1.0, 1.0, 2.0), limit=(1 / 1.3, 1.3))
    found = {row.status: row for row in rows}
    assert set(found) == {"grown", "resolved", "shrunk", "new"}
    assert found["grown"].baseline_ml == pytest.approx(4**3 * 2 / 1000)
    assert found["grown"].change_percent == pytest.approx(100 * (6**3 / 4**3 - 1))
    assert found["new"].change_percent == math.inf
    assert found["resolved"].change_percent == -100


def test_a_change_within_repeatability_is_stable():
    before, after = boxes((1, 10)), boxes((1, 10))
    after[10, 2:12, 2:12] = 0
    assert follow("c", before, after, (1, 1, 1), limit=(0.85, 1.18))[0].status == "stable"
    assert follow("c", before, after, (1, 1, 1), limit=(0.95, 1.05))[0].status == "shrunk"
    assert follow("c", before, after, (1, 1, 1))[0].status == "undecided"


def test_merged_and_split_lesions_are_one():
    two, one = boxes((1, 5), (10, 5)), boxes((1, 5), (10, 5))
    one[6:10, 3:5, 3:5] = 1
    merged, split = follow("c", two, one, (1, 1, 1)), follow("c", one, two, (1, 1, 1))
    assert [(r.n_baseline, r.n_followup) for r in merged + split] == [(2, 1), (1, 2)]


def test_the_repeatability_limit_is_that_of_known_noise():
    rng = np.random.default_rng(0)
    volume = rng.uniform(1, 50, 4000)
    first, second = volume * np.exp(rng.normal(0, 0.05, (2, 4000)))
    low, high = repeatability_limit(first, second)
    assert high == pytest.approx(math.exp(1.96 * math.sqrt(2) * 0.05), rel=0.01)
    assert low == pytest.approx(1 / high)
    inside = (second / first > low) & (second / first < high)
    assert inside.mean() == pytest.approx(0.95, abs=0.015)
    with pytest.raises(ConfigError, match="at least 3"):
        repeatability_limit([1, 2], [1, 2])


def pairs_csv(tmp_path, save_mask, write_csv):
    rows = []
    for k in range(4):
        first, second = boxes((1, 8)), boxes((1, 8))
        second[8, 2 : 2 + k, 2] = 0
        save_mask(tmp_path / f"r{k}a.nii", first)
        save_mask(tmp_path / f"r{k}b.nii", second)
        rows.append((f"r{k}", f"r{k}a.nii", f"r{k}b.nii", "retest"))
    save_mask(tmp_path / "t0.nii", boxes((1, 8)))
    save_mask(tmp_path / "t1.nii", boxes((1, 10)))
    rows.append(("case1", "t0.nii", "t1.nii", "follow"))
    return write_csv(tmp_path / "pairs.csv", ("case", "baseline", "followup", "kind"), rows)


def test_repeats_in_the_list_set_the_limit(tmp_path, save_mask, write_csv):
    rows = follow_pairs(pairs_csv(tmp_path, save_mask, write_csv), tmp_path / "out")
    assert [(r["case"], r["status"]) for r in rows] == [("case1", "grown")]
    assert 0 < rows[0]["limits_percent"][1] < 2
    with (tmp_path / "out" / "longitudinal.csv").open() as handle:
        assert [r["status"] for r in csv.DictReader(handle)] == ["grown"]
    assert (tmp_path / "out" / "run.json").is_file()


def test_a_locked_follow_up_repeats_exactly_and_is_drawn(tmp_path, save_mask, write_csv):
    pairs = pairs_csv(tmp_path, save_mask, write_csv)
    rows = follow_pairs(pairs, tmp_path / "out")
    assert rerun(tmp_path / "out" / "run.json") == []
    draw_changes(rows, tmp_path / "changes.png")
    assert (tmp_path / "changes.png").read_bytes()[:4] == b"\x89PNG"
    save_mask(tmp_path / "t1.nii", boxes((1, 9)))
    with pytest.raises(InputError, match="has changed since"):
        rerun(tmp_path / "out" / "run.json")


def test_a_stated_limit_replaces_the_repeats(tmp_path, save_mask, write_csv):
    path = pairs_csv(tmp_path, save_mask, write_csv)
    assert follow_pairs(path, tmp_path / "out", 150.0)[0]["status"] == "stable"
    with pytest.raises(ConfigError, match="positive"):
        follow_pairs(path, tmp_path / "out", -1.0)


def test_a_missing_file_or_column_is_named(tmp_path, write_csv):
    path = write_csv(tmp_path / "p.csv", ("case", "baseline"), [("a", "b")])
    with pytest.raises(InputError, match="'followup'"):
        follow_pairs(path, tmp_path)
    path = write_csv(tmp_path / "p.csv", ("case", "baseline", "followup"), [("a", "b", "c")])
    with pytest.raises(MissingInputError, match="case 'a'"):
        follow_pairs(path, tmp_path)
    path = write_csv(tmp_path / "p.csv", ("case", "baseline", "followup"), [("a", "", "c")])
    with pytest.raises(InputError, match="line 2: baseline is empty"):
        follow_pairs(path, tmp_path)


def test_a_misspelt_kind_is_rejected_and_not_followed(tmp_path, save_mask, write_csv):
    path = pairs_csv(tmp_path, save_mask, write_csv)
    text = path.read_text()
    path.write_text(text.replace("retest", "Retest"))
    assert [row["case"] for row in follow_pairs(path, tmp_path / "out")] == ["case1"]
    path.write_text(text.replace("retest", "re-test"))
    with pytest.raises(InputError, match="line 2: kind 're-test' is neither"):
        follow_pairs(path, tmp_path / "out")


def test_the_limit_is_that_of_single_lesions_as_they_are_judged(tmp_path, save_mask, write_csv):
    # A border that wanders between two structures: each varies, their sum does not.
    rows = []
    for k, at in enumerate((8, 9, 10, 11, 12, 9, 11, 10)):
        for name, edge in (("a", 10), ("b", at)):
            labels = np.zeros((20, 6, 6), np.uint8)
            labels[:edge], labels[edge:] = 1, 2
            save_mask(tmp_path / f"{k}{name}.nii", labels)
        rows += [(f"{kind}{k}", f"{k}a.nii", f"{k}b.nii", kind) for kind in ("retest", "follow")]
    path = write_csv(tmp_path / "p.csv", ("case", "baseline", "followup", "kind"), rows)
    found = follow_pairs(path, tmp_path / "out")
    assert len(found) == 16
    assert {row["status"] for row in found} == {"stable"}
