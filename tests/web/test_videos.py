"""Videos in the HTTP API: the command line's result, progress, cancelling, limits, nothing left behind."""

import contextlib
import io
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra web")
av = pytest.importorskip("av", reason="needs the extra video")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from fastapi.testclient import TestClient  # noqa: E402

from toys import ROOT  # noqa: E402
from toys_video import clip  # noqa: E402
from toys_web import ONE_THREAD, picture  # noqa: E402
from unrain import files, video, zoo  # noqa: E402
from unrain.derainer import Derainer  # noqa: E402
from unrain.web import server  # noqa: E402
from unrain.web.app import create  # noqa: E402
from unrain.web.queue import Limits  # noqa: E402
from unrain.web.runner import Isolated  # noqa: E402

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all temporary files of this module."""
    path = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(path))
        yield path


@contextlib.contextmanager
def serving(model_folder, *, isolate=False, **limits):
    app = create(
        [zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD, isolate=isolate, limits=Limits(**limits)
    )
    with TestClient(app, base_url=URL) as client:
        yield client, app.app.state.videos


@pytest.fixture(scope="module")
def served(model_folder, folder):
    with serving(model_folder, isolate=True) as both:
        yield both


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return clip(tmp_path_factory.mktemp("clips") / "rain.mp4", frames=8)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A clip that takes longer than any test looks at it."""
    return clip(tmp_path_factory.mktemp("clips") / "long.mp4", frames=160, size=(480, 360), sound=False)


def send(client, path, **fields):
    if path.name == "long.mp4":
        fields["recursions"] = "16"
    return client.post("/api/videos", files={"video": (path.name, path.read_bytes())}, data=fields)


def wait(client, told, *states):
    end = time.monotonic() + 60
    while True:
        state = client.get(f"/api/videos/{told['id']}").json()
        if state["state"] in states:
            return state
        assert time.monotonic() < end, state
        assert state["state"] in ("waiting", "working"), state
        time.sleep(0.02)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def files_in(folder):
    return {path for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def frames(data):
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as file:
        sound = [bytes(packet) for packet in file.demux(audio=0) if packet.size] if file.streams.audio else []
        file.seek(0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]), sound


def test_a_video_is_that_of_the_command_line_with_its_sound_and_nothing_is_left(
    served, model_folder, folder, short, tmp_path
):
    client, _ = served
    answer = send(client, short)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"api/videos/{answer.json()['id']}"
    told = wait(client, answer.json(), "done")
    assert (told["done"], told["total"], told["frames"], told["problem"]) == (8, 8, 8, "")
    assert told["result"] == "rain_derained.mp4"
    assert told["recursions"] == 2
    # Of a video that is done only the result lies there.
    wait_for(lambda: [path.name for path in files_in(folder)] == ["rain_derained.mp4"])
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/videos/{told['id']}/frame").content)) as archive:
        shown = {name: Image.open(io.BytesIO(archive.read(name))).size for name in archive.namelist()}
    assert shown == {"before.jpg": (64, 48), "after.jpg": (64, 48)}
    result = client.get(f"/api/videos/{told['id']}/result")
    assert result.headers["content-type"] == "video/mp4"
    assert "rain_derained.mp4" in result.headers["content-disposition"]
    assert len(result.content) == told["bytes"]
    target = tmp_path / "right.mp4"
    video.derain(short, target, Derainer(model_folder / "tiny.onnx", device="cpu", threads=1))
    (pixels, sound), (right, right_sound) = frames(result.content), frames(target)
    np.testing.assert_array_equal(pixels, right)
    assert sound == right_sound and sound
    assert files_in(folder) == set()
    for path in ("", "/frame", "/result"):
        assert client.get(f"/api/videos/{told['id']}{path}").status_code == 404


def test_options_and_other_kinds(served, short, tmp_path):
    client, _ = served
    told = wait(client, send(client, short, format="webm", strength="0", recursions="3").json(), "done")
    assert (told["result"], told["recursions"]) == ("rain_derained.webm", 3)
    result = client.get(f"/api/videos/{told['id']}/result")
    assert result.headers["content-type"] == "video/webm"
    pictures = [Image.fromarray(np.full((40, 60, 3), value, np.uint8)) for value in (40, 90, 160)]
    animation = tmp_path / "wet.gif"
    pictures[0].save(animation, save_all=True, append_images=pictures[1:], duration=80)
    told = wait(client, send(client, animation).json(), "done")
    assert told["result"] == "wet_derained.gif"
    with Image.open(io.BytesIO(client.get(f"/api/videos/{told['id']}/result").content)) as back:
        assert (back.format, back.n_frames) == ("GIF", 3)


