import io
import tarfile
import zipfile

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


def test_missing_and_broken_archives_are_refused(tmp_path):
    with pytest.raises(MissingInputError):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00junk")
    with pytest.raises(UnsafeFileError, match="whole archive"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "out")
