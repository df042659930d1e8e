"""nnU-Net v2 and a bundle, same fold, time and device: ``python -m tools.bench.vs_nnunet``.

The sides train at the same time, one thread each, so that whatever else the machine does slows
all; CPU seconds of each are reported. nnU-Net runs from an environment of its own (``--nnunet``,
with ``nnunetv2`` installed) with its own plan; its trainer is subclassed only to end by the clock,
looked at after every step, with its polynomial learning rate run down over that time. A third
side, ``nnunet_batch2``, is the same with batches of two: its plan's batch is made for a GPU and
leaves few steps in minutes on a CPU. The bundle trains with ``medvol train --budget``. All are
scored by medvol's Dice on the cases of the fold that none has seen. ``--step train`` and ``--step
score`` split the work in two calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from medvol.core.files import write_json, write_text

NAME = "Dataset004_Hippocampus"
TRAINER = '''"""Written by medvol's tools/bench/vs_nnunet.py: nnU-Net's trainer by the clock."""
import os, time
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerClock(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 50, 1
        self.num_epochs, self.save_every = 1000, 10**6

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: the bench scores both sides alike, outside the budget."""

    def run_training(self):
        end = float(os.environ["CLOCK_BEGAN"]) + float(os.environ["CLOCK_SECONDS"])
        self.on_train_start()
        began, steps = time.time(), 0
        while time.time() < end:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            for _ in range(self.num_iterations_per_epoch):
                done = min(1.0, (time.time() - began) / (end - began))
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - done) ** 0.9
                outputs.append(self.train_step(next(self.dataloader_train)))
                steps += 1
                if time.time() >= end:
                    break
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
        self.on_train_end()
        print("STEPS", steps, flush=True)


class nnUNetTrainerClock2(nnUNetTrainerClock):
    def _set_batch_size_and_oversample(self):
        super()._set_batch_size_and_oversample()
        self.batch_size = 2
