"""What is known about a case besides its scores: patient, site, sex, age, cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvol.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from medvol.datasets import Manifest
    from medvol.metrics import CaseLine

#: Lower edges of age groups in years.
AGE_EDGES = (0, 18, 40, 65)
_NUMERIC_GROUPS = 6


@dataclass(frozen=True)
class CaseInfo:
    """One case.

    Attributes:
        case: Name, unique within a cohort.
        patient: What resampling must keep together; the case itself where unknown.
        cohort: ``internal`` or ``external``.
        columns: Further columns such as site, sex, age; empty text where unknown.
    """

    case: str
    patient: str
    cohort: str = "internal"
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_patient_known(self) -> bool:
        """Whether the patient is named, and not only taken to be the case's own."""
        return not self.patient.startswith("case:")

    @property
    def split(self) -> str:
        """``train``, ``validation`` or ``test`` where the data set states it, else empty."""
        stated = self.columns.get("split", "").lower()
        return "train" if stated in ("training", "tr") else stated

    def trained(self) -> CaseInfo:
        """The same case as one that the network was trained on."""
        return replace(self, columns={**self.columns, "split": "train"})

    def joined(self, other: CaseInfo) -> CaseInfo:
        """The same case with what another source states, which comes first where both do."""
        stated = {name: text for name, text in other.columns.items() if text}
        patient = other.patient if other.is_patient_known else self.patient
        return replace(self, patient=patient, columns={**other.columns, **self.columns, **stated})


def from_manifest(manifest: Manifest, cohort: str = "internal") -> dict[str, CaseInfo]:
    """Case name to what the manifest knows about it."""
    found = {}
    for case in manifest.cases:
        columns: dict[str, Any] = {"site": case.site, "sex": case.sex, **case.extra}
        columns["split"] = manifest.split_of(case)
        texts = {k: "" if v is None else str(v) for k, v in columns.items()}
        found[case.case] = CaseInfo(case.case, case.group, cohort, texts)
    return found


def from_names(names: Iterable[str], cohort: str = "internal") -> dict[str, CaseInfo]:
    """Case name to a case of which nothing else is known; each counts as a patient."""
    return {name: CaseInfo(name, f"case:{name}", cohort) for name in names}


def groups_by(
    cases: Sequence[CaseInfo], columns: Sequence[str]
) -> dict[tuple[str, str], list[CaseInfo]]:
    """Subgroups: (column, value) to its cases, in order of columns and values.

    Ages are grouped at ``AGE_EDGES``; other numbers with many values in thirds.

    Raises:
        ConfigError: If no case knows a column.
    """
    found: dict[tuple[str, str], list[CaseInfo]] = {}
    for column in columns:
        values = {info.case: info.columns.get(column, "") for info in cases}
        if not any(values.values()):
            known = sorted({k for info in cases for k, v in info.columns.items() if v})
            raise ConfigError(
                f"no case has a value for {column!r}; known columns: {', '.join(known) or 'none'}"
            )
        names = _group_names(column, values)
        for name in sorted(set(names.values())):
            found[column, name] = [info for info in cases if names[info.case] == name]
    return found


def placed(cases: Mapping[str, CaseInfo], split: Path | None) -> dict[str, CaseInfo]:
    """The cases with the part that a file of ``medvol data split`` puts them in.

    A case of any fold is a training case: every fold but one trains on it.

    Raises:
        InputError: If the file names none of the cases.
    """
    if split is None:
        return dict(cases)
    from medvol.datasets import read_split

    locked = read_split(split)
    test = set(locked.test)
    part = {name: "test" if name in test else "train" for name in locked.place}
    if not set(part) & set(cases):
        raise InputError(f"{split}: names none of the {len(cases)} cases, for example "
                         f"{next(iter(cases))!r}; it is of another data set")  # fmt: skip
    return {
        name: replace(info, columns={**info.columns, "split": part.get(name, info.split)})
        for name, info in cases.items()
    }


