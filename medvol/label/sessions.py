"""Images that a client sends for one session: an archive among them is unpacked by our rules."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import Sessions  # pyright: ignore[reportMissingImports]

from medvol.core import unpack


class SafeSessions(Sessions):
    """MONAI Label's sessions, which hand archives to ``shutil.unpack_archive`` unchecked.

    Links, names that climb out of the session's folder and archives that grow without bound are
    rejected (``medvol.core.unpack``), and nothing of them stays.
    """

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: Any = None
    ) -> Any:
        """Keep what a client sent; see ``monailabel.utils.sessions.Sessions.add_session``.

        Raises:
            UnsafeFileError: If an archive breaks a rule, or is not an archive.
        """
        if not uncompress or os.path.isdir(data_file):
            return super().add_session(data_file, expiry, False, session_id)
        folder = Path(tempfile.mkdtemp(prefix="session-"))
        try:
            unpacked = unpack(data_file, folder / "image")
            return super().add_session(str(unpacked), expiry, False, session_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(Path(data_file).parent, ignore_errors=True)
