"""What the steps of a study do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvol.bundle import epochs_of, load, run_task
from medvol.core.errors import ConfigError, MedvolError
from medvol.core.files import CsvRows, rows_to_csv, write_bytes, write_json, write_text
from medvol.runners.study_file import Arm, Study, StudyData

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One seed of one arm on one data set; ``folds`` are the test folds that it covers."""

    study: Study
    arm: Arm
    data: StudyData
    root: Path
    out: Path
    seed: int
    folds: tuple[int, ...]

    @property
    def name(self) -> str:
        """For people: data set, arm, seed."""
        return f"{self.data.name} {self.arm.name} seed {self.seed}"

    @property
    def home(self) -> Path:
        """Folder of all folds of this seed."""
        return self.out / "runs" / self.data.name / self.arm.name / f"seed{self.seed}"

    @property
    def run(self) -> Path:
        """Folder of the one fold of this job."""
        return self.home / f"fold{self.folds[0]}"

    @property
    def bundle(self) -> Path:
        """The trained (or the shipped) bundle of this fold."""
        return load(self.arm.bundle).path if self.arm.shipped else self.run / self.arm.bundle

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation of all folds of this seed."""
        return self.out / "evaluation" / self.data.name / self.arm.name / f"seed{self.seed}"

    def split(self, part: str) -> Path:
        """The manifest ``fit`` (train and validate) or ``test`` of this fold."""
        folder = self.out / "splits" / self.data.name / f"fold{self.folds[0]}"
        return folder / f"{part}.json"

    @property
    def is_classifier(self) -> bool:
        """Whether the arm gives classes."""
        return bool(self.arm.bundle) and _family(self.arm.bundle) == "classification"


def write_splits(study: Study, root: Path, folder: Path) -> None:
    """Split the patients and write, per test fold, what trains, validates and tests.

    In ``fit.json`` fold 0 validates and fold 1 trains; in ``test.json`` fold 0 tests and fold 1 is
    the same training cases, so that what a bundle derives from them stays the same.
    """
    from medvol.datasets import locked_cases, split_patients, write_manifest, write_split

    manifest = locked_cases(root).manifest  # its test cases stay out of every fold
    usable = _usable(manifest.select(case.case for case in manifest.training), study)
    split = split_patients(usable, folds=study.folds, seed=study.split_seed)
    write_split(split, folder / "split.json")
    for fold in study.test_folds:
        held, test = (fold + 1) % study.folds, fold
        place = {name: split.place[name] for name in split.place}
        for part, zero in (("fit", held), ("test", test)):
            cases = tuple(
                replace(case, fold=int(place[case.case] != zero))
                for case in usable.cases
                if place[case.case] == zero or place[case.case] not in (held, test)
            )
            target = folder / f"fold{fold}" / f"{part}.json"
            write_manifest(replace(usable, cases=cases), target, sha256=part == "test")


def train_job(job: Job, report: Report) -> None:
    """Write the arm's bundle, train it, and put its weights where the bundle looks for them."""
    if job.arm.shipped:
        return
    from medvol.bundle import render

    name, folder = job.arm.bundle, job.run / "train"
    _write_files(job.bundle, render(name, folder=job.bundle, changes=job.arm.values))
    options = {**job.study.train, **job.arm.train}
    options |= {"dataset_dir": job.split("fit").absolute(), "output_dir": folder.absolute(),
                "seed": job.seed, "fold": 0, "resume": True}  # fmt: skip
    bundle = load(job.bundle, is_trusted=True)
    run_task(bundle, "train", options, job.run / "train.log", show=epochs_of(report))
    trained = folder / ("model.pt" if job.study.weights == "best" else "model_last.pt")
    weights = job.bundle / "models" / "model.pt"
    write_bytes(weights, trained.read_bytes())
    _write_files(job.bundle, render(name, folder=job.bundle, changes=job.arm.values))
    write_json(job.run / "options.json", {k: str(v) for k, v in options.items()})


