import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.cli.main import main
from medvol.core import ConfigError, InputError
from medvol.datasets import (
    Case,
    Manifest,
    Split,
    read_split,
    require_disjoint_patients,
    split_patients,
    write_split,
)
from medvol.datasets.split import TEST

ANY = Path(__file__)


def manifest(rows):
    """rows: (patient, class) per case."""
    return Manifest(
        "m",
        ANY.parent,
        "test",
        tuple(
            Case(f"c{number:04d}", (ANY,), patient=patient, category=category)
            for number, (patient, category) in enumerate(rows)
        ),
    )


rows = st.lists(
    st.tuples(st.integers(0, 40).map(lambda n: f"p{n}"), st.sampled_from("ab")),
    min_size=30,
    max_size=120,
).filter(lambda found: len({row[0] for row in found}) >= 12)


@given(rows, st.integers(2, 5), st.integers(0, 9), st.sampled_from([0.0, 0.2]))
def test_no_patient_is_ever_torn_apart_and_every_case_has_one_place(rows, folds, seed, test):
    data = manifest(rows)
    split = split_patients(data, folds=folds, seed=seed, test_fraction=test)
    require_disjoint_patients(data, split)
    assert set(split.place) == {case.case for case in data.cases}
    for fold in range(folds):
        assert not set(split.training(fold)) & set(split.validation(fold))
        assert not set(split.training(fold)) & set(split.test)


@given(rows, rows)
def test_locked_places_stay_when_cases_are_added(before, after):
    old = split_patients(manifest(before), folds=3, test_fraction=0.1)
    data = manifest(before + after)
    new = split_patients(data, folds=3, test_fraction=0.1, locked=old)
    assert all(new.place[name] == place for name, place in old.place.items())
    require_disjoint_patients(data, new)


@given(st.integers(20, 200), st.integers(5, 60), st.integers(2, 5), st.integers(0, 5))
def test_classes_and_sizes_are_balanced_to_about_one_patient(many, few, folds, seed):
    data = manifest([(f"a{n}", "a") for n in range(many)] + [(f"b{n}", "b") for n in range(few)])
    split = split_patients(data, folds=folds, seed=seed)
    category = {case.case: case.category for case in data.cases}
    for wanted in "ab":
        counts = [sum(category[n] == wanted for n in split.validation(f)) for f in range(folds)]
        assert max(counts) - min(counts) <= 1
    sizes = [len(split.validation(fold)) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 2


def test_order_of_cases_does_not_matter_and_the_seed_does():
    found = [(f"p{n}", "ab"[n % 2]) for n in range(40)]
    data = manifest(found)
    cases = list(data.cases)
    random.Random(1).shuffle(cases)
    shuffled = Manifest("m", ANY.parent, "test", tuple(cases))
    assert split_patients(data).place == split_patients(shuffled).place
    assert split_patients(data).place != split_patients(data, seed=1).place


def test_test_cases_of_the_data_set_stay_test_cases():
    cases = [Case(f"c{n}", (ANY,), split="test" if n < 4 else None) for n in range(20)]
    split = split_patients(Manifest("m", ANY.parent, "test", tuple(cases)))
    assert split.test == ["c0", "c1", "c2", "c3"]
    assert Counter(split.place.values())[TEST] == 4


def test_split_file_comes_back_and_an_edited_one_is_refused(tmp_path):
    split = split_patients(manifest([(f"p{n}", "a") for n in range(9)]), folds=3)
    write_split(split, tmp_path / "splits.json")
    assert read_split(tmp_path / "splits.json") == split
    text = (tmp_path / "splits.json").read_text()
    assert "p1" not in text
    (tmp_path / "splits.json").write_text(
        text.replace('"c0001": 0', '"c0001": 9')
        .replace('"c0001": 1', '"c0001": 0')
        .replace('"c0001": 2', '"c0001": 0')
        .replace('"c0001": 9', '"c0001": 1')
    )
    with pytest.raises(InputError, match="edited"):
        read_split(tmp_path / "splits.json")


def test_torn_patients_are_named_by_case_and_refused():
    data = manifest([("secret", "a"), ("secret", "a"), ("q", "b")])
    torn = Split(2, 0, {"c0000": 0, "c0001": 1, "c0002": 1})
    with pytest.raises(InputError, match="c0000 and c0001") as refusal:
        require_disjoint_patients(data, torn)
    assert "secret" not in str(refusal.value)
    with pytest.raises(InputError, match="tears"):
        split_patients(data, folds=2, locked=torn)


@pytest.mark.parametrize(
    "options",
    [
        {"folds": 1},
        {"folds": 50},
        {"test_fraction": 1.0},
        {"test_fraction": -0.1},
        {"test_fraction": 0.8},
        {"test_fraction": 0.001},
        {"folds": 9, "test_fraction": 0.1},
    ],
)
def test_senseless_numbers_are_refused(options):
    with pytest.raises(ConfigError):
        split_patients(manifest([(f"p{n}", "a") for n in range(9)]), **options)


def test_verb_writes_a_split_and_extends_it_without_moving_a_case(tmp_path, capsys):
    for n in range(12):
        (tmp_path / f"x{n:02d}.png").write_text(str(n))
    target = tmp_path / "out/splits.json"
    command = ["data", "split", str(tmp_path), "-o", str(target), "--folds", "3", "--test", "0.25"]
    assert main(command) == 0
    before = read_split(target)
    assert len(before.test) == 3
    for n in range(12, 20):
        (tmp_path / f"x{n:02d}.png").write_text(str(n))
    assert main([*command, "--json"]) == 0
    assert '"new": 8' in capsys.readouterr().out
    after = read_split(target)
    assert {name: after.place[name] for name in before.place} == before.place
    assert main([*command, "--seed", "1"]) == 2
    assert main([*command, "--by", "image"]) == 2
    assert "split by patient" in capsys.readouterr().err


def test_verb_keeps_the_places_of_cases_that_are_missing_today(tmp_path, capsys):
    names = [f"x{n:02d}.png" for n in range(12)]
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text(name)
    target = tmp_path / "splits.json"
    command = ["data", "split", str(tmp_path / "set"), "-o", str(target), "--folds", "3"]
    assert main(command) == 0
    before = read_split(target)
    for name in names[:6]:
        (tmp_path / "set" / name).unlink()
    assert main(command) == 0
    assert read_split(target).place == before.place
    (tmp_path / "other").mkdir()
    (tmp_path / "other/y.png").touch()
    for verb, option in (("split", "-o"), ("check", "--split")):
        capsys.readouterr()
        assert main(["data", verb, str(tmp_path / "other"), option, str(target)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{target}: is the split of another data set" in line
    assert read_split(target).place == before.place
