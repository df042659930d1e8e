"""Values + parts -> the files of a bundle folder: one flat JSON per task."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvol.bundle.metadata import metadata_of
from medvol.bundle.publish import SCREENSHOTS, publishing_files
from medvol.bundle.validate import iterate
from medvol.core.errors import ConfigError, MissingInputError
from medvol.core.files import write_bytes, write_text
from medvol.core.shipped import bundles_dir, configs_dir, shipped_root

#: Values that choose or describe, and are not numbers for the parts.
_DESCRIPTION = {"family", "tasks", "modality", "body_part", "field_of_view", "locates",
                "meta",
                "postprocessing_basis"}  # fmt: skip
#: Masks are written as bytes.
_LARGEST_LABEL = 255
#: What ``meta`` must state.
_META = ("version", "changelog", "title", "task", "description", "data_source")
#: Folder of a planned bundle that holds what it was planned from.
PLAN = "plan"
#: The part of a kind that a values file does not choose.
_DEFAULT = "default"
_SCAFFOLD = ("values", "part", "keys", "modes")
_FLOAT_AS_TEXT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a values file and derive what follows from it.

    Raises:
        MissingInputError: If it does not exist.
        ConfigError: If it is not a mapping, lacks what every bundle needs, or holds a number that
            YAML reads as text (``1e-4``).
    """
    path = Path(path)
    values = _read_yaml(path)
    if base := values.pop("extends", None):  # another bundle's values, where this one has no own
        values = _read_yaml(path.with_name(f"{base}.yaml")) | values
    for key in ("family", "tasks", "modality", "body_part", "meta", "labels", "roi_size"):
        if key not in values:
            raise ConfigError(f"{path}: value {key!r} is missing")
    for key, value in values.items():
        if isinstance(value, str) and _FLOAT_AS_TEXT.fullmatch(value):
            raise ConfigError(f"{path}: {key} is the text {value!r}; write the number out")
    _require_kinds(path, values)
    return {**_derived(path.stem, values), **values}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise MissingInputError(f"{path}: no such values file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be parsed: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no values")
    return values


def _require_kinds(path: Path, values: Mapping[str, Any]) -> None:
    labels, meta, roi_size = (values[key] for key in ("labels", "meta", "roi_size"))
    if not isinstance(labels, dict) or not all(str(value).isdecimal() for value in labels):
        raise ConfigError(f"{path}: labels is {labels!r}; write each value and its name, as in "
                          "{1: liver}")  # fmt: skip
    if large := [value for value in labels if int(value) > _LARGEST_LABEL]:
        raise ConfigError(f"{path}: label {large[0]} is above {_LARGEST_LABEL}, the largest value "
                          "of a mask; number the labels from 1")  # fmt: skip
    if not isinstance(roi_size, list) or not all(type(n) is int and n > 0 for n in roi_size):
        raise ConfigError(f"{path}: roi_size is {roi_size!r}, not a list of whole numbers above 0")
    for key in ("labels", "regions", "meta"):
        _reject_code(path, key, values.get(key))
    lacking = [key for key in _META if not isinstance(meta, dict) or key not in meta]
    if lacking:
        raise ConfigError(f"{path}: meta holds no {lacking[0]!r}")


def _reject_code(path: Path, key: str, content: Any) -> None:
    """Names come from untrusted data sets, and MONAI runs a text that begins with a ``$``."""
    for _, value in iterate(content):
        for text in [*value, value] if isinstance(value, dict) else [value]:
            if isinstance(text, str) and text.lstrip()[:1] in ("$", "@", "%"):
                raise ConfigError(f"{path}: {key} holds {text[:40]!r}, which MONAI would take for "
                                  "code or a reference; write another text")  # fmt: skip
            if isinstance(text, str) and "#" in text and key != "meta":
                raise ConfigError(f"{path}: {key} holds {text[:40]!r}; MONAI takes # for the "
                                  "separator of a path, write another name")  # fmt: skip


