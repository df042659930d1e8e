"""Unpacking archives that somebody else made."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medvol.core.errors import MedvolError, MissingInputError, OutputError, UnsafeFileError

_CHUNK = 1 << 20
_MAX_NAME = 255
_MAX_TAIL = 64 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, zlib.error,
           lzma.LZMAError, gzip.BadGzipFile, ValueError)  # fmt: skip


@dataclass(frozen=True)
class UnpackLimits:
    """Ceilings for one archive."""

    total_bytes: int = 64 << 30
    ratio: float = 200.0
    members: int = 200_000


def unpack(
    archive: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    limits: UnpackLimits | None = None,
) -> Path:
    """Unpack a zip or tar archive into a folder, all of it or nothing.

    Links, devices, absolute names, names that climb out, duplicates, more members than allowed,
    more bytes than allowed and compression ratios of bombs are rejected. Sizes are counted while
    unpacking, not believed from the header.

    Args:
        archive: A .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file.
        into: Folder to create or add to.
        limits: Ceilings; the defaults allow every public data set that medvol fetches.

    Returns:
        ``into``.

    Raises:
        MissingInputError: If the archive does not exist.
        UnsafeFileError: If a member breaks a rule or the file is not an archive.
        OutputError: If a file of that name exists with other content, or the disk is full.
    """
    archive, into = Path(archive), Path(into)
    if not archive.is_file():
        raise MissingInputError(f"{archive}: no such archive")
    limits = limits or UnpackLimits()
    into.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=into.parent))
    try:
        _extract(archive, scratch, limits)
        _move_all(scratch, into)
    except MedvolError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise UnsafeFileError(f"{archive}: is encrypted, or packed by a method that is not "
                              "supported") from error  # fmt: skip
    except _DAMAGE as error:
        raise UnsafeFileError(f"{archive}: is not a whole archive: {error}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # its directory points before its first byte
            raise UnsafeFileError(f"{archive}: is not a whole archive: {error}") from error
        raise OutputError(f"{into}: cannot unpack {archive.name}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return into


def _extract(archive: Path, scratch: Path, limits: UnpackLimits) -> None:
    budget = min(limits.total_bytes, int(max(1, archive.stat().st_size) * limits.ratio))
    seen: set[str] = set()
    for name, is_folder, source in _members(archive):
        if len(seen) >= limits.members:
            raise UnsafeFileError(f"{archive}: holds more than {limits.members} members")
        target = scratch / _inside(archive, name)
        key = str(target).casefold()
        if key in seen or any(str(p).casefold() in seen for p in target.parents):
            raise UnsafeFileError(f"{archive}: member {name!r} appears twice")
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        if target.is_dir():
            raise UnsafeFileError(f"{archive}: member {name!r} is a file and a folder")
        seen.add(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            while chunk := source.read(_CHUNK):  # pyright: ignore[reportOptionalMemberAccess]
                budget -= len(chunk)
                if budget < 0:
                    raise UnsafeFileError(f"{archive}: unpacks to more than is allowed (a bomb?)")
                sink.write(chunk)
    if not seen:
        raise UnsafeFileError(f"{archive}: is an empty archive: it holds no file")


def _members(archive: Path) -> Iterator[tuple[str, bool, IO[bytes] | None]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                mode = info.external_attr >> 16
                if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UnsafeFileError(f"{archive}: member {info.filename!r} is a link")
                if info.is_dir():
                    yield info.filename, True, None
                else:
                    with opened.open(info) as source:
                        yield info.filename, False, source
        return
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            if not (info.isfile() or info.isdir()) or info.issparse():
                raise UnsafeFileError(f"{archive}: member {info.name!r} is a link or device")
            yield info.name, info.isdir(), opened.extractfile(info) if info.isfile() else None
        _drain(archive, opened.fileobj)


def _drain(archive: Path, stream: Any) -> None:
    """Read what follows the last member, so that the compression's own checksum is verified."""
    left = _MAX_TAIL
    while chunk := stream.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise UnsafeFileError(f"{archive}: goes on after its last member (a bomb?)")


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise UnsafeFileError(f"{archive}: member {name!r} would land outside the folder")
    if not path.parts or not name.isprintable() or any(
        len(part.encode("utf-8", "replace")) > _MAX_NAME for part in path.parts
    ):  # fmt: skip
        raise UnsafeFileError(f"{archive}: member {name[:80]!r} is not a usable file name or path")
    return path


def _move_all(scratch: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    files = [path for path in scratch.rglob("*") if path.is_file()]
    for path in files:
        target = into / path.relative_to(scratch)
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise OutputError(f"{target}: exists with other content; nothing was unpacked")
    for path in files:
        target = into / path.relative_to(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
