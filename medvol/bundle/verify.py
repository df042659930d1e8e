"""Whether a bundle is whole: every fault by name, none as a traceback."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvol.bundle.load import Bundle
from medvol.bundle.metadata import stated_decision
from medvol.bundle.validate import iterate
from medvol.core.errors import ConfigError, MedvolError, error_line
from medvol.core.files import sha256_file

_METADATA = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task",
    "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
#: Voxels of an input from which a network is only followed, not run.
_LARGE = 2_000_000
_FACTOR = re.compile(r"([0-9]+|[np])(?:\^([0-9]+|[np]))?")
_LABEL_INFER = ("network_def", "preprocessing", "inferer", "postprocessing", "device")
_LABEL_TRAIN = ("network", "train", "validate", "device", "bundle_root")
_FILES = ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf")


def verify(bundle: Bundle) -> list[str]:
    """Every fault of a bundle, one line each; an empty list means that it is sound.

    Checks metadata fields, required properties, that every target resolves, the network's input
    and output, and the weights' digest, completeness and finiteness. Of a bundle that medvol wrote
    also files, that all tasks build one network and preprocess alike, label names, stated facts,
    MONAI Label's keys and task word, and the anatomy policy.
    """
    try:
        checks = (*_CHECKS, *(_OWN_CHECKS if _is_own(bundle) else ()))
    except MedvolError as error:
        return [str(error)]
    faults: list[str] = []
    with _own_scripts(bundle):
        for check in checks:
            try:
                faults += check(bundle)
            except MedvolError as error:
                faults.append(str(error))
            except Exception as error:  # noqa: BLE001 - a verifier reports whatever breaks
                line = error_line(error) or f"{type(error).__name__}: {error}"
                faults.append(f"{check.__name__.strip('_')}: {line}")
    return [" ".join(fault.split()) for fault in faults]


def _is_own(bundle: Bundle) -> bool:
    return "medvol" in bundle.metadata


@contextmanager
def _own_scripts(bundle: Bundle) -> Iterator[None]:
    """The bundle's folder importable, as in MONAI's runs; afterwards nothing of it stays."""
    if not bundle.is_code_trusted:
        yield
        return
    before = set(sys.modules)
    sys.path.insert(0, str(bundle.path))
    try:
        yield
    finally:
        sys.path.remove(str(bundle.path))
        for name in set(sys.modules) - before:
            place = getattr(sys.modules[name], "__file__", None) or ""
            if place.startswith(f"{bundle.path}{os.sep}"):
                del sys.modules[name]


def _complete_tasks(bundle: Bundle) -> list[str]:
    """Tasks whose config stands alone: the zoo's evaluate.json is read on top of train.json."""
    tasks = bundle.tasks
    return tasks if _is_own(bundle) else [t for t in tasks if "network_def" in bundle.config(t)]


def _metadata(bundle: Bundle) -> Iterator[str]:
    for field in _METADATA:
        if field not in bundle.metadata:
            yield f"metadata.json lacks {field!r}"
    version, changelog = bundle.metadata.get("version"), bundle.metadata.get("changelog", {})
    if version not in changelog:
        yield f"metadata.json: version {version} has no changelog entry"


def _properties(bundle: Bundle) -> Iterator[str]:
    from monai.bundle.properties import InferProperties, TrainProperties

    wanted = {"train": TrainProperties, "inference": InferProperties, "evaluate": InferProperties}
    for task in _complete_tasks(bundle):
        parser = bundle.parser(task)
        for name, rule in wanted.get(task, {}).items():
            if rule["required"] and rule["id"] not in parser:
                yield f"{task}.json lacks the required property {name} ({rule['id']})"


def _targets(bundle: Bundle) -> Iterator[str]:
    from monai.bundle.config_item import ComponentLocator
    from monai.utils.module import optional_import

    locator = ComponentLocator()
    for task in bundle.tasks:
        names = {v["_target_"] for _, v in iterate(bundle.config(task))
                 if isinstance(v, dict) and isinstance(v.get("_target_"), str)}  # fmt: skip
        for name in sorted(name for name in names if name[:1] not in ("$", "@")):
            module = locator.get_component_module_name(name)
            if isinstance(module, list):
                yield f"{task}.json: target {name!r} is ambiguous: {', '.join(module)}"
                continue
            home, _, attribute = (f"{module}.{name}" if module else name).rpartition(".")
            if not home or not optional_import(home, name=attribute)[1]:
                yield f"{task}.json: target {name!r} does not exist"


