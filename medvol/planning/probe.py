"""A short real run of a bundle in a process of its own: what its parts cost on this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from medvol.core.errors import ConfigError
from medvol.core.memory import peak_ram_bytes
from medvol.planning.forecast import Costs

_STEPS = 8
_WARM = 2


def measure_costs(
    bundle: Path, train: Sequence[dict[str, Any]], validate: Sequence[dict[str, Any]], device: str
) -> Costs:
    """Train a written bundle on a few cases for a few steps, as a user would.

    Args:
        bundle: The bundle's folder.
        train: Datalist entries that stand for the training cases.
        validate: Entries that stand for the validation cases.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If the run fails; the line is its last one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request = Path(scratch) / "request.json"
        entries = {"train": list(train), "validate": list(validate)}
        asked = {"bundle": str(bundle), "cases": entries, "device": device, "scratch": scratch,
                 "request": str(request)}  # fmt: skip
        request.write_text(json.dumps(asked), "utf-8")
        command = [sys.executable, "-m", "medvol.planning.probe", str(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        answer = Path(scratch) / "answer.json"
        if done.returncode or not answer.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise ConfigError(f"{bundle}: a trial run failed: {lines[-1]}")
        return Costs(**json.loads(answer.read_text()))


def run_probe(asked: dict[str, Any]) -> Costs:
    """The short run itself, inside its own process."""
    from monai.bundle import ConfigWorkflow

    entries = asked["cases"]
    config = Path(asked["bundle"]) / "configs" / "train.json"
    epochs = _epochs(len(entries["train"]), json.loads(config.read_text("utf-8"))["batch_size"])
    workflow = ConfigWorkflow(
        config_file=str(config),
        logging_file=False,
        dataset_dir=asked["scratch"],
        output_dir=str(Path(asked["scratch"]) / "run"),
        cases=cases_from(asked["request"]),
        max_epochs=epochs,
        val_interval=epochs,
        patience=epochs,
        cache_rate=1.0,
        device=f"$torch.device('{asked['device']}')",
    )
    workflow.initialize()
    parser = workflow.parser
    parser.get_parsed_content("network")
    loading = time.time()
    train = parser.get_parsed_content("train#dataset")
    validate = parser.get_parsed_content("validate#dataset")
    loaded = time.time()
    trainer = parser.get_parsed_content("train#trainer")
    clock = _Clock()
    clock.attach(trainer, parser.get_parsed_content("validate#evaluator"))
    built = time.time() - loaded
    workflow.run()
    held = len(train) + len(validate)
    bytes_ = sum(_case_bytes(case) for case in [*train.cached, *validate.cached])
    startup = loading - psutil.Process().create_time() + built
    return Costs(
        startup_s=startup,
        case_s=(loaded - loading) / held,
        step_s=clock.step_s,
        epoch_s=clock.epoch_s,
        validation_case_s=clock.validation_s / len(validate),
        peak_bytes=_peak_bytes(asked["device"]),
        case_bytes=bytes_ // held,
        cached=held,
        share=clock.share if asked["device"] == "cpu" else 1.0,
    )


def cases_from(request: str) -> str:
    """Config expression for the cases of a request.

    Written out in the config, a case whose name begins with a ``$`` would be run as code.
    """
    text = f"__import__('pathlib').Path({request!r}).read_text('utf-8')"
    return f"$__import__('json').loads({text})['cases']"


def _epochs(cases: int, batch_size: int) -> int:
    """Epochs that hold the steps to measure and those before, in which the machine warms up.

    >>> _epochs(6, 2), _epochs(6, 16)
    (4, 10)
    """
    return max(1, math.ceil((_WARM + _STEPS) / math.ceil(cases / batch_size)))


class _Clock:
    """Notes when steps and validations begin and end."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validation_s = self.cpu_s = self.wall_s = 0.0
        self.last_step = self.began = self.ended = 0.0

    def attach(self, trainer: Any, evaluator: Any) -> None:
        from ignite.engine import Events

        def step(_: Any) -> None:
            now = time.perf_counter()
            self.steps.append(now - self.last_step)
            self.last_step = now

        def start(_: Any) -> None:
            self.last_step = time.perf_counter()
            self.cpu_s -= time.process_time()
            self.wall_s -= self.last_step

        def stop(_: Any) -> None:
            self.cpu_s += time.process_time()
            self.wall_s += time.perf_counter()

        def validating(_: Any) -> None:
            self.began = time.perf_counter()

        def validated(_: Any) -> None:
            self.validation_s = time.perf_counter() - self.began

        def end(_: Any) -> None:
            self.ended = time.perf_counter()

        trainer.add_event_handler(Events.EPOCH_STARTED, start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, stop)
        trainer.add_event_handler(Events.COMPLETED, end)
        evaluator.add_event_handler(Events.STARTED, validating)
        evaluator.add_event_handler(Events.COMPLETED, validated)

    @property
    def step_s(self) -> float:
        """Mean of the steps after the first two, the slowest left out where there are many."""
        steps = sorted(self.steps[_WARM:] or self.steps)
        kept = steps[: max(1, round(len(steps) * 0.9))]
        return sum(kept) / len(kept) if len(kept) > 2 else median(kept)

    @property
    def share(self) -> float:
        """Part of the processors that the run was given, by its threads; about 1 where alone."""
        import torch

        return self.cpu_s / max(self.wall_s, 1e-9) / torch.get_num_threads()

    @property
    def epoch_s(self) -> float:
        """From the last step to the end, without the validation."""
        return max(0.0, self.ended - self.last_step - self.validation_s)


def _case_bytes(case: Any) -> int:
    import torch

    tensors = [value for value in case.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak_bytes(device: str) -> int:
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    return peak_ram_bytes()


def main() -> None:
    """Entry point of the process: the request's path is the only argument."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    os.environ.pop("MEDVOL_PROGRESS", None)
    costs = run_probe(asked)
    (Path(asked["scratch"]) / "answer.json").write_text(json.dumps(asdict(costs)))


if __name__ == "__main__":
    main()
