"""Train a bundle whose images are synthesised from label maps, for hours on one CPU core.

    python -m tools.train_brain BUNDLE LABEL_MAPS STATE_FOLDER [--scan HEAD.nii.gz]

Network, loss and images are those of the bundle's train.json. What this adds to
``monai.bundle run`` is bfloat16 on a CPU (half the time of a step where the CPU has AMX), a state
that is saved by the clock instead of the epoch, and an end that can be moved while it runs:
``schedule.json`` (steps, cooldown, warmup, peak learning rate, decay of the moving average) is read
again every 50 steps. The state folder holds

* ``state.pt``: what resuming needs, replaced atomically every three minutes,
* ``model.pt``: the moving average, a bare state dict for the bundle's ``models/model.pt``,
* ``log.csv``: step, seconds, loss, norm of the gradient, learning rate, seconds of a synthesis,
* ``scores.csv``: Dice of every label on synthetic images of the held-out maps,
* ``scan.png`` and ``scan.txt``: the last look at a real scan, and its volumes in ml.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import Tensor, nn

SCHEDULE = {"steps": 11000, "cooldown": 4500, "warmup": 200, "peak": 2e-3, "decay": 0.998}
SAVE_S = 180


class Run:
    """One training: the bundle's parts, and the state that is saved and restored as a whole."""

    def __init__(self, bundle: Path, labels: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.parser = ConfigParser()
        self.parser.read_config(str(bundle / "configs" / "train.json"))
        self.parser["bundle_root"], self.parser["dataset_dir"] = str(bundle), str(labels)
        self.parser["device"] = torch.device("cpu")
        part = self.parser.get_parsed_content
        self.folder, self.step, self.seconds = folder, 0, 0.0
        self.labels = {int(v): str(name) for v, name in self.parser["labels"].items()}
        self.images, self.held_out = part("train#dataset"), part("validate#dataset")
        self.sampler, self.loss = part("train#sampler"), part("loss")
        self.inferer, self.amp = part("inferer"), torch.autocast("cpu", torch.bfloat16)
        torch.manual_seed(int(self.parser["seed"]))
        self.network = part("network_def")
        self.average = copy.deepcopy(self.network).eval()
        for network in (self.network, self.average):
            network.to(memory_format=torch.channels_last_3d)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), 1e-3, weight_decay=0.01)
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Replace ``state.pt`` and ``model.pt`` atomically."""
        names = ("network", "average", "optimiser")
        state = {name: getattr(self, name).state_dict() for name in names}
        replace(state | {"step": self.step, "seconds": self.seconds}, self.folder / "state.pt")
        shared: dict[int, Tensor] = {}  # DynUNet names its blocks twice; the file holds them once
        weights = {key: shared.setdefault(value.data_ptr(), value.contiguous())
                   for key, value in self.average.state_dict().items()}  # fmt: skip
        replace(weights, self.folder / "model.pt")

    def follow(self, decay: float) -> None:
        """Let the moving average follow the network."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        for mean, new in pairs:
            mean.data.lerp_(new.data, 1 - decay)

    def samples(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and label maps from the present step on, as an uninterrupted run sees them."""
        skipped = self.step % len(self.images)
        self.sampler.set_epoch(self.step // len(self.images))
        while True:
            for token in list(self.sampler)[skipped:]:
                yield plain(self.images[token])
            skipped = 0


def plain(case: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Image and label map of a case as a batch of one."""
    image, label = (case[key].as_tensor()[None] for key in ("image", "label"))
    return image.to(memory_format=torch.channels_last_3d), label


def replace(state: Any, target: Path) -> None:
    """Write beside the target, then take its place."""
    part = target.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, target)


def learning_rate(step: int, schedule: Mapping[str, float]) -> float:
    """Warm-up, a constant stretch, then a straight way down to zero at the last step."""
    down = (schedule["steps"] - step) / max(schedule["cooldown"], 1)
    return schedule["peak"] * max(min(1.0, (step + 1) / schedule["warmup"], down), 0.0)


