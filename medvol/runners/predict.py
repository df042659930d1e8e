"""One case from file to files: load, prepare, infer, write; each step timed, refusals caught."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.dictionary import Invertd
from numpy.typing import NDArray

from medvol.core.errors import GridMismatchError, InputError, MedvolError, OutputError, error_line
from medvol.core.geometry import Geometry
from medvol.core.memory import peak_ram_bytes
from medvol.inferers import SlidingWindowInferer, predict_uncertain, run_ladder
from medvol.inferers.ladder import is_out_of_memory
from medvol.runners.cases import CaseInput, input_digest
from medvol.runners.cost import plan_case
from medvol.runners.outputs import structures, write_outputs
from medvol.runners.record import Record, earlier, sweep
from medvol.runners.session import Session

#: Probabilities that bound the volume interval of a structure.
INTERVAL = (0.05, 0.95)


@dataclass
class Loaded:
    """A case whose image is ready for the network, or whose record is final already."""

    case: CaseInput
    record: Record
    data: dict[str, Any] | None = None
    source: Geometry | None = None


@dataclass
class Answer:
    """What the network said of a case, on the source grid."""

    labels: NDArray[np.uint8]
    source: Geometry
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    intervals: dict[int, tuple[float, float]] = field(default_factory=dict)


def predict_case(session: Session, case: CaseInput) -> Record:
    """Run one case through all phases; every fault of the case ends up in its record."""
    loaded = load(session, case)
    answer = infer(session, loaded)
    return write(session, loaded, answer)


def load(session: Session, case: CaseInput) -> Loaded:
    """Read and prepare the image, unless an earlier run already finished this case."""
    options = session.options
    record = Record(
        case.name,
        bundle=session.identity,
        options_sha256=options.digest(),
        device=str(session.device),
    )
    loaded = Loaded(case, record)
    with _caught(record):
        record.input_sha256 = input_digest(case.path)
        wanted = {k: getattr(record, k) for k in ("bundle", "input_sha256", "options_sha256")}
        if found := earlier(options.out, case.name, wanted):
            loaded.record = found
            return loaded
        sweep(options.out, case.name)
        plan = plan_case(session, case)
        record.predicted = plan
        with _timed(record, "load"):
            data: Any = session.preprocessing({"image": case.path})
        loaded.source = _source_of(data["image"])
        record.predicted = plan or plan_case(session, case, loaded.source)
        loaded.data = data
    return loaded


def infer(session: Session, loaded: Loaded) -> Answer | None:
    """Predict labels on the source grid, stepping down where memory runs out."""
    record, data, source = loaded.record, loaded.data, loaded.source
    if data is None or source is None:
        return None
    with _caught(record), _timed(record, "infer"), torch.inference_mode():
        if session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(session.device)
        run = _runner_of(session, data, source)
        to_cpu = session.to_cpu if session.device.type == "cuda" else None
        answer, record.fallback = run_ladder(_placed(session, record), run, to_cpu)
        if session.device.type == "cuda":
            record.peak_gpu_bytes = torch.cuda.max_memory_allocated(session.device)
        if session.finish.after:
            answer.labels = _after(session, answer)
        return answer
    return None


def write(session: Session, loaded: Loaded, answer: Answer | None) -> Record:
    """Write the results and, last, the record that vouches for them."""
    record = loaded.record
    loaded.data = None
    if answer is not None:
        with _caught(record), _timed(record, "write"):
            record.outputs = write_outputs(session, loaded.case, answer.labels, answer)
            record.structures = structures(session.labels, answer)
            record.review = _review(record)
    record.peak_ram_bytes = peak_ram_bytes()
    if not record.is_resumed:
        record.save(session.options.out)
    return record


def label_image(
    session: Session, path: str, predictor: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[NDArray[np.uint8], Geometry]:
    """Labels of one image by any predictor of windows; nothing is written."""
    data: Any = session.preprocessing({"image": path})
    source, decision = _source_of(data["image"]), session.finish.decision
    if decision is None:
        raise InputError("this bundle's postprocessing cannot be run with another engine")
    image, anti_alias = data["image"][None], session.anti_alias
    labels = session.inferer.label_map(image, predictor, source, decision, anti_alias=anti_alias)
    answer = Answer(labels, source)
    return (_after(session, answer) if session.finish.after else labels), source


def _runner_of(
    session: Session, data: dict[str, Any], source: Geometry
) -> Callable[[SlidingWindowInferer], Answer]:
    image = data["image"][None]
    if session.options.wants_probabilities:
        return lambda inferer: _with_probabilities(session, inferer, data, source)
    predictor = session.predictor

    def run(inferer: SlidingWindowInferer) -> Answer:
        decision = session.finish.decision
        if decision is not None:
            try:
                labels = inferer.label_map(
                    image, predictor, source, decision, anti_alias=session.anti_alias
                )
            except GridMismatchError:
                return _whole(session, inferer, predictor, data, source)
            return Answer(labels, source)
        return _whole(session, inferer, predictor, data, source)

    return run


def _placed(session: Session, record: Record) -> Any:
    """The bundle's window as the plan wants it."""
    inferer = copy.copy(session.inferer)
    if not isinstance(inferer, SlidingWindowInferer):
        return inferer
    inferer.sw_batch_size = int(record.predicted.get("batch", inferer.sw_batch_size))
    on_gpu = session.device.type == "cuda" and record.predicted.get("stitch_on") != "cpu"
    inferer.device = session.device if on_gpu else "cpu"
    if record.predicted.get("mode") == "mapped":
        inferer.scratch_dir = session.options.out
    return inferer


