"""A bundle in use: its facts, its network with weights, its transforms; and copies of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvol.bundle.config import read_config
from medvol.bundle.places import find_bundle, is_shipped
from medvol.core.errors import ConfigError, OutputError, UnsafeFileError
from medvol.core.shipped import bundles_dir

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose config may be run.

    Attributes:
        path: Absolute folder of the bundle.
        is_trusted: Whether its config may hold code; None trusts exactly the shipped bundles.
    """

    path: Path
    is_trusted: bool | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The content of ``metadata.json``.

        Raises:
            ConfigError: If it is not a mapping in JSON.
        """
        return read_config(self.path / "configs" / "metadata.json", is_trusted=True)

    @property
    def is_code_trusted(self) -> bool:
        """Whether the bundle's configs, scripts and logging may run as code."""
        return is_shipped(self.path) if self.is_trusted is None else self.is_trusted

    def require_trusted(self, what: str) -> None:
        """Reject an untrusted bundle where its configs are handed to MONAI as they are.

        Raises:
            UnsafeFileError: If the bundle is neither shipped nor trusted.
        """
        if not self.is_code_trusted:
            raise UnsafeFileError(f"{self.path}: {what} runs the bundle's configs as code; read "
                                  "them, then pass --trust-bundle")  # fmt: skip

    @property
    def version(self) -> str:
        """The bundle's own version."""
        return str(self.metadata["version"])

    @property
    def labels(self) -> dict[int, str]:
        """Label value to name, without background.

        A bundle that medvol did not write names the channels of its output in ``channel_def``.
        With a background each is a value; outputs that overlap have none and count from 1.

        Raises:
            ConfigError: If neither is there.
        """
        if (stated := self.metadata.get("medvol", {}).get("labels")) is not None:
            return {int(value): str(stated[value]) for value in sorted(stated, key=int)}
        try:
            pred = self.metadata["network_data_format"]["outputs"]["pred"]
            names = {int(k): str(name) for k, name in pred["channel_def"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{self.path}: metadata.json names no channels of an output pred; "
                              "state them in channel_def") from error  # fmt: skip
        is_overlapping = "background" not in names.get(0, "").lower()
        first = int(pred.get("format") == "segmentation" and is_overlapping)
        return {first + k: names[k] for k in sorted(names) if "background" not in names[k].lower()}

    @property
    def member_def(self) -> dict[str, Any]:
        """The definition of the network that training trains: an ensemble's member, or all."""
        network = self.config("train")["network_def"]
        members = network.get("networks")
        return members if isinstance(members, dict) and "_target_" in members else network

    @property
    def weights(self) -> Path:
        """Where the weights are, whether or not the bundle ships any."""
        return self.path / "models" / "model.pt"

    @property
    def has_weights(self) -> bool:
        """Whether the bundle ships weights."""
        return self.weights.is_file()

    @property
    def tasks(self) -> list[str]:
        """Names of the bundle's configs: train, evaluate, inference ..."""
        found = sorted(path.stem for path in (self.path / "configs").glob("*.json"))
        return [task for task in found if task != "metadata"]

    def config_path(self, task: str) -> Path:
        """The file of one task's config."""
        return self.path / "configs" / f"{task}.json"

    def config(self, task: str) -> dict[str, Any]:
        """One task's config, not evaluated; rejected if untrusted and unsafe."""
        return read_config(self.config_path(task), is_trusted=self.is_trusted)

    def parser(self, task: str = "inference", **overrides: Any) -> ConfigParser:
        """A MONAI parser of one task with the bundle's root filled in.

        Args:
            task: Name of the config.
            overrides: Ids and values, as on MONAI's command line.
        """
        from monai.bundle import ConfigParser

        parser = ConfigParser(self.config(task))
        if self.is_code_trusted:  # MONAI makes metadata a part of the config
            parser.read_meta(str(self.path / "configs" / "metadata.json"))
        parser.update({"bundle_root": str(self.path), **overrides})
        return parser

    def network(self, device: str | torch.device = "cpu", task: str = "inference"):
        """The network with the shipped weights, in evaluation mode.

        Raises:
            WeightsError: If the bundle ships no weights or they do not fit.
        """
        from medvol.networks import with_weights

        bare = self.parser(task).get_parsed_content("network_def")
        return with_weights(bare, self.weights, device).eval()


def load(name_or_path: str | os.PathLike[str], *, is_trusted: bool | None = None) -> Bundle:
    """Find a bundle by shipped name or by path; nothing of it is run.

    Args:
        name_or_path: For example ``hippocampus_mri_segmentation`` or a folder.
        is_trusted: True runs the config of a bundle that is not shipped with medvol.

    Raises:
        MissingInputError: If there is no such bundle.
        UnsafeFileError: If the bundle is not trusted and holds a link, or its inference config
            (where it has none, any config) holds code.
    """
    bundle = Bundle(find_bundle(name_or_path), is_trusted)
    if not bundle.is_code_trusted:
        _reject_links(bundle.path)
    for task in ["inference"] if "inference" in bundle.tasks else bundle.tasks:
        bundle.config(task)
    return bundle


def _reject_links(folder: Path) -> None:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(path := Path(place) / name):
                raise UnsafeFileError(f"{path}: is a link, which may lead anywhere; copy what it "
                                      "stands for in its place")  # fmt: skip


def list_bundles() -> list[Bundle]:
    """Every shipped bundle, by name."""
    found = sorted(path.parents[1] for path in bundles_dir().glob("*/configs/metadata.json"))
    return [Bundle(path) for path in found]


def fork(name_or_path: str | os.PathLike[str], into: str | os.PathLike[str]) -> Path:
    """Copy a bundle out as the user's own; all of it or nothing.

    Args:
        name_or_path: The bundle to copy.
        into: The new bundle's folder; its last part is the new name.

    Raises:
        OutputError: If ``into`` exists or cannot be written.
        ConfigError: If the name does not tell MONAI Label the task.
    """
    source, target = find_bundle(name_or_path), Path(into)
    task = source.name.rsplit("_", 1)[-1]
    if task not in target.name:
        raise ConfigError(f"{target}: the name must hold the word {task!r}, or MONAI Label cannot "
                          "tell what the bundle does")  # fmt: skip
    if target.exists():
        raise OutputError(f"{target}: exists; choose another folder")
    _reject_links(source)
    scratch = target.with_name(f".{target.name}.part")
    try:
        shutil.copytree(source, scratch, ignore=shutil.ignore_patterns("__pycache__", "runs"))
        for path in (scratch / "configs").glob("*.json"):
            _rename(path, target.name)
        os.replace(scratch, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _rename(path: Path, name: str) -> None:
    """Give one config the name of its fork, which is then not taken for the shipped bundle."""
    try:
        content = json.loads(path.read_text("utf-8"))
        facts, root = content.get("medvol"), content.get("bundle_root")
    except (ValueError, AttributeError):
        return  # a damaged config is copied as it is; `verify` and every run name it
    if isinstance(facts, dict):
        facts["name"] = name
    elif isinstance(root, dict) and "is_shipped" in root:
        root.update(name=name, is_shipped=False)
    else:
        return
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", "utf-8")
