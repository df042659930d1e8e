"""medvol from Python: what the verbs do, for one call in a script or a notebook."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvol.core.errors import ConfigError, InputError, error_line
from medvol.io import read_image

if TYPE_CHECKING:
    from medvol.bundle import Bundle
    from medvol.evaluation import Evaluation
    from medvol.inferers import Prediction
    from medvol.runners import Session

__all__ = ["bundles", "evaluate", "predict", "read_image"]


def bundles() -> list[Bundle]:
    """The bundles that ship with medvol, by name; only their metadata is read.

    >>> "brain_mri_segmentation" in [bundle.name for bundle in bundles()]
    True
    """
    from medvol.bundle import list_bundles

    return list_bundles()


def predict(
    bundle: str | os.PathLike[str],
    image: str | os.PathLike[str],
    *,
    device: str = "",
    tta: bool | None = None,
    uncertainty: bool = False,
    probabilities: bool = False,
    max_ram: int | str | None = None,
    trust_bundle: bool = False,
    reader: Mapping[str, Any] | None = None,
) -> Prediction:
    """Segment one image; the same label map as ``medvol predict`` writes.

    The bundle last used stays loaded, so that a loop over images builds it once.

    Args:
        bundle: Name of a shipped bundle, or a bundle's folder.
        image: Image file, or folder of one DICOM series.
        device: ``cpu``, ``cuda`` or ``cuda:1``; empty chooses a GPU where there is one.
        tta: Turn the bundle's mirrors on or off; None keeps them.
        uncertainty: Add entropy maps in nats and an interval in ml for each volume.
        probabilities: Add the probabilities, shape (X, Y, Z, C).
        max_ram: Ceiling of memory, in bytes or as text such as ``6GB``.
        trust_bundle: Run the code of a bundle that is not shipped.
        reader: Arguments of :class:`medvol.io.MedvolReader`, for example ``{"series": 2}``.

    Returns:
        Labels of shape (X, Y, Z) on the image's own grid, and what else was asked for.

    Raises:
        MedvolError: In one line: the bundle or the image is missing, unsafe or not supported.
    """
    import torch

    from medvol.inferers import parse_bytes

    given = tuple(sorted((reader or {}).items()))
    ceiling = parse_bytes(max_ram) if isinstance(max_ram, str) else max_ram
    formats = ("nifti", "probabilities") if probabilities else ("nifti",)
    session = _session(os.fspath(bundle), device, tta, uncertainty, formats, ceiling,
                       trust_bundle, given)  # fmt: skip
    try:
        with torch.inference_mode():
            prediction = session.predict(session.prepare(os.fspath(image)))
    except RuntimeError as error:  # MONAI wraps whatever a transform raises
        if (line := error_line(error)) is None:
            raise
        raise InputError(line) from error
    return replace(prediction, names=prediction.names or dict(session.labels))


def evaluate(
    pred: str | os.PathLike[str],
    ref: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    **options: Any,
) -> Evaluation:
    """Score label maps against references; the same numbers as ``medvol evaluate masks``.

    Args:
        pred: Label map, or folder of label maps as ``medvol predict`` writes it.
        ref: Reference label map; or folder of them, or a data set that names them.
        output: Folder to keep the tables in; without it none is kept.
        jobs: Processes; the numbers do not depend on it.
        options: Further fields of :class:`medvol.evaluation.MaskOptions`, for example
            ``by=("site",)``, ``metrics=("dice", "hd95")`` or ``taus_mm=(1.0,)``.

    Raises:
        ConfigError: If an option is unknown.
        MedvolError: If label maps cannot be read, paired or compared.
    """
    from medvol.evaluation import MaskOptions, evaluate_segmentation

    known = {field.name for field in fields(MaskOptions)} - {"pred", "ref", "output"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"evaluate has no option {unknown[0]!r}; "
                          f"choose from {', '.join(sorted(known))}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch if output is None else output)
        asked = MaskOptions(Path(pred), Path(ref), kept, **options)
        found = evaluate_segmentation(asked, jobs=jobs)
    return found if output is not None else replace(found, output=None)


@lru_cache(maxsize=1)
def _session(
    bundle: str,
    device: str,
    tta: bool | None,
    uncertainty: bool,
    formats: tuple[str, ...],
    max_ram: int | None,
    trust_bundle: bool,
    reader: tuple[tuple[str, Any], ...],
) -> Session:
    from medvol.runners import PredictOptions, Session

    return Session(
        PredictOptions(
            bundle, tempfile.gettempdir(), formats, device=device, tta=tta,
            uncertainty=uncertainty, max_ram=max_ram, trust_bundle=trust_bundle,
            reader=dict(reader),
        )
    )  # fmt: skip