def _whole(
    session: Session,
    inferer: SlidingWindowInferer,
    predictor: Any,
    data: dict[str, Any],
    source: Geometry,
) -> Answer:
    """The bundle's own postprocessing on all probabilities, for what slabs cannot express."""
    out = inferer(data["image"][None], predictor)
    result: Any = session.whole()({**data, "pred": out[0]})
    labels = np.asarray(result["pred"])
    if labels.shape != (1, *source.shape):
        raise InputError(
            f"the bundle's postprocessing gives shape {labels.shape} for an image of shape "
            f"{source.shape}; medvol predict needs one label map"
        )
    return Answer(labels[0].astype(np.uint8), source)


def _with_probabilities(
    session: Session,
    inferer: SlidingWindowInferer,
    data: dict[str, Any],
    source: Geometry,
) -> Answer:
    decision = session.finish.decision
    if decision is None:
        raise InputError("this bundle's postprocessing is not known well enough to give "
                         "probabilities or --uncertainty")  # fmt: skip
    image, kind = data["image"], inferer.activation
    flips = inferer.mirrors.combinations(image[None]) if inferer.mirrors else [()]
    inferer = copy.copy(inferer)  # the ladder's next rung needs the mirrors again
    inferer.mirrors, inferer.sees_probabilities, members = None, True, session.members
    found = predict_uncertain(inferer, image[None], members, activation=kind, flips=flips)
    parts = {"pred": found.probabilities[0]}
    if session.options.uncertainty:
        parts |= {"aleatoric": found.aleatoric[0], "epistemic": found.epistemic[0]}
    parts = {key: _like(part, image) for key, part in parts.items()}
    keys = list(parts)
    undo = Invertd(keys, session.preprocessing, "image", nearest_interp=False, to_tensor=True)
    back: Any = undo({**data, **parts})
    probability = torch.as_tensor(back["pred"])
    labels = decision.labels(probability).cpu().numpy()
    maps = {k: np.asarray(back[k][0], dtype=np.float32) for k in keys if k != "pred"}
    if "probabilities" in session.options.formats:
        maps["probabilities"] = np.moveaxis(probability.cpu().numpy(), 0, -1)
    intervals = _intervals(session, probability, source) if session.options.uncertainty else {}
    return Answer(labels, source, maps, intervals)


def _intervals(
    session: Session, probability: torch.Tensor, source: Geometry
) -> dict[int, tuple[float, float]]:
    """Volume of each structure at a strict and at a lenient probability, in millilitres."""
    ml = float(np.prod(source.spacing_mm)) / 1000
    decision = session.finish.decision
    values = decision.values if decision and decision.values else tuple(range(len(probability)))
    if len(probability) == 1 and (decision is None or decision.values is None):
        values = (1,)
    found = {}
    for channel, value in enumerate(values):
        if value:
            part = probability[channel]
            low, high = (int((part >= p).sum()) * ml for p in reversed(INTERVAL))
            found[value] = (low, high)
    return found


def _like(part: torch.Tensor, image: Any) -> Any:
    plain = part.as_tensor() if isinstance(part, MetaTensor) else part
    return MetaTensor(plain.cpu()).copy_meta_from(image, copy_attr=False)


def _after(session: Session, answer: Answer) -> NDArray[np.uint8]:
    affine = torch.as_tensor(answer.source.affine)
    label = MetaTensor(torch.from_numpy(answer.labels)[None], affine=affine)
    result: Any = session.after()({"pred": label})
    return np.asarray(result["pred"])[0].astype(np.uint8)


def _source_of(image: Any) -> Geometry:
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        raise InputError("medvol predict needs a 3D image with an affine")
    shape = [int(n) for n in np.asarray(image.meta["spatial_shape"]).tolist()]
    return Geometry((shape[0], shape[1], shape[2]), np.asarray(image.meta["original_affine"]))


def _review(record: Record) -> dict[str, Any]:
    reasons = []
    for row in record.structures:
        if row["voxels"] == 0:
            reasons.append(f"{row['name']} was not found")
        elif "interval_ml" in row:
            low, high = row["interval_ml"]
            if high - low > row["volume_ml"]:
                reasons.append(
                    f"the volume of {row['name']} is uncertain: {row['volume_ml']:.3g} ml, "
                    f"{low:.3g} to {high:.3g}"
                )
    return {"flag": bool(reasons), "reason": "; ".join(reasons)}


@contextmanager
def _timed(record: Record, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    record.seconds[phase] = round(time.perf_counter() - start, 4)


@contextmanager
def _caught(record: Record) -> Iterator[None]:
    """Turn a fault of this case into its record, so that the other cases go on."""
    try:
        yield
    except OutputError as error:
        record.status, record.reason = "failed", str(error)
    except MedvolError as error:
        record.status, record.reason = "refused", str(error)
    except Exception as error:  # noqa: BLE001 - of whatever kind: zlib.error is an Exception only
        line = error_line(error)
        record.status = "refused" if line else "failed"
        record.reason = line or _one_line(error)
        if is_out_of_memory(error):
            record.reason = f"out of memory: {record.reason}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def summary(records: list[Record]) -> Mapping[str, int]:
    """How many cases ended in which way."""
    counts = {"done": 0, "resumed": 0, "refused": 0, "failed": 0}
    for record in records:
        counts["resumed" if record.is_resumed else record.status] += 1
    return counts