def test_frames_are_shown_upright(served, tmp_path):
    client, _ = served
    told = wait(client, send(client, clip(tmp_path / "phone.mp4", turned=True, frames=3)).json(), "done")
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/videos/{told['id']}/frame").content)) as archive:
        before = np.asarray(Image.open(io.BytesIO(archive.read("before.jpg")))).astype(int)
    assert before.shape == (64, 48, 3)
    # Red grew to the right and green downwards: turned clockwise they grow downwards and to the left.
    assert before[-8:, ..., 0].mean() > before[:8, ..., 0].mean() + 100
    assert before[:, :8, 1].mean() > before[:, -8:, 1].mean() + 100
    client.delete(f"/api/videos/{told['id']}")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("noise.mp4", b"noise" * 100, "noise.mp4: not a readable video"),
        ("empty.mp4", b"", "empty.mp4: the file is empty"),
        ("a.mp4", picture(), "a.mp4: a picture, not a video"),
        ("a.png", picture(), "a.png: not a video, send pictures to /api/derain"),
        ("../../etc/passwd", b"root", "passwd: not a video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "list.mp4: not a readable video"),
    ],
)
def test_what_is_no_video_fails_in_one_line_without_the_servers_paths(served, folder, name, data, message):
    client, _ = served
    told = client.post("/api/videos", files={"video": (name, data)}).json()
    told = wait(client, told, "failed")
    assert told["detail"].startswith(message)
    assert "\n" not in told["detail"] and str(folder) not in told["detail"]
    assert client.get(f"/api/videos/{told['id']}/result").status_code == 409
    wait_for(lambda: files_in(folder) == set())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codec": "divx"}, "codec: input should be"),
        ({"strength": "2"}, "strength: "),
        ({"model": "other"}, "model: unknown, known ones: tiny"),
        ({"tile": "64"}, "tile: unknown, leave it out"),
    ],
)
def test_options_out_of_range(served, folder, short, fields, message):
    client, _ = served
    answer = send(client, short, **fields)
    assert (answer.status_code, answer.json()["detail"][: len(message)]) == (422, message)
    assert files_in(folder) == set()


def test_a_codec_that_the_container_cannot_hold_is_said_without_dashes(served, short):
    client, _ = served
    told = wait(client, send(client, short, format="webm", codec="h264").json(), "failed")
    assert told["detail"].startswith("codec h264: rain_derained.webm cannot hold it")


def test_limits_of_bytes_frames_and_pixels(model_folder, folder, short):
    size = short.stat().st_size
    with serving(model_folder, video_size=size - 1) as (client, _):
        answer = send(client, short)
        assert (answer.status_code, answer.json()["detail"]) == (
            413,
            f"video: more than {(size - 1) / 1e6:g} MB, the limit of this server",
        )
        # As curl does from a pipe: without a length.
        body = b"--b\r\nContent-Disposition: form-data; name=video; filename=a.mp4\r\n\r\n" + bytes(100_000)
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/api/videos", content=iter([body]), headers=kind)
        assert answer.status_code == 413
        assert files_in(folder) == set()
    with serving(model_folder, video_size=0) as (client, _):
        assert client.get("/api/limits").json()["video_bytes"] == 0
        assert send(client, short).json()["detail"] == "video: this server takes no videos"
    with serving(model_folder, video_frames=7, pixels=64 * 48) as (client, _):
        told = wait(client, send(client, short).json(), "failed")
        assert told["detail"] == "rain.mp4: more than 7 frames, the limit of this server, cut it into parts"
    with serving(model_folder, pixels=64 * 48 - 1) as (client, _):
        told = wait(client, send(client, short).json(), "failed")
        assert "64 x 48, more than the limit of 3,071 pixels, make it smaller" in told["detail"]


def test_one_runs_another_waits_a_third_is_refused_and_pictures_are_not_kept_waiting(
    model_folder, folder, long, short
):
    with serving(model_folder, video_queue=1) as (client, videos):
        first = send(client, long).json()
        wait(client, first, "working")
        second = send(client, short).json()
        assert (second["state"], second["ahead"]) == ("waiting", 1)
        refused = send(client, short)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["detail"] == "1 video is waiting already, try again"
        assert client.get("/readyz").status_code == 200
        assert client.post("/api/derain", files={"picture": ("a.png", picture())}).status_code == 200
        wait_for(lambda: client.get(f"/api/videos/{first['id']}").json()["done"] > 2)
        told = client.get(f"/api/videos/{first['id']}").json()
        assert told["state"] == "working" and told["total"] == 160 and told["left"] > 0
        # Cancelling frees the lane at once, and the worker goes on with the next.
        assert client.delete(f"/api/videos/{first['id']}").status_code == 204
        assert client.get(f"/api/videos/{first['id']}").status_code == 404
        told = wait(client, second, "done")
        assert client.get(f"/api/videos/{told['id']}/result").status_code == 200
        assert videos.videos == {}
        wait_for(lambda: files_in(folder) == set())
        text = client.get("/metrics").text
    for line in (
        'unrain_videos_over_total{outcome="cancelled"} 1.0',
        'unrain_videos_over_total{outcome="fetched"} 1.0',
        "unrain_video_seconds_count 1.0",
        "unrain_videos 0.0",
        "unrain_video_bytes 0.0",
        'unrain_requests_total{method="GET",path="/api/videos/ID/result",status="200"} 1.0',
    ):
        assert line in text


