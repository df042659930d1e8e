"""A bundle's network in another engine, and the proof that its masks stay the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvol.core.errors import ConfigError, MissingInputError, WeightsError
from medvol.core.files import write_json
from medvol.core.geometry import Geometry
from medvol.inferers import compiled_openvino, convert_openvino, export, open_engine
from medvol.inferers.backends import FILES
from medvol.runners.record import PredictOptions

if TYPE_CHECKING:
    from medvol.runners.session import Session

#: Largest change that an export may make: in Dice, and in HD95 in millimetres.
DICE_TOLERANCE = 1e-3
HD95_TOLERANCE_MM = 0.1


@dataclass(frozen=True)
class Difference:
    """One label of one case before and after export.

    Attributes:
        case: Name of the case.
        label: Name of the structure.
        against: ``reference`` where the case has one; else ``torch``, and before is perfect.
        dice: Before and after.
        hd95_mm: Before and after.
    """

    case: str
    label: str
    against: str
    dice: tuple[float, float]
    hd95_mm: tuple[float, float]

    @property
    def is_equivalent(self) -> bool:
        """Whether both scores stay within tolerance; both undefined or both infinite is equal."""
        return _near(*self.dice, DICE_TOLERANCE) and _near(*self.hd95_mm, HD95_TOLERANCE_MM)


def engine_predictor(session: Session) -> Callable[[torch.Tensor], torch.Tensor]:
    """The predictor that the session's options ask for.

    OpenVINO is converted in memory unless the bundle holds an export; ONNX and TorchScript need
    one, and an export of other weights is refused.

    Raises:
        MissingInputError: If the bundle was not exported.
        WeightsError: If the export was made from other weights.
        ConfigError: If the window is not fixed, or the engine unknown.
    """
    engine, options = session.options.engine, session.options
    if engine == "torch":
        return session.network
    if engine not in FILES:
        raise ConfigError(f"engine {engine!r} is unknown; choose torch, {', '.join(FILES)}")
    path = session.bundle.path / "models" / FILES[engine]
    if path.is_file():
        _require_same_weights(session, path)
        return open_engine(engine, path, options.threads)
    if engine != "openvino":
        raise MissingInputError(
            f"{path}: is absent; make it with: medvol export {options.bundle} --to {engine}"
        )
    model = convert_openvino(session.network.cpu(), window_shape(session))
    return compiled_openvino(model, options.threads)


def window_shape(session: Session) -> tuple[int, ...]:
    """Channels and window of the bundle.

    Raises:
        ConfigError: If the bundle's window follows the image's size.
    """
    roi = getattr(session.inferer, "roi_size", None)
    if roi is None:
        raise ConfigError(f"{session.bundle.name}: predicts without windows; only segmentation "
                          "bundles run in other engines")  # fmt: skip
    if isinstance(roi, int) or min(roi) < 1:
        raise ConfigError(f"the window {roi} is not fixed, so that the network cannot be exported")
    return (session.in_channels, *(int(n) for n in roi))


def export_bundle(session: Session, to: str, folder: Path) -> Path:
    """Export the session's network into ``folder``, with a note of the weights it holds."""
    if to not in FILES:
        raise ConfigError(f"engine {to!r} is unknown; choose from {', '.join(FILES)}")
    path = export(session.network.cpu().eval(), to, folder / FILES[to], window_shape(session))
    write_json(_note(path), {"weights_sha256": session.identity["weights_sha256"]})
    return path


def compare_engines(
    session: Session, to: str, path: Path, cases: Sequence[dict[str, Any]]
) -> list[Difference]:
    """Score the exported network and the original on real cases.

    Args:
        session: The bundle, with its own network.
        to: Engine.
        path: What :func:`export_bundle` wrote.
        cases: ``image`` and, if known, ``label`` paths.
    """
    from medvol.metrics import surface_report
    from medvol.runners.predict import label_image

    exported = open_engine(to, path, session.options.threads)
    rows = []
    for case in cases:
        name = str(case.get("case") or Path(str(case["image"])).name)
        before, source = label_image(session, case["image"], session.network)
        after, _ = label_image(session, case["image"], exported)
        reference, against = before, "torch"
        if case.get("label"):
            reference, against = _reference(case, session, source), "reference"
        scores = [
            surface_report(
                mask, reference, source.spacing_mm, metrics=("dice", "hd95"),
                labels=sorted(session.labels),
            )
            for mask in (before, after)
        ]  # fmt: skip
        for value, label in sorted(session.labels.items()):
            dice = tuple(float(s[value]["dice"]) for s in scores)
            hd95 = tuple(float(s[value]["hd95"]) for s in scores)
            rows.append(Difference(name, label, against, dice, hd95))  # pyright: ignore[reportArgumentType]
    return rows


def as_rows(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Plain values for JSON, undefined numbers as text."""
    rows = []
    for one in differences:
        row = {**asdict(one), "is_equivalent": one.is_equivalent}
        for key in ("dice", "hd95_mm"):
            row[key] = [v if math.isfinite(v) else str(v) for v in row[key]]
        rows.append(row)
    return rows


def open_for_export(bundle: str, is_trusted: bool, threads: int) -> Session:
    """A session on the CPU with the bundle's own network."""
    from medvol.runners.session import Session

    options = PredictOptions(bundle, ".", device="cpu", is_trusted=is_trusted, threads=threads)
    return Session(replace(options, engine="torch"))


def _reference(case: dict[str, Any], session: Session, source: Geometry) -> Any:
    from medvol.io import read_label, read_scan

    label = read_label(case["label"], session.labels, reference=read_scan(case["image"]))
    values = np.asarray(label.array)[0]
    if values.shape != source.shape:
        raise ConfigError(f"{case['label']}: its shape {values.shape} is not the image's")
    return np.rint(values).astype(np.uint8)


def _require_same_weights(session: Session, path: Path) -> None:
    note = _note(path)
    found = json.loads(note.read_text("utf-8")) if note.is_file() else {}
    if found.get("weights_sha256") != session.identity["weights_sha256"]:
        raise WeightsError(f"{path}: was exported from other weights; run medvol export again")


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _near(one: float, other: float, tolerance: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or abs(one - other) <= tolerance
