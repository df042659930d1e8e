"""Model card and checklists: every statement names its file, and what is unknown says so."""

import json

import pytest

from medvol.bundle import load
from medvol.core import InputError, MissingInputError
from medvol.reporting import write_card
from medvol.reporting.card import MISSING
from medvol.reporting.checklists import CARD, CHECKLISTS, KEYS
from medvol.reporting.facts import collect_facts

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