def test_what_nobody_asks_about_is_deleted_and_so_is_all_at_the_end(model_folder, folder, long, short):
    with serving(model_folder, video_keep=0.5) as (client, videos):
        told = send(client, short).json()
        wait_for(lambda: not videos.videos)
        wait_for(lambda: files_in(folder) == set())
        assert client.get(f"/api/videos/{told['id']}").status_code == 404
        assert 'unrain_videos_over_total{outcome="expired"} 1.0' in client.get("/metrics").text
    with serving(model_folder) as (client, videos):
        wait(client, send(client, long).json(), "working")
        send(client, short)
        root = videos._root
        assert len(files_in(folder)) >= 2
    wait_for(lambda: not root.exists())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_that_dies_or_stalls_fails_its_video_and_no_other(model_folder, folder, long, short):
    with serving(model_folder) as (client, videos):
        told = send(client, long).json()
        wait(client, told, "working")
        wait_for(lambda: client.get(f"/api/videos/{told['id']}").json()["done"])
        os.kill(videos._runner.pid, signal.SIGKILL)
        assert wait(client, told, "failed")["detail"].startswith("long.mp4: broke off")
        told = send(client, long).json()
        wait_for(lambda: client.get(f"/api/videos/{told['id']}").json()["done"])
        # Only now: a busy machine may need longer for an honest frame.
        usual, videos.limits = videos.limits, replace(videos.limits, timeout=2)
        os.kill(videos._runner.pid, signal.SIGSTOP)
        assert wait(client, told, "failed")["detail"] == "long.mp4: no frame within 2 seconds"
        videos.limits = usual
        assert wait(client, send(client, short).json(), "done")["frames"] == 8


def test_a_draining_server_ends_a_video_and_takes_no_more(model_folder, folder, short):
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD)
    process = server.configured(app, 60)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=process.run, args=([listener],), daemon=True)
        thread.start()
        with httpx.Client(base_url=url) as client:
            told = send(client, short).json()
            process.handle_exit(signal.SIGTERM, None)
            refused = send(client, short)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            told = wait(client, told, "done")
            result = client.get(f"/api/videos/{told['id']}/result")
        assert len(frames(result.content)[0]) == 8
        thread.join(30)
    assert not thread.is_alive()
    assert not process._videos._root.exists()


@pytest.mark.skipif(os.name != "posix", reason="the application is a shell script here")
def test_an_application_of_one_file_is_its_own_worker(model_folder, folder, short, monkeypatch, tmp_path):
    application = tmp_path / "application"
    start = [sys.executable, "-P", str(ROOT / "deploy" / "application_start.py")]
    application.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT / "src"))} exec {shlex.join(start)} "$@"\n'
    )
    application.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(application))
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with serving(model_folder, isolate=True) as (client, videos):
        assert client.post("/api/derain", files={"picture": picture("PNG")}).status_code == 200
        told = wait(client, send(client, short).json(), "done")
        assert len(frames(client.get(f"/api/videos/{told['id']}/result").content)[0]) == 8
        assert isinstance(videos._runner, Isolated)
    wait_for(lambda: files_in(folder) == set())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_the_command_ends_well_in_the_middle_of_a_video(tiny_model, long, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "unrain", "serve", "--port", "0", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--model", str(tiny_model)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        with httpx.Client(base_url=process.stderr.readline().split()[3]) as client:
            told = send(client, long).json()
            send(client, long)
            wait_for(lambda: client.get(f"/api/videos/{told['id']}").json()["done"])
        assert list(tmp_path.glob("unrain-videos-*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == "unrain: stopped\n"
        assert not list(tmp_path.glob("unrain-videos-*"))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_what_a_killed_server_left_is_removed_and_what_a_live_one_has_is_not(served, folder, short):
    client, videos = served
    wait(client, send(client, short).json(), "done")
    left = folder / "unrain-videos-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "clip.mp4").touch()
    other = folder / "unrain-videos-nolock"
    other.mkdir()
    files.discard(*files.scratch("unrain-videos-"))
    assert not left.exists() and other.exists() and Path(videos._root).exists()
    for each in list(videos.videos.values()):
        videos.remove(each, "cancelled")
