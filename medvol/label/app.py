"""The MONAI Label app: which tasks the server offers for which bundle.

Runs in the environment of :mod:`medvol.label.environment` and nowhere else.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from monailabel.config import settings  # pyright: ignore[reportMissingImports]
from monailabel.interfaces.app import MONAILabelApp  # pyright: ignore[reportMissingImports]
from monailabel.tasks.activelearning.first import First  # pyright: ignore[reportMissingImports]
from monailabel.tasks.activelearning.random import Random  # pyright: ignore[reportMissingImports]

from medvol import __version__
from medvol.core.errors import ConfigError, MissingInputError, error_line
from medvol.label.batch import BatchInference
from medvol.label.datastore import DicomWebDatastore, OverlayDatastore, dicomweb_client
from medvol.label.infer import GradCamTask, InferTask
from medvol.label.scoring import MostUncertain, UncertaintyScoring, read_notes
from medvol.label.seg import SegWriter
from medvol.label.sessions import SafeSessions
from medvol.label.train import FineTuning
from medvol.label.workplace import family_of


class MedvolLabelApp(MONAILabelApp):
    """Bundles for inference, fine-tuning and active learning over one datastore.

    Args:
        app_dir: Holds the bundles below ``model``.
        studies: Folder of the overlay, or URL of a DICOMweb server.
        conf: ``models`` names the bundles, separated by commas.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        self.bundles = {name: Path(app_dir) / "model" / name for name in names}
        self.metadata = {
            name: json.loads((path / "configs" / "metadata.json").read_text("utf-8"))
            for name, path in self.bundles.items()
        }
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name=f"medvol {__version__}",
            description="medvol's bundles: " + ", ".join(names),
            version=__version__,
        )

    @cached_property
    def _safe_sessions(self) -> SafeSessions | None:
        stock = super().sessions()
        return None if stock is None else SafeSessions(stock.store_path, stock.expiry)

    def sessions(self) -> Any:
        """Sessions that unpack what clients send by medvol's rules."""
        return self._safe_sessions

    def segmenters(self) -> list[str]:
        """Names of the bundles that make label maps."""
        return [name for name, meta in self.metadata.items() if family_of(meta) == "segmentation"]

    def scores(self) -> dict[str, Any]:
        """Uncertainty of the images by the first segmentation bundle, for the start page."""
        names = self.segmenters()
        return read_notes(self._notes(names[0]))["scores"] if names else {}

    def init_infers(self) -> dict[str, Any]:
        """One task per bundle, and one more per classifier, for the map of what it looked at."""
        tasks: dict[str, Any] = {}
        for name, path in self.bundles.items():
            tasks[name] = InferTask(path, self.conf, family_of(self.metadata[name]))
            if family_of(self.metadata[name]) == "classification":
                tasks[f"{name}_gradcam"] = GradCamTask(path, self.conf)
        return tasks

    def init_trainers(self) -> dict[str, Any]:
        """One per bundle that learns from label maps."""
        found = {name: FineTuning(self.bundles[name], self.conf) for name in self.segmenters()}
        return {name: task for name, task in found.items() if task.is_valid()}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Uncertainty of every segmentation bundle."""
        valid = [name for name in self.segmenters() if self._infers[name].is_valid()]
        return {
            f"uncertainty_{name}": UncertaintyScoring(self._infers[name], self._notes(name))
            for name in valid
        }

    def init_strategies(self) -> dict[str, Any]:
        """Most uncertain first, by entropy and, for ensembles, by what members disagree on."""
        found: dict[str, Any] = {"random": Random(), "first": First()}
        names = self.segmenters()
        for name in names:
            tail = "" if len(names) == 1 else f"_{name}"
            notes = self._notes(name)
            found[f"uncertainty{tail}"] = MostUncertain(notes, "entropy")
            if self._infers[name].is_valid() and self._infers[name].is_ensemble:
                found[f"disagreement{tail}"] = MostUncertain(notes, "mutual_information")
        return found

    def init_batch_infer(self) -> Any:
        """All images in a row, one bad image stops no other."""
        return BatchInference()

    def init_datastore(self) -> Any:
        """The overlay, or a DICOMweb server."""
        seg = SegWriter(self._seg_labels())
        if self.studies.startswith(("http://", "https://")):
            self.studies = self.studies.rstrip("/").strip()
            codes = os.environ.get("MEDVOL_LABEL_MODALITIES", "")
            return DicomWebDatastore(
                dicomweb_client(self.studies),
                tuple(code for code in codes.split(",") if code),
                settings.MONAI_LABEL_DICOMWEB_CACHE_PATH,
                seg,
            )
        return OverlayDatastore(self.studies, settings, seg)

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """MONAI Label's inference, with one-line errors for what it would answer by a bare 500.

        Raises:
            MissingInputError: If there is no such model or image.
            ConfigError: If the model has no weights yet.
        """
        name, image = request.get("model"), request.get("image")
        task = self._infers.get(name)
        if task is None:
            known = ", ".join(sorted(self._infers))
            raise MissingInputError(f"no model {name!r} here; there are: {known}")
        if not task.is_valid():  # weights may have come since
            self._infers[name] = task = type(task)(task.bundle, self.conf, task.family)
        if not task.is_valid():
            raise ConfigError(f"{name} has no weights yet; train it first")
        store = datastore or self.datastore()
        if isinstance(image, str) and not _is_upload(image) and image not in store.list_images():
            raise MissingInputError(f"no image {image!r} in the datastore")
        return super().infer(dict(request), datastore)

    def train(self, request: Mapping[str, Any]) -> Any:
        """Fine-tune; in a process of its own an error becomes the task's last line."""
        try:
            return super().train(dict(request))
        except Exception as error:
            line = error_line(error)
            if line is None or self._server_mode:
                raise
            raise SystemExit(f"medvol: {line}") from error

    def next_sample(self, request: Mapping[str, Any]) -> Any:
        """The next image to label; MONAI Label would score every image again at each call."""
        is_updating, self._auto_update_scoring = self._auto_update_scoring, False
        try:
            return super().next_sample(dict(request))
        finally:
            self._auto_update_scoring = is_updating

    def bundle_path(self, model: str) -> str | None:
        """Nothing: a bundle's code lives in medvol, so no path is added for it."""
        return None

    def _local_request(self, url: str, params: Any, action: str) -> Any:
        token = os.environ.get("MEDVOL_LABEL_TOKEN", "")
        here = f"http://127.0.0.1:{settings.MONAI_LABEL_SERVER_PORT}"
        answer = requests.post(
            os.environ.get("MEDVOL_LABEL_URL", here) + url,
            json=params or {},
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            verify=False,  # our own process; its certificate is for other names
        )
        return answer.json() if answer.ok else None

    def _notes(self, name: str) -> Path:
        folder = Path(self.app_dir) / "scores"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.json"

    def _seg_labels(self) -> dict[str, dict[int, str]]:
        found = {}
        for name in self.segmenters():
            config = json.loads((self.bundles[name] / "configs" / "inference.json").read_text())
            found[name] = {int(value): str(label) for value, label in config["labels"].items()}
        return found


def _is_upload(path: str) -> bool:
    """Whether MONAI Label itself wrote the file from a request's body.

    Any other path of this machine would let a client read files that are not images of the store.
    """
    return os.path.dirname(os.path.realpath(path)) == os.path.realpath(tempfile.gettempdir())
