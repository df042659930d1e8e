"""prediction.json: what was done to a case, and whether it need be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medvol.core.errors import ConfigError
from medvol.core.files import output_path, sha256_file, write_json

FORMATS = ("nifti", "dicomseg", "sr", "probabilities")
#: Name of the record in a case's folder; it is written last, so that it completes the rest.
RECORD = "prediction.json"
#: Every other file that a prediction may write into a case's folder.
RESULTS = frozenset(
    {"seg.nii.gz", "seg.dcm", "sr.dcm", "aleatoric.nii.gz", "epistemic.nii.gz",
     "probabilities.nii.gz"}
)  # fmt: skip


_RELEVANT = ("formats", "tta", "uncertainty", "reader")


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction; plain values, so that any runner can carry them.

    Attributes:
        bundle: Shipped name or folder.
        output: Folder of results, one folder a case.
        formats: Out of ``nifti``, ``dicomseg``, ``sr`` and ``probabilities`` (every channel of
            the network on the scan's grid, the last axis of one NIfTI file).
        device: ``cpu``, ``cuda``, ``cuda:1``; empty chooses.
        tta: Turn the bundle's mirrors on or off; None keeps them.
        uncertainty: Write maps, volume intervals and a review flag.
        max_ram: Ceiling in bytes.
        max_gpu: Ceiling in bytes.
        trust_bundle: Run the code of a bundle that is not shipped.
        threads: Threads of the network per process; 0 keeps PyTorch's choice.
        engine: ``torch``, ``openvino``, ``onnx`` or ``torchscript``.
        ensemble: Checkpoints or bundles whose mean takes the place of the bundle's own weights.
        reader: What inputs leave open: arguments of
            ``medvol.io.MedvolReader`` such as ``resample_tilt`` and ``series``.
    """

    bundle: str
    output: str
    formats: tuple[str, ...] = ("nifti",)
    device: str = ""
    tta: bool | None = None
    uncertainty: bool = False
    max_ram: int | None = None
    max_gpu: int | None = None
    trust_bundle: bool = False
    threads: int = 0
    engine: str = "torch"
    ensemble: tuple[str, ...] = ()
    reader: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.formats) - set(FORMATS):
            raise ConfigError(f"format {sorted(unknown)[0]!r} is unknown; choose from {FORMATS}")
        if not self.formats:
            raise ConfigError(f"no format is named; choose from {FORMATS}")
        if "sr" in self.formats and "dicomseg" not in self.formats:
            object.__setattr__(self, "formats", (*self.formats, "dicomseg"))

    def digest(self) -> str:
        """Of everything that may change a result; not of where or within what it is computed."""
        relevant = {k: v for k, v in asdict(self).items() if k in _RELEVANT}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


@dataclass
class Record:
    """One case's line in the run, and the content of its ``prediction.json``.

    Attributes:
        case: The case's name.
        status: ``done``, ``rejected`` (the input is at fault) or ``failed`` (the run is).
        reason: One line for the last two.
        bundle: Name, version and digests of config and weights.
        input: The image, relative to the folder of results.
        input_sha256: Digest of the image.
        options_sha256: Digest of what was asked.
        device: Where the network ran.
        seconds: Per phase.
        peak_ram_bytes: Largest resident size of the process so far.
        peak_gpu_bytes: Largest allocation on the GPU for this case.
        predicted: The plan, as it was before the run.
        fallback: Which more frugal attempt succeeded, if one was needed.
        outputs: Kind of result to file name.
        output_sha256: File name to the digest of what was written.
        structures: Per label: label, name, voxels, volume_ml and, with uncertainty, interval_ml.
        located: Of a whole scan given to a bundle of crops: the structures that were located,
            their boxes in voxels, their volumes as located and as predicted.
        regions: Region name to the label values that it joins, where the bundle predicts regions.
        ignore_label: Label value that the bundle's training left out, if any.
        is_training_case: Whether the weights were trained on this image; None where they do not
            come with a record of it.
        review: Whether a person should look, and why.
        is_resumed: Whether an earlier run's result was kept; not stored.
    """

    case: str
    status: str = "done"
    reason: str = ""
    bundle: dict[str, Any] = field(default_factory=dict)
    input: str = ""
    input_sha256: str = ""
    options_sha256: str = ""
    device: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_ram_bytes: int = 0
    peak_gpu_bytes: int = 0
    predicted: dict[str, Any] = field(default_factory=dict)
    fallback: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    output_sha256: dict[str, str] = field(default_factory=dict)
    structures: list[dict[str, Any]] = field(default_factory=list)
    located: list[dict[str, Any]] = field(default_factory=list)
    regions: dict[str, list[int]] = field(default_factory=dict)
    ignore_label: int | None = None
    is_training_case: bool | None = None
    review: dict[str, Any] = field(default_factory=lambda: {"flag": False, "reason": ""})
    is_resumed: bool = False

    def save(self, out: str) -> None:
        """Write ``prediction.json`` into the case's folder."""
        content = {"schema": 1, **asdict(self)}
        content.pop("is_resumed")
        write_json(case_folder(out, self.case) / RECORD, content)


#: Called with each case's record as it is done.
Report = Callable[[Record], None]


def case_folder(out: str, case: str) -> Path:
    """The folder of one case's results."""
    return output_path(out, case)


def earlier(out: str, case: str, wanted: Mapping[str, Any]) -> Record | None:
    """The record of a finished case whose inputs, bundle and options are the ones wanted.

    A result that was emptied, cut or edited since does not count as finished.

    Args:
        output: Folder of results.
        case: Name of the case.
        wanted: Fields that must agree: ``bundle``, ``input_sha256``, ``options_sha256``.
    """
    found = stored(out, case)
    if found is None or found.status != "done":
        return None
    if any(getattr(found, key) != value for key, value in wanted.items()):
        return None
    folder = case_folder(out, case)
    is_whole = all(
        (folder / name).is_file() and sha256_file(folder / name) == found.output_sha256.get(name)
        for name in found.outputs.values()
    )
    return found if is_whole else None


def stored(out: str, case: str) -> Record | None:
    """The record that lies in a case's folder, if any."""
    try:
        content = json.loads((case_folder(out, case) / RECORD).read_text(encoding="utf-8"))
        content.pop("schema")
        return Record(**{**content, "is_resumed": True})
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def sweep(out: str, case: str) -> None:
    """Clear a case's folder of an outdated result and of what a killed run left there.

    The record goes first, so that none certifies a result that is being replaced.
    """
    folder = case_folder(out, case)
    if not folder.is_dir():
        return
    (folder / RECORD).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_file() and (path.name in RESULTS or path.name.startswith(".")):
            path.unlink()
