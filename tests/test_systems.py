"""What differs on Windows and macOS, faked where these tests run: paths, locks, limits, consoles."""

import errno
import io
import ntpath
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path, PureWindowsPath

import pytest

from toys import flat_picture
from unrain import cli, files, plan
from unrain.cli.output import error_line, print_line
from unrain.cluster import inputs, storage
from unrain.errors import UnrainError, UsageError
from unrain.live import outputs
from unrain.live.camera import Camera
from unrain.web import worker


class FakeOs:
    """The module `os` with another name of the system."""

    name = "nt"

    def __getattr__(self, attribute):
        if attribute in ("O_NONBLOCK", "set_blocking"):
            raise AttributeError(attribute)
        return getattr(os, attribute)


@pytest.fixture
def windows(monkeypatch):
    """`unrain.files` as on Windows: no locks, and files are closed before they get their names."""
    monkeypatch.setattr(files, "os", FakeOs())
    monkeypatch.setattr(files, "fcntl", None)
    published = []
    real = files._publish

    def publish(part, path, *, overwrite):
        # Windows renames no open file: writing to it after this would show.
        published.append(part)
        real(part, path, overwrite=overwrite)

    monkeypatch.setattr(files, "_publish", publish)
    files._sweep.cache_clear()
    yield published
    files._sweep.cache_clear()


def test_windows_writes_whole_files_and_replaces_none_unasked(windows, tmp_path):
    path = tmp_path / "a.png"
    with files.replacing(path, overwrite=False) as file:
        file.write(b"one")
        assert not path.exists()
    assert file.closed and path.read_bytes() == b"one" and len(windows) == 1
    with pytest.raises(UnrainError, match="appeared while this run was busy"):
        files.write(b"two", path, overwrite=False)
    files.write(b"three", path)
    assert path.read_bytes() == b"three"
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


def test_windows_removes_what_killed_runs_left_and_keeps_what_is_open(windows, tmp_path, monkeypatch):
    boot, host = files._here()
    left = tmp_path / f".unrain-{boot}-{host}-00000000.tmp"
    open_elsewhere = tmp_path / f".unrain-{boot}-{host}-11111111.tmp"
    for path in (left, open_elsewhere):
        path.write_bytes(b"half")
    real = Path.unlink

    def unlink(self, *arguments, **options):
        if self.name == open_elsewhere.name:
            raise PermissionError(errno.EACCES, "used by another process")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    files.write(b"one", tmp_path / "a.png")
    assert sorted(one.name for one in tmp_path.iterdir()) == [open_elsewhere.name, "a.png"]


