"""Training that goes on, or stops with one line and its last good state, whatever happens to it."""

from __future__ import annotations

import copy
import csv
import logging
import math
import os
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data.meta_tensor import MetaTensor
from monai.engines.evaluator import SupervisedEvaluator
from monai.engines.trainer import SupervisedTrainer
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose

from medvol.core.errors import (
    ConfigError,
    InputError,
    MedvolError,
    MissingPackageError,
    NonFiniteError,
    OutputError,
    TooLargeError,
    error_line,
)
from medvol.engines import (
    Budget,
    CaseDataset,
    CaseLoader,
    Checkpoint,
    EarlyStop,
    EpochSampler,
    EpochTable,
    StepWithinMemory,
    StopOnNonFinite,
    Tracker,
    load_checkpoint,
    plain_batch,
    tracking,
)


def cases(n: int = 6) -> list[dict]:
    rows = []
    for index in range(n):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(1, 4, 4, generator=generator)
        meta = {"filename_or_obj": f"case_{index}.nii.gz"}
        rows.append({"image": MetaTensor(image, meta=meta), "label": 2 * image.sum((1, 2))})
    return rows


def trainer(epochs=3, handlers=(), step=None, batch=2, loader=None, network=None, rate=0.01):
    torch.manual_seed(0)
    network = network or torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1))
    if loader is None:
        dataset = CaseDataset(cases(), dict, num_workers=1)
        loader = CaseLoader(dataset, EpochSampler(dataset, batch_size=batch), batch_size=batch)
    return SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=loader, network=network,
        optimizer=torch.optim.SGD(network.parameters(), rate, momentum=0.9),
        loss_function=torch.nn.MSELoss(), prepare_batch=plain_batch, decollate=False,
        train_handlers=list(handlers), iteration_update=step,
    )  # fmt: skip


class Scores:
    """A validator that is as good as it is asked to be, epoch by epoch."""

    def __init__(self, values=(), seconds=0.0):
        self.engine = SupervisedEvaluator(
            device=torch.device("cpu"), val_data_loader=[{"image": torch.zeros(1)}],
            network=torch.nn.Identity(), iteration_update=lambda *_: time.sleep(seconds) or {},
            decollate=False,
        )  # fmt: skip
        self.values = list(values)

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.judge)

    def judge(self, engine):
        state, value = self.engine.state, self.values[engine.state.epoch - 1]
        if value > state.best_metric:
            state.best_metric, state.best_metric_epoch = value, engine.state.epoch


class Full(torch.nn.Module):
    """A network on a device that holds ``most`` cases at once."""

    def __init__(self, most):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1))
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(x)


def test_full_device_trains_on_in_parts_to_the_same_weights(caplog):
    whole, parts = Full(99), Full(1)
    parts.load_state_dict(whole.state_dict())
    trainer(network=whole, step=StepWithinMemory(), batch=3).run()
    with caplog.at_level(logging.WARNING, "medvol"):
        step = StepWithinMemory()
        trainer(network=parts, step=step, batch=3).run()
    assert step.parts == 3
    warned = [r.getMessage() for r in caplog.records if r.name.startswith("medvol.")]
    assert [text[:24] for text in warned] == ["out of memory in step 1 "] * 2
    assert "in 3 parts with accumulated gradients" in warned[-1]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_step_in_parts_reports_the_loss_of_the_whole_batch():
    losses = []
    for step in (StepWithinMemory(), StepWithinMemory()):
        step.parts = 1 + len(losses)
        engine = trainer(step=step, batch=3, epochs=1)
        engine.run()
        losses.append(float(engine.state.output["loss"].detach()))
        assert engine.state.output["pred"].shape == (3, 1)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_step_in_parts_takes_targets_of_several_tensors():
    class Outlines(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)), x

    def paired(batch, *args, **kwargs):
        image, label = plain_batch(batch, *args, **kwargs)
        return image, (label, image)

    losses = []
    for step in (StepWithinMemory(), StepWithinMemory()):
        step.parts = 1 + 2 * len(losses)
        torch.manual_seed(0)
        engine = trainer(step=step, batch=3, epochs=1, network=Outlines(16, 1))
        engine.prepare_batch = paired
        engine.loss_function = lambda pred, target: (pred[0] - target[0].float()).square().mean()
        engine.run()
        losses.append(float(engine.state.output["loss"].detach()))
        assert [one.shape[0] for one in engine.state.output["pred"]] == [3, 3]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_patch_that_never_fits_is_rejected_with_a_way_out():
    with pytest.raises(TooLargeError, match="--gradient_checkpointing true"):
        trainer(network=Full(0), step=StepWithinMemory()).run()


def test_other_errors_are_not_taken_for_a_full_device():
    class Broken(Full):
        def forward(self, x):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(network=Broken(1), step=StepWithinMemory()).run()


