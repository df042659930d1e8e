"""A whole study by one command: split, train, predict, evaluate, compare, report; resumable.

Every step leaves a note in ``steps/`` that holds a digest of all that decides it. A later run skips
the steps whose note is still true, continues a training that was killed from its last epoch, and
does the rest again. The folder afterwards::

    study.json         what was asked, versions, and every step with its digest and seconds
    splits/            which case trains, validates and tests, per data set and test fold
    runs/DATA/ARM/     a trained bundle per seed and fold, its epochs, what it predicted
    evaluation/        per data set, arm and seed: scores.csv, summary.csv, run.json
    report/            the page of the evaluations; card/ the model card and checklists
    arms.csv           every number of every arm, with intervals and the range over seeds
    tests.csv          every arm against the reference, paired, adjusted by Holm for all tests
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from medvol import __version__
from medvol.core.errors import ConfigError, MedvolError, MissingInputError, OutputError
from medvol.core.files import sha256_file, write_json
from medvol.runners.study_file import Arm, Study
from medvol.runners.study_steps import (
    Job,
    evaluate_seed,
    predict_job,
    train_job,
    write_splits,
    write_tables,
)

#: Step's name, its number from 1, steps in all, part done and parts in all (0 where unknown).
StudyProgress = Callable[[str, int, int, int, int], None]


@dataclass(frozen=True)
class Step:
    """One unit of work.

    Attributes:
        name: For people and for its note's file.
        inputs: Everything that decides its result, besides what earlier steps decided.
        run: Does it; receives what reports parts done.
        folder: Where it writes; cleared when its note is of other inputs.
        after: Names of the steps that it builds on.
    """

    name: str
    inputs: Mapping[str, Any]
    run: Callable[[Callable[[int, int], None]], None]
    folder: Path | None = None
    after: tuple[str, ...] = ()


def run_study(
    study: Study,
    data: Mapping[str, Path],
    out: Path,
    progress: StudyProgress = lambda *_: None,
    *,
    jobs: int = 1,
) -> dict[str, Any]:
    """Do every step of a study that has not been done yet.

    Args:
        study: What to do.
        data: Data set's name to where it lies.
        out: The study's folder.
        progress: Called at every step.
        jobs: Processes for scoring.

    Returns:
        The content of ``study.json``.

    Raises:
        MissingInputError: If a data set was not named, or does not exist.
        OutputError: If another process is at work in the folder.
        MedvolError: Of the first step that fails; the same command goes on from there.
    """
    steps = plan_study(study, data, out, jobs=jobs)
    with _alone(out):
        notes: dict[str, Any] = {}
        for number, step in enumerate(steps, start=1):

            def report(done: int, total: int, step: Step = step, number: int = number) -> None:
                progress(step.name, number, len(steps), done, total)

            report(0, 0)
            notes[step.name] = _do(step, notes, out, report)
            report(1, 1)
        content = {
            "medvol_study": 1,
            "medvol": __version__,
            "study": json.loads(json.dumps(asdict(study))),
            "data": {name: _relative(path, out) for name, path in data.items()},
            "steps": notes,
        }
        write_json(out / "study.json", content)
        _write_pages(study, steps, out)
    return content


def plan_study(study: Study, data: Mapping[str, Path], out: Path, *, jobs: int = 1) -> list[Step]:
    """Every step in order; nothing is done.

    Raises:
        MissingInputError: If a data set was not named, or does not exist.
    """
    _require_data(study, data)
    steps: list[Step] = []
    for one in study.data:
        root, split = data[one.name], f"split {one.name}"
        if any(arm.bundle for arm in study.arms):
            steps.append(_split_step(study, one.name, root, out))
        for arm in study.arms:
            evaluations: list[str] = []
            for seed in study.seeds if arm.bundle and not arm.shipped else study.seeds[:1]:
                job = Job(study, arm, one, root, out, seed, study.test_folds)
                trained: tuple[str, ...] = ()
                if arm.bundle:
                    for fold in study.test_folds:
                        steps += _fold_steps(replace(job, folds=(fold,)), split)
                    trained = tuple(f"predict {job.name} fold {f}" for f in study.test_folds)
                steps.append(_evaluation_step(job, trained, jobs))
                evaluations.append(steps[-1].name)
    done = tuple(step.name for step in steps if step.name.startswith("evaluate"))
    inputs = {"reference": study.reference, "resamples": study.resamples,
             "points": study.operating_points}  # fmt: skip
    steps.append(
        Step("compare", inputs, lambda report: write_tables(study, data, out, report), after=done)
    )
    return steps


def _write_pages(study: Study, steps: Sequence[Step], out: Path) -> None:
    """The report of the first seed of every arm, and the card; quick, so done every time."""
    from medvol.reporting import write_card, write_report

    runs: dict[Path, Path] = {}
    for step in steps:
        if step.name.startswith("evaluate") and step.folder is not None:
            runs.setdefault(step.folder.parent, step.folder)
    several = len(study.data) > 1
    names = [f"{arm.parent.name} {arm.name}" if several else arm.name for arm in runs]
    write_report(list(runs.values()), out / "report", title=study.title, names=names)
    write_card([out], out / "card", title=study.title)


def _split_step(study: Study, name: str, root: Path, out: Path) -> Step:
    inputs = {"folds": study.folds, "test_folds": study.test_folds, "seed": study.split_seed,
             "files": _stamp(root)}  # fmt: skip
    folder = out / "splits" / name

    def run(_report: Callable[[int, int], None]) -> None:
        write_splits(study, root, folder)

    return Step(f"split {name}", inputs, run, folder)


def _fold_steps(job: Job, split: str) -> list[Step]:
    name = f"{job.name} fold {job.folds[0]}"
    inputs = {"arm": asdict(job.arm), "train": job.study.train, "weights": job.study.weights,
             "seed": job.seed, "medvol": __version__, "bundle": _made_of(job.arm)}  # fmt: skip
    train = Step(f"train {name}", inputs, lambda r: train_job(job, r), job.run, (split,))
    predict = Step(
        f"predict {name}", {}, lambda r: predict_job(job, r), job.run / "predicted", (train.name,)
    )
    return [train, predict]


def _made_of(arm: Arm) -> str:
    """A digest of what an arm's bundle is written from, or of a shipped bundle as it is."""
    from medvol.bundle import configs_dir, load

    bundle = load(arm.bundle)
    files = [*sorted((bundle.path / "configs").glob("*.json")), bundle.weights]
    if not arm.shipped:
        parts = configs_dir() / "parts" / bundle.metadata["medvol"]["family"]
        files = [configs_dir() / "bundles" / f"{bundle.name}.yaml", *sorted(parts.rglob("*.yaml"))]
    found = "".join(sha256_file(path) for path in files if path.is_file())
    return sha256(found.encode()).hexdigest()


