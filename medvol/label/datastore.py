"""Where MONAI Label's images and labels lie: an overlay of a folder, or a DICOMweb server."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.dicom import (  # pyright: ignore[reportMissingImports]
    DICOMwebClientX,
    DICOMWebDatastore,
)
from monailabel.datastore.local import LocalDatastore  # pyright: ignore[reportMissingImports]
from monailabel.datastore.utils.dicom import (  # pyright: ignore[reportMissingImports]
    dicom_web_download_series,
    dicom_web_upload_dcm,
)

from medvol.core.errors import InputError, MedvolError, MissingInputError, OutputError
from medvol.core.files import safe_name
from medvol.io import ReadOptions, formats, read_image, read_label, read_scan, write_nifti
from medvol.label.seg import SegWriter
from medvol.label.workplace import SOURCES

logger = logging.getLogger(__name__)
_FINAL = "final"
_LIST_KEPT_S = 5.0


class OverlayDatastore(LocalDatastore):
    """A folder of links to images; whatever a client asks for, the images stay as they are.

    MONAI Label's own store follows links: removing or replacing an image would remove or
    overwrite the user's file, and an id with ``..`` would leave the folder.

    Args:
        folder: The overlay that :func:`medvol.label.prepare` laid.
        settings: MONAI Label's.
        seg: Writes a DICOM SEG beside the labels of images that came from DICOM series.
    """

    def __init__(self, folder: str, settings: Any, seg: SegWriter) -> None:
        self._seg = seg
        super().__init__(
            folder,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        )

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an uploaded image; one of that name must not exist.

        Raises:
            InputError: If the name would leave the folder or is taken.
        """
        name = image_id or self._to_id(Path(image_filename).name)[0]
        _require_plain_name(name)
        if name in self.list_images():
            raise InputError(f"image {name!r} exists; images are never replaced")
        return super().add_image(name, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Take an image and its labels out of the overlay; the user's file stays.

        Raises:
            MissingInputError: If there is no such image.
        """
        found = self._datastore.objects.get(image_id)
        if found is None:
            raise MissingInputError(f"no image {image_id!r} in the datastore")
        files = [self.get_label_uri(image_id, tag) for tag in found.labels]
        files.append(
            str(Path(self._datastore.image_path()) / self._filename(image_id, found.image.ext))
        )
        # Forgotten first: a watcher in another thread walks the store as soon as a file goes.
        self._datastore.objects.pop(image_id)
        self._update_datastore_file()
        for path in files:
            Path(path).unlink(missing_ok=True)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Save a label; a finished one must lie on its image's grid.

        Raises:
            InputError: If it does not, or a name would leave the folder.
        """
        _require_plain_name(image_id)
        _require_plain_name(label_tag)
        if image_id not in self.list_images():
            raise MissingInputError(f"no image {image_id!r} in the datastore")
        if label_tag == _FINAL:
            _require_label(self.get_image_uri(image_id), label_filename)
        saved = super().save_label(image_id, label_filename, label_tag, label_info)
        if label_tag == _FINAL and (series := self._sources().get(image_id)):
            target = Path(self._datastore.label_path(_FINAL)) / f"{image_id}.dcm"
            try:
                self._seg.write(Path(label_filename), Path(series), target, label_info)
            except MedvolError as error:  # the label itself is saved
                logger.warning("rejected: %s", error)
        return saved

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        return _without_scratch(super()._list_files(path, patterns))

    def _sources(self) -> dict[str, str]:
        path = Path(self._datastore_path) / SOURCES
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}


