"""Whether a bundle is whole: every fault by name, none as a traceback."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medvol.bundle.load import Bundle
from medvol.bundle.sense import iterate
from medvol.core.errors import MedvolError
from medvol.core.files import sha256_file

_METADATA = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
    "required_packages_version", "task", "description", "authors", "copyright",
    "network_data_format",
)  # fmt: skip
#: Voxels of an input from which a network is only followed, not run.
_LARGE = 2_000_000
_LABEL_INFER = ("network_def", "preprocessing", "inferer", "postprocessing", "device")
_LABEL_TRAIN = ("network", "train", "validate", "device", "bundle_root")
_FILES = ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf")


def verify(bundle: Bundle) -> list[str]:
    """Every fault of a bundle, one line each; an empty list means that it is sound.

    Checks metadata fields, files, required properties, that every target resolves, the network's
    input and output, that training and inference preprocess alike, label names, the weights'
    digest, completeness and finiteness, MONAI Label's keys and task word, and the anatomy policy.
    """
    faults: list[str] = []
    for check in _CHECKS:
        try:
            faults += check(bundle)
        except MedvolError as error:
            faults.append(str(error))
        except Exception as error:  # noqa: BLE001 - a verifier reports whatever breaks
            faults.append(f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")
    return [" ".join(fault.split()) for fault in faults]


def _metadata(bundle: Bundle) -> Iterator[str]:
    for field in _METADATA:
        if field not in bundle.metadata:
            yield f"metadata.json lacks {field!r}"
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog", {})
    if version not in changelog:
        yield f"metadata.json: version {version} has no changelog entry"
    for relative in _FILES:
        if not (bundle.path / relative).is_file():
            yield f"{relative} is missing"


def _properties(bundle: Bundle) -> Iterator[str]:
    from monai.bundle.properties import InferProperties, TrainProperties

    wanted = {"train": TrainProperties, "inference": InferProperties, "evaluate": InferProperties}
    for task in bundle.tasks:
        parser = bundle.parser(task)
        for name, rule in wanted.get(task, {}).items():
            if rule["required"] and rule["id"] not in parser:
                yield f"{task}.json lacks the required property {name} ({rule['id']})"
        for name in _LABEL_TRAIN if task == "train" else _LABEL_INFER:
            if task in ("train", "inference") and name not in parser:
                yield f"{task}.json lacks {name!r}, which MONAI Label reads"
        for handler in bundle.config(task).get("train", {}).get("handlers", []):
            if not isinstance(handler, dict):
                yield f"{task}.json: handler {handler!r} is no mapping; MONAI Label cannot train it"
        break_ids = [id_ for id_, value in iterate(bundle.config(task)) if _is_macro(value)]
        if break_ids:
            yield f"{task}.json: {break_ids[0]} is an unexpanded macro"


def _targets(bundle: Bundle) -> Iterator[str]:
    from monai.bundle.config_item import ComponentLocator
    from monai.utils.module import optional_import

    locator = ComponentLocator()
    for task in bundle.tasks:
        names = {v["_target_"] for _, v in iterate(bundle.config(task))
                 if isinstance(v, dict) and isinstance(v.get("_target_"), str)}  # fmt: skip
        for name in sorted(names):
            module = locator.get_component_module_name(name)
            if isinstance(module, list):
                yield f"{task}.json: target {name!r} is ambiguous: {', '.join(module)}"
                continue
            home, _, attribute = (f"{module}.{name}" if module else name).rpartition(".")
            if not home or not optional_import(home, name=attribute)[1]:
                yield f"{task}.json: target {name!r} does not exist"


def _network(bundle: Bundle) -> Iterator[str]:
    tasks = _networks(bundle)
    for pair in (("evaluate", "inference"), ("multi_gpu_train", "train")):
        found = {tasks[task] for task in pair if task in tasks}
        if len(found) > 1:
            yield f"{pair[0]}.json builds another network than {pair[1]}.json"
    for task in {network: task for task, network in tasks.items()}.values():
        yield from (f"{task}.json: {fault}" for fault in _network_faults(bundle, task))


def _networks(bundle: Bundle) -> dict[str, str]:
    """Each task's network as text; an ensemble's members are trained singly."""
    found = {task: bundle.config(task)["network_def"] for task in bundle.tasks}
    return {task: json.dumps(network, sort_keys=True) for task, network in found.items()}


def _network_faults(bundle: Bundle, task: str) -> Iterator[str]:
    import torch

    network = bundle.parser(task).get_parsed_content("network_def").eval()
    formats = bundle.metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    size = (1, image["num_channels"], *image["spatial_shape"])
    device = "meta" if math.prod(size) > _LARGE else "cpu"  # there only shapes are computed
    with torch.no_grad():
        found = network.to(device)(torch.zeros(size, device=device))
    if found.shape[1] != pred["num_channels"]:
        yield f"the network gives {found.shape[1]} channels, metadata says {pred['num_channels']}"
    if pred.get("type") == "image" and tuple(found.shape[2:]) != tuple(pred["spatial_shape"]):
        yield f"the network gives {tuple(found.shape[2:])} voxels for {pred['spatial_shape']}"


def _preprocessing(bundle: Bundle) -> Iterator[str]:
    steps = {task: _image_steps(bundle.config(task)) for task in bundle.tasks}
    first = min(steps)
    for task, found in steps.items():
        if found != steps[first]:
            yield f"{task}.json preprocesses images otherwise than {first}.json"


def _labels(bundle: Bundle) -> Iterator[str]:
    told = [name.lower() for name in _names(bundle)]
    first: dict[int, str] = {}
    for task in bundle.tasks:
        config = bundle.config(task)
        known = {int(v): str(name).lower() for v, name in config.get("labels", {}).items()}
        names = [known[value] for value in sorted(known)]
        if names != told:
            yield f"{task}.json names the labels {names}, metadata.json {told}"
        if (first := first or known) != known:
            yield f"{task}.json gives the labels the values {known}, {bundle.tasks[0]}.json {first}"
        yield from (f"{task}.json: {fault}" for fault in _region_faults(bundle, config))
    word = bundle.name.rsplit("_", 1)[-1]
    if word not in ("segmentation", "classification", "gradcam", "detection"):
        yield f"the folder's last word {word!r} does not tell MONAI Label the task"


def _region_faults(bundle: Bundle, config: Mapping[str, Any]) -> Iterator[str]:
    """Regions are output channels, and metadata.json must name them in their order."""
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    told = [str(name).lower() for name in channels.values()]
    for id_, value in iterate(config):
        if id_.endswith("regions") and isinstance(value, dict) and value:
            names = [str(name).lower() for name in value]
            if names != told:
                yield f"{id_} names the regions {names}, metadata.json {told}"


def _weights(bundle: Bundle) -> Iterator[str]:
    digest = bundle.metadata.get("medvol", {}).get("weights_sha256")
    if not bundle.has_weights:
        if digest:
            yield "models/model.pt is missing but metadata.json records its digest"
        return
    if digest != sha256_file(bundle.weights):
        yield "models/model.pt does not have the sha256 that metadata.json records"
    from medvol.networks import compare_keys, load_weights

    task = "inference" if "inference" in bundle.tasks else bundle.tasks[0]
    bare = bundle.parser(task).get_parsed_content("network_def")
    report = compare_keys(bare, load_weights(bundle.weights))
    if report.missing or report.unexpected or report.mismatched:
        yield f"models/model.pt does not fit network_def as it stands: {report}"
    bundle.network()


def _policy(bundle: Bundle) -> Iterator[str]:
    from medvol.transforms import policy_violations

    facts = bundle.metadata.get("medvol", {})
    for task in bundle.tasks:
        config = bundle.config(task)
        labels = config.get("labels") or list(_names(bundle))  # values, since mirrors may swap them
        for fault in policy_violations(
            config, facts.get("modality"), facts.get("body_part"), labels
        ):
            yield f"{task}.json: {fault}"


_CHECKS: tuple[Callable[[Bundle], Iterator[str]], ...] = (
    _metadata, _properties, _targets, _network, _preprocessing, _labels, _weights, _policy,
)  # fmt: skip


def _names(bundle: Bundle) -> Iterator[str]:
    """Label names in the order of their values; where outputs are regions that labels make up,
    metadata.json lists both."""
    if labels := bundle.metadata.get("medvol", {}).get("labels"):
        yield from (labels[value] for value in sorted(labels, key=int))
        return
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    named = (channels[number] for number in sorted(channels, key=int))
    yield from (name for name in named if name != "background")


def _image_steps(config: Mapping[str, Any]) -> list[Any]:
    """The preprocessing with everything about labels taken out, so that tasks can be compared."""
    steps = json.loads(json.dumps(config["preprocessing"]["transforms"]))
    for step in steps:
        keys = step["keys"] if isinstance(step.get("keys"), list) else [step.get("keys")]
        at = keys.index("image") if "image" in keys else None
        for name, value in step.items():
            if at is not None and isinstance(value, list) and name in ("mode", "padding_mode"):
                step[name] = value[at]
        step["keys"] = "image" if at is not None else keys
    return steps


def _is_macro(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("%")


def bundle_report(bundle: Bundle) -> dict[str, Any]:
    """One row for ``medvol bundle list`` and for ``verify --json``."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "task": bundle.metadata["task"],
        "modality": bundle.metadata.get("medvol", {}).get("modality"),
        "labels": list(_names(bundle)),
        "weights": bundle.has_weights,
        "path": str(Path(bundle.path)),
    }
