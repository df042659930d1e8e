import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from medvol.core import MissingInputError, UnsafeFileError, unpack
from medvol.core.unpack import UnpackLimits


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_plain_archives_come_out_whole(tmp_path):
    make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("d/x.txt"), b"hello")])
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("d/y.txt", "there")
    for name in ("a.tar.gz", "b.zip"):
        unpack(tmp_path / name, tmp_path / "out")
    assert (tmp_path / "out/d/x.txt").read_text() == "hello"
    assert (tmp_path / "out/d/y.txt").read_text() == "there"


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([(tarfile.TarInfo("../evil"), b"x")], "outside"),
        ([(tarfile.TarInfo("/etc/evil"), b"x")], "outside"),
        ([(link("a", "/etc/passwd"), b"")], "link"),
        ([(tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("A"), b"2")], "twice"),
        ([(tarfile.TarInfo("bomb"), b"\0" * 5_000_000)], "bomb"),
    ],
)
def test_hostile_archives_leave_nothing(tmp_path, members, fault):
    archive = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("ok"), b"ok"), *members])
    with pytest.raises(UnsafeFileError, match=fault):
        unpack(archive, tmp_path / "out", limits=UnpackLimits(ratio=100))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_missing_and_broken_archives_are_rejected(tmp_path):
    with pytest.raises(MissingInputError):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00junk")
    with pytest.raises(UnsafeFileError, match="whole archive"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "out")


NOISE = np.random.default_rng(0).bytes(50_000)


def make_zip(path, name="x.txt", content=b"hello" * 10, patches=(), method=zipfile.ZIP_STORED):
    """A zip patched at (offset in the local header, in the central one, value)."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    raw = bytearray(path.read_bytes())
    central = raw.find(b"PK\1\2")
    for local, other, value in patches:
        struct.pack_into("<H", raw, local, value)
        struct.pack_into("<H", raw, central + other, value)
    path.write_bytes(raw)
    return path


def spoiled(path, at, junk=b"\xff" * 100):
    raw = bytearray(path.read_bytes())
    raw[at : at + len(junk) or None] = junk
    path.write_bytes(raw)
    return path


def replaced(path, old, new):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    return path


def packed(path, mode):
    with tarfile.open(path, mode) as archive:
        info = tarfile.TarInfo("x")
        info.size = len(NOISE)
        archive.addfile(info, io.BytesIO(NOISE))
    return path


ODD = {
    "an encrypted zip": (lambda at: make_zip(at / "b.zip", patches=[(6, 8, 1)]), "encrypted"),
    "an unknown method": (lambda at: make_zip(at / "b.zip", patches=[(8, 10, 97)]), "method"),
    "a wrong checksum": (lambda at: spoiled(make_zip(at / "b.zip"), 40, b"J"), "whole archive"),
    "damaged deflate": (lambda at: spoiled(make_zip(at / "b.zip", content=NOISE, method=8), 60),
                        "whole archive"),
    "a zip cut in half": (lambda at: make_zip(at / "b.zip", content=NOISE), "whole archive"),
    "damaged gzip": (lambda at: spoiled(packed(at / "b.tgz", "w:gz"), 20_000), "whole archive"),
    "damaged xz": (lambda at: spoiled(packed(at / "b.xz", "w:xz"), 20_000), "whole archive"),
    "damaged bzip2": (lambda at: spoiled(packed(at / "b.bz2", "w:bz2"), 20_000), "b.bz2"),
    "an empty zip": (lambda at: make_zip(at / "b.zip", name="only/", content=b""), "empty"),
    "an escape in a name": (lambda at: make_zip(at / "b.zip", name="a\nERROR\x1b[2J"), "not a"),
    "a name of 300": (lambda at: make_zip(at / "b.zip", name="n" * 300), "not a"),
    "the folder itself": (lambda at: make_zip(at / "b.zip", name="."), "not a"),
    "backslashes that climb": (lambda at: make_zip(at / "b.zip", name="..\\..\\evil"), "outside"),
    "a drive": (lambda at: make_zip(at / "b.zip", name="C:\\evil"), "outside"),
    "a name in no UTF-8": (lambda at: replaced(make_zip(at / "b.zip", name="n\xe9"),
                                               "\xe9".encode(), b"\xff\xfe"), "whole archive"),
    "a directory beyond the end": (lambda at: spoiled(make_zip(at / "b.zip"), -6,
                                                      b"\x40\x42\x0f\0"), "whole archive"),
    "a web page": (lambda at: spoiled(make_zip(at / "b.zip"), 0, b"<html>" * 60), "whole archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_an_odd_archive_is_rejected_by_name_and_leaves_nothing(tmp_path, what):
    build, fault = ODD[what]
    archive = build(tmp_path)
    if what == "a zip cut in half":
        archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UnsafeFileError, match=fault) as raised:
        unpack(archive, tmp_path / "out")
    assert archive.name in str(raised.value)
    assert str(raised.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_hard_links_pipes_and_devices_are_rejected(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, "../../etc/passwd"
    with pytest.raises(UnsafeFileError, match="link or device"):
        unpack(make_tar(tmp_path / "a.tar.gz", [(info, b"")]), tmp_path / "out")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_a_folder_too_is_rejected(tmp_path, names):
    members = [(tarfile.TarInfo(name), b"1") for name in names]
    with pytest.raises(UnsafeFileError, match=r"twice|a file and a folder"):
        unpack(make_tar(tmp_path / "a.tar.gz", members), tmp_path / "out")


def test_a_bomb_behind_the_last_member_is_not_inflated(tmp_path):
    import gzip

    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("ok"))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(inside.getvalue() + bytes(80 << 20), 1))
    with pytest.raises(UnsafeFileError, match="after its last member"):
        unpack(path, tmp_path / "out")
