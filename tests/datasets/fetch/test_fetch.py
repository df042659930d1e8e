import hashlib
import http.server
import io
import json
import socket
import tarfile
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from medvol.cli.main import main
from medvol.core import ConfigError, InputError, OutputError, UnsafeFileError
from medvol.datasets import read_dataset
from medvol.datasets.fetch import (
    PUBLIC,
    DownloadSource,
    PublicDataset,
    download,
    fetch,
    find_public,
)

CONTENT = np.random.default_rng(0).bytes(400_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one content on 127.0.0.1; ``cut`` bytes a connection, then it hangs up."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.ranges, self.status, self.etag = (
            content,
            None,
            True,
            None,
            '"a"',
        )
        self.asked: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.tar"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = 0
        fits = self.headers.get("If-Range") in (None, self.server.etag)
        if asked and self.server.ranges and fits:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-/{len(self.server.content)}")
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        self.wfile.write(body if self.server.cut is None else body[: self.server.cut])
        self.wfile.flush()
        if self.server.cut is not None and len(body) > self.server.cut:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    running = Server(CONTENT)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def patient(server, md5=MD5):
    return DownloadSource(server.url, md5, attempts=3, pause_s=0.01, timeout_s=5)


def test_dropped_connections_are_resumed_where_they_broke(server, tmp_path):
    server.cut = 90_000
    seen = []
    got = download(
        patient(server), tmp_path / "f.tar", lambda done, total: seen.append((done, total))
    )
    assert got.read_bytes() == CONTENT
    assert server.asked[0] is None
    assert len(server.asked) == 5, "400,000 bytes in pieces of 90,000"
    assert all(asked.startswith("bytes=") for asked in server.asked[1:])
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["f.tar"]


def test_a_second_call_asks_only_for_the_rest(server, tmp_path):
    (tmp_path / "f.tar.part").write_bytes(CONTENT[:150_000])
    download(patient(server), tmp_path / "f.tar")
    assert server.asked == ["bytes=150000-"]
    assert (tmp_path / "f.tar").read_bytes() == CONTENT


def test_a_part_that_was_whole_is_only_checked(server, tmp_path):
    (tmp_path / "f.tar.part").write_bytes(CONTENT)
    assert download(patient(server), tmp_path / "f.tar").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.tar.part").write_bytes(b"x" * 1000)
    assert download(patient(server), tmp_path / "f.tar").read_bytes() == CONTENT


def test_a_stale_beginning_is_thrown_away(server, tmp_path):
    (tmp_path / "f.tar.part").write_bytes(b"old" * 1000)
    assert download(patient(server), tmp_path / "f.tar").read_bytes() == CONTENT
    (tmp_path / "g.tar.part").write_bytes(b"old" * 1000)
    (tmp_path / "g.tar.part.etag").write_text('"of another version"')
    assert download(patient(server), tmp_path / "g.tar").read_bytes() == CONTENT


def test_a_file_with_another_digest_is_rejected_and_removed(server, tmp_path):
    with pytest.raises(UnsafeFileError, match="md5"):
        download(patient(server, md5="0" * 32), tmp_path / "f.tar")
    assert not list(tmp_path.iterdir())


def test_a_server_that_gives_nothing_is_given_up_with_what_came_kept(server, tmp_path):
    server.cut = 100_000
    server.content = CONTENT
    (tmp_path / "f.tar.part").write_bytes(CONTENT[:1000])
    server.status = 503
    with pytest.raises(InputError, match=r"503.*kept and will be resumed.*--archive"):
        download(patient(server), tmp_path / "f.tar")
    assert (tmp_path / "f.tar.part").stat().st_size == 1000
    assert len(server.asked) == 3
    server.status = 404
    with pytest.raises(InputError, match="answers 404"):
        download(patient(server), tmp_path / "f.tar")


def test_no_network_is_one_line_that_states_what_to_do(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f.tar"
    with pytest.raises(InputError, match=r"127\.0\.0\.1: cannot be reached \(connection refused\)"):
        download(DownloadSource(url, MD5, attempts=2, pause_s=0.01), tmp_path / "f.tar")


def test_a_full_disk_is_seen_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match="are free"):
        download(patient(server), tmp_path / "f.tar")