def _evaluation_step(job: Job, after: tuple[str, ...], jobs: int) -> Step:
    study = job.study
    inputs: dict[str, Any] = {
        "metrics": study.metrics, "taus_mm": study.taus_mm, "by": study.by,
        "resamples": study.resamples, "points": study.operating_points, "arm": asdict(job.arm),
        "reference": job.data.reference, "medvol": __version__,
    }  # fmt: skip
    if job.arm.masks:
        inputs["files"] = _stamp(job.root)
    return Step(
        f"evaluate {job.name}", inputs, lambda r: evaluate_seed(job, jobs, r), job.evaluation, after
    )


def _do(
    step: Step, notes: Mapping[str, Any], out: Path, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """The step's note: the old one where it is still true, else a new one after doing the step."""
    earlier = [notes[name]["digest"] for name in step.after]
    text = json.dumps([step.inputs, earlier], sort_keys=True, default=str)
    digest = sha256(text.encode()).hexdigest()
    path = out / "steps" / f"{step.name.replace(' ', '_')}.json"
    note = _read_note(path)
    if note.get("digest") == digest and note.get("done"):
        return note
    if note.get("digest") != digest and step.folder is not None and step.folder.exists():
        shutil.rmtree(step.folder)
    write_json(path, {"digest": digest, "done": False})
    began = time.perf_counter()
    try:
        step.run(report)
    except MedvolError as error:
        raise type(error)(f"study step {step.name!r}: {error}") from error
    note = {"digest": digest, "done": True, "seconds": round(time.perf_counter() - began, 1)}
    write_json(path, note)
    return note


def _read_note(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with this process, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not POSIX: no lock to take
        yield
        return
    with (out / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{out}: another process runs this study; wait or end it") from error
        yield


def _require_data(study: Study, data: Mapping[str, Path]) -> None:
    known = {one.name: one.about for one in study.data}
    if unknown := sorted(set(data) - set(known)):
        raise ConfigError(f"the study has no data {unknown[0]!r}; it has {', '.join(known)}")
    for name, about in known.items():
        if name not in data:
            raise MissingInputError(f"data {name!r} is missing: --data {name}=FOLDER ({about})")
        if not data[name].exists():
            raise MissingInputError(f"{data[name]}: does not exist (data {name!r})")


def _stamp(root: Path) -> str:
    """A digest of names, sizes and times of all files: enough to see that something was changed."""
    digest = sha256()
    files: Sequence[Path] = [root] if root.is_file() else sorted(root.rglob("*"))
    for path in files:
        if path.is_file():
            stat = path.stat()
            name = path.relative_to(root).as_posix()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.absolute(), out.absolute())).as_posix()