def _network(bundle: Bundle) -> Iterator[str]:
    found = {task: bundle.config(task).get("network_def") for task in _complete_tasks(bundle)}
    texts = {task: json.dumps(network, sort_keys=True) for task, network in found.items()}
    for task in {network: task for task, network in texts.items()}.values():
        yield from (f"{task}.json: {fault}" for fault in _network_faults(bundle, task))


def _network_faults(bundle: Bundle, task: str) -> Iterator[str]:
    import torch

    formats = bundle.metadata["network_data_format"]
    image, pred = formats["inputs"].get("image"), formats["outputs"].get("pred")
    if image is None or pred is None:
        return  # of another form than images in and images or classes out
    network = bundle.parser(task).get_parsed_content("network_def").eval()
    size = (1, image["num_channels"], *(voxels_of(n) for n in image["spatial_shape"]))
    device = "meta" if math.prod(size) > _LARGE else "cpu"  # there only shapes are computed
    try:
        with torch.no_grad():
            found = network.to(device)(torch.zeros(size, device=device))
    except (RuntimeError, ValueError) as error:  # a network's own error for a shape it cannot take
        yield f"the network takes no input of shape {size}: {error}"
        return
    if found.shape[1] != pred["num_channels"]:
        yield (f"the network gives {found.shape[1]} channels, metadata.json states "
               f"{pred['num_channels']}")  # fmt: skip
    wanted = tuple(voxels_of(n) for n in pred["spatial_shape"])
    if pred.get("type") == "image" and tuple(found.shape[2:]) != wanted:
        yield f"the network gives {tuple(found.shape[2:])} voxels for {pred['spatial_shape']}"


def voxels_of(size: int | str) -> int:
    """A size that the metadata allows: a number, ``*`` for any, or a formula such as ``2**p*n``.

    Raises:
        ConfigError: If it is none of them.

    >>> voxels_of(96), voxels_of("16*n"), voxels_of("2**p*n"), voxels_of("*")
    (96, 64, 64, 64)
    """
    if isinstance(size, int):
        return size
    if size.strip() == "*":
        return 64
    factors = [_FACTOR.fullmatch(part.strip()) for part in size.replace("**", "^").split("*")]
    if not all(factors):
        raise ConfigError(f"metadata.json: spatial_shape holds {size!r}, which is not a size")
    names = {"n": 4, "p": 4}
    return math.prod(
        int(names.get(match[1], match[1])) ** int(names.get(match[2], match[2] or 1))
        for match in factors if match
    )  # fmt: skip


def _files(bundle: Bundle) -> Iterator[str]:
    for relative in _FILES:
        if not (bundle.path / relative).is_file():
            yield f"{relative} is missing"


def _label_app(bundle: Bundle) -> Iterator[str]:
    """What MONAI Label reads of the configs and of the folder's name."""
    for task, names in (("train", _LABEL_TRAIN), ("inference", _LABEL_INFER)):
        if task not in bundle.tasks:
            continue
        config = bundle.config(task)
        for name in names:
            if name not in config:
                yield f"{task}.json lacks {name!r}, which MONAI Label reads"
        for handler in config.get("train", {}).get("handlers", []):
            if not isinstance(handler, dict):
                yield (f"{task}.json: handler {handler!r} is not a mapping; MONAI Label cannot "
                       "train it")  # fmt: skip
    word = bundle.name.rsplit("_", 1)[-1]
    if word not in ("segmentation", "classification", "gradcam", "detection"):
        yield f"the folder's last word {word!r} does not name a task of MONAI Label"


