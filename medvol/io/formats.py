"""Which file name endings stand for which format: the one table of them."""

from __future__ import annotations

from typing import Literal

FormatName = Literal["NIfTI", "NRRD", "MetaImage", "DICOM", "image"]

#: NIfTI of a single file.
NIFTI_FILES = (".nii.gz", ".nii")
#: Voxels of an ANALYZE-like pair; the .hdr beside them names the image.
PAIR_DATA = (".img.gz", ".img")
#: PNG and its like: one 2D image a file.
FLAT = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: A DICOM file may have any name; these are DICOM or broken.
DICOM = (".dcm", ".dicom", ".ima")
#: Every ending of every format that is read by its name, the preferred ones first.
SUFFIXES: dict[FormatName, tuple[str, ...]] = {
    "NIfTI": (*NIFTI_FILES, ".hdr.gz", ".hdr", *PAIR_DATA),
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
    "DICOM": DICOM,
    "image": FLAT,
}
#: Volumes of a file or a pair of files.
VOLUMES = (*SUFFIXES["NIfTI"], *SUFFIXES["NRRD"], *SUFFIXES["MetaImage"])
#: All of them, the preferred ones first.
ALL = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
#: What medvol writes through ITK, each a single file.
ITK_FILES = (".nrrd", ".mha")
#: Headers whose voxels lie in another file.
DETACHED_HEADERS = (".hdr.gz", ".hdr", ".nhdr", ".mhd")
#: Files that may lie beside DICOM slices and are none.
BESIDE_DICOM = frozenset(
    {*VOLUMES, *FLAT, ".txt", ".xml", ".json", ".csv", ".tsv", ".html", ".htm", ".pdf", ".md",
     ".inf", ".exe", ".ini", ".log", ".db", ".yaml", ".yml", ".gif", ".zip", ".gz", ".raw",
     ".sha256", ".md5", ".css", ".js", ".dll", ".ico"}
)  # fmt: skip
_LONGEST_FIRST = sorted(ALL, key=len, reverse=True)


def format_of(name: str) -> FormatName | None:
    """The format that a file name stands for; None where the name does not state one.

    >>> format_of("a.NII.GZ"), format_of("a.nhdr"), format_of("IM0001")
    ('NIfTI', 'NRRD', None)
    """
    suffix = split_name(name)[1].lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def split_name(name: str) -> tuple[str, str]:
    """A file name without the ending of its format, and that ending; empty if it has none.

    >>> split_name("case.01.nii.gz"), split_name("1.2.840.113"), split_name(".nii")
    (('case.01', '.nii.gz'), ('1.2.840.113', ''), ('.nii', ''))
    """
    lowered = name.lower()
    for suffix in _LONGEST_FIRST:
        if lowered.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def ends_like(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file name has one of these endings, in any case.

    >>> ends_like("a.Nii", NIFTI_FILES), ends_like("a.png", VOLUMES)
    (True, False)
    """
    return name.lower().endswith(suffixes)