def predict_job(job: Job, report: Report) -> None:
    """Predict the test cases of one fold; a classifier's validation cases too."""
    if job.is_classifier:
        for done, (part, source) in enumerate((("validation", "fit"), ("test", "test"))):
            report(done, 2)
            options = {"dataset_dir": str(job.split(source).absolute()), "fold": 0,
                       "output_dir": str((job.run / "predicted" / part).absolute())}  # fmt: skip
            run_task(load(job.bundle, is_trusted=True), "evaluate", options,
                     job.run / f"{part}.log")  # fmt: skip
        return
    from medvol.datasets import read_dataset
    from medvol.runners.cases import CaseInput
    from medvol.runners.local import run_local
    from medvol.runners.record import PredictOptions

    held = [case for case in read_dataset(job.split("test")).cases if case.fold == 0]
    inputs = [CaseInput(case.case, str(case.image)) for case in held]
    masks = job.home / "masks"
    options = PredictOptions(str(job.bundle), str(masks), trust_bundle=True)
    records: list[Any] = []

    def note(record: Any) -> None:
        records.append(record)
        report(len(records), len(inputs))

    run_local(inputs, options, note)
    if bad := [record for record in records if record.status != "done"]:
        raise MedvolError(f"case {bad[0].case}: {bad[0].reason}")


def evaluate_seed(job: Job, jobs: int, report: Report) -> None:
    """Score what one seed of an arm predicted, over all its test folds."""
    from medvol.evaluation import MaskOptions, ScoreOptions, evaluate_scores, evaluate_segmentation

    study, shared = job.study, {"by": job.study.by, "resamples": job.study.resamples}
    if job.is_classifier:
        for part in ("test", "validation"):
            _join_folds(job, part)
        rules = tuple(rule for rule in study.operating_points if rule != "fixed")
        fixes = bool(rules) and len(job.folds) == 1
        evaluate_scores(
            ScoreOptions(
                job.home / "test.csv", job.evaluation, data=job.root,
                validation=job.home / "validation.csv" if fixes else None,
                **({"rules": rules} if fixes else {}), **shared,  # pyright: ignore[reportArgumentType]
            )
        )  # fmt: skip
        return
    scored = {"metrics": study.metrics, "taus_mm": study.taus_mm, **shared}
    if job.arm.masks:
        pred, ref = (job.root / text for text in (job.arm.masks, job.data.reference))
        options = MaskOptions(pred, ref, job.evaluation, **scored)
    else:
        held = _held_out(job)
        options = MaskOptions(job.home / "masks", held, job.evaluation, data=held, **scored)
    evaluate_segmentation(options, jobs=jobs, progress=report)


def write_tables(study: Study, data: Mapping[str, Path], out: Path, report: Report) -> None:
    """``arms.csv`` and ``tests.csv`` from the evaluations of every seed."""
    from medvol.evaluation import BootstrapPlan, adjusted

    plan, arms, keys, tests = BootstrapPlan(resamples=study.resamples), [], [], []
    for count, one in enumerate(study.data):
        report(count, len(study.data))
        table = _ArmTable(study, one, data[one.name], out, plan)
        arms += [{"data": one.name, "arm": arm.name, **dict(row)}
                 for arm in study.arms for row in table.rows(arm)]  # fmt: skip
        for arm in study.arms:
            if study.reference and arm.name != study.reference:
                rows = table.tests(arm)
                tests += rows
                keys += [{"data": one.name, "arm": arm.name, "reference": study.reference}
                         for _ in rows]  # fmt: skip
    write_text(out / "arms.csv", rows_to_csv(arms))
    if study.reference:
        text = rows_to_csv([{**key, **dict(row)}
                            for key, row in zip(keys, adjusted(tests), strict=True)])  # fmt: skip
        write_text(out / "tests.csv", text)


