"""Starting MONAI Label as a process of its own, waiting until it answers, and stopping it."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.core.errors import ConfigError, OutputError
from medvol.io import formats
from medvol.label.environment import clean_environ
from medvol.label.workplace import Workplace

PASSWORD = "MEDVOL_LABEL_PASSWORD"
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
_SUFFIXES = tuple(s for s in (*formats.VOLUMES, *formats.FLAT) if s not in formats.PAIR_DATA)
_STOP_WAIT_S = 20.0


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and to whom.

    Attributes:
        place: From :func:`medvol.label.prepare`.
        bundles: Names of the bundles in it.
        dicomweb: URL of a DICOMweb server in place of the overlay of images.
        modalities: DICOM modality codes that the bundles can use; others are not listed.
        host: Address to bind.
        port: Port to bind.
        is_remote_allowed: The user asked for an address that others can reach.
        is_scoring: Whether images are scored for active learning as soon as the server is up.
        tls: Certificate and key file.
    """

    place: Workplace
    bundles: Sequence[str]
    dicomweb: str = ""
    modalities: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    is_remote_allowed: bool = False
    is_scoring: bool = True
    tls: tuple[Path, Path] | None = None

    @property
    def url(self) -> str:
        """What a browser or 3D Slicer on this machine is pointed at."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class Server:
    """A running MONAI Label server.

    Args:
        python: Interpreter of the environment.
        options: What to serve.

    Raises:
        ConfigError: If the address is reachable from elsewhere without authentication.
    """

    def __init__(self, python: Path, options: ServeOptions) -> None:
        require_safe_address(options.host, options.is_remote_allowed, os.environ.get(PASSWORD))
        self.options = options
        self.token = secrets.token_urlsafe(32)
        self._log = options.place.log.open("wb")
        self.process = subprocess.Popen(
            server_command(python, options),
            env=server_environ(python, options, self.token),
            cwd=options.place.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(
        self, timeout_s: float = 900.0, tick: Callable[[float], None] = lambda seconds: None
    ) -> dict[str, Any]:
        """Wait for the server's answer to ``/info/`` and return it.

        Raises:
            OutputError: If the server ends or does not answer in time.
        """
        start = time.monotonic()
        while (waited := time.monotonic() - start) < timeout_s:
            if self.process.poll() is not None:
                raise OutputError(f"MONAI Label did not start: {self.last_line()}; the whole log: "
                                  f"{self.options.place.log}")  # fmt: skip
            tick(waited)
            try:
                return self.get("/info/")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise OutputError(f"MONAI Label did not answer within {timeout_s:.0f} s; its log: "
                          f"{self.options.place.log}")  # fmt: skip

    def get(self, path: str) -> Any:
        """A JSON answer of the server."""
        import ssl

        request = urllib.request.Request(self.options.url + path)
        request.add_header("Authorization", f"Bearer {self.token}")
        # Our own process on this machine: its certificate is for other names.
        trust = ssl._create_unverified_context() if self.options.tls else None
        with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
            return json.load(answer)

    def last_line(self) -> str:
        """The last line with text in the server's log."""
        text = self.options.place.log.read_text("utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.process.returncode}"

    def stop(self) -> None:
        """End the server and what it started, by process id."""
        if self.process.poll() is None:
            children = _children(self.process.pid)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for child in children:
                if child.is_running():
                    child.kill()
        self._log.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_safe_address(host: str, is_remote_allowed: bool, password: str | None) -> None:
    """Reject an address that others can reach, unless it was asked for and is protected.

    Raises:
        ConfigError: Naming what is missing.
    """
    if is_loopback(host):
        return
    if not is_remote_allowed:
        raise ConfigError(f"--host {host} can be reached from other machines; if that is meant, "
                          f"add --allow-remote and set a password in {PASSWORD}")  # fmt: skip
    if not password or len(password) < 12:
        raise ConfigError(f"--host {host} needs authentication: set a password of at least 12 "
                          f"characters in the environment variable {PASSWORD}")  # fmt: skip


def server_command(python: Path, options: ServeOptions) -> list[str]:
    """The command line; ``python -m``, since MONAI Label's own script quotes badly."""
    place = options.place
    tls: list[str] = []
    if options.tls:
        tls = ["--ssl_certfile", str(options.tls[0]), "--ssl_keyfile", str(options.tls[1])]
    return [
        str(python), "-m", "monailabel.main", "start_server",
        "--app", str(place.app), "--studies", options.dicomweb or str(place.studies),
        "--host", options.host, "--port", str(options.port),
        "--uvicorn_app", "medvol.label.asgi:app",
        "--conf", "models", ",".join(options.bundles),
        "--conf", "zoo_source", "local", "--conf", "sam2", "false",
        *tls,
    ]  # fmt: skip


def server_environ(python: Path, options: ServeOptions, token: str) -> dict[str, str]:
    """The variables of the server: everything it writes goes into the workplace."""
    place, search = options.place, [f"*{suffix}" for suffix in _SUFFIXES]
    hosts = dict.fromkeys((*_LOOPBACK_NAMES, options.host)) if is_loopback(options.host) else ()
    found = {
        **clean_environ(python),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": "",
        "MEDVOL_LABEL_HOSTS": ",".join(hosts),
        "MEDVOL_LABEL_TOKEN": token,
        "MEDVOL_LABEL_URL": options.url,
        "MEDVOL_LABEL_MODALITIES": ",".join(options.modalities),
        "MEDVOL_PYTHON": sys.executable,
        "MEDVOL_PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": str(options.is_scoring).lower(),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(search),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(place.cache / "dicomweb"),
        "MONAI_LABEL_SESSION_PATH": str(place.cache / "sessions"),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    if is_loopback(options.host):
        found.pop(PASSWORD, None)
    return found


def _children(pid: int) -> list[Any]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
