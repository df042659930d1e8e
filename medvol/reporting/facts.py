"""What the files of a bundle, an evaluation or a study state, each fact with its file and field.

A fact that no file holds is absent here; nothing is inferred, and no patient is named.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import InputError, MissingInputError
from medvol.core.files import CsvRows
from medvol.reporting.proofs import is_made_by, names_patients, weights_of

logger = logging.getLogger(__name__)
_METADATA = "configs/metadata.json"
Facts = dict[str, list["Fact"]]
_FROM_METADATA = {
    "name": "title", "version": "version", "task": "task", "description": "description",
    "intended_use": "intended_use", "data_source": "data_source", "authors": "authors",
    "image_classes": "input", "label_classes": "reference_classes", "pred_classes": "output",
    "references": "references", "changelog": "changelog",
    "monai_version": "software", "pytorch_version": "software", "numpy_version": "software",
}  # fmt: skip
_FROM_TRAINING = ("max_epochs", "learning_rate", "batch_size", "seed", "patience", "folds",
                  "split_seed", "optimizer", "loss")  # fmt: skip
_LONGEST = 300


@dataclass(frozen=True)
class Fact:
    """Something that a file states.

    Attributes:
        text: For people.
        file: The file, from the source's own folder.
        field: Where in the file.
    """

    text: str
    file: str
    field: str

    @property
    def evidence(self) -> str:
        """File and field."""
        return f"{self.file}: {self.field}"


def collect_facts(sources: Sequence[Path], own: Path | None = None) -> Facts:
    """Everything that the sources state.

    Args:
        sources: Bundles, folders that ``medvol evaluate`` or ``medvol study`` wrote, and folders
            of training runs.
        own: YAML of facts that only people know, key to text; they stand beside the files' facts.

    Raises:
        MissingInputError: If a source is none of these.
    """
    facts: Facts = {}
    bundles = {weights_of(s): s.name for s in sources if (s / _METADATA).is_file()}
    for source in sources:
        if bundles and (source / "run.json").is_file() and not is_made_by(source, bundles):
            logger.warning(
                "%s: left out, since its predictions do not prove to be of %s: predict with it, "
                "and keep prediction.json beside the results", source,
                " or ".join(sorted(bundles.values())),
            )  # fmt: skip
            continue
        readers = [read for name, read in _READERS.items() if (source / name).is_file()]
        if not readers:
            wanted = ", ".join(_READERS)
            raise MissingInputError(
                f"{source}: is neither a bundle nor a run; none of {wanted} is there"
            )
        for read in readers:
            read(source, facts)
    if own is not None:
        _own(own, facts)
    return facts


def add(facts: Facts, key: str, text: Any, file: str, field: str) -> None:
    """Add a fact unless it is empty."""
    if isinstance(text, (list, tuple)):
        text = "; ".join(map(_plain, text))
    text = " ".join(_plain(text).split())
    if text and text != "None":
        cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
        facts.setdefault(key, []).append(Fact(cut, file, field))


def _bundle(source: Path, facts: Facts) -> None:
    name, metadata = source.name, _json(source / "configs" / "metadata.json")
    file = f"{name}/configs/metadata.json"
    for field, key in _FROM_METADATA.items():
        text = metadata.get(field)
        add(facts, key, f"{field} {text}" if key == "software" and text else text, file, field)
    ours = metadata.get("medvol", {})
    for field, key in {"modality": "modality", "body_part": "body_part", "family": "family",
                       "spacing_mm": "spacing"}.items():  # fmt: skip
        add(facts, key, ours.get(field), file, f"medvol.{field}")
    if (digest := ours.get("weights_sha256")) and digest == weights_of(source):
        add(facts, "weights", digest, file, "medvol.weights_sha256")
    elif digest:
        logger.warning("%s: the weights are not there or not those of medvol.weights_sha256", file)
    for task in ("inference", "train"):
        if (source / "configs" / f"{task}.json").is_file():
            _config(source, task, facts)
    if (source / "LICENSE").is_file():
        lines = (source / "LICENSE").read_text(encoding="utf-8").split("\n")
        first = next((line for line in lines if line.strip()), "")
        add(facts, "licence", first, f"{name}/LICENSE", "first line")
    card = source / "docs" / "README.md"
    if card.is_file():
        _card(card, f"{name}/docs/README.md", facts)
    for field in ("operating", "calibration"):
        path = source / "models" / f"{field}.json"
        if path.is_file():
            _decision(_json(path), f"{name}/models/{field}.json", facts)


def _config(source: Path, task: str, facts: Facts) -> None:
    config, file = _json(source / "configs" / f"{task}.json"), f"{source.name}/configs/{task}.json"
    if task == "inference":
        network = config.get("network_def", {})
        plain = {
            k: v for k, v in network.items() if not isinstance(v, (dict, list)) or k[:1] != "_"
        }
        add(facts, "network", plain, file, "network_def")
        for key in ("preprocessing", "postprocessing"):
            steps = config.get(key, {}).get("transforms", [])
            names = [str(s.get("_target_", s)).rpartition(".")[2] for s in steps
                     if isinstance(s, dict)]  # fmt: skip
            add(facts, key, " -> ".join(names), file, f"{key}.transforms")
        add(facts, "labels", config.get("labels"), file, "labels")
        return
    for field in _FROM_TRAINING:
        value = config.get(field)
        if isinstance(value, dict):
            value = str(value.get("_target_", "")).rpartition(".")[2]
        add(facts, "training", f"{field} {value}" if value is not None else None, file, field)
    start = config.get("weights") or "random (weights is null), unless a run's option names others"
    add(facts, "initialisation", start, file, "weights")
    augmentation = config.get("train", {}).get("augmentation", {})
    names = [str(step.get("_target_", "")).rpartition(".")[2]
             for step in augmentation.get("transforms", []) if isinstance(step, dict)]  # fmt: skip
    add(facts, "augmentation", " -> ".join(names), file, "train.augmentation.transforms")
    add(facts, "partition", f"patients split into {config.get('folds')} folds, seed "
        f"{config.get('split_seed')}", file, "folds, split_seed")  # fmt: skip
    handlers = config.get("validate", {}).get("handlers", [])
    names = [str(h.get("_target_", "")).rpartition(".")[2] for h in handlers if isinstance(h, dict)]
    add(facts, "selection", names, file, "validate.handlers")


def _card(path: Path, file: str, facts: Facts) -> None:
    """Sections of the bundle's own model card, by words of their headings."""
    keys = {"limit": "limitations", "data": "data_source", "accuracy": "performance",
            "leak": "bias", "chosen": "selection"}  # fmt: skip
    for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        for word, key in keys.items():
            if word in heading.lower():
                text = " ".join(line for line in body.splitlines() if line[:1] not in "|`#")
                add(facts, key, text, file, f"section {heading.strip()!r}")