def make_msd_tar(folder):
    index = {
        "name": "T",
        "modality": {"0": "MRI"},
        "numTraining": 1,
        "labels": {"1": "a"},
        "training": [{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}],
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (
            ("dataset.json", json.dumps(index).encode()),
            ("imagesTr/x.nii.gz", CONTENT),
            ("._dataset.json", b"mac"),
            ("labelsTr/x.nii.gz", b"l"),
        ):
            info = tarfile.TarInfo(f"Task04_Toy/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def row(server, tmp_path):
    server.content = make_msd_tar(tmp_path)
    md5 = hashlib.md5(server.content).hexdigest()
    return PublicDataset("msd_toy", server.url, md5, "toy", "CC0")


def test_fetched_data_set_is_read_and_the_archive_is_gone(server, row, tmp_path):
    server.cut = 150_000
    source = DownloadSource(row.url, row.md5, pause_s=0.01)
    home = fetch(row, tmp_path / "d", source=source)
    assert [case.case for case in read_dataset(home).cases] == ["x"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["msd_toy"]
    before = len(server.asked)
    assert fetch(row, tmp_path / "d") == home
    assert len(server.asked) == before, "a complete data set is not downloaded again"


def test_archive_brought_by_hand_is_checked_and_kept(server, row, tmp_path):
    brought = tmp_path / "brought.tar"
    brought.write_bytes(server.content)
    assert (fetch(row, tmp_path / "d", archive=brought) / "dataset.json").is_file()
    assert brought.exists()
    assert not server.asked
    brought.write_bytes(b"other")
    with pytest.raises(UnsafeFileError, match=r"brought\.tar: has md5"):
        fetch(replace(row, name="again"), tmp_path / "d", archive=brought)


def test_a_folder_of_the_users_own_is_not_touched(row, tmp_path):
    (tmp_path / "d/msd_toy").mkdir(parents=True)
    (tmp_path / "d/msd_toy/mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not written by medvol"):
        fetch(row, tmp_path / "d")
    assert (tmp_path / "d/msd_toy/mine.txt").read_text() == "mine"


def test_medmnist_volumes_become_a_datalist_with_the_publishers_split(server, tmp_path):
    buffer = io.BytesIO()
    arrays = {}
    for number, key in enumerate(("train", "val", "test")):
        arrays[f"{key}_images"] = np.full((2, 6, 5, 4), number, np.uint8)
        arrays[f"{key}_labels"] = np.array([[0], [1]])
    np.savez(buffer, **arrays)
    server.content = buffer.getvalue()
    row = replace(
        find_public("nodulemnist3d"), url=server.url, md5=hashlib.md5(server.content).hexdigest()
    )
    found = read_dataset(fetch(row, tmp_path))
    assert (len(found.cases), found.classes) == (6, ("benign", "malignant"))
    assert sorted({case.split for case in found.cases}) == ["test", "train", "validation"]


def test_every_row_has_an_address_and_a_digest():
    assert {"msd_hippocampus", "msd_spleen", "nodulemnist3d"} <= set(PUBLIC)
    assert len([name for name in PUBLIC if name.startswith("msd_")]) == 10
    for row in PUBLIC.values():
        assert row.url.startswith("https://")
        assert len(row.md5) == 32
        int(row.md5, 16)


def test_decathlon_rows_are_those_of_monai():
    from monai.apps import DecathlonDataset

    ours = {row.archive.removesuffix(".tar"): (row.url, row.md5) for row in PUBLIC.values()}
    for task, url in DecathlonDataset.resource.items():
        assert ours[task] == (url, DecathlonDataset.md5[task])


def test_misspelt_names_are_answered_with_the_closest():
    with pytest.raises(ConfigError, match="msd_hippocampus"):
        find_public("hippocampus")


def test_verb_fetches_from_a_mirror_and_rejects_in_one_line(server, tmp_path, capsys):
    assert main(["data", "fetch", "--list"]) == 0
    assert "msd_hippocampus" in capsys.readouterr().out
    assert main(["data", "fetch", "msd_spleen", "--url", server.url, "-o", str(tmp_path)]) == 2
    assert "md5" in capsys.readouterr().err.splitlines()[-1]
    assert main(["data", "fetch", "msd_splen"]) == 2
    assert "msd_spleen" in capsys.readouterr().err
