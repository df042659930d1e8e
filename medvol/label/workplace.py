"""The folder that a server works in: the app, copies of the bundles, an overlay of the images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.bundle import Bundle
from medvol.core.errors import ConfigError, MissingInputError
from medvol.core.files import safe_name, sha256_file, write_json, write_text
from medvol.datasets import list_images
from medvol.io import formats

#: Where the reader of a DICOM series is noted, so that its labels can become a DICOM SEG.
SOURCES = "sources.json"
_ORIGIN = ".medvol_source.json"
_MAIN = '''"""Written by `medvol label`: MONAI Label looks here for a subclass of its app."""

from medvol.label.app import MedvolLabelApp

__all__ = ["MedvolLabelApp"]
'''
_LABEL_FOLDER = "labels"


@dataclass(frozen=True)
class Workplace:
    """Everything that a server writes lies below one folder.

    Attributes:
        folder: The user's choice; labels end up in ``studies/labels/final``.
    """

    folder: Path

    @property
    def app(self) -> Path:
        """The MONAI Label app with its bundles below ``model``."""
        return self.folder / "app"

    @property
    def studies(self) -> Path:
        """The datastore: links to the images, and the labels."""
        return self.folder / "studies"

    @property
    def cache(self) -> Path:
        """Series fetched from a DICOMweb server, and sessions."""
        return self.folder / "cache"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / "server.log"

    @property
    def labels(self) -> Path:
        """Where finished labels lie."""
        return self.studies / _LABEL_FOLDER / "final"


def prepare(
    folder: str | os.PathLike[str],
    bundles: Sequence[Bundle],
    images: str | os.PathLike[str] | None,
) -> Workplace:
    """Write the app, copy the bundles and lay an overlay over the images.

    Nothing is written into ``images``: files are linked, DICOM series are converted into the
    overlay. Weights that were fine-tuned here earlier are kept.

    Args:
        folder: Where the server works; created, or continued.
        bundles: What is served.
        images: A folder of images, or None for a DICOMweb server.

    Raises:
        ConfigError: If there is nothing to serve, or the folder lies inside ``images``.
        MissingInputError: If ``images`` holds no image.
    """
    place = Workplace(Path(folder).absolute())
    if not bundles:
        raise ConfigError("no bundle to serve; name one with --bundles")
    for bundle in bundles:
        _require_servable(bundle)
    write_text(place.app / "main.py", _MAIN)
    for bundle in bundles:
        _copy_bundle(bundle, place.app / "model" / bundle.name)
    for path in (place.studies, place.cache):
        path.mkdir(parents=True, exist_ok=True)
    if images is not None:
        _overlay(Path(images).absolute(), place)
    return place


def family_of(metadata: dict[str, Any]) -> str:
    """``segmentation`` or ``classification``, from the metadata and not from the folder's name."""
    pred = next(iter(metadata["network_data_format"]["outputs"].values()))
    return "segmentation" if pred.get("type") == "image" else "classification"


def _require_servable(bundle: Bundle) -> None:
    bundle.require_trusted("medvol label")
    inferer = bundle.config("inference").get("inferer", {})
    if str(inferer.get("_target_", "")).endswith("CAMInferer"):
        raise ConfigError(f"{bundle.name}: explains a classifier; serve the classification bundle, "
                          "whose mask is its Grad-CAM")  # fmt: skip


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """A copy, never a link: training rewrites the weights."""
    now = _digests(bundle.path)
    if target.is_dir():
        noted = target / _ORIGIN
        before = json.loads(noted.read_text("utf-8")) if noted.is_file() else {}
        weights = _digests(target).get("models/model.pt")
        if before == now or weights != before.get("models/model.pt"):
            return  # the same bundle, or weights that were trained here
        shutil.rmtree(target)
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(bundle.path, scratch, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    write_json(scratch / _ORIGIN, now)
    os.replace(scratch, target)


def _digests(folder: Path) -> dict[str, str]:
    files = [*sorted((folder / "configs").glob("*.json")), folder / "models" / "model.pt"]
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in files if p.is_file()}


