"""Scoring images by uncertainty, and serving them in descending order."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod  # pyright: ignore[reportMissingImports]
from monailabel.interfaces.tasks.strategy import Strategy  # pyright: ignore[reportMissingImports]
from monailabel.utils.others.generic import name_to_device  # pyright: ignore[reportMissingImports]

from medvol.core.errors import error_line
from medvol.core.files import sha256_file, write_json
from medvol.label.infer import InferTask
from medvol.label.uncertain import image_uncertainty

logger = logging.getLogger(__name__)


class UncertaintyScoring(ScoringMethod):
    """Scores every unlabelled image once per state of the weights; resumable image by image.

    Args:
        task: The bundle's inference task.
        notes: JSON file that the scores are kept in: MONAI Label's own record of an image is
            rewritten whole by two processes.
    """

    def __init__(self, task: InferTask, notes: Path) -> None:
        super().__init__(f"Uncertainty of {task.bundle.name} inside its predicted foreground")
        self.task, self.notes = task, notes

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Score; ``max_samples`` bounds how many images are scored in this call."""
        weights = sha256_file(self.task.get_path())
        notes = read_notes(self.notes)
        scores = notes["scores"] if notes.get("weights_sha256") == weights else {}
        labelled = set(datastore.get_labeled_images())
        wanted = [i for i in sorted(datastore.list_images()) if i not in labelled | set(scores)]
        wanted = wanted[: int(request.get("max_samples", 0)) or None]
        device = name_to_device(request.get("device", "cuda"))
        for done, image in enumerate(wanted, 1):
            scores[image] = self._score(datastore.get_image_uri(image), device)
            write_json(self.notes, {"weights_sha256": weights, "scores": scores})
            logger.info("scored %d/%d (%s): %s", done, len(wanted), image, scores[image])
        return scores

    def _score(self, image: str, device: str) -> dict[str, Any]:
        facts = self.task.metadata.get("medvol", {})
        try:
            x, network, inferer = self.task.prepared(image, device)
            found = image_uncertainty(
                inferer, x, network, body_part=facts.get("body_part"), labels=list(self.task.labels)
            )
        except Exception as error:
            line = error_line(error)
            if line is None:
                raise
            return {"rejected": line}
        return asdict(found)


class MostUncertain(Strategy):
    """Serves unlabelled images in descending order of one score, each once, then again.

    Images that have no score yet come last, in the order of their names; rejected ones never.

    Args:
        notes: Scores of :class:`UncertaintyScoring`.
        kind: ``entropy`` or ``mutual_information``.
    """

    def __init__(self, notes: Path, kind: str) -> None:
        super().__init__(f"Highest {kind.replace('_', ' ')} inside the predicted foreground first")
        self.notes, self.kind = notes, kind
        self._served: set[str] = set()

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any] | None:
        """The next image with its score and its place, or None where all are labelled."""
        scores = read_notes(self.notes)["scores"]
        images = [
            i for i in datastore.get_unlabeled_images() if "rejected" not in scores.get(i, {})
        ]
        if not images:
            return None
        order = sorted(images, key=lambda i: (-scores.get(i, {}).get(self.kind, -1.0), i))
        if set(order) <= self._served:
            self._served.clear()
        image = next(i for i in order if i not in self._served)
        self._served.add(image)
        score = scores.get(image, {}).get(self.kind)
        return {"id": image, self.kind: score, "rank": order.index(image) + 1, "of": len(order)}


def read_notes(path: Path) -> dict[str, Any]:
    """The scores that were kept; empty where nothing was scored."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"scores": {}}