def train(run: Run, scan: Path | None, minutes: float) -> None:
    """Train until the last step of the schedule; score the average every ``minutes``."""
    plan = run.folder / "schedule.json"
    if not plan.exists():
        plan.write_text(json.dumps(SCHEDULE))
    schedule, spent = json.loads(plan.read_text()), 0.0
    saved = looked = before = time.monotonic()
    run.network.train()
    samples = run.samples()
    while run.step < schedule["steps"]:
        start = time.monotonic()
        image, label = next(samples)
        spent += time.monotonic() - start
        rate = learning_rate(run.step, schedule)
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        with run.amp:
            out = run.network(image)
        loss = run.loss(out, label)
        run.optimiser.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(run.network.parameters(), 5.0))
        if math.isfinite(norm):
            run.optimiser.step()
        run.step += 1
        run.follow(schedule["decay"])
        now = time.monotonic()
        run.seconds += now - before
        before = now
        if run.step % 50 == 0:
            append(run.folder / "log.csv", [run.step, f"{run.seconds:.0f}", f"{loss.detach():.4f}",
                   f"{norm:.2f}", f"{rate:.6f}", f"{spent / 50:.3f}"])  # fmt: skip
            spent, schedule = 0.0, json.loads(plan.read_text())
        is_due = now - looked > minutes * 60 or run.step >= schedule["steps"]
        if is_due:
            report(run, scan)
            looked = before = time.monotonic()
        if is_due or now - saved > SAVE_S:
            run.save()
            saved = before = time.monotonic()


@torch.no_grad()
def report(run: Run, scan: Path | None) -> None:
    """Score the moving average on fixed images of the held-out maps, and look at a real scan."""
    rows, values = [], [0, *sorted(run.labels)]
    for token in range(3 * len(run.held_out)):
        image, label = plain(run.held_out[token])
        with run.amp:
            found = run.average(image)[0].float().argmax(0)
        rows.append(dice(torch.tensor(values)[found], label[0, 0], values))
    scores, table = np.nanmean(np.asarray(rows), axis=0), run.folder / "scores.csv"
    if not table.exists():
        append(table, ["step", "seconds", "mean", *(run.labels[value] for value in values[1:])])
    append(table, [run.step, f"{run.seconds:.0f}", f"{np.nanmean(scores):.4f}",
                   *(f"{score:.3f}" for score in scores)])  # fmt: skip
    if scan is not None:
        look(run, scan, values)


def dice(pred: Tensor, ref: Tensor, values: Sequence[int]) -> list[float]:
    """Dice of every structure; nan where the reference has none."""
    ref = ref.long()  # of bytes none is below 256
    ref = torch.where(ref < 256, ref, 0)  # scalp and skull are background
    both = torch.bincount((pred.long() * 256 + ref.long()).flatten(), minlength=256 * 256)
    table = both.reshape(256, 256)
    sizes, refs = table.sum(1), table.sum(0)
    return [float(2 * table[v, v] / (sizes[v] + refs[v])) if refs[v] else math.nan
            for v in values[1:]]  # fmt: skip


def look(run: Run, scan: Path, values: Sequence[int]) -> None:
    """Segment a real scan on the training grid, draw it, and note the volumes in ml."""
    image = run.parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"]
    with run.amp:
        out = run.inferer(image.as_tensor()[None].float(), run.average)
    found = out[0].float().argmax(0)
    draw(image[0].numpy(), found.numpy(), run.folder / "scan.png")
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(image.affine)[:3, :3])))
    volumes = torch.bincount(found.flatten(), minlength=len(values)) * voxel_mm3 / 1000
    words = [f"{value}:{float(volumes[i]):.1f}" for i, value in enumerate(values) if i]
    with (run.folder / "scan.txt").open("a") as file:
        file.write(f"{run.step} {' '.join(words)}\n")


def draw(image: NDArray[Any], label: NDArray[Any], target: Path) -> None:
    """Three planes through the middle of what was found, plain and in colours."""
    from PIL import Image

    colours = np.random.RandomState(1).randint(40, 256, (256, 3))
    places = np.argwhere(label > 0)
    middle = places.mean(0).astype(int) if len(places) else np.asarray(label.shape) // 2
    rows = []
    for axis in range(3):
        grey = np.take(image, middle[axis], axis)[..., None].repeat(3, -1) * 255
        mask = np.take(label, middle[axis], axis)
        mixed = np.where((mask > 0)[..., None], 0.5 * grey + 0.5 * colours[mask], grey)
        pair = np.concatenate([np.rot90(grey), np.rot90(mixed)], 1).clip(0, 255).astype(np.uint8)
        rows.append(Image.fromarray(pair).resize((pair.shape[1] * 3, pair.shape[0] * 3)))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    for place, row in enumerate(rows):
        sheet.paste(row, (0, sum(row.height for row in rows[:place])))
    sheet.save(target)


def append(path: Path, row: Sequence[Any]) -> None:
    """One more row of a table."""
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    train(Run(args.bundle, args.labels, args.folder), args.scan, args.minutes)


if __name__ == "__main__":
    main()
