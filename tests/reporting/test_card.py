"""Model card and checklists: every statement names its file, and what is unknown says so."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medvol.bundle import fork, load
from medvol.core import InputError, MissingInputError, sha256_file
from medvol.evaluation import MaskOptions, ScoreOptions, evaluate_scores, evaluate_segmentation
from medvol.reporting import write_card
from medvol.reporting.card import MISSING
from medvol.reporting.checklists import CARD, CHECKLISTS, KEYS
from medvol.reporting.facts import collect_facts
from tests.reporting.conftest import save

BUNDLE = "hippocampus_mri_segmentation"


def bundle():
    return load(BUNDLE).path


def test_every_fact_is_what_its_file_says(tmp_path):
    metadata = json.loads((bundle() / "configs" / "metadata.json").read_text())
    facts = collect_facts([bundle()])
    for key, field in {
        "task": "task",
        "intended_use": "intended_use",
        "version": "version",
    }.items():
        assert [(f.text, f.evidence) for f in facts[key]] == [
            (metadata[field], f"{BUNDLE}/configs/metadata.json: {field}")
        ]
    assert facts["weights"][0].text == metadata["medvol"]["weights_sha256"]


def test_what_no_file_says_is_not_provided(tmp_path):
    card = write_card([bundle()], tmp_path)
    text = (tmp_path / "card.md").read_text()
    assert f"- ethics: {MISSING}" in text
    assert "ethics" in card.missing
    for listed in CHECKLISTS:
        rows = (tmp_path / f"{listed.file}.md").read_text().split("|---|---|---|---|\n")[1]
        lines = rows.strip().splitlines()
        done, total = card.answered[listed.name]
        assert len(lines) == total == len(listed.topics)
        assert sum(f"| {MISSING} |  |" in line for line in lines) == total - done
        assert all(MISSING in line or "`" in line.rsplit("|", 2)[1] for line in lines)


def test_a_persons_facts_fill_items_and_are_named_as_theirs(tmp_path):
    own = tmp_path / "facts.yaml"
    own.write_text("ethics: approved, 2021-17\nfunding: none\n")
    card = write_card([bundle()], tmp_path / "out", own=own)
    assert "approved, 2021-17 [`facts.yaml: ethics`]" in (tmp_path / "out/card.md").read_text()
    assert not {"ethics", "funding"} & set(card.missing)
    own.write_text("etics: x\n")
    with pytest.raises(InputError, match="no item asks for 'etics'"):
        write_card([bundle()], tmp_path / "out", own=own)


def test_an_evaluation_brings_numbers_with_n_and_misses(mask_run):
    facts = collect_facts([mask_run])
    assert facts["performance"]
    assert all("n=" in f.text and "false negative" in f.text for f in facts["performance"])
    assert all(f.evidence == "out/summary.csv: internal, all" for f in facts["performance"])
    assert "n=6" in facts["performance"][0].text or "n=12" in facts["performance"][0].text


def test_subgroups_and_thresholds_come_along_and_no_patient_does(tmp_path, score_run):
    facts = collect_facts([score_run])
    assert {f.text.partition(":")[0] for f in facts["subgroups"]} == {"site=A", "site=B"}
    assert facts["threshold"][0].evidence == "out/run.json: options.validation"
    write_card([score_run], tmp_path)
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())


def test_text_of_files_cannot_break_the_tables(tmp_path):
    own = tmp_path / "facts.yaml"
    own.write_text("funding: 'a | b <script>alert(1)</script> [x](javascript:y)'\n")
    write_card([bundle()], tmp_path / "out", own=own)
    text = (tmp_path / "out" / "claim.md").read_text()
    assert r"a \| b \<script>alert(1)\</script> \[x](javascript:y)" in text


def test_a_folder_that_is_nothing_is_rejected(tmp_path):
    with pytest.raises(MissingInputError, match="neither a bundle nor a run"):
        write_card([tmp_path], tmp_path / "out")


def test_every_key_of_the_card_can_be_said():
    assert {key for keys in CARD.values() for key in keys} <= KEYS
    assert [len(listed.topics) for listed in CHECKLISTS] >= [40, 40, 40]


def test_a_card_does_not_count_patients_that_nobody_named(mask_run, tmp_path):
    write_card([mask_run], tmp_path)
    text = (tmp_path / "card.md").read_text()
    assert "n=6, patients unknown" in text
    assert "6 patients" not in text


def evaluation_of(folder, weights, name=BUNDLE):
    """Two cases whose predictions state the weights of their bundle."""
    values = np.zeros((8, 8, 8), np.uint8)
    values[2:6, 2:6, 2:6] = 1
    for case in ("a", "b"):
        save(folder / "ref" / f"{case}.nii.gz", values)
        save(folder / "pred" / case / "seg.nii.gz", values)
        record = {"bundle": {"name": name, "version": "1", "weights_sha256": weights}}
        (folder / "pred" / case / "prediction.json").write_text(json.dumps(record))
    evaluate_segmentation(
        MaskOptions(folder / "pred", folder / "ref", folder / "out", resamples=50)
    )
    return folder / "out"


def test_numbers_stand_in_a_bundles_card_only_if_its_weights_made_them(tmp_path, caplog):
    own = sha256_file(bundle() / "models" / "model.pt")
    mine = evaluation_of(tmp_path / "mine", own)
    other = evaluation_of(tmp_path / "other", "0" * 64)
    nobody = evaluation_of(tmp_path / "nobody", "")
    made = [f.evidence for f in collect_facts([bundle(), mine])["performance"]]
    assert any("out/summary.csv" in line for line in made)
    for run in (other, nobody):
        caplog.clear()
        facts = collect_facts([bundle(), run])
        assert not any("out/" in f.evidence for found in facts.values() for f in found)
        assert "left out" in caplog.text
    # An evaluation alone is a card of itself.
    assert collect_facts([other])["performance"]


def test_weights_that_are_not_those_of_the_metadata_are_not_stated(tmp_path):
    home = fork(BUNDLE, tmp_path / "my_mri_segmentation")
    metadata = home / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    content["medvol"]["weights_sha256"] = "0" * 64
    metadata.write_text(json.dumps(content))
    assert not any("0" * 64 in f.text for f in collect_facts([home]).get("weights", []))


def scored(folder, test_patients, validation_patients):
    """An evaluation of scores with thresholds of a validation file; None names no patient."""
    folder.mkdir()
    for seed, (name, patients) in enumerate(
        (("test", test_patients), ("val", validation_patients))
    ):
        rng = np.random.default_rng(seed)
        lines = ["case,truth,prob" + (",patient_id" if patients else "")]
        for k in range(40):
            row = f"{name}{k},{k % 2},{min(1, max(0, rng.normal(0.3 + 0.4 * (k % 2), 0.2))):.6f}"
            lines.append(row + (f",{patients}{k}" if patients else ""))
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    evaluate_scores(ScoreOptions(
        folder / "test.csv", folder / "out", validation=folder / "val.csv", resamples=50
    ))  # fmt: skip
    return folder / "out"


@pytest.mark.parametrize("named", [("p", "q"), ("p", None), (None, "q"), (None, None)])
def test_other_patients_are_claimed_only_where_all_are_named(tmp_path, named):
    run = scored(tmp_path / "scores", *named)
    texts = [f.text for f in collect_facts([run])["threshold"]]
    assert any("all are named" in text for text in texts) == all(named)
    if all(named):
        # Nor where the file is another one by now.
        (tmp_path / "scores" / "val.csv").write_text("case,truth,prob,patient_id\na,0,0.2,z\n")
        assert not any("all are named" in f.text for f in collect_facts([run])["threshold"])


@pytest.mark.parametrize("kind", ["validation", "external"])
def test_the_same_images_under_other_names_are_rejected(tmp_path, kind):
    scored(tmp_path / "scores", "p", "q")
    text = (tmp_path / "scores" / "test.csv").read_text()
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(text.replace("\ntest", "\nother").replace(",p", ",r").replace(
        "case,truth,rrob,ratient_id", "case,truth,prob,patient_id"))  # fmt: skip
    options = ScoreOptions(tmp_path / "scores" / "test.csv", tmp_path / "out", resamples=50)
    with pytest.raises(InputError, match="same images under other names"):
        evaluate_scores(replace(options, **{kind: renamed}))