def _written(bundle: Bundle) -> Iterator[str]:
    """What the writer leaves: no macro, one network for all tasks, and facts that hold."""
    if "required_packages_version" not in bundle.metadata:
        yield "metadata.json lacks 'required_packages_version'"
    first = "inference" if "inference" in bundle.tasks else bundle.tasks[0]
    network = bundle.config(first).get("network_def")
    for task in bundle.tasks:
        config = bundle.config(task)
        macros = [
            id_ for id_, value in iterate(config) if isinstance(value, str) and value[:1] == "%"
        ]
        if macros:
            yield f"{task}.json: {macros[0]} is an unexpanded macro"
        if config.get("network_def") != network:
            yield f"{task}.json builds another network than {first}.json"
        facts, patch = bundle.metadata["medvol"], _patch_size(config)
        if patch is not None and patch[: len(facts.get("patch_size", ()))] != facts["patch_size"]:
            yield (f"{task}.json predicts patches of {patch}, metadata.json states "
                   f"{facts['patch_size']}")  # fmt: skip
        decision = stated_decision(config)
        if decision is not None and decision != facts.get("decision"):
            yield f"{task}.json decides by {decision}, metadata.json states {facts.get('decision')}"


def _patch_size(config: Mapping[str, Any]) -> list[int] | None:
    size = config.get("inferer", {}).get("roi_size")
    return size if isinstance(size, list) else None


def _preprocessing(bundle: Bundle) -> Iterator[str]:
    steps = {task: _image_steps(bundle.config(task)) for task in bundle.tasks}
    first = min(steps)
    for task, found in steps.items():
        if found != steps[first]:
            yield f"{task}.json preprocesses images otherwise than {first}.json"


def _labels(bundle: Bundle) -> Iterator[str]:
    stated = [name.lower() for name in bundle.labels.values()]
    first: dict[int, str] = {}
    for task in bundle.tasks:
        config = bundle.config(task)
        known = {int(v): str(name).lower() for v, name in config.get("labels", {}).items()}
        names = [known[value] for value in sorted(known)]
        if names != stated:
            yield f"{task}.json names the labels {names}, metadata.json {stated}"
        if (first := first or known) != known:
            yield f"{task}.json gives the labels the values {known}, {bundle.tasks[0]}.json {first}"
        yield from (f"{task}.json: {fault}" for fault in _region_faults(bundle, config))


def _region_faults(bundle: Bundle, config: Mapping[str, Any]) -> Iterator[str]:
    """Regions are output channels, and metadata.json must name them in their order."""
    channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    stated = [str(name).lower() for name in channels.values()]
    for id_, value in iterate(config):
        if id_.endswith("regions") and isinstance(value, dict) and value:
            names = [str(name).lower() for name in value]
            if names != stated:
                yield f"{id_} names the regions {names}, metadata.json {stated}"


def _weights(bundle: Bundle) -> Iterator[str]:
    from medvol.networks import compare_keys, load_weights

    digest = bundle.metadata.get("medvol", {}).get("weights_sha256")
    if not bundle.has_weights:
        if digest:
            yield "models/model.pt is missing but metadata.json records its digest"
        return
    if _is_own(bundle) and digest != sha256_file(bundle.weights):
        yield "models/model.pt does not have the sha256 that metadata.json records"
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
        labels = config.get("labels") or list(
            bundle.labels.values()
        )  # values, since mirrors may swap them
        for fault in policy_violations(
            config, facts.get("modality"), facts.get("body_part"), labels
        ):
            yield f"{task}.json: {fault}"


_CHECKS: tuple[Callable[[Bundle], Iterator[str]], ...] = (
    _metadata, _properties, _targets, _network, _weights,
)  # fmt: skip
_OWN_CHECKS = (_files, _written, _preprocessing, _labels, _label_app, _policy)


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


def bundle_report(bundle: Bundle) -> dict[str, Any]:
    """One row for ``medvol bundle list`` and for ``verify --json``."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "task": bundle.metadata["task"],
        "modality": bundle.metadata.get("medvol", {}).get("modality"),
        "labels": list(bundle.labels.values()),
        "weights": bundle.has_weights,
        "path": str(Path(bundle.path)),
    }