def test_windows_keeps_folders_in_use_and_removes_those_of_killed_processes(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "unrain-x-left"
    left.mkdir()
    for name in ("lock", "clip.mp4"):
        (left / name).touch()
    used = {}
    unlink, rename, rmtree = Path.unlink, Path.rename, shutil.rmtree

    def held(path):
        return any(not file.closed and path in (folder, folder / "lock") for folder, file in used.items())

    def checked(real):
        def act(path, *arguments, **options):
            if held(Path(path)):
                raise PermissionError(errno.EACCES, "used by another process")
            return real(path, *arguments, **options)

        return act

    monkeypatch.setattr(Path, "unlink", checked(unlink))
    monkeypatch.setattr(Path, "rename", checked(rename))
    monkeypatch.setattr(shutil, "rmtree", checked(rmtree))
    first, lock = files.scratch("unrain-x-")
    used[first] = lock
    assert not left.exists() and first.name.startswith("unrain-x-")
    second, other = files.scratch("unrain-x-")
    used[second] = other
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    files.discard(first, lock)
    files.discard(second, other)
    assert list(tmp_path.iterdir()) == []


def test_paths_of_a_long_run_on_windows(monkeypatch):
    monkeypatch.setattr(storage, "Path", PureWindowsPath)
    monkeypatch.setattr(storage, "os", FakeOs())
    name = storage.join("C:\\out", "sub/a.png")
    assert name == "C:\\out\\sub\\a.png" and storage.below("C:\\out", name) == "sub/a.png"
    assert storage.below("s3://b/out", "s3://b/out/sub/a.png") == "sub/a.png"
    assert storage.checked("file:///C:/my%20photos") == "C:/my photos"
    assert storage.checked("file:///photos") == "/photos"


@pytest.mark.parametrize("name", ["a:b.png", "sub/what?.png", "a\\..\\b.png", 'a".png', "a\n.png"])
def test_names_of_objects_that_windows_takes_for_something_else_are_refused(tmp_path, monkeypatch, name):
    found = [inputs._Found(f"s3://b/{name}", name)]
    monkeypatch.setattr(inputs, "os", FakeOs())
    work = inputs.Work()
    inputs._add(work, found, str(tmp_path), [])
    assert not work.tasks and work.settled[0].status == "failed"
    assert work.settled[0].message.endswith("a name that leads elsewhere, rename it")


def test_objects_whose_names_are_one_file_on_macos_are_no_two_results(tmp_path, monkeypatch):
    found = [inputs._Found(f"s3://b/{name}", name) for name in ("A.png", "a.png")]
    work = inputs.Work()
    inputs._add(work, found, str(tmp_path), [])
    if sys.platform == "linux":
        inputs._check(work)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(plan.PlanError, match="both"):
        inputs._check(work)
    work = inputs.Work()
    inputs._add(work, found, "s3://b/out", [])
    inputs._check(work)


@pytest.mark.parametrize("name", ["CON.mp4", "nul.png", "com1.tar.gif", "Lpt9.jpg", "aux"])
def test_names_of_windows_devices_are_no_files_of_the_server(name):
    job = pytest.importorskip("unrain.web.job", reason="needs the extra web")
    assert job.harmless(name) == f"_{name}"
    assert job.harmless("console.mp4") == "console.mp4"
    assert job.harmless("rain.mp4. ") == "rain.mp4"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_device_of_linux_is_refused_elsewhere(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(UsageError, match="on Linux only"):
        Camera("/dev/video0", print, 1)


def test_a_port_is_not_shared_on_windows(monkeypatch):
    monkeypatch.setattr(outputs, "os", FakeOs())
    server = outputs.MjpegServer("http://127.0.0.1:0/")
    try:
        assert server.port != 8090 and not server._server.allow_reuse_address
    finally:
        server.close()


def test_a_result_that_another_program_holds_open_is_one_line(windows, tmp_path, monkeypatch):
    def replace(self, target):
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UnrainError, match=r"a\.png: may not be written here"):
        files.write(b"one", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def two_inputs(folder, one, other):
    """Two pictures in different folders, whose results go into one."""
    flat_picture(folder / "x" / one)
    flat_picture(folder / "y" / other)
    return plan.make_plan([str(folder / "x" / one), str(folder / "y" / other)], str(folder / "out"))


@pytest.mark.parametrize(
    ("one", "other"), [("A.png", "a.png"), ("Caf\u00e9.png", "cafe\u0301.png"), ("STRASSE.png", "straße.png")]
)
def test_names_that_are_one_file_on_macos_are_no_two_results(tmp_path, monkeypatch, one, other):
    if sys.platform == "linux":
        assert len(two_inputs(tmp_path / "linux", one, other).jobs) == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(plan.PlanError, match="both"):
        two_inputs(tmp_path / "mac", one, other)


def test_names_that_are_one_file_on_windows_are_no_two_results(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "normcase", ntpath.normcase)
    with pytest.raises(plan.PlanError, match="both"):
        two_inputs(tmp_path, "A.png", "a.png")


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "cp932", "ascii", "utf-8"])
def test_consoles_of_any_encoding_take_any_name(monkeypatch, encoding):
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, errors="strict"))
    # As Python opens it on every system.
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, errors="backslashreplace"))
    print_line("雨 ☔ café \udcff -> дождь.png")
    error_line("unrain: error: 雨 ☔ café \udcff: no such file")
    sys.stdout.flush()
    assert out.getvalue().count(b"\n") == err.getvalue().count(b"\n") == 1
    assert "雨" in out.getvalue().decode(encoding) or encoding not in ("utf-8", "cp932")


@pytest.mark.parametrize("limit", ["none", "refused"])
def test_without_limits_of_memory_the_worker_still_works(monkeypatch, limit):
    asked = []

    def setrlimit(what, values):
        asked.append(what)
        if what == "as":
            raise ValueError("current limit exceeds maximum limit")

    fake = types.SimpleNamespace(
        RLIMIT_AS="as",
        RLIMIT_CORE="core",
        RLIM_INFINITY=-1,
        getrlimit=lambda what: (-1, -1),
        setrlimit=setrlimit,
    )
    # Windows has no such module, and macOS refuses.
    monkeypatch.setitem(sys.modules, "resource", None if limit == "none" else fake)
    worker._limit_memory(1 << 30)
    assert asked == ([] if limit == "none" else ["as", "core"])


def test_without_sigterm_handlers_commands_run(tmp_path, monkeypatch, capsys, tiny_model):
    # A host program of its own, or a thread: signals are left alone.
    monkeypatch.setattr("signal.getsignal", lambda number: None)
    flat_picture(tmp_path / "a.png", size=(24, 16))
    assert cli.main([str(tmp_path / "a.png"), "--model", str(tiny_model)]) == 0
