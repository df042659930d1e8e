"""Finding every readable image below a folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from medvol.core.errors import InputError, MissingInputError
from medvol.io import formats

#: A pair is listed by its header alone.
_LISTED = tuple(s for s in (*formats.VOLUMES, *formats.FLAT) if s not in formats.PAIR_DATA)
#: Modalities whose files are images of their own, even where one series holds several views.
_PROJECTIONS = frozenset({"CR", "DX", "MG", "RG", "XR", "OP", "XC", "US", "IO", "PX", "SM", "ES"})
_LABEL_FOLDERS = frozenset({"labelsTr", "labelsTs"})
_SKIPPED_FOLDERS = frozenset({"__MACOSX"})


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image below a folder, sorted: files, and folders that hold one DICOM series.

    A DICOM folder whose files belong to one series is listed as the folder; radiographs and
    other projections, and files that are alone in their series, are listed file by file.
    Hidden files and the label folders of MSD and nnU-Net (labelsTr, labelsTs) are left out.

    Args:
        folder: Where to look; a single image file is returned as itself.

    Raises:
        MissingInputError: If the folder does not exist or holds no image.
    """
    root = Path(os.path.abspath(folder))
    if root.is_file():
        if not (formats.format_of(root.name) or is_dicom_file(root)):
            raise InputError(f"{folder}: is not an image that medvol reads")
        return [root]
    if not root.is_dir():
        raise MissingInputError(f"{folder}: no such folder")
    found = list(_walk(root))
    if not found:
        raise MissingInputError(f"{folder}: holds no image that medvol reads")
    return sorted(found, key=lambda path: path.as_posix())


def has_image_suffix(path: Path) -> bool:
    """Whether the name ends like an image other than DICOM.

    >>> has_image_suffix(Path("a.NII.GZ")), has_image_suffix(Path("a.csv"))
    (True, False)
    """
    return path.name.lower().endswith(_LISTED)


def stem(path: Path) -> str:
    """The file's name without its image suffix.

    >>> stem(Path("x/case.01.nii.gz")), stem(Path("x/IM0001"))
    ('case.01', 'IM0001')
    """
    return formats.split_name(path.name)[0]


def is_dicom_file(path: Path) -> bool:
    """Whether the file carries the DICOM mark, or a DICOM suffix."""
    if path.name == "DICOMDIR":
        return False
    if formats.format_of(path.name) == "DICOM":
        return True
    try:
        with path.open("rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _walk(root: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if not n.startswith(".")
                            and n not in _SKIPPED_FOLDERS | _LABEL_FOLDERS)  # fmt: skip
        dicom = []
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith("."):
                continue
            if has_image_suffix(path):
                yield path
            elif is_dicom_file(path):
                dicom.append(path)
        if dicom:
            yield from _dicom_images(Path(here), dicom)


def _dicom_images(folder: Path, files: list[Path]) -> list[Path]:
    series: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        series[_series_key(path)].append(path)
    if any(len(members) > 1 for members in series.values()):
        return [folder]
    return files


def _series_key(path: Path) -> str:
    import pydicom

    tags = ["SeriesInstanceUID", "Modality"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
        uid, modality = header.get("SeriesInstanceUID"), header.get("Modality")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError):
        return f"unreadable {path.name}"  # listed on its own, so that its reader names the fault
    if uid is None or modality in _PROJECTIONS:
        return f"file {path.name}"
    return str(uid)
