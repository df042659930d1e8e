"""Where a config's results go: the input tree mirrored, one name for every image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from monai.data.folder_layout import FolderLayoutBase

from medvol.datasets.listing import has_image_suffix, is_dicom_file, stem


class ResultLayout(FolderLayoutBase):
    """Names results after their images: ``SaveImaged(folder_layout=...)``.

    ``DIR/sub/a.nii.gz`` becomes ``OUT/sub/a_seg.nii.gz``. Where a folder holds two images of one
    stem, their suffixes stay in the names: ``a.nii`` and ``a.mha`` become ``a.nii_seg.nii.gz`` and
    ``a.mha_seg.nii.gz``. Nothing leaves ``output_dir``. MONAI's ``FolderLayout`` cuts every name at
    its last dot, so that series folders named by UIDs meet in one file.

    Args:
        dataset_dir: Folder of the images, or one image.
        output_dir: Folder of the results.
        postfix: What follows the image's name.
        extension: Suffix of the results.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        postfix: str = "seg",
        extension: str = ".nii.gz",
    ) -> None:
        self.root = Path(os.path.abspath(dataset_dir))
        self.output_dir = Path(output_dir)
        self.ending = f"_{postfix}{extension}"
        self._names: dict[Path, Counter[str]] = {}

    def filename(self, subject: str | os.PathLike[str] = "subject", **kwargs: object) -> str:
        """Path of the result of the image ``subject``."""
        path = Path(os.path.abspath(subject))
        inside = path.parent.relative_to(self.root) if self.root in path.parents else Path()
        return str(self.output_dir / inside / (self._name(path) + self.ending))

    def _name(self, path: Path) -> str:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = Counter(_image_names(folder))
        own = path.name if path.is_dir() else stem(path)
        return own if self._names[folder][own] < 2 else path.name


def _image_names(folder: Path) -> Iterator[str]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if any(is_dicom_file(file) for file in path.iterdir() if file.is_file()):
                yield path.name
        elif has_image_suffix(path) or is_dicom_file(path):
            yield stem(path)