class DicomWebDatastore(DICOMWebDatastore):
    """Series of a DICOMweb server, read through medvol's input checks; labels go back as DICOM SEG.

    Args:
        client: From :func:`dicomweb_client`.
        modalities: Codes of the series that are listed; empty lists all.
        cache: Folder that series are fetched into.
        seg: Writes the SEG.
    """

    def __init__(self, client: Any, modalities: Sequence[str], cache: str, seg: SegWriter) -> None:
        self._modalities = tuple(modalities)
        self._seg = seg
        self._listed: tuple[float, list[str]] = (0.0, [])
        super().__init__(client, {}, cache)

    def list_images(self) -> list[str]:
        """Series of the wanted modalities; the server is asked at most every few seconds."""
        if time.monotonic() - self._listed[0] < _LIST_KEPT_S and self._listed[1]:
            return self._listed[1]
        filters = [{"Modality": code} for code in self._modalities] or [{}]
        found = {row["0020000E"]["Value"][0] for wanted in filters
                 for row in self._client.search_for_series(search_filters=wanted)
                 if row.get("00080060", {}).get("Value", [""])[0] != "SEG"}  # fmt: skip
        self._listed = (time.monotonic(), sorted(found))
        return self._listed[1]

    def get_labeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Series that a SEG of the server refers to."""
        return sorted({image for image, _ in self._segmentations()})

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """The others."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def get_image_uri(self, image_id: str) -> str:
        """The series as a NIfTI file in the cache, fetched and converted when first asked for.

        Raises:
            MissingInputError: If the server has no such series.
            InputError: If the series is rejected by the input checks.
        """
        target = Path(self._datastore.image_path()) / f"{image_id}.nii.gz"
        if not target.is_file():
            series = self._fetched(image_id, Path(self._datastore.image_path()))
            _convert(series, target)
            self._reconcile_datastore()
            self.update_image_info(image_id, self._dicom_info(image_id))
        return str(target)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Keep a label in the cache; a finished one is also stored on the server as a SEG.

        Raises:
            InputError: If it does not lie on its image's grid.
        """
        _require_plain_name(image_id)
        _require_plain_name(label_tag)
        image = self.get_image_uri(image_id)
        if label_tag == _FINAL:
            _require_label(image, label_filename)
            series = Path(self._datastore.image_path()) / image_id
            target = Path(self._datastore.label_path(_FINAL)) / f"{image_id}.dcm"
            self._seg.write(Path(label_filename), series, target, label_info)
            label_info = {**label_info, "SeriesInstanceUID": self._upload(target)}
        return LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and label of every labelled series, fetched from the server where need be."""
        for image, (study, series) in dict(self._segmentations()).items():
            uri = self.get_image_uri(image)
            target = Path(self._datastore.label_path(_FINAL)) / f"{image}.nii.gz"
            if not target.is_file():
                folder = target.parent / series
                dicom_web_download_series(study, series, str(folder), self._client)
                label = read_label(_only_file(folder), range(256), reference=read_scan(uri))
                write_nifti(target, label.array[0], label.affine, dtype=np.uint8)
        self._reconcile_datastore()
        return LocalDatastore.datalist(self, full_path)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        return _without_scratch(super()._list_files(path, patterns))

    def _dicom_info(self, series_id: str) -> dict[str, Any]:
        """No name, id or date of the patient: the store's file and its answers hold none."""
        return {"SeriesInstanceUID": series_id}

    def _segmentations(self) -> list[tuple[str, tuple[str, str]]]:
        """(image series, (study, SEG series)) of every SEG that refers to a listed series."""
        images, found = set(self.list_images()), []
        for row in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            study, series = (row[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
            headers = self._client.retrieve_series_metadata(study, series)
            for item in headers[0].get("00081115", {}).get("Value", []):
                image = item.get("0020000E", {}).get("Value", [""])[0]
                if image in images:
                    found.append((image, (study, series)))
        return found

    def _fetched(self, image_id: str, folder: Path) -> Path:
        if image_id not in self.list_images():
            raise MissingInputError(f"no series {image_id!r} on the DICOMweb server")
        series = folder / image_id
        if not series.is_dir():
            scratch = folder / f".{image_id}.part"
            shutil.rmtree(scratch, ignore_errors=True)
            dicom_web_download_series(None, image_id, str(scratch), self._client)
            scratch.replace(series)
        return series

    def _upload(self, seg: Path) -> str:
        found = dicom_web_upload_dcm(str(seg), self._client)
        if not found:
            raise OutputError(f"{seg.name}: the DICOMweb server did not take the segmentation")
        return str(found)


def dicomweb_client(url: str) -> Any:
    """A client for a DICOMweb server, with user and password where MONAI Label has them."""
    from dicomweb_client.session_utils import (  # pyright: ignore[reportMissingImports]
        create_session_from_user_pass,
    )
    from monailabel.config import settings  # pyright: ignore[reportMissingImports]

    user, password = (
        getattr(settings, f"MONAI_LABEL_DICOMWEB_{k}") for k in ("USERNAME", "PASSWORD")
    )
    session = create_session_from_user_pass(user, password) if user and password else None
    return DICOMwebClientX(url=url, session=session)


def _convert(series: Path, target: Path) -> None:
    image = read_image(series)
    write_nifti(target, image.as_tensor().numpy()[0], np.asarray(image.affine))


def _without_scratch(found: dict[str, str]) -> dict[str, str]:
    """Files that are being written have a dot in front."""
    return {name: path for name, path in found.items() if not name.startswith(".")}


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.dcm"))
    if len(found) != 1:
        raise InputError(f"{folder.name}: holds {len(found)} segmentations instead of one")
    return found[0]


def _require_plain_name(name: str) -> None:
    if name != safe_name(name):
        raise InputError(f"{name!r} is not a legal name here; {safe_name(name)!r} would be")


def _require_label(image: str, label: str) -> None:
    """Reject a label off its image's grid or with values that are not classes."""
    if formats.ends_like(image, formats.FLAT):
        return
    read_label(label, range(256), reference=read_scan(image, ReadOptions()))


def staged_pairs(
    datastore: Any, labels: Mapping[int, str], folder: Path
) -> tuple[list[dict[str, str]], list[str]]:
    """Every submitted label through the pair checks, on its image's own voxel order.

    Args:
        datastore: Of MONAI Label.
        labels: Classes that the bundle knows.
        folder: Where the checked labels are written.

    Returns:
        Pairs with their image id as ``case``, and one line for every rejected one.
    """
    pairs, rejected = [], []
    shutil.rmtree(folder, ignore_errors=True)
    for row in datastore.datalist():
        case = Path(row["label"]).name.split(".nii", 1)[0]
        try:
            label = read_label(row["label"], labels, reference=read_scan(row["image"]))
        except InputError as error:
            rejected.append(f"{case}: {error}")
            continue
        path = write_nifti(folder / f"{safe_name(case)}.nii.gz", label.array[0], label.affine)
        pairs.append({"case": case, "image": row["image"], "label": str(path)})
    return pairs, rejected
