"""Writing files: whole or not there, and one line for what the disk says."""

import errno
import os
import signal
import socket
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
    files.write(b"new", tmp_path / "other.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.png", "result.png"]


def test_what_a_live_run_writes_is_left_alone(tmp_path):
    with files.replacing(tmp_path / "slow.mp4") as slow:
        files._sweep.cache_clear()
        files.write(b"x", tmp_path / "quick.png")
        slow.write(b"whole")
    assert (tmp_path / "slow.mp4").read_bytes() == b"whole"


def test_what_runs_on_other_computers_left_is_left_alone(tmp_path, abandoned, monkeypatch):
    left = abandoned(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(files, "_here", lambda: ("0" * 8, "1" * 8))
        files.sweep(tmp_path)
    assert left.exists()
    (tmp_path / ".unrain-notes.tmp").write_text("of somebody else")
    files._sweep.cache_clear()
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".unrain-notes.tmp"]


@pytest.mark.parametrize("error", [None, OSError(errno.EPERM, "no links"), NotImplementedError()])
def test_without_overwriting_nothing_is_replaced(tmp_path, monkeypatch, error):
    def link(*_):
        raise error

    if error is not None:
        monkeypatch.setattr(os, "link", link)
    files.write(b"first", tmp_path / "result.png", overwrite=False)
    with pytest.raises(UnrainError, match=r"result\.png: appeared while this run was busy and is kept"):
        files.write(b"second", tmp_path / "result.png", overwrite=False)
    assert (tmp_path / "result.png").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


def test_a_place_that_cannot_be_taken_is_left_empty(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UnrainError, match="may not be written here"):
        files.write(b"x", tmp_path / "result.png", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_files_are_opened(cwd, kind):
    path = Path("a.jpg")
    listener = socket.socket(socket.AF_UNIX)
    {
        "pipe": lambda: os.mkfifo(path),
        "socket": lambda: listener.bind("a.jpg"),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }[kind]()
    with listener, pytest.raises(UnrainError) as caught:
        files.opened(path)
    words = "a folder, name a file" if kind == "folder" else "a pipe or a device, not a file"
    assert str(caught.value).startswith(f"a.jpg: {words}")


def test_reading_has_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    assert files.read(path, 5, "") == b"12345"
    with pytest.raises(UnrainError, match=r"a\.jpg: larger than 4 bytes, take another"):
        files.read(path, 4, "take another")
    real = os.fstat

    def earlier(descriptor):
        found = list(real(descriptor))
        found[6] = 3
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", earlier)
    with pytest.raises(UnrainError, match=r"a\.jpg: grows while it is read"):
        files.read(path, 5, "")
