"""Folds and test sets that keep a patient's cases together, and that stay once written."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvol.core.errors import ConfigError, InputError, MissingInputError
from medvol.core.files import write_json
from medvol.datasets.manifest import Case, Manifest

_VERSION = 2
#: The place of a test case among the folds.
TEST = -1
#: Fold number of a run: train on every case and validate on a fifth of the same ones.
ALL = -1


@dataclass(frozen=True)
class Split:
    """Which fold each case belongs to.

    Attributes:
        folds: Number of folds.
        seed: What the hash was salted with.
        place: Case name to fold (from 0), or ``TEST`` for the locked test cases.
        strata: Names of the fields that were balanced.
        test_fraction: Share of patients that was asked for as test cases.
        content: Case name to the digests of its images and of its truth, for a split that locks.
    """

    folds: int
    seed: int
    place: dict[str, int]
    strata: tuple[str, ...] = ()
    test_fraction: float = 0.0
    content: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def test(self) -> list[str]:
        """Names of the test cases, sorted."""
        return sorted(name for name, fold in self.place.items() if fold == TEST)

    def validation(self, fold: int) -> list[str]:
        """Names of the cases of one fold, sorted."""
        if not 0 <= fold < self.folds:
            raise ConfigError(
                f"fold {fold} does not exist; the split has folds 0 to {self.folds - 1}"
            )
        return sorted(name for name, place in self.place.items() if place == fold)

    def training(self, fold: int) -> list[str]:
        """Names of the cases to train on when ``fold`` validates, sorted."""
        held = set(self.validation(fold)) | set(self.test)
        return sorted(set(self.place) - held)


def split_patients(
    manifest: Manifest,
    *,
    folds: int = 5,
    test_fraction: float = 0.0,
    seed: int = 0,
    stratify: Iterable[str] = ("category",),
    strata: Mapping[str, str] | None = None,
    locked: Split | None = None,
) -> Split:
    """Distribute patients over folds: grouped, stratified, decided by a hash of the patient.

    Patients of one stratum are ordered by a salted hash and given in turn to the place that
    lacks most of that stratum, so that folds differ by about one patient. Nothing depends on the
    order of files, the platform or a random generator. With ``locked`` every case and every
    patient of that split keeps its place, and only new patients are placed: cases can be added
    without a patient ever crossing from training to validation or test.

    Args:
        manifest: The data set; cases that it marks as test stay test cases.
        folds: How many folds, at least 2.
        test_fraction: Share of patients to lock away, below 1.
        seed: Salt of the hash.
        stratify: Fields of ``Case`` to balance: category, site, sex.
        strata: Stratum by case name, used in addition (for example a volume quartile).
        locked: An earlier split to extend.

    Returns:
        The split; a patient's stratum is that of its rarest case.

    Raises:
        ConfigError: If a fold or the test set would stay empty, or a number is out of range.
        InputError: If a locked split tears a patient apart.
    """
    fields = tuple(stratify)
    _require_valid(manifest, folds, test_fraction, locked)
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in manifest.cases:
        groups[case.group].append(case)
    fixed = _fixed_places(groups, locked)
    patients = len(groups) - list(fixed.values()).count(TEST)
    if patients < folds:
        most = f"ask for {patients} folds at most, or add" if patients > 1 else "add"
        raise ConfigError(
            f"{manifest.root}: {patients} patient(s) cannot fill {folds} folds; {most} patients"
        )
    stratum = _stratum_by_group(groups, fields, strata or {})
    silent = {name for name, cases in groups.items() if all(_is_bare_test(c) for c in cases)}
    quota = {TEST: test_fraction} | dict.fromkeys(range(folds), (1.0 - test_fraction) / folds)
    places = _distribute(stratum, fixed, quota, seed, silent)
    empty = [p for p, share in quota.items() if share > 0 and p not in places.values()]
    if empty and locked is None:
        what = "the test set" if empty[0] == TEST else f"fold {empty[0]}"
        raise ConfigError(
            f"{manifest.root}: {what} would hold none of {len(groups)} patients; ask for fewer "
            "folds or another test_fraction"
        )
    place = {case.case: places[group] for group, cases in groups.items() for case in cases}
    return Split(folds, seed, place, fields, test_fraction)


def write_split(split: Split, target: str | os.PathLike[str]) -> None:
    """Write a split with a digest over its content; it holds case names and no patient ids."""
    body = {
        "medvol_split": _VERSION,
        "folds": split.folds,
        "seed": split.seed,
        "strata": list(split.strata),
        "test_fraction": split.test_fraction,
        "place": dict(sorted(split.place.items())),
        "content": {name: list(pair) for name, pair in sorted(split.content.items())},
    }
    write_json(target, {**body, "sha256": _digest(body)})


def read_split(path: str | os.PathLike[str]) -> Split:
    """Read a split written by ``write_split``.

    Raises:
        MissingInputError: If there is no such file.
        InputError: If it is malformed, or was edited since it was written.
    """
    path = Path(path)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        digest = body.pop("sha256")
        place = {str(name): int(fold) for name, fold in body["place"].items()}
        content = {str(name): (images, truth) for name, (images, truth) in body["content"].items()}
        numbers = int(body["folds"]), int(body["seed"])
        split = Split(*numbers, place, tuple(body["strata"]), body["test_fraction"], content)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such split file") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not a split file of this version: {error!r}; write a new "
                         "one with medvol data split") from error  # fmt: skip
    if digest != _digest(body):
        raise InputError(f"{path}: was edited after it was locked; restore it, or write a new "
                         "split to another file")  # fmt: skip
    return split


def fold_names(
    manifest: Manifest, fold: int, folds: int, seed: int, strata: Callable[[], Mapping[str, str]]
) -> tuple[list[str], list[str]]:
    """Training and validation cases of one fold: of the data set's own, else of a split by patient.

    Args:
        manifest: The cases.
        fold: The fold that validates; -1 trains on all, validation cases included.
        folds: Number of folds.
        seed: Salt of the split.
        strata: Gives the case's stratum; called only where the split needs it.
    """
    if fold == ALL:
        names = [case.case for case in manifest.cases]
        return names, split_patients(manifest, folds=max(2, folds), seed=seed).validation(0)
    if (own := own_fold(manifest, fold)) is not None:
        return own
    split = split_patients(manifest, folds=folds, seed=seed, strata=strata() or None)
    return split.training(fold), split.validation(fold)


def own_fold(manifest: Manifest, fold: int) -> tuple[list[str], list[str]] | None:
    """Names to train on and to validate on by the data set's own folds; None where it has none.

    Raises:
        InputError: If only some cases have a fold.
        ConfigError: If none is in this one.
    """
    without = [case.case for case in manifest.cases if case.fold is None]
    if len(without) == len(manifest.cases):
        return None
    if without:
        raise InputError(f"{manifest.root}: {len(without)} of {len(manifest.cases)} cases have no "
                         f"fold ({without[0]!r} ...); give every case one, or none")  # fmt: skip
    held = [case.case for case in manifest.cases if case.fold == fold]
    if not held:
        raise ConfigError(f"{manifest.root}: no case is in fold {fold}")
    return [case.case for case in manifest.cases if case.fold != fold], held


def shared_patients(manifest: Manifest, split: Split | None = None) -> dict[str, list[str]]:
    """Patients whose cases lie in more than one place, as group to case names.

    Without a split, the data set's own ``split`` and ``fold`` columns are looked at.
    """
    places: dict[str, set[Any]] = defaultdict(set)
    members: dict[str, list[str]] = defaultdict(list)
    for case in manifest.cases:
        place = split.place.get(case.case) if split else (case.split, case.fold)
        if place is None or place == (None, None):
            continue
        places[case.group].add(place)
        members[case.group].append(case.case)
    return {group: members[group] for group, found in places.items() if len(found) > 1}


def require_known_cases(manifest: Manifest, split: Split, path: str | os.PathLike[str]) -> None:
    """Reject the split file of another data set: it would part nothing, and look clean.

    Raises:
        InputError: If the split places no case of the data set.
    """
    if not any(case.case in split.place for case in manifest.cases):
        raise InputError(f"{path}: is the split of another data set: it names none of the "
                         f"{len(manifest.cases)} cases of {manifest.root}")  # fmt: skip


def require_disjoint_patients(manifest: Manifest, split: Split | None = None) -> None:
    """Reject a split in which one patient is on both sides.

    Raises:
        InputError: Naming cases (never the patient) that must not be torn apart.
    """
    if torn := shared_patients(manifest, split):
        names = next(iter(torn.values()))
        raise InputError(
            f"{manifest.root}: {len(torn)} patients have cases on both sides of the split, for "
            f"example {names[0]} and {names[1]}; split by patient (medvol data split)"
        )


def _require_valid(manifest: Manifest, folds: int, test_fraction: float, locked: Split | None):
    if folds < 2:
        raise ConfigError(f"folds is {folds}; at least 2 are needed")
    if not 0.0 <= test_fraction < 1.0:
        raise ConfigError(f"test_fraction is {test_fraction}; it must be at least 0 and below 1")
    if locked is not None and locked.folds != folds:
        raise ConfigError(
            f"{manifest.root}: the locked split has {locked.folds} folds, not {folds}"
        )


def _fixed_places(groups: dict[str, list[Case]], locked: Split | None) -> dict[str, int]:
    fixed: dict[str, int] = {}
    for group, cases in groups.items():
        known = {locked.place[c.case] for c in cases if locked and c.case in locked.place}
        known |= {TEST for case in cases if case.split == "test"} if not known else set()
        if len(known) > 1:
            raise InputError(
                f"the locked split tears {cases[0].case} and {cases[-1].case} apart, "
                "which are one patient"
            )
        if known:
            fixed[group] = known.pop()
    return fixed


def _stratum_by_group(
    groups: dict[str, list[Case]], fields: tuple[str, ...], strata: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    def key(case: Case) -> tuple[str, ...]:
        return (*(str(getattr(case, name)) for name in fields), strata.get(case.case, ""))

    counts = Counter(key(case) for cases in groups.values() for case in cases)
    return {
        group: min((key(case) for case in cases), key=lambda k: (counts[k], k))
        for group, cases in groups.items()
    }


def _distribute(
    stratum: dict[str, tuple[str, ...]],
    fixed: dict[str, int],
    quota: dict[int, float],
    seed: int,
    uncounted: set[str],
) -> dict[str, int]:
    places = dict(fixed)
    counted = {group: place for group, place in fixed.items() if group not in uncounted}
    total: Counter[int] = Counter(counted.values())
    for wanted in sorted(set(stratum.values())):
        members = [group for group in stratum if stratum[group] == wanted]
        here: Counter[int] = Counter(counted[g] for g in members if g in counted)
        for group in sorted((g for g in members if g not in fixed), key=lambda g: _hash(seed, g)):
            done = sum(here.values()) + 1
            everywhere = sum(total.values()) + 1
            lacks = {
                place: (share * done - here[place], share * everywhere - total[place], -place)
                for place, share in quota.items()
                if share > 0
            }
            chosen = max(lacks, key=lacks.__getitem__)
            places[group] = chosen
            here[chosen] += 1
            total[chosen] += 1
    return places


def _is_bare_test(case: Case) -> bool:
    """A test case without truth scores nothing and takes no share of the test set."""
    return case.split == "test" and case.label is None and case.category is None


def _hash(seed: int, group: str) -> str:
    return hashlib.sha256(f"{seed}\0{group}".encode()).hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