def _decision(content: Mapping[str, Any], file: str, facts: Facts) -> None:
    for field, key in {"threshold": "threshold", "temperature": "calibration",
                       "source": "threshold"}.items():  # fmt: skip
        value = content.get(field)
        add(facts, key, f"{field} {value}" if value is not None else None, file, field)
    for row in content.get("rows", []):
        text = (f"{row['metric']} {row['when']} scaling {_number(row['value'])} "
                f"({_number(row['lower'])} to {_number(row['upper'])}), n={row['n']}")  # fmt: skip
        add(facts, "calibration", text, file, "rows")


def _evaluation(source: Path, facts: Facts) -> None:
    from medvol.evaluation import read_results, show_interval
    from medvol.evaluation.results import EVALUATIONS

    run, file = _json(source / "run.json"), f"{source.name}/run.json"
    if run.get("command") not in EVALUATIONS:
        return
    results = read_results(source)
    options = results.options
    add(facts, "evaluation_inputs", f"{len(run['inputs'])} files with SHA-256", file, "inputs")
    add(facts, "software", [f"{k} {v}" for k, v in run["versions"].items()], file, "versions")
    add(facts, "statistics", f"{options.get('confidence', 0) * 100:g}% intervals, bootstrap of "
        f"{options.get('resamples')} resamples clustered by patient (a case where unknown), seed "
        f"{options.get('seed')}; DeLong and Wilson where patients are independent", file,
        "options.confidence, resamples, seed")  # fmt: skip
    if results.command.startswith("evaluate"):
        add(facts, "reproducibility", f"medvol evaluate rerun {file} repeats it", file, "inputs")
    unnamed = {cohort for cohort, cases in results.cases.items()
               if any(not case["patient_group"] for case in cases)}  # fmt: skip
    for option, key, proven, weaker in (
        ("train", "disjoint", "no test patient is in the training data: all are named",
         "no test case is a case of the training data by name; patients are not all named, so that "
         "more is not proven"),
        ("validation", "threshold", "fixed on other patients than those tested: all are named",
         "fixed on the validation file; patients are not all named, so that it is not proven that "
         "they are others than those tested"),
    ):  # fmt: skip
        if options.get(option) is not None:
            is_proven = "internal" not in unnamed and names_patients(option, results)
            add(facts, key, proven if is_proven else weaker, file, f"options.{option}")
    table = f"{source.name}/summary.csv"
    for row in results.table:
        is_class = hasattr(row, "operating_point")
        names = ("value", "lower", "upper") if is_class else ("mean", "mean_lower", "mean_upper")
        bounds = [row[name] for name in names]
        at = f" at {row.operating_point}" if is_class and row.operating_point else ""  # pyright: ignore[reportAttributeAccessIssue]
        who = "patients unknown" if row.cohort in unnamed else f"{row.n_patients} patients"
        text = f"{row.label} {row.metric}{at}: {show_interval(*bounds)}, n={row.n}, {who}"
        if not is_class:
            text += (f", {row.n_false_negative} false negative, "  # pyright: ignore[reportAttributeAccessIssue]
                     f"{row.n_false_positive} false positive")  # pyright: ignore[reportAttributeAccessIssue] # fmt: skip
        key = (
            "subgroups"
            if row.group != "all"
            else ("external" if row.cohort == "external" else "performance")
        )
        prefix = f"{row.group}: " if row.group != "all" else ""
        add(facts, key, prefix + text, table, f"{row.cohort}, {row.group}")
    for cohort, cases in results.cases.items():
        if trained := [case["case"] for case in cases if case.get("split") == "train"]:
            add(facts, "disjoint", f"{len(trained)} of {len(cases)} {cohort} cases are training "
                "cases, of their data set or by the weights' own record, for example "
                f"{trained[0]}: scores of cases that the network was trained on do not measure "
                "accuracy", file, "cases.csv, split"
                )  # fmt: skip
    worst = [f"{row.case} {row.label} {row.metric}" for row in results.worst[:5]]
    add(facts, "failures", worst, f"{source.name}/worst.csv", "first rows")
    _cohort(results.options, file, facts)


