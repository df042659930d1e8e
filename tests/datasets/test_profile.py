import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvol.cli.main import main
from medvol.core import ConfigError, MissingInputError
from medvol.datasets import read_dataset
from medvol.datasets.phantoms import write_phantom_dataset
from medvol.datasets.profile import Effort, effective_sample_size, profile_dataset


def image_set(folder, counts, patients=None):
    """Pictures with ``counts`` per class; every ``patients`` images are one patient's."""
    folder.mkdir()
    lines, number = ["image,class,patient_id"], 0
    for name, count in counts.items():
        for _ in range(count):
            Image.fromarray(
                np.random.default_rng(number).integers(0, 255, (20, 16), np.uint8)
            ).save(folder / f"p{number:04d}.png")
            lines.append(
                f"p{number:04d}.png,{name},{'' if patients is None else number // patients}"
            )
            number += 1
    (folder / "datalist.csv").write_text("\n".join(lines) + "\n")
    return read_dataset(folder)


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 500), min_size=2))
def test_effective_size_is_kish_bounded_and_exact_for_balance(counts):
    total = sum(counts.values())
    size = effective_sample_size(counts, total)
    weights = np.concatenate([np.full(n, 1 / n) for n in counts.values()])
    assert size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert 0 < size <= total * (1 + 1e-9)
    assert effective_sample_size(dict.fromkeys(counts, 7), 7 * len(counts)) == pytest.approx(
        7 * len(counts)
    )


def test_rare_class_calls_for_a_focal_loss_and_few_cases_for_transfer(tmp_path):
    profile = profile_dataset(image_set(tmp_path / "d", {"ill": 2, "well": 58}, patients=1))
    assert profile.imbalance_ratio == 29
    assert profile.effective_n == pytest.approx(4 / (1 / 2 + 1 / 58))
    text = "\n".join(profile.warnings)
    for needle in (
        "under 5%: use a focal loss",
        "under 1000",
        "transfer learning",
        "under 200",
        "few-shot",
    ):
        assert needle in text
    balanced = profile_dataset(image_set(tmp_path / "e", {"ill": 30, "well": 30}, patients=1))
    assert "focal" not in "\n".join(balanced.warnings)


def test_patients_with_many_images_count_once(tmp_path):
    profile = profile_dataset(image_set(tmp_path / "d", {"ill": 20, "well": 20}, patients=4))
    assert profile.counts["patients"] == 10
    assert profile.effective_n == 10
    assert "split and resample by patient" in "\n".join(profile.warnings)


def test_effort_is_items_times_minutes_times_readers(tmp_path):
    manifest = image_set(tmp_path / "d", {"a": 3, "b": 3})
    profile = profile_dataset(manifest, effort=Effort(5.0, readers=2, rate_per_hour=60))
    assert profile.annotation_hours == pytest.approx(6 * 5 * 2 / 60)
    assert profile.annotation_cost == pytest.approx(60)
    some = replace(manifest, cases=(replace(manifest.cases[0], category=None), *manifest.cases[1:]))
    assert profile_dataset(some, effort=Effort(5.0)).annotation_hours == pytest.approx(5 * 5 / 60)
    with pytest.raises(ConfigError):
        Effort(readers=0)
    with pytest.raises(ConfigError):
        Effort(rate_per_hour=float("nan"))


def test_page_shows_examples_where_no_classed_image_can_be_read(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    (folder / "labels.csv").write_text("image,class\na.png,\nb.png,ill\n")
    assert main(["data", "profile", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "examples.png").is_file()


def test_segmentation_profile_holds_the_closed_form_volumes(tmp_path):
    folder = write_phantom_dataset(
        tmp_path / "s",
        3,
        labels=("spleen",),
        shape=(56, 48, 48),
        spacing_mm=(6.2, 5.5, 6.3),
        lesions=0,
        nodules=0,
    )
    profile = profile_dataset(read_dataset(folder))
    truth = [float(line.split(",")[2]) for line in (folder / "volumes.csv").read_text().split()[1:]]
    row = profile.labels["spleen"]
    assert row["cases"] == 3
    assert row["volume_median"] == pytest.approx(np.median(truth), rel=0.05)
    assert profile.annotation_hours == pytest.approx(3 * 20 / 60)
    assert profile.grids["spacing_mm"]["median"] == [6.2, 5.5, 6.3]
    assert profile.foreground_share < 0.05
    assert any("foreground" in line for line in profile.warnings)


def test_verb_writes_images_and_one_page_without_links(tmp_path, capsys):
    image_set(tmp_path / "d", {"a<script>": 5, "b": 6}, patients=1)
    out = tmp_path / "out"
    assert main(["data", "profile", str(tmp_path / "d"), "-o", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["classes"] == {"a<script>": 5, "b": 6}
    assert json.loads((out / "profile.json").read_text())["counts"]["cases"] == 11
    names = sorted(path.name for path in out.glob("*.png"))
    assert names == ["classes.png", "examples.png", "grids.png", "intensities.png"]
    page = Path(answer["page"]).read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "<script>" not in page
    assert 'src="http' not in page


def test_nothing_readable_is_rejected(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(MissingInputError, match="no case can be read"):
        profile_dataset(read_dataset(tmp_path))