class _ArmTable:
    """The arms of one data set, read from their evaluations."""

    def __init__(self, study: Study, data: StudyData, root: Path, out: Path, plan: Any) -> None:
        self.study, self.plan = study, plan
        self.jobs = {
            arm.name: [
                Job(study, arm, data, root, out, seed, study.test_folds)
                for seed in (study.seeds if arm.bundle and not arm.shipped else study.seeds[:1])
            ]
            for arm in study.arms
        }
        self.root = root

    def rows(self, arm: Arm) -> list[Any]:
        """Every number of an arm."""
        from medvol.evaluation import classifier_rows, segmenter_rows

        if self._is_classifier(arm):
            return classifier_rows(self._class_arm(arm), self.study.operating_points, self.plan)
        seeds = self._scores(arm)
        return segmenter_rows(seeds, self._cases(seeds), self.plan)

    def tests(self, arm: Arm) -> list[Any]:
        """The arm against the reference."""
        from medvol.evaluation import compare_classifiers, compare_segmenters

        reference = next(a for a in self.study.arms if a.name == self.study.reference)
        if self._is_classifier(arm) != self._is_classifier(reference):
            raise ConfigError(f"arm {arm.name!r} cannot be compared with {reference.name!r}: one "
                              "gives classes, the other masks")  # fmt: skip
        if self._is_classifier(arm):
            pair = self._class_arm(arm), self._class_arm(reference)
            return compare_classifiers(*pair, self.study.operating_points, self.plan)
        pair = self._scores(arm), self._scores(reference)
        return compare_segmenters(*pair, self._cases(pair[0]), self.plan)

    def _is_classifier(self, arm: Arm) -> bool:
        return self.jobs[arm.name][0].is_classifier

    def _class_arm(self, arm: Arm) -> Any:
        from medvol.datasets import read_dataset
        from medvol.evaluation import ClassArm, Seed, from_manifest, read_predictions

        known = from_manifest(read_dataset(self.root))
        return ClassArm.of(
            [
                Seed(*(read_predictions(job.home / f"{part}.csv", known=known)
                       for part in ("test", "validation")))
                for job in self.jobs[arm.name]
            ]
        )  # fmt: skip

    def _scores(self, arm: Arm) -> list[list[Any]]:
        from medvol.metrics import scores_from_csv

        paths = [job.evaluation / "scores.csv" for job in self.jobs[arm.name]]
        return [scores_from_csv(path.read_text("utf-8"), str(path)) for path in paths]

    def _cases(self, seeds: list[list[Any]]) -> dict[str, Any]:
        from medvol.datasets import read_dataset
        from medvol.evaluation import from_manifest, from_names

        found = from_names({row.case for row in seeds[0]})
        if self.jobs and any(job.arm.masks for jobs in self.jobs.values() for job in jobs):
            return found
        known = from_manifest(read_dataset(self.root))
        return {name: known.get(name, info) for name, info in found.items()}


def _usable(manifest: Any, study: Study) -> Any:
    """The cases that the study's arms can use: of their classes, or with a label map."""
    wanted: set[str] = set()
    for arm in study.arms:
        if arm.bundle and _family(arm.bundle) == "classification":
            labels = arm.values.get("labels") or load(arm.bundle).config("inference")["labels"]
            wanted |= {str(label) for label in labels.values()}
    names = [
        case.case
        for case in manifest.training
        if (case.category in wanted if case.category else case.label is not None)
    ]
    if not names:
        raise ConfigError(f"{manifest.root}: holds no case with a class or a label map of the arms")
    return manifest.select(names)


def _held_out(job: Job) -> Path:
    """A manifest of the test cases of all folds."""
    from medvol.datasets import read_dataset, write_manifest

    parts = [read_dataset(replace(job, folds=(fold,)).split("test")) for fold in job.folds]
    cases = tuple(case for part in parts for case in part.cases if case.fold == 0)
    target = job.home / "test.json"
    write_manifest(replace(parts[0], cases=cases), target)
    return target


def _join_folds(job: Job, part: str) -> None:
    """The predictions of all folds in one table with the column ``fold``."""
    rows = []
    for fold in job.folds:
        path = replace(job, folds=(fold,)).run / "predicted" / part / "predictions.csv"
        with path.open(newline="", encoding="utf-8") as handle:
            rows += [{**row, "fold": str(fold)} for row in CsvRows(handle)]
    write_text(job.home / f"{part}.csv", rows_to_csv(rows))


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    for relative, text in files.items():
        write_text(folder / relative, text)


def _family(bundle: str) -> str:
    return load(bundle).metadata["medvol"]["family"]