def case_lines(cases: Iterable[CaseInfo]) -> list[CaseLine]:
    """The rows of ``cases.csv``: which cases are of one patient, never of whom."""
    from medvol.metrics import CaseLine

    return [
        CaseLine(info.case, info.patient if info.is_patient_known else "", info.cohort, info.split)
        for info in cases
    ]


def numbered(cases: Mapping[str, CaseInfo]) -> dict[str, CaseInfo]:
    """The cases with known patients by number, as ``cases.csv`` has them.

    What is drawn from them then depends on who belongs together and not on anybody's name.
    """
    number: dict[str, int] = {}
    found = {}
    for name, info in cases.items():
        k = number.setdefault(info.patient, len(number) + 1) if info.is_patient_known else 0
        found[name] = replace(info, patient=f"patient:{k}") if k else info
    return found


def read_case_lines(rows: Iterable[Mapping[str, str]]) -> dict[str, CaseInfo]:
    """Case name to what rows of ``cases.csv`` state about it."""
    found = {}
    for row in rows:
        group = row.get("patient_group", "")
        patient = f"patient:{group}" if group else f"case:{row['case']}"
        columns = {"split": row.get("split", "")}
        columns |= {k.removeprefix("group_"): v for k, v in row.items() if k.startswith("group_")}
        found[row["case"]] = CaseInfo(row["case"], patient, row.get("cohort", "internal"), columns)
    return found


def group_columns(cases: Sequence[CaseInfo], by: Sequence[str]) -> dict[str, list[str]]:
    """Column ``group_<name>`` of ``cases.csv`` to the subgroup of each case."""
    member = {(column, info.case): name for (column, name), found in groups_by(cases, by).items()
              for info in found}  # fmt: skip
    return {
        f"group_{column}": [member.get((column, info.case), "") for info in cases] for column in by
    }


def require_no_overlap(test: Manifest, train: Manifest) -> None:
    """Reject test cases whose patient, or whose very file, the training data holds.

    Raises:
        InputError: Naming cases, never the patient; also where a case has no patient to compare.
    """
    seen = {case.patient: case.case for case in train.training if case.patient}
    paths = {str(path): case.case for case in train.training for path in case.images}
    shared = [(case.case, seen[case.patient]) for case in test.cases if case.patient in seen]
    shared += [
        (case.case, paths[str(path)])
        for case in test.cases
        for path in case.images
        if str(path) in paths
    ]
    if shared:
        one, other = shared[0]
        raise InputError(
            f"{test.root}: {len({name for name, _ in shared})} test cases belong to patients of "
            f"the training data, for example test case {one} and training case {other}; scores "
            "on them measure memory, remove them (medvol data split --by patient)"
        )
    for root, cases, what in (
        (test.root, test.cases, "test"), (train.root, train.training, "training"),
    ):  # fmt: skip
        if unknown := [case.case for case in cases if not case.patient]:
            raise InputError(
                f"{root}: {len(unknown)} {what} cases name no patient, for example {unknown[0]}; "
                "whether a patient is in both is unknown: add a column patient_id, or leave out "
                "--train"
            )


def _group_names(column: str, values: Mapping[str, str]) -> dict[str, str]:
    numbers = {case: _number(text) for case, text in values.items()}
    known = sorted(v for v in numbers.values() if v is not None)
    texts = [text for text in values.values() if text]
    if len(known) < len(texts) or (column != "age" and len(set(known)) <= _NUMERIC_GROUPS):
        return {case: text or "unknown" for case, text in values.items()}
    edges = list(AGE_EDGES) if column == "age" else [known[len(known) * k // 3] for k in range(3)]
    return {case: _bin_name(value, edges) for case, value in numbers.items()}


def _bin_name(value: float | None, edges: Sequence[float]) -> str:
    if value is None:
        return "unknown"
    index = max((k for k, edge in enumerate(edges) if value >= edge), default=0)
    upper = edges[index + 1] if index + 1 < len(edges) else math.inf
    return f"{edges[index]:g} and above" if upper == math.inf else f"{edges[index]:g} to <{upper:g}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