def _cohort(options: Mapping[str, Any], file: str, facts: Facts) -> None:
    """Counts of the data set that was evaluated, where it is still there."""
    from medvol.core.errors import MedvolError
    from medvol.datasets import read_dataset

    path = options.get("data") or options.get("ref")
    if not isinstance(path, Path) or not path.exists():
        return
    try:
        manifest = read_dataset(path)
    except MedvolError:
        return
    field = "options.data" if options.get("data") else "options.ref"
    patients = {case.patient for case in manifest.cases if case.patient}
    add(
        facts,
        "participants",
        f"{len(manifest.cases)} cases"
        + (f" of {len(patients)} patients" if patients else ", patients not named"),
        file,
        field,
    )
    add(facts, "data_licence", manifest.licence, file, field)
    for key, column in (("sites", "site"), ("demographics", "sex"), ("classes", "category")):
        counts = Counter(v for case in manifest.cases if (v := getattr(case, column)))
        add(facts, key, [f"{column} {value}: {n}" for value, n in sorted(counts.items())], file,
            field)  # fmt: skip
    ages = [
        float(case.extra["age"]) for case in manifest.cases if _is_number(case.extra.get("age"))
    ]
    if ages:
        add(
            facts, "demographics", f"age {min(ages):g} to {max(ages):g}, n={len(ages)}", file, field
        )


