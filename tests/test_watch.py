"""A watched folder: finished files only, each once, and nothing twice after a kill."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from toys import ROOT, flat_picture, natural
from unrain import cli, watch
from unrain.watch import SETTLED, Watch


def sources(plan):
    return [job.source.name for job in plan.jobs]


def test_a_file_is_taken_once_it_stands_still(tmp_path):
    (tmp_path / "in").mkdir()
    watched = Watch(tmp_path / "in", tmp_path / "out")
    path = tmp_path / "in" / "a.png"
    path.write_bytes(b"half")
    assert sources(watched.finished(0)) == []
    path.write_bytes(b"half and more")
    assert sources(watched.finished(SETTLED + 1)) == []
    assert sources(watched.finished(SETTLED + 2)) == []
    assert sources(watched.finished(2 * SETTLED + 1)) == ["a.png"]
    # Once only, whatever became of it, until it changes.
    assert sources(watched.finished(4 * SETTLED)) == []
    flat_picture(path)
    assert sources(watched.finished(5 * SETTLED)) == []
    assert sources(watched.finished(7 * SETTLED)) == ["a.png"]


def test_results_empty_and_other_files_are_no_work(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in ("done.png", "deep/new.png"):
        flat_picture(tmp_path / "in" / name)
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "notes.txt").write_text("x")
    flat_picture(tmp_path / "out" / "done_derained.png")
    watched = Watch(tmp_path / "in", tmp_path / "out")
    watched.finished(0)
    assert sources(watched.finished(SETTLED)) == ["new.png"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_the_command_derains_what_appears_and_resumes_after_a_kill(tmp_path, model_folder):
    pytest.importorskip("watchfiles")
    (tmp_path / "in").mkdir()
    Image.fromarray(natural(20, 30)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    model = model_folder / "tiny.onnx"
    command = [sys.executable, "-m", "unrain", "watch", "in", "-o", "out", "--model", model, "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def started():
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    def appears(name):
        for _ in range(600):
            if (tmp_path / "out" / name).exists():
                return True
            time.sleep(0.1)
        return False

    first = started()
    assert appears("a_derained.png")
    first.kill()
    first.communicate()
    before = (tmp_path / "out" / "a_derained.png").stat().st_mtime_ns
    second = started()
    Image.fromarray(natural(20, 30, 1)).save(tmp_path / "in" / "b.png")
    assert appears("b_derained.png")
    second.send_signal(signal.SIGTERM)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0
    assert (tmp_path / "out" / "a_derained.png").stat().st_mtime_ns == before
    assert "in/b.png -> out/b_derained.png" in said and "in/a.png" not in said
    assert said.count("unrain: error: in/bad.png: no picture") == 1


def test_stopping_ends_it(tmp_path, monkeypatch):
    pytest.importorskip("watchfiles")
    monkeypatch.setattr(watch, "_TICK", 50)
    stop = threading.Event()
    stop.set()
    assert list(watch.plans(tmp_path, tmp_path / "out", stop.is_set)) == []


def test_sigterm_ends_the_command_and_means_afterwards_what_it_meant_before(tmp_path, monkeypatch):
    pytest.importorskip("watchfiles")
    (tmp_path / "in").mkdir()

    def plans(folder, output, stopped):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        return iter(())

    monkeypatch.setattr(watch, "plans", plans)
    assert cli.main(["watch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-q"]) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_missing_extra_is_said_before_anything_is_watched(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    (tmp_path / "in").mkdir()
    assert cli.main(["watch", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install 'unrain[watch]'")
    assert not (tmp_path / "out").exists()