'''
#: Side to its trainer; the bundle has none.
TRAINERS = {"nnunet": "nnUNetTrainerClock", "nnunet_batch2": "nnUNetTrainerClock2"}
PREDICT = """
import os, sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, out, *files = sys.argv[1:]
os.makedirs(out, exist_ok=True)
torch.set_num_threads(1)
cpu = {"device": torch.device("cpu"), "perform_everything_on_device": False}
p = nnUNetPredictor(**cpu, allow_tqdm=False)
p.initialize_from_trained_model_folder(model, (0,), checkpoint_name="checkpoint_final.pth")
p.predict_from_files_sequential([[f] for f in files], out, save_probabilities=False)
"""


def main() -> None:
    """Prepare what is missing below ``--work``, train, score, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="MSD folder, one channel")
    parser.add_argument("--work", type=Path, required=True, help="kept between calls")
    parser.add_argument("--nnunet", type=Path, required=True, help="environment with nnunetv2")
    parser.add_argument("--bundle", default="hippocampus_mri_segmentation")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--budget", type=float, default=720.0, help="seconds for each side")
    parser.add_argument("--sides", default="medvol,nnunet", help="also nnunet_batch2")
    parser.add_argument("--step", choices=["train", "score", "both"], default="both")
    options = parser.parse_args()
    options.work, options.sides = options.work.resolve(), options.sides.split(",")
    if "medvol" not in options.sides or not {"medvol", *TRAINERS}.issuperset(options.sides):
        raise SystemExit(f"--sides: medvol and any of {', '.join(TRAINERS)}")
    cases, labels = fold_cases(options)
    if options.step != "score":
        prepare(options, cases, labels)
        write_json(options.work / "facts.json", train_sides(options))
    if options.step != "train":
        facts = json.loads((options.work / "facts.json").read_text())
        print(
            json.dumps({**facts, "rows": compared(score_sides(options, cases, labels))}, indent=2)
        )


def fold_cases(options: argparse.Namespace) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """The bundle's own fold, and its labels."""
    from medvol.bundle import load
    from medvol.datasets import training_cases

    config = load(options.bundle, is_trusted=True).config("train")
    labels = {int(value): name for value, name in config["labels"].items()}
    cases = training_cases(options.dataset, labels, fold=options.fold, folds=config["folds"],
                           seed=config["split_seed"])  # fmt: skip
    return cases, labels


def prepare(options: argparse.Namespace, cases: Any, labels: dict[int, str]) -> None:
    """nnU-Net's raw folder by links, its plan, its preprocessed data, our fold as its fold 0."""
    raw, pre = options.work / "raw" / NAME, options.work / "pre" / NAME
    rows = [*cases["train"], *cases["validate"]]
    for kind, key, tail in (("imagesTr", "image", "_0000"), ("labelsTr", "label", "")):
        (raw / kind).mkdir(parents=True, exist_ok=True)
        for row in rows:
            link = raw / kind / f"{stem(row['image'])}{tail}.nii.gz"
            if not link.exists():
                link.symlink_to(Path(row[key]).resolve())
    write_json(raw / "dataset.json", {
        "channel_names": {"0": "MRI"}, "numTraining": len(rows), "file_ending": ".nii.gz",
        "labels": {"background": 0, **{name: value for value, name in labels.items()}},
    })  # fmt: skip
    if not list(pre.glob("nnUNetPlans_3d_fullres/*")):
        call(options, "nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-npfp", "1",
             "-np", "1")  # fmt: skip
    split = {"train": [stem(r["image"]) for r in cases["train"]],
             "val": [stem(r["image"]) for r in cases["validate"]]}  # fmt: skip
    write_text(pre / "splits_final.json", json.dumps([split]))
    where = subprocess.check_output(
        [
            python(options),
            "-c",
            "import nnunetv2.training.nnUNetTrainer as t; print(t.__path__[0])",
        ],
        text=True,
    )
    write_text(Path(where.strip()) / "nnUNetTrainerClock.py", TRAINER)


def train_sides(options: argparse.Namespace) -> dict[str, Any]:
    """All trainings side by side; how long each took and how much work that was."""
    for folder in ("results", "medvol"):
        shutil.rmtree(options.work / folder, ignore_errors=True)
    began = time.time()
    env = {**environment(options), "CLOCK_BEGAN": str(began), "nnUNet_n_proc_DA": "0",
           "CLOCK_SECONDS": str(options.budget)}  # fmt: skip
    jobs = {}
    for side in options.sides:
        with (options.work / f"{side}.log").open("w") as log:
            jobs[side] = subprocess.Popen(
                training_command(options, side), env=env, stdout=log, stderr=log
            )
    facts: dict[str, Any] = {"budget_s": options.budget, "fold": options.fold}
    while jobs:
        for side, job in list(jobs.items()):
            before = cpu_s()
            if job.poll() is None:
                continue
            del jobs[side]
            if job.returncode:
                for other in jobs.values():
                    other.terminate()
                raise SystemExit(f"{side} failed: see {options.work / f'{side}.log'}")
            facts[side] = {
                "wall_s": round(time.time() - began, 1),
                "cpu_s": round(cpu_s() - before, 1),
                "steps": steps(options, side),
            }
        time.sleep(0.5)
    return facts


def training_command(options: argparse.Namespace, side: str) -> list[str]:
    """One side's process."""
    if side == "medvol":
        words = [options.bundle, "--data", options.dataset.resolve(), "--trust-bundle",
                 "-o", options.work / "medvol", "--folds", options.fold,
                 "--budget", f"{options.budget:.0f}s"]  # fmt: skip
        return [sys.executable, "-m", "medvol", "train", *map(str, words)]
    code = ("import torch; torch.set_num_threads(1); "
            "from nnunetv2.run.run_training import run_training; "
            f"run_training('{NAME}', '3d_fullres', 0, '{TRAINERS[side]}', "
            "device=torch.device('cpu'))")  # fmt: skip
    return [python(options), "-c", code]


def steps(options: argparse.Namespace, side: str) -> int:
    """Optimizer steps of a side that has ended."""
    if side == "medvol":
        from medvol.engines import load_checkpoint

        return int(load_checkpoint(bundle_run(options) / "last.pt")["iteration"])
    lines = (options.work / f"{side}.log").read_text().splitlines()
    return int(next(line for line in reversed(lines) if line.startswith("STEPS")).split()[1])


def cpu_s() -> float:
    """CPU seconds of every child that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def score_sides(options: argparse.Namespace, cases: Any, labels: dict[int, str]) -> dict[str, Path]:
    """Folder of every side's scores.csv."""
    return {
        side: score_bundle(options)
        if side == "medvol"
        else score_nnunet(options, side, cases, labels)
        for side in options.sides
    }


def score_nnunet(
    options: argparse.Namespace, side: str, cases: Any, labels: dict[int, str]
) -> Path:
    """Its masks of the held-out cases, by its own predictor, and their scores.csv."""
    import numpy as np

    from medvol.io import read_image
    from medvol.metrics import MetricPlan, Structures, measure_case, scores_to_csv

    model = next((options.work / "results").rglob(f"{TRAINERS[side]}__*"))
    masks, out = options.work / f"{side}_masks", options.work / "scores" / side
    files = [str(options.work / "raw" / NAME / "imagesTr" / f"{stem(r['image'])}_0000.nii.gz")
             for r in cases["validate"]]  # fmt: skip
    subprocess.run([python(options), "-c", PREDICT, str(model), str(masks), *files],
                   env=environment(options), check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    rows = []
    for row in cases["validate"]:
        name, ref = stem(row["image"]), read_image(row["label"])
        pred = read_image(masks / f"{name}.nii.gz")
        spacing = tuple(float(v) for v in ref.pixdim[:3])
        maps = [np.asarray(one[0]).astype("uint16") for one in (pred, ref)]
        measured = measure_case(name, *maps, spacing, structures=Structures(labels),
                                plan=MetricPlan(("dice",), ()))  # fmt: skip
        rows += [score for one in measured.values() for score in one.scores]
    write_text(out / "scores.csv", scores_to_csv(rows))
    return out


def score_bundle(options: argparse.Namespace) -> Path:
    """The bundle's own evaluation of the fold that it did not train on."""
    from medvol.bundle import load

    out = options.work / "scores" / "medvol"
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file",
         str(load(options.bundle, is_trusted=True).config_path("evaluate")), "--dataset_dir",
         str(options.dataset.resolve()), "--output_dir", str(out), "--fold", str(options.fold),
         "--checkpoint", str(bundle_run(options) / "model.pt")],
        env=environment(options), check=True, capture_output=True,
    )  # fmt: skip
    return out


def bundle_run(options: argparse.Namespace) -> Path:
    """The bundle's run."""
    return options.work / "medvol" / f"fold_{options.fold}"


def compared(scores: dict[str, Path]) -> list[dict[str, Any]]:
    """Mean Dice of each side and of the differences with intervals, subjects resampled whole."""
    import csv

    from medvol.metrics import bootstrap_ci, weighted_mean

    tables: dict[str, dict[tuple[str, str], float]] = {}
    for side, folder in scores.items():
        with (folder / "scores.csv").open(newline="") as handle:
            dice = [row for row in csv.DictReader(handle) if row["metric"] == "dice"]
        tables[side] = {(row["case"], row["label"]): float(row["value"]) for row in dice}
    names = sorted({case for case, _ in tables["medvol"]})
    if any(names != sorted({case for case, _ in table}) for table in tables.values()):
        raise SystemExit("the sides did not score the same cases")
    found = []
    for label in [*sorted({label for _, label in tables["medvol"]}), "mean"]:
        values = {side: [value_of(table, case, label) for case in names]
                  for side, table in tables.items()}  # fmt: skip
        for side in [side for side in tables if side != "medvol"]:
            values[f"medvol - {side}"] = [
                a - b for a, b in zip(values["medvol"], values[side], strict=True)
            ]
        row: dict[str, Any] = {"label": label, "n": len(names)}
        for side, column in values.items():
            ci = bootstrap_ci(weighted_mean(column), len(names), groups=subjects(names))
            row[side] = [round(float(v), 4) for v in (ci.estimate, ci.lower, ci.upper)]
        found.append(row)
    return found


def value_of(table: dict[tuple[str, str], float], case: str, label: str) -> float:
    """One label's Dice, or the mean over labels."""
    own = [value for (name, each), value in table.items()
           if name == case and label in (each, "mean")]  # fmt: skip
    return sum(own) / len(own)


def subjects(names: list[str]) -> list[str]:
    """Task04's cases 2k-1 and 2k are one subject's two hippocampi; others stand for themselves."""
    parts = [name.rpartition("_") for name in names]
    return [f"{a}{(int(n) + 1) // 2}" if a == "hippocampus" and n.isdigit() else f"{a}_{n}"
            for a, _, n in parts]  # fmt: skip


def stem(path: Any) -> str:
    """A case's name."""
    return Path(str(path)).name.split(".")[0]


def python(options: argparse.Namespace) -> str:
    """nnU-Net's interpreter."""
    return str(options.nnunet / "bin" / "python")


def environment(options: argparse.Namespace) -> dict[str, str]:
    """One thread each; nnU-Net's three folders; no compilation, no worker processes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_raw": str(options.work / "raw"),
            "nnUNet_preprocessed": str(options.work / "pre"), "nnUNet_n_proc_DA": "1",
            "nnUNet_results": str(options.work / "results"), "nnUNet_compile": "f"}  # fmt: skip


def call(options: argparse.Namespace, verb: str, *words: str) -> None:
    """One of nnU-Net's own commands."""
    command = [str(options.nnunet / "bin" / verb), *words]
    subprocess.run(command, env=environment(options), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
