"""One file over HTTP, however often the connection breaks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from medvol.core.errors import InputError, OutputError, UnsafeFileError
from medvol.core.files import write_text

_CHUNK = 1 << 14  # what a broken connection may lose: requests hands out whole chunks only
#: Called with bytes done and bytes in total (None where the server does not state it).
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class DownloadSource:
    """What to download and how patiently.

    Attributes:
        url: http or https.
        md5: Hexadecimal digest that the whole file must have.
        attempts: Connections in a row that may bring no new byte.
        pause_s: Wait after the first of them; doubles with each, up to 30 s.
        timeout_s: Silence after which a connection counts as broken.
    """

    url: str
    md5: str
    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 30.0


class _BrokenError(Exception):
    """The connection ended early; what came so far is kept."""


def download(source: DownloadSource, target: Path, progress: Progress | None = None) -> Path:
    """Download a file, resuming by HTTP Range, and give it its name once its digest fits.

    What has arrived is kept as ``<name>.part``, so that the next call, or the next attempt after
    a broken connection, asks for the rest only.

    Args:
        source: Address, digest, patience.
        target: Final path.
        progress: Called while bytes arrive.

    Returns:
        ``target``.

    Raises:
        InputError: If the server cannot be reached or rejects the request.
        UnsafeFileError: If the whole file has another digest.
        OutputError: If the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    was_resumed = part.exists()
    try:
        _receive_all(source, part, progress)
        if _md5(part) != source.md5 and was_resumed:  # an older, stale beginning
            part.unlink()
            _receive_all(source, part, progress)
    except OSError as error:
        if isinstance(error, (InputError, OutputError)):
            raise
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if not part.exists():
            _tag_file(part).unlink(missing_ok=True)
    digest = _md5(part)
    if digest != source.md5:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise UnsafeFileError(
            f"{source.url}: what came has md5 {digest}, not {source.md5}; "
            "the file was changed or damaged, and was removed"
        )
    os.replace(part, target)
    _tag_file(part).unlink(missing_ok=True)
    return target


def require_md5(path: Path, md5: str) -> None:
    """Reject a file that the user brought unless its digest fits.

    Raises:
        UnsafeFileError: If the digest differs.
    """
    if (digest := _md5(path)) != md5:
        raise UnsafeFileError(f"{path}: has md5 {digest}, not {md5}; it is another file")


def _receive_all(source: DownloadSource, part: Path, progress: Progress | None) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(source, part, progress)
            return
        except _BrokenError as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures >= source.attempts:
                raise InputError(_unreachable(source, after, error)) from error
            if failures:
                time.sleep(min(30.0, source.pause_s * 2 ** (failures - 1)))


def _receive(source: DownloadSource, part: Path, progress: Progress | None) -> None:
    """One connection: ask for what is missing and append it."""
    import requests

    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "medvol"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if _tag_file(part).exists():
            headers["If-Range"] = _tag_file(part).read_text()
    try:
        with requests.get(source.url, headers=headers, stream=True, timeout=source.timeout_s) as r:
            if r.status_code == 416:
                if _total(r.headers.get("Content-Range", "")) == done:
                    return
                part.unlink()
                raise _BrokenError("the server has fewer bytes than were received")
            if r.status_code in (429, 500, 502, 503, 504):
                raise _BrokenError(f"the server answers {r.status_code}")
            if r.status_code not in (200, 206):
                raise InputError(f"{source.url}: the server answers {r.status_code} {r.reason}")
            start = _start(r.headers.get("Content-Range", "")) if r.status_code == 206 else 0
            if start not in (0, done):
                part.unlink()
                raise _BrokenError("the server sent another part than was asked for")
            _append(r, part, start, progress)
    except requests.RequestException as error:
        raise _BrokenError(_reason(error)) from error


def _append(response, part: Path, start: int, progress: Progress | None) -> None:  # pyright: ignore[reportMissingParameterType]
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else None
    if total and total - start > (free := shutil.disk_usage(part.parent).free):
        raise OutputError(
            f"{part.parent}: {(total - start) / 2**30:.1f} GiB are needed, "
            f"{free / 2**30:.1f} GiB are free"
        )
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        write_text(_tag_file(part), tag)
    done = start
    with part.open("r+b" if start else "wb") as sink:
        sink.seek(start)
        sink.truncate()
        for chunk in response.iter_content(_CHUNK):
            sink.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done < total:
        raise _BrokenError(f"the connection ended after {done} of {total} bytes")


def _unreachable(source: DownloadSource, done: int, error: Exception) -> str:
    host = urlsplit(source.url).hostname
    kept = f"; {done / 2**20:.1f} MiB are kept and will be resumed" if done else ""
    return (
        f"{host}: cannot be reached ({error}){kept}; without a network, download {source.url} "
        "elsewhere and pass it with --archive"
    )


def _reason(error: Exception) -> str:
    text = str(error)
    for needle, reason in (
        ("Name or service", "no name resolution"),
        ("resolve", "no name resolution"),
        ("refused", "connection refused"),
        ("timed out", "timeout"),
        ("unreachable", "network unreachable"),
        ("Proxy", "the proxy rejects the request"),
    ):
        if needle in text:
            return reason
    return type(error).__name__


def _start(content_range: str) -> int:
    found = re.match(r"bytes (\d+)-", content_range)
    return int(found[1]) if found else -1


def _total(content_range: str) -> int:
    found = re.match(r"bytes \*/(\d+)", content_range)
    return int(found[1]) if found else -1


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
