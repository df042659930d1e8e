"""Every image of the store in a row, with progress; one bad image stops no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.batch_infer import (  # pyright: ignore[reportMissingImports]
    BatchInferTask,
)
from monailabel.utils.others.generic import name_to_device  # pyright: ignore[reportMissingImports]

from medvol.core.errors import error_line

logger = logging.getLogger(__name__)


class BatchInference(BatchInferTask):
    """MONAI Label's, but without its division by the number of GPUs and its stop at a bad image.

    Its log lines ``batch 3/10`` are what ``GET /batch/infer`` shows as ``details``.
    """

    def __call__(
        self, request: Mapping[str, Any], datastore: Any, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        """Label every chosen image; the result names what was saved or why not, by image."""
        images = sorted(self.get_images(dict(request), datastore))
        images = images[: int(request.get("max_batch_size", 0)) or None]
        device, found = name_to_device(request.get("device", "cuda")), {}
        for done, image in enumerate(images, 1):
            start = time.monotonic()
            asked = {**request, "image": image, "device": device, "save_label": True,
                      "label_tag": request.get("label_tag", "original")}  # fmt: skip
            found[image] = _one(asked, datastore, infer)
            state = found[image].get("rejected", "done")
            seconds = time.monotonic() - start
            logger.info("batch %d/%d (%s) %.1f s: %s", done, len(images), image, seconds, state)
        return found


def _one(
    asked: Mapping[str, Any], datastore: Any, infer: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    try:
        result = infer(asked, datastore)
    except Exception as error:
        line = error_line(error)
        if line is None:
            raise
        return {"rejected": line}
    if written := result.pop("file", None):  # saved in the store by now
        Path(written).unlink(missing_ok=True)
    return result