def test_number_of_parts_is_resumed(tmp_path):
    step = StepWithinMemory()
    engine = trainer(epochs=1, network=Full(1), step=step)
    Checkpoint(tmp_path, {"network": engine.network}, extras={"step": step}).attach(engine)
    engine.run()
    again = StepWithinMemory()
    engine = trainer(epochs=2, network=Full(1), step=again)
    keep = Checkpoint(
        tmp_path, {"network": engine.network}, is_resumed=True, extras={"step": again}
    )
    keep.attach(engine)
    engine.run()
    assert again.parts == 2


@pytest.mark.parametrize("averaged", [False, True])
def test_the_last_epochs_weights_are_kept_without_any_validation(tmp_path, averaged):
    engine = trainer(epochs=2)
    objects = {"network": engine.network}
    if averaged:
        objects["ema"] = copy.deepcopy(engine.network)
    Checkpoint(tmp_path, objects).attach(engine)
    engine.run()
    kept = torch.load(tmp_path / "model_last.pt", weights_only=True)
    want = objects["ema" if averaged else "network"].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in want.items())


def killer(marker, index):
    """An augmentation that kills its own worker the first time that it meets a case."""

    def augment(case):
        if case["number"] == index and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return case

    return augment


def test_killed_worker_costs_no_sample_and_is_stated(tmp_path, caplog):
    rows = [{"image": torch.full((1,), float(i)), "number": i} for i in range(8)]

    def seen(augment):
        dataset = CaseDataset(rows, dict, augment, num_workers=1)
        loader = CaseLoader(dataset, EpochSampler(dataset), batch_size=2, num_workers=2)
        return [batch["number"].tolist() for _ in range(2) for batch in loader]

    with caplog.at_level(logging.WARNING, "medvol"):
        got = seen(killer(tmp_path / "killed", 5))
    assert (tmp_path / "killed").exists()
    assert got == seen(dict)
    assert "new workers go on" in caplog.text


def test_what_a_living_worker_rejects_is_not_a_dead_worker():
    def reject(case):
        raise InputError(f"{case['case']}: holds NaN")

    dataset = CaseDataset([{"case": "scan7.nii.gz"}], Compose([reject]), cache_rate=0)
    loader = CaseLoader(dataset, EpochSampler(dataset), batch_size=1, num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert error_line(caught.value) == "scan7.nii.gz: holds NaN"


def test_workers_that_keep_dying_end_the_run_in_one_line(tmp_path):
    rows = [{"image": torch.zeros(1), "number": i} for i in range(2)]
    dataset = CaseDataset(rows, dict, killer(tmp_path / "no" / "such", 0), num_workers=1)
    loader = CaseLoader(dataset, EpochSampler(dataset), batch_size=2, num_workers=1)
    dataset.augmentation = lambda case: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(MedvolError, match="--num_workers"):
        list(loader)


def test_nan_loss_names_its_case_and_step_and_keeps_the_last_good_checkpoint(tmp_path):
    class Poisoned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = torch.nn.Linear(16, 1), 0

        def forward(self, x):
            self.calls += 1
            factor = torch.ones(len(x), 1)
            factor[1] = math.nan if self.calls == 5 else 1.0
            return self.inner(x.flatten(1)) * factor

    engine = trainer(network=Poisoned(), handlers=[StopOnNonFinite()])
    Checkpoint(tmp_path, {"network": engine.network}).attach(engine)
    with pytest.raises(NonFiniteError) as caught:
        engine.run()
    assert "in step 5 (epoch 2)" in str(caught.value)
    assert str(caught.value).count("case_") == 1
    kept = load_checkpoint(tmp_path / "last.pt")
    assert kept["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in kept["objects"]["network"].values())


def test_weights_that_are_not_finite_do_not_replace_the_last_good_ones(tmp_path):
    engine = trainer(epochs=2)

    @engine.on(Events.EPOCH_COMPLETED(once=2))
    def poison(engine):
        with torch.no_grad():
            engine.network[1].weight[0, 0] = math.nan

    Checkpoint(tmp_path, {"network": engine.network}).attach(engine)
    with pytest.raises(NonFiniteError, match="last good checkpoint is kept"):
        engine.run()
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_full_disk_keeps_the_last_good_checkpoint_and_states_so(tmp_path):
    engine = trainer(epochs=3)
    Checkpoint(tmp_path, {"network": engine.network}).attach(engine)
    size = {}

    @engine.on(Events.EPOCH_COMPLETED(once=1))
    def fill(engine):
        size["limit"] = resource.getrlimit(resource.RLIMIT_FSIZE)
        size["handler"] = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, size["limit"][1]))

    try:
        with pytest.raises(OutputError, match=r"last\.pt: cannot be written"):
            engine.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, size["limit"])
        signal.signal(signal.SIGXFSZ, size["handler"])
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_scaler_state_is_kept_and_restored(tmp_path):
    def run(epochs, is_resumed):
        engine = trainer(epochs)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0 if is_resumed else 8.0)
        # MONAI makes its own when the run begins, for CUDA only.
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e, "scaler", scaler))
        Checkpoint(tmp_path, {"network": engine.network}, is_resumed=is_resumed).attach(engine)
        engine.run()
        return scaler.state_dict()

    assert run(1, is_resumed=False)["scale"] == 8.0
    assert load_checkpoint(tmp_path / "last.pt")["scaler"]["scale"] == 8.0
    assert run(1, is_resumed=True)["scale"] == 8.0