def _study(source: Path, facts: Facts) -> None:
    content, file = _json(source / "study.json"), f"{source.name}/study.json"
    study = content["study"]
    add(facts, "title", study.get("title"), file, "study.title")
    add(facts, "objectives", study.get("question"), file, "study.question")
    arms = [f"{a['name']} ({a['bundle'] or 'existing masks'})" for a in study["arms"]]
    add(facts, "arms", arms, file, "study.arms")
    add(facts, "partition", f"patients split into {study['folds']} parts, seed "
        f"{study['split_seed']}; test parts {study['test_folds']}, the next validates", file,
        "study.folds, split_seed, test_folds")  # fmt: skip
    add(facts, "training", f"seeds {study['seeds']}; options {study['train']}; weights "
        f"{study['weights']}", file, "study.seeds, train, weights")  # fmt: skip
    add(facts, "software", f"medvol {content['medvol']}", file, "medvol")
    add(facts, "reproducibility", f"{len(content['steps'])} steps, each with the digest of what "
        "decided it", file, "steps")  # fmt: skip
    for name, key in (("arms", "performance"), ("tests", "comparison")):
        path = source / f"{name}.csv"
        if path.is_file():
            for row in CsvRows(path.read_text("utf-8").splitlines()):
                add(facts, key, _study_row(row), f"{source.name}/{name}.csv", row["metric"])
    for path in sorted(source.glob("evaluation/*/*/*/run.json"))[:1]:
        _evaluation(path.parent, facts)
    bundles = sorted(source.glob("runs/*/*/*/*/*/configs/metadata.json"))
    for path in bundles[:1]:
        _bundle(path.parents[1], facts)


def _study_row(row: Mapping[str, str]) -> str:
    from medvol.evaluation import show_interval

    where = f"{row['data']}, {row['arm']}: {row['label']} {row['metric']}"
    bounds = float(row["lower"]), float(row["upper"])
    if "p_holm" in row:
        return (f"{where} minus {row['reference']} "
                f"{show_interval(float(row['difference']), *bounds)}, n={row['n']}, {row['test']} "
                f"p={float(row['p']):.3g}, Holm {float(row['p_holm']):.3g}")  # fmt: skip
    return (f"{where} {row['statistic']} {show_interval(float(row['value']), *bounds)}, "
            f"n={row['n']}, {row['n_patients']} patients")  # fmt: skip


def _training(source: Path, facts: Facts) -> None:
    file = f"{source.name}/epochs.csv"
    rows = list(CsvRows((source / "epochs.csv").read_text("utf-8").splitlines()))
    if not rows:
        return
    seconds = sum(float(row.get("seconds") or 0) for row in rows)
    add(facts, "training", f"{len(rows)} epochs, {rows[-1].get('steps')} steps, {seconds:.0f} s, "
        f"final loss {rows[-1].get('loss')}", file, "epoch, steps, seconds, loss")  # fmt: skip


def _own(path: Path, facts: Facts) -> None:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no facts; write 'key: text' lines")
    from medvol.reporting.checklists import KEYS

    for key, text in content.items():
        if key not in KEYS:
            raise InputError(f"{path}: no item asks for {key!r}; known: {', '.join(sorted(KEYS))}")
        add(facts, key, text, path.name, str(key))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value) if value is not None else ""


def _number(value: Any) -> str:
    return f"{float(value):.3f}"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


_READERS: Mapping[str, Any] = {
    _METADATA: _bundle,
    "run.json": _evaluation,
    "study.json": _study,
    "epochs.csv": _training,
}
