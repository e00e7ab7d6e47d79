"""Writing files: whole or not there, and one line for what the disk says."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toys import ROOT
from unrain import files
from unrain.errors import UnrainError


def test_writing_replaces_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "result.png"
    target.write_bytes(b"old")
    files.write(b"new", target)
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write(b"x", tmp_path / "result.png")
    finally:
        os.umask(before)
    assert (tmp_path / "result.png").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "there" / "real.png")
    files.write(b"x", tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "there" / "real.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, files.DiskFullError, "no space left on the disk"),
        (errno.EROFS, UnrainError, "may not be written here, choose another folder"),
        (errno.EIO, UnrainError, "cannot be written"),
    ],
)
def test_a_failed_write_keeps_the_old_result(tmp_path, monkeypatch, number, kind, message):
    def fail(_):
        raise OSError(number, os.strerror(number))

    target = tmp_path / "result.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=rf"result\.png: {message}"):
        files.write(b"new", target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device():
    with pytest.raises(files.DiskFullError, match="/dev/full: no space left"):
        files.write(b"x" * 100_000, Path("/dev/full"))


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_in_the_middle_of_writing(tmp_path):
    target = tmp_path / "result.png"
    target.write_bytes(b"old")
    code = (
        "import os, sys, time; from pathlib import Path; from unrain import files\n"
        "os.fsync = lambda _: time.sleep(60)\n"
        "files.write(b'new' * 100000, Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".unrain-*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_bytes() == b"old"
    left = [path.name for path in tmp_path.iterdir() if path != target]
    assert len(left) == 1
    assert left[0].startswith(".unrain-")
    assert left[0].endswith(".tmp")
