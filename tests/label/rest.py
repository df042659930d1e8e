"""Talking to a MONAI Label server, and the scans that the tests send."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medvol.label.environment import clean_environ
from tests.blobs import make_blob


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rest:
    """Requests to one server; a status is returned, never raised."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.url, self.headers = url, headers or {}

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json",
            timeout: float = 600) -> tuple[int, bytes]:  # fmt: skip
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        request = urllib.request.Request(self.url + path, data=data, method=method)
        for key, value in self.headers.items():
            request.add_header(key, value)
        if data is not None:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        status, content = self.ask(method, path, body, **options)
        assert status == 200, f"{method} {path}: {status} {content[:500]!r}"
        return json.loads(content)

    def infer(self, model: str, image: str, output: str, **params: Any) -> tuple[int, bytes]:
        query = urllib.parse.urlencode({"image": image, "output": output})
        form = urllib.parse.urlencode({"params": json.dumps(params)}).encode()
        return self.ask(
            "POST", f"/infer/{model}?{query}", form, "application/x-www-form-urlencoded"
        )

    def put_label(self, image: str, label: Path, params: Any = None, tag: str = "final"):
        query = urllib.parse.urlencode({"image": image, "tag": tag})
        body, kind = _multipart(label, "label", {"params": json.dumps(params or {})})
        return self.ask("PUT", f"/datastore/label?{query}", body, kind)

    def put_image(self, image: str, path: Path):
        body, kind = _multipart(path, "file", {"params": "{}"})
        return self.ask("PUT", f"/datastore/image?image={urllib.parse.quote(image)}", body, kind)

    def put_session(self, path: Path) -> tuple[int, bytes]:
        body, kind = _multipart(path, "files", {})
        return self.ask("PUT", "/session/?uncompress=true", body, kind)

    def finished(self, kind: str, limit_s: float = 600) -> dict[str, Any]:
        """The last background task of a kind once it has ended."""
        start = time.monotonic()
        while time.monotonic() - start < limit_s:
            status, content = self.ask("GET", f"/{kind}/")
            if status == 200:
                task = json.loads(content)
                if task["status"] not in ("SUBMITTED", "RUNNING"):
                    return task
            time.sleep(1)
        raise AssertionError(f"{kind} did not end within {limit_s} s")


def _multipart(path: Path, field: str, texts: dict[str, str]) -> tuple[bytes, str]:
    edge = uuid.uuid4().hex
    parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
             for key, value in texts.items()]  # fmt: skip
    head = (f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="{path.name}"'
            "\r\nContent-Type: application/octet-stream\r\n\r\n")  # fmt: skip
    parts += [head.encode() + path.read_bytes() + b"\r\n", f"--{edge}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={edge}"


@contextlib.contextmanager
def stock_server(python: Path, work: Path, bundles: list[Path], studies: Path) -> Iterator[Rest]:
    """MONAI Label with its own monaibundle app, unmodified, stopped by its process id."""
    import shutil

    app = work / "monaibundle"
    command = [str(python), "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle",
               "--output", str(work)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env=clean_environ(python))
    for bundle in bundles:
        shutil.copytree(bundle, app / "model" / bundle.name)
    port = free_port()
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(app),
               "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port),
               "--conf", "models", ",".join(b.name for b in bundles),
               "--conf", "zoo_source", "local", "--conf", "sam2", "false"]  # fmt: skip
    environ = {**clean_environ(python), "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": "",
               "MONAI_LABEL_SESSION_PATH": str(work / "sessions")}  # fmt: skip
    with (work / "stock.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=work, env=environ)
        try:
            rest = Rest(f"http://127.0.0.1:{port}")
            wait_up(rest, server, work / "stock.log")
            yield rest
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def wait_up(rest: Rest, server: subprocess.Popen[bytes], log: Path, limit_s: float = 600) -> None:
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        with contextlib.suppress(OSError):
            if rest.ask("GET", "/info/", timeout=60)[0] == 200:
                return
        time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


def write_scan(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    volume = nibabel.Nifti1Image(array, affine)
    volume.header.set_xyzt_units("mm")
    volume.set_sform(affine, 1)
    volume.set_qform(affine, 1)
    nibabel.save(volume, path)
    return path


def source_scan() -> tuple[np.ndarray, np.ndarray]:
    """A hippocampus crop and its labels where the shared data is at hand, else a blob."""
    root = Path(os.environ.get("MEDVOL_SHARED", Path(__file__).parents[3] / "shared"))
    images = sorted((root / "data/hippocampus/imagesTr").glob("*.nii.gz"))
    if not images:
        return make_blob(0)
    label = images[0].parents[1] / "labelsTr" / images[0].name
    return tuple(np.asarray(nibabel.load(p).dataobj) for p in (images[0], label))  # pyright: ignore


def write_geometries(images: Path, labels: Path) -> list[str]:
    """The same anatomy on three awkward grids: odd spacing, flipped axes, turned by 12 degrees."""
    array, label = source_scan()
    turn = np.deg2rad(12)
    rotated = np.eye(4)
    rotated[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    rotated[:3, 3] = [-20.5, 31.25, 7.75]
    grids = {
        "odd": (array[1:, :, :-1], label[1:, :, :-1], np.diag([1.1, 0.9, 1.25, 1.0])),
        "flipped": (array[::-1, ::-1].transpose(2, 0, 1), label[::-1, ::-1].transpose(2, 0, 1),
                    _flipped(array.shape)),
        "rotated": (array, label, rotated),
    }  # fmt: skip
    for name, (voxels, mask, affine) in grids.items():
        write_scan(images / f"{name}.nii.gz", np.ascontiguousarray(voxels), affine)
        write_scan(labels / f"{name}.nii.gz", np.ascontiguousarray(mask).astype(np.uint8), affine)
    return sorted(grids)


def _flipped(shape: tuple[int, ...]) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2] = 1.0, -1.0, -1.0
    affine[:, 3] = [shape[0] - 1, shape[1] - 1, 0, 1]
    return affine
