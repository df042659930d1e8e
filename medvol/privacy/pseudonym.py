"""Consistent pseudonyms by keyed hash: the same person or UID always becomes the same one.

Without the key nobody can test a guess against a pseudonym; with it the data holder can tell the
pseudonym of a known patient, so no table of names has to be kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from medvol.core.errors import ConfigError
from medvol.core.files import write_text

_MIN_KEY_BYTES = 16
KEY_VARIABLE = "MEDVOL_DEID_KEY"


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms under one secret key."""

    key: bytes = field(repr=False)

    def patient(self, patient_id: str, name: str) -> str:
        """A pseudonym for a patient; the ID decides, the name only where there is no ID."""
        identity = f"id:{patient_id.strip()}" if patient_id.strip() else f"name:{name.strip()}"
        return "MV" + base64.b32encode(self._digest("patient", identity)).decode()[:14]

    def uid(self, uid: str) -> str:
        """A replacement UID under the UUID root 2.25.

        >>> len(Pseudonyms(b"k" * 16).uid("1.2.3")) <= 64
        True
        """
        number = int.from_bytes(self._digest("uid", uid.strip())[:16], "big")
        return f"2.25.{number}"

    def shift_days(self, patient: str, max_days: int) -> int:
        """How many days into the past this pseudonym's dates move: 1 to ``max_days``."""
        return 1 + int.from_bytes(self._digest("shift", patient)[:8], "big") % max_days

    def _digest(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"{purpose}\0{text}".encode(), hashlib.sha256).digest()


def load_key(path: str | os.PathLike[str] | None) -> tuple[bytes, str]:
    """The secret key and where it came from.

    Args:
        path: A key file; created with a fresh key and mode 600 where it does not exist. None
            takes the environment variable MEDVOL_DEID_KEY, else a key for this run only.

    Raises:
        ConfigError: If the key is shorter than 16 bytes.
    """
    if path is None:
        text = os.environ.get(KEY_VARIABLE, "")
        if not text:
            return secrets.token_bytes(32), "random, this run only"
        key, where = text.encode(), f"environment variable {KEY_VARIABLE}"
    else:
        file = Path(path)
        if not file.exists():
            write_text(file, secrets.token_hex(32) + "\n")
            file.chmod(0o600)
        key, where = file.read_bytes().strip(), "key file"
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"the key in the {where} is shorter than {_MIN_KEY_BYTES} bytes")
    return key, where


def shift_date(text: str, days: int) -> str:
    """Move a DICOM date or date-time into the past; what is not a date becomes empty.

    >>> shift_date("20240301", 1), shift_date("20240301120000.5+0100", 366), shift_date("x", 1)
    ('20240229', '20230301120000.5+0100', '')
    """
    try:
        moved = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return moved.strftime("%Y%m%d").zfill(8) + text[8:]