def test_training_ends_after_its_patience_and_stays_ended(tmp_path):
    scores = Scores([0.5, 0.7, 0.6, 0.6, 0.9, 0.9])

    def run(is_resumed):
        engine = trainer(6, [scores, EarlyStop(scores.engine, 2)])
        Checkpoint(tmp_path, {"network": engine.network}, scores.engine,
                   is_resumed=is_resumed).attach(engine)  # fmt: skip
        engine.run()
        return load_checkpoint(tmp_path / "last.pt")

    first = run(is_resumed=False)
    assert (first["epoch"], first["best"]["best_metric_epoch"]) == (4, 2)
    assert run(is_resumed=True)["iteration"] == first["iteration"]


def slow(engine):
    time.sleep(0.02)


def test_budget_is_kept_within_five_percent_and_the_rate_runs_down(tmp_path):
    seconds, scores = 4.0, Scores(seconds=0.1)
    start = time.time()
    budget = Budget(seconds, scores.engine)
    engine = trainer(epochs=7)
    engine.add_event_handler(Events.ITERATION_COMPLETED, slow)
    budget.lr_scheduler = WarmupCosineSchedule(engine.optimizer, 0, 20)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: budget.lr_scheduler.step())
    budget.attach(engine)
    Checkpoint(tmp_path, {"network": engine.network}, extras={"budget": budget}).attach(engine)
    rates = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"])
    )
    engine.run()
    assert time.time() - start == pytest.approx(seconds, rel=0.05)
    assert budget.validated_epoch == engine.state.epoch
    assert rates[-1] < 0.1 * max(rates)
    assert load_checkpoint(tmp_path / "last.pt")["extras"]["budget"]["spent_s"] > 0.8 * seconds


def test_budget_counts_the_time_of_the_run_that_it_continues(tmp_path):
    scores = Scores()
    budget = Budget(5.0, scores.engine)
    budget.load_state_dict({"spent_s": 4.8, "trained_s": 4.0, "validation_s": 0.1})
    engine = trainer(epochs=7)
    engine.add_event_handler(Events.ITERATION_COMPLETED, slow)
    budget.attach(engine)
    start = time.time()
    engine.run()
    assert time.time() - start < 1.0


def test_no_budget_changes_nothing():
    scores = Scores()
    engine = trainer(epochs=2)
    budget = Budget(None, scores.engine)
    budget.attach(engine)
    engine.run()
    assert engine.state.epoch == 2
    assert budget.state_dict() == {}


def tracked(tmp_path, kind, epochs=2, is_resumed=False):
    table = EpochTable(tmp_path)
    engine = trainer(epochs, [table])
    Tracker(kind, tmp_path, table).attach(engine)
    Checkpoint(tmp_path, {"network": engine.network}, is_resumed=is_resumed).attach(engine)
    engine.run()
    with (tmp_path / "epochs.csv").open(newline="") as handle:
        return [float(row["loss"]) for row in csv.DictReader(handle)]


def test_tensorboard_holds_the_table(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    want = tracked(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert losses == pytest.approx(dict(enumerate(want, 1)), rel=1e-5)


@pytest.mark.slow  # MLflow takes seconds to import and to make its store
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_table_and_a_resumed_run_goes_on_in_it(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    tracked(tmp_path, "mlflow", epochs=1)
    want = tracked(tmp_path, "mlflow", epochs=2, is_resumed=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([client.get_experiment_by_name("medvol").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    losses = {m.step: m.value for m in client.get_metric_history(runs[0].info.run_id, "loss")}
    assert losses == pytest.approx(dict(enumerate(want, 1)))


def test_mlflow_is_given_no_name_that_it_rejects():
    sink, names = tracking._MLflow.__new__(tracking._MLflow), []
    sink.run = "run"
    sink.client = SimpleNamespace(log_metric=lambda run, key, value, step: names.append(key))
    sink.log({"val_mean_dice_tumour (left)+": 0.5, "lr:0": 0.1, "leber_größe": 0.2}, 1)
    assert names == ["val_mean_dice_tumour _left__", "lr_0", "leber_größe"]


def test_unknown_or_missing_tracker_is_rejected(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tensorboard, mlflow"):
        Tracker("wandb", tmp_path, EpochTable(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(MissingPackageError, match=r"medvol\[track\]"):
        Tracker("mlflow", tmp_path, EpochTable(tmp_path))
