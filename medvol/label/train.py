"""Fine-tuning a bundle on submitted labels, after input checks and the anatomy policy."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.tasks.train.bundle import BundleTrainTask  # pyright: ignore[reportMissingImports]
from monailabel.utils.others.generic import name_to_device  # pyright: ignore[reportMissingImports]

from medvol.bundle import load, run_task
from medvol.core.errors import InputError, MissingInputError, PolicyError
from medvol.core.files import atomic_path
from medvol.engines import load_checkpoint
from medvol.label.datastore import staged_pairs
from medvol.networks import join_states, load_weights, members_in
from medvol.transforms import policy_violations

logger = logging.getLogger(__name__)
_FEWEST_FOR_VALIDATION = 5
_DEFAULT_EPOCHS = 20


class FineTuning(BundleTrainTask):
    """Trains with the bundle's own ``train.json`` and publishes the weights into the app's copy.

    Args:
        path: The bundle's folder inside the app.
        conf: The app's configuration.
    """

    def __init__(self, path: Path, conf: Mapping[str, str]) -> None:
        super().__init__(str(path), dict(conf), load_strict=True)
        self.bundle = path

    def config(self) -> dict[str, Any]:
        """What a client may choose."""
        return {
            "device": super().config()["device"],
            "pretrained": True,
            "max_epochs": _DEFAULT_EPOCHS,
            "val_split": 0.2,
        }

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Check the labels, train, publish.

        Raises:
            InputError: Naming the labels that cannot be used; nothing is trained then.
            PolicyError: If the bundle's augmentation is not allowed for its anatomy.
            MissingInputError: If no label was submitted.
        """
        config, facts = self._config("train"), self._config("metadata").get("medvol", {})
        labels = {int(value): str(name) for value, name in config["labels"].items()}
        if faults := policy_violations(config, facts["modality"], facts["body_part"], labels):
            raise PolicyError(f"{self.bundle.name}: {'; '.join(faults)}")
        pairs, rejected = staged_pairs(datastore, labels, self.bundle.parent.parent / "training"
                                      / self.bundle.name)  # fmt: skip
        if rejected:
            raise InputError(f"{len(rejected)} labels cannot be used: {'; '.join(rejected[:5])}")
        if not pairs:
            raise MissingInputError("no label was submitted yet; save one as final first")
        train, held = split_pairs(pairs, float(request.get("val_split", 0.2)))
        logger.info("training on %d cases, validating on %d", len(train), len(held))
        run = self.bundle / "runs" / time.strftime("%Y%m%d_%H%M%S")
        states = [
            self._train(request, train, held, run / str(index), start)
            for index, start in enumerate(self._starts(request))
        ]
        return self._publish(states, run, len(train), len(held))

    def _starts(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Weights to start from: the network's own, each member's of an ensemble, or none."""
        weights = self.bundle / "models" / "model.pt"
        if not request.get("pretrained", True) or not weights.is_file():
            return [{}]
        count = members_in(load_weights(weights)) or 1
        return [{"weights": str(weights), "member": member} for member in range(count)]

    def _train(
        self,
        request: Mapping[str, Any],
        train: Sequence[Mapping[str, str]],
        held: Sequence[Mapping[str, str]],
        out: Path,
        start: Mapping[str, Any],
    ) -> dict[str, Any]:
        epochs = int(request.get("max_epochs", _DEFAULT_EPOCHS))
        overrides = {
            "train#dataset#data": list(train),
            "validate#dataset#data": list(held),
            "device": f"$torch.device('{name_to_device(request.get('device', 'cuda'))}')",
            "output_dir": str(out),
            "max_epochs": epochs,
            "val_interval": max(1, epochs // 5) if held else epochs + 1,
            **start,
        }
        bundle = load(self.bundle, is_trusted=True)
        run_task(bundle, "train", overrides, out / "train.log", show=logger.info)
        if (best := out / "model.pt").is_file():
            return load_weights(best)
        # Nothing was held back to choose an epoch by: the average over the last steps.
        objects = load_checkpoint(out / "last.pt")["objects"]
        return dict(objects.get("ema", objects["network"]))

    def _publish(
        self, states: Sequence[dict[str, Any]], run: Path, n_train: int, n_held: int
    ) -> dict[str, Any]:
        """The new weights in one step; the old ones stay as ``model_previous.pt``."""
        weights = self.bundle / "models" / "model.pt"
        if weights.is_file():
            with atomic_path(weights.with_name("model_previous.pt")) as scratch:
                shutil.copyfile(weights, scratch)
        _save(states[0] if len(states) == 1 else join_states(states), weights)
        found = {"weights": str(weights), "run": str(run), "trained_on": n_train,
                 "validated_on": n_held}  # fmt: skip
        logger.info("published %s", found)
        return found

    def _config(self, name: str) -> dict[str, Any]:
        return json.loads((self.bundle / "configs" / f"{name}.json").read_text("utf-8"))


def split_pairs(
    pairs: Sequence[Mapping[str, str]], share: float
) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """Training and validation cases: the same case stays on its side however many join later.

    With fewer than five cases none is held back.
    """
    if share <= 0 or len(pairs) < _FEWEST_FOR_VALIDATION:
        return list(pairs), []
    ranked = sorted(pairs, key=lambda row: _place(row["case"]))
    n_held = max(1, sum(_place(row["case"]) < share for row in pairs))
    return ranked[n_held:], ranked[:n_held]


def _place(case: str) -> float:
    """A number from 0 to 1 that depends on the case's name alone."""
    return int(hashlib.sha256(case.encode()).hexdigest()[:8], 16) / 0x100000000


def _save(state: Mapping[str, Any], path: Path) -> None:
    import torch

    with atomic_path(path) as scratch:
        torch.save(dict(state), scratch)