def render(
    name: str | os.PathLike[str],
    configs: Path | None = None,
    folder: Path | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The text files of a bundle, path inside the bundle -> content; nothing is written.

    Args:
        name: A values file's stem in ``configs/bundles``, or the path of a values file; its model
            card lies beside it.
        configs: Folder of ``parts`` and ``bundles``; the shipped one by default.
        folder: The bundle's folder, whose weights are recorded.
        changes: Values that differ from the file's, as an arm of a study has them; None drops one.

    Raises:
        ConfigError: If a part needs a value that is missing, or no part uses a value.
    """
    configs = configs or configs_dir()
    source = _source(name, configs)
    name = source.stem
    folder = folder or folder_of(source)
    values = _changed(name, read_values(source), changes or {})
    values["is_shipped"] = folder == bundles_dir() / name
    used: set[str] = set()
    files, flats = {}, []
    for task, part in _tasks(values).items():
        flat = _flatten(source, configs / "parts" / values["family"], part, values, used)
        flats.append(flat)
        files[f"configs/{task}.json"] = json.dumps(flat, indent=4, ensure_ascii=False) + "\n"
    derived = set(_derived(name, values))
    if unused := sorted(set(values) - used - derived - _DESCRIPTION):
        raise ConfigError(f"{source}: no part uses the value {unused[0]!r}; is it misspelt?")
    weights = folder / "models" / "model.pt"
    metadata = metadata_of(name, values, weights, _origin(source, folder), flats)
    files["configs/metadata.json"] = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    files["configs/logging.conf"] = (configs / "parts" / "logging.conf").read_text("utf-8")
    card = source.with_suffix(".md")
    if not card.is_file():
        raise MissingInputError(f"{card}: the bundle has no model card")
    files |= publishing_files(
        card.read_text("utf-8"), metadata, weights, bool(_screenshots(source))
    )
    files["LICENSE"] = _licence().read_text("utf-8")
    return files


def write(
    name: str | os.PathLike[str],
    into: str | os.PathLike[str] | None = None,
    configs: Path | None = None,
) -> Path:
    """Write a bundle's texts and screenshots, each atomically; returns the bundle's folder.

    Weights below ``models`` are left alone. A values file given by its path becomes the bundle
    that it was planned into (it lies in that bundle's ``plan``), or else a folder beside it.
    """
    source = _source(name, configs or configs_dir())
    folder = Path(into) if into is not None else folder_of(source)
    for relative, text in render(name, configs, folder).items():
        write_text(folder / relative, text)
    for relative, path in _screenshots(source).items():
        write_bytes(folder / relative, path.read_bytes())
    return folder


def folder_of(source: Path) -> Path:
    """Where the bundle of a values file lies by default."""
    if source.parent.name == PLAN:
        return source.parents[1]
    is_shipped_source = source.parent == configs_dir() / "bundles"
    return (bundles_dir() if is_shipped_source else source.parent) / source.stem


def stale(name: str, into: str | os.PathLike[str] | None = None) -> list[str]:
    """Files of a bundle that :func:`write` with the same arguments would change."""
    source = _source(name, configs_dir())
    folder = Path(into) if into is not None else folder_of(source)
    wanted = {relative: text.encode() for relative, text in render(name, folder=folder).items()}
    screenshots = _screenshots(source)
    wanted |= {relative: path.read_bytes() for relative, path in screenshots.items()}
    return [
        relative
        for relative, content in wanted.items()
        if not (folder / relative).is_file() or (folder / relative).read_bytes() != content
    ]


def all_names() -> list[str]:
    """Names of every values file, sorted."""
    return sorted(path.stem for path in (configs_dir() / "bundles").glob("*.yaml"))


def _origin(source: Path, folder: Path) -> str:
    """A values file as its bundle names it: inside the bundle, inside medvol, or by its name."""
    for root in (folder, shipped_root()):
        if source.is_relative_to(root):
            return source.relative_to(root).as_posix()
    return source.name


def _screenshots(source: Path) -> dict[str, Path]:
    """Path inside a shipped bundle -> screenshot in the checkout; none for a user's own."""
    docs = configs_dir().parent / "docs"
    if source.parent != configs_dir() / "bundles" or not all(
        (docs / n).is_file() for n in SCREENSHOTS
    ):
        return {}
    return {f"docs/{name}": docs / name for name in SCREENSHOTS}


def _source(name: str | os.PathLike[str], configs: Path) -> Path:
    is_path = Path(name).suffix in (".yaml", ".yml")
    return Path(os.path.abspath(name)) if is_path else configs / "bundles" / f"{name}.yaml"


def _changed(name: str, values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes, and with what follows from them."""
    if not changes:
        return values
    derived = _derived(name, values)
    plain = {k: v for k, v in values.items() if k not in derived or v != derived[k]}
    plain = {k: v for k, v in {**plain, **changes}.items() if v is not None or k not in changes}
    return {**_derived(name, plain), **plain}


def _licence() -> Path:
    root = shipped_root()
    for path in (root / "LICENSE", root / "configs" / "LICENSE"):
        if path.is_file():
            return path
    raise MissingInputError(
        f"{root / 'LICENSE'}: is missing, and every bundle carries it; install medvol, or put "
        "the file back"
    )


def _tasks(values: Mapping[str, Any]) -> dict[str, str]:
    """Config file to the part that it is made of; they differ where ``tasks`` is a mapping."""
    tasks = values["tasks"]
    return dict(tasks) if isinstance(tasks, dict) else {task: task for task in tasks}


def _derived(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    labels = {int(value): str(label) for value, label in values.get("labels", {}).items()}
    regions, ignored = values.get("regions") or {}, values.get("ignore_label")
    is_exclusive = values.get("output") not in ("sigmoid", "regions")
    known = sorted(labels)
    return {
        "name": name,
        "is_shipped": False,
        "label_values": known,
        "class_values": [0, *known],
        "legal_values": known if ignored is None else [*known, ignored],
        "regions": {},
        "resampled": "probabilities",
        "structures": list(regions.values()) or [[value] for value in known],
        "ignore_label": None,
        "out_channels": len(regions or known) + int(is_exclusive),
        "min_size": [*(int(n) // 2 for n in values["roi_size"]), 0][:3],
        "largest_mm": (values.get("locates") or {}).get("largest_mm"),
        "axcodes": "RAS",
        "reads_channels": values.get("in_channels", 1) > 1,
        "cosine_epochs": "@max_epochs",
        "runs_dir": f"runs/{name}",
        "predictions_dir": f"predictions/{name}",
        "evaluation_dir": f"evaluation/{name}",
    }


def _flatten(
    source: Path, parts: Path, task: str, values: Mapping[str, Any], used: set[str]
) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    if not (parts / f"{task}.yaml").is_file():
        raise ConfigError(f"{source}: task {task!r} has no part {parts / task}.yaml")
    chosen: dict[str, Any] = {}
    for kind in sorted(path.name for path in parts.iterdir() if path.is_dir()):
        used |= {kind} & set(values)
        part = parts / kind / f"{values.get(kind, _DEFAULT)}.yaml"
        if not part.is_file():
            raise ConfigError(
                f"{source}: {kind}: {values.get(kind)!r} is not a part of {parts.name}"
            )
        chosen |= ConfigParser.load_config_file(str(part))
    files = [parts / "common.yaml", *_bases(parts / f"{task}.yaml")]
    config = ConfigParser.load_config_files([str(path) for path in files])
    config.pop("extends", None)
    used |= {_first(name) for name in re.findall(r"%values#([\w#]+)", json.dumps([config, chosen]))}
    if missing := sorted(used - set(values) - {"output"}):
        raise ConfigError(f"{source}: value {missing[0]!r} is missing; a part needs it")
    config |= {"values": json.loads(json.dumps(dict(values))), "part": chosen}
    flat = _expand(config)
    return {key: value for key, value in flat.items() if key not in _SCAFFOLD}


def _bases(path: Path) -> list[Path]:
    """A task's part after the part that it extends."""
    from monai.bundle import ConfigParser

    base = ConfigParser.load_config_file(str(path)).get("extends")
    return [*([*_bases(path.with_name(f"{base}.yaml"))] if base else []), path]


def _expand(config: dict[str, Any]) -> dict[str, Any]:
    """Resolve macros until none is left; a part may use macros that a macro brings in."""
    from monai.bundle import ConfigParser

    for _ in range(8):
        parser = ConfigParser(config)
        parser.resolve_macro_and_relative_ids()
        config = parser.get()
        if '"%' not in json.dumps({k: v for k, v in config.items() if k not in ("values", "part")}):
            return _spliced(config)
    raise ConfigError("a part's macros refer to each other in a circle")


def _spliced(config: Any) -> Any:
    """The config with lists of transforms that a part brought into a list made one list."""
    if isinstance(config, dict):
        return {key: _spliced(value) for key, value in config.items()}
    if not isinstance(config, list):
        return config
    items = [_spliced(item) for item in config]
    nested = [
        item for item in items if isinstance(item, list) and item and isinstance(item[0], dict)
    ]
    if not nested:
        return items
    return [step for item in items for step in (item if item in nested else [item])]


def _first(path: str) -> str:
    return path.split("#", maxsplit=1)[0]
