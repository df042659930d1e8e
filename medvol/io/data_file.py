"""Formats whose header and voxels are two files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from medvol.core.files import sha256_file

#: The data file that a MetaImage or NRRD header names.
_DATA = re.compile(rb"(?im)^(?:ElementDataFile *=|data ?file:) *(\S.*?) *\r?$")


def image_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the sorted digests where an image is several files.

    These are the files of a folder, and a header with the data file that it names.
    """
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else with_data(path)
    if files == [path]:
        return sha256_file(path)
    digest = hashlib.sha256()
    for one in sorted(sha256_file(p) for p in files):
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


def with_data(header: Path) -> list[Path]:
    """The file, and the one beside it that holds its voxels, if any.

    Headers alone are often equal byte for byte, as two scans of one protocol have them.
    """
    stem, suffix = header.name[:-4], header.name[-4:].lower()
    named = []
    if suffix == ".hdr":
        named = [f"{stem}.img", f"{stem}.img.gz"]
    elif suffix == ".mhd" or header.suffix.lower() == ".nhdr":
        with header.open("rb") as handle:
            named = [
                found.decode("utf-8", "replace") for found in _DATA.findall(handle.read(1 << 16))
            ]
    return [header, *(p for name in named if (p := header.parent / name).is_file())]