def _overlay(images: Path, place: Workplace) -> None:
    if place.folder.resolve().is_relative_to(images.resolve()):
        raise ConfigError(f"{place.folder}: lies inside the images; name another folder with -o")
    if not images.is_dir():
        raise MissingInputError(f"{images}: no such folder")
    wanted = dict(_named(images))
    if not wanted:
        raise MissingInputError(f"{images}: holds no image that medvol reads")
    before = _earlier(place)
    _require_same_images(place, before, wanted)
    for name in before.keys() - wanted.keys():
        (place.studies / name).unlink(missing_ok=True)
    sources = {}
    for name, source in wanted.items():
        target = place.studies / name
        if not _is_dicom(source):
            _link(source, target)
            continue
        sources[name.removesuffix(".nii.gz")] = str(source)
        if before.get(name) != source or not target.is_file():
            target.unlink(missing_ok=True)
            _convert(source, target)
    write_json(place.studies / SOURCES, sources)
    _copy_labels(images, place)


def _earlier(place: Workplace) -> dict[str, Path]:
    """Name inside the overlay and source of every image of the last start."""
    noted = place.studies / SOURCES
    series = json.loads(noted.read_text("utf-8")) if noted.is_file() else {}
    found = {f"{name}.nii.gz": Path(source) for name, source in series.items()}
    links = (path for path in place.studies.iterdir() if path.is_symlink())
    return {**found, **{link.name: link.readlink() for link in links}}


def _require_same_images(
    place: Workplace, before: Mapping[str, Path], wanted: Mapping[str, Path]
) -> None:
    """Labels belong to an image by its name: another image of that name must not inherit them.

    A source that is gone was moved, and is the same image elsewhere.
    """
    for name, source in wanted.items():
        old, stem = before.get(name, source), _split_name(name)[0]
        labels = [path for path in (place.studies / _LABEL_FOLDER).glob("*/*")
                  if _split_name(path.name)[0] == stem]  # fmt: skip
        if labels and old != source and old.exists() and not old.samefile(source):
            raise ConfigError(f"{place.folder}: holds labels of {old}, and {source} goes by the "
                              "same name; choose another folder with -o")  # fmt: skip


def _named(images: Path) -> Iterator[tuple[str, Path]]:
    """Name inside the overlay and source of every image; folders become part of the name."""
    taken: set[str] = set()
    for source in list_images(images):
        inside = source.relative_to(images)
        if inside.parts[0] == _LABEL_FOLDER:
            continue
        stem, suffix = _split_name("_".join(inside.parts))
        suffix = ".nii.gz" if _is_dicom(source) else suffix
        name = safe_name(stem) + suffix
        while name in taken:
            stem += "_"
            name = safe_name(stem) + suffix
        taken.add(name)
        yield name, source


def _split_name(name: str) -> tuple[str, str]:
    stem, suffix = formats.split_name(name)
    if suffix:
        return stem, suffix.lower()
    stem, _, last = name.rpartition(".")
    return (stem, f".{last.lower()}") if stem else (name, "")


def _is_dicom(path: Path) -> bool:
    return path.is_dir() or formats.format_of(path.name) in (None, "DICOM")


def _link(source: Path, target: Path) -> None:
    if target.is_symlink() and target.readlink() == source:
        return
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError:  # a system without links
        shutil.copyfile(source, target)


def _convert(source: Path, target: Path) -> None:
    import numpy as np

    from medvol.io import read_image, write_nifti

    image = read_image(source)
    write_nifti(target, image.as_tensor().numpy()[0], np.asarray(image.affine))


def _copy_labels(images: Path, place: Workplace) -> None:
    """Labels of an earlier MONAI Label session are taken over, unless newer ones are there."""
    for source in sorted((images / _LABEL_FOLDER).glob("*/*")):
        target = place.studies / source.relative_to(images)
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
