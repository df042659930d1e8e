"""From a name to a folder that ``read_dataset`` reads, all of it or nothing."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from medvol.core.errors import InputError, MissingInputError, OutputError, UnsafeFileError
from medvol.core.files import write_json, write_text
from medvol.core.unpack import unpack
from medvol.datasets.fetch.download import DownloadSource, Progress, download, require_md5
from medvol.datasets.fetch.registry import PublicDataset, find_public

_RECEIPT = ".medvol_fetch.json"
_SPLITS = (("train", "train"), ("val", "validation"), ("test", "test"))


def fetch(
    name: str | PublicDataset,
    folder: str | os.PathLike[str],
    *,
    archive: str | os.PathLike[str] | None = None,
    source: DownloadSource | None = None,
    keep_archive: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Download a public data set, check its digest, unpack it.

    Args:
        name: A name of ``PUBLIC``, or a row of one's own.
        folder: Where the data set's folder is created.
        archive: A file downloaded by other means, instead of the network; its digest must fit.
        source: Another address (a mirror) or patience; the registry's row by default.
        keep_archive: Whether to leave the downloaded file beside the folder.
        progress: Called while bytes arrive.

    Returns:
        The data set's folder. One that is already complete is returned as it is.

    Raises:
        ConfigError: If the name is unknown.
        MedvolError: See ``download`` and ``unpack``; nothing half-unpacked is left.
    """
    row = find_public(name) if isinstance(name, str) else name
    folder = Path(folder)
    home = folder / row.name
    if (home / _RECEIPT).is_file():
        return home
    if home.exists() and any(home.iterdir()):
        raise OutputError(f"{home}: exists and was not written by medvol data fetch; move it away")
    packed = _packed(row, folder, archive, source, progress)
    scratch = Path(tempfile.mkdtemp(prefix=f".{row.name}-", dir=folder))
    try:
        whole = _unpacked(row, packed, scratch)
        write_json(
            whole / _RECEIPT,
            {"name": row.name, "url": row.url, "md5": row.md5, "licence": row.licence},
        )
        if home.exists():
            home.rmdir()
        os.replace(whole, home)
    except OSError as error:
        if isinstance(error, (OutputError, InputError)):
            raise
        raise OutputError(f"{home}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if archive is None and not keep_archive:
        packed.unlink()
    return home


def _packed(
    row: PublicDataset,
    folder: Path,
    archive: str | os.PathLike[str] | None,
    source: DownloadSource | None,
    progress: Progress | None,
) -> Path:
    if archive is not None:
        packed = Path(archive)
        if not packed.is_file():
            raise MissingInputError(f"{packed}: no such archive")
        require_md5(packed, row.md5)
        folder.mkdir(parents=True, exist_ok=True)
        return packed
    packed = folder / row.archive
    if packed.is_file():
        require_md5(packed, row.md5)
        return packed
    return download(source or DownloadSource(row.url, row.md5), packed, progress)


def _unpacked(row: PublicDataset, packed: Path, scratch: Path) -> Path:
    whole = scratch / "whole"
    if row.classes:
        _write_medmnist(row, packed, whole)
        return whole
    unpack(packed, whole)
    inner = [item for item in whole.iterdir() if not item.name.startswith(".")]
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else whole


def _write_medmnist(row: PublicDataset, packed: Path, whole: Path) -> None:
    """MedMNIST's arrays as NIfTI or PNG with a datalist; the publisher's split is kept.

    The files do not state the orientation; volumes are written with axes as stored.
    """
    lines = ["image,class,split"]
    ending = ".nii.gz" if row.spacing_mm else ".png"
    for key, split in _SPLITS:
        images, labels = _arrays(row, packed, key)
        for number, (image, label) in enumerate(zip(images, labels.ravel(), strict=True)):
            if not 0 <= int(label) < len(row.classes):
                raise UnsafeFileError(f"{packed}: class {int(label)} is none of {len(row.classes)}")
            name = f"images/{key}_{number:05d}{ending}"
            _write_image(whole / name, image, row.spacing_mm)
            lines.append(f"{name},{row.classes[int(label)]},{split}")
    write_text(whole / "datalist.csv", "\n".join(lines) + "\n")


def _arrays(row: PublicDataset, packed: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(packed, allow_pickle=False) as content:
            images, labels = content[f"{key}_images"], content[f"{key}_labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UnsafeFileError(f"{packed}: is not a MedMNIST file of {row.name}: {error}") from error
    if len(images) != labels.size or images.ndim != (4 if row.spacing_mm else 3):
        raise UnsafeFileError(f"{packed}: images {images.shape} do not fit labels {labels.shape}")
    return images, labels


def _write_image(target: Path, image: np.ndarray, spacing_mm: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer: Any = io.BytesIO()
    if spacing_mm:
        import nibabel

        affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
        volume = nibabel.Nifti1Image(image, affine)
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, target)
        return
    from PIL import Image

    Image.fromarray(image).save(buffer, "PNG")
    target.write_bytes(buffer.getvalue())
