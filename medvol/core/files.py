"""Files that are whole or absent: atomic writes with read-back, and names that stay inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvol.core.errors import MedvolError, OutputError

#: Bytes of a name; file systems allow 255.
LONGEST_NAME = 180
_CHUNK = 1 << 20


@contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, verify: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """A scratch path beside ``target`` that replaces it only when the block ends well.

    The scratch file keeps the target's suffixes, so that writers which go by suffix work. It is
    flushed to disk, passed to ``verify``, then renamed over the target in one step; on any
    failure it is removed and the old file stays.

    Args:
        target: The final path; its folder is created.
        verify: Called with the scratch path; raises if what was written is not what was meant.

    Raises:
        OutputError: If the file cannot be written (disk full, no permission).
    """
    target = Path(target)
    scratch = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        with scratch.open("rb") as handle:
            os.fsync(handle.fileno())
        if verify is not None:
            verify(scratch)
        os.replace(scratch, target)
        _sync_folder(target.parent)
    except MedvolError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes(target: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` atomically and read it back before the name appears."""

    def same(path: Path) -> None:
        if path.read_bytes() != content:
            raise OutputError(f"{target}: what was read back differs from what was written")

    with atomic_path(target, verify=same) as scratch:
        scratch.write_bytes(content)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, indented, refusing NaN (which is no JSON)."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def output_path(folder: str | os.PathLike[str], *parts: str) -> Path:
    """Join names to an output folder so that the result stays inside it.

    Each part is one name: separators, drive letters, control characters and leading dots are
    replaced, so that ``../x`` cannot climb out.

    Raises:
        OutputError: If a link inside the folder leads elsewhere.
    """
    root = Path(folder)
    path = root.joinpath(*[safe_name(part) for part in parts])
    if not path.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{path}: would be written outside {root}")
    return path


def safe_name(name: str) -> str:
    """``name`` reduced to letters, digits, ``.``, ``_``, ``-``, ``+`` and ``@``; never empty.

    At most ``LONGEST_NAME`` bytes, so that suffixes and scratch marks still fit a file system.

    >>> safe_name("../../etc/passwd")
    'etc_passwd'
    """
    cleaned = re.sub(r"[^\w.+@-]+", "_", name).lstrip("._")
    return cleaned.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(". ") or "unnamed"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
