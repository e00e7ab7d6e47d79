"""Cameras: the newest frame, outputs that survive a kill, events, and the command against real servers."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="needs the extra video")

from toys import ROOT, natural, sky  # noqa: E402
from unrain import cli, zoo  # noqa: E402
from unrain.derainer import Derainer  # noqa: E402
from unrain.errors import UnrainError, UsageError  # noqa: E402
from unrain.live.camera import Camera, LiveFrame, shown  # noqa: E402
from unrain.live.events import MARGIN, RainEvents  # noqa: E402
from unrain.live.outputs import MjpegServer, RtspPush, Segments, make_output  # noqa: E402
from unrain.live.run import run  # noqa: E402

SYSTEM_PYTHON = "/usr/bin/python3"
# GStreamer's RTSP server: a camera with its own moving test picture, or a recorder.
RTSP = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory(); factory.set_launch(sys.argv[3]); factory.set_shared(True)
if sys.argv[4]: factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
server.get_mount_points().add_factory(sys.argv[2], factory); server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""
BALL = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=96,height=64,framerate=10/1 ! videoconvert "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1 "
    "! rtph264pay name=pay0 config-interval=1 )"
)
RECORDER = (
    "( rtph264depay name=depay0 ! h264parse ! matroskamux streamable=true ! filesink buffer-mode=unbuffered "
    "location={} )"
)


def frames_of(path):
    with av.open(str(path)) as container:
        return [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in container.decode(video=0)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Stills:
    """A camera of ready frames."""

    def __init__(self, frames):
        self.frames = list(frames)
        self.received, self.dropped, self.connections = len(self.frames), 0, 1
        self.started = self.stopped = False

    def start(self):
        self.started = True

    def stop(self):
        self.stopped = True

    def newest(self, patience):
        return self.frames.pop(0) if self.frames else None


class Kept:
    def __init__(self):
        self.frames, self.closed = [], False

    def put(self, pixels, at):
        self.frames.append((pixels, at))

    def close(self):
        self.closed = True


# ------------------------------------------------------------------------------------------------- events


def told(scores, threshold=50.0):
    lines = io.StringIO()
    events = RainEvents(threshold, lines)
    words = [events.see(score, float(second)) for second, score in enumerate(scores)]
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["rain"] for row in rows] == [word for word in words if word]
    return words


def test_rain_begins_and_ends_once_each():
    words = told([10] * 20 + [90] * 30 + [10] * 30)
    assert [word for word in words if word] == ["ends", "begins", "ends"]
    assert words.index("ends") == 5 and 20 < words.index("begins") < 30


def test_scores_about_the_threshold_change_nothing():
    words = told([20] * 20 + [50 + (MARGIN - 1) * (-1) ** second for second in range(60)])
    assert [word for word in words if word] == ["ends"]
    assert [word for word in told([80] * 20 + [45] * 60) if word] == ["begins"]


def test_a_single_odd_frame_is_no_rain():
    assert [word for word in told([10] * 20 + [100] + [10] * 20) if word] == ["ends"]


# ------------------------------------------------------------------------------------------------ outputs


def test_a_file_that_was_never_closed_can_be_played(tmp_path):
    output = Segments(tmp_path / "out", 60)
    for number in range(40):
        output.put(natural(48, 64, number % 3), number * 0.1)
    (path,) = (tmp_path / "out").iterdir()
    found = frames_of(path)
    # What a kill costs is less than the two fragments that were open.
    assert 20 <= len(found) < 40
    np.testing.assert_allclose(np.diff([at for _, at in found]), 0.1, atol=1e-3)
    output.close()
    assert len(frames_of(path)) == 40


def test_files_end_after_their_seconds_and_with_the_size(tmp_path):
    output = Segments(tmp_path / "out", 1)
    for number in range(25):
        output.put(natural(48, 64), number * 0.1)
    output.put(natural(33, 47), 2.5)
    output.close()
    counts = sorted(len(frames_of(path)) for path in (tmp_path / "out").iterdir())
    assert counts == [1, 5, 10, 10]


def test_mjpeg_is_served_on_loopback_and_to_no_other_name():
    server = MjpegServer("http://127.0.0.1:0/")
    try:
        picture = natural(48, 64)
        server.put(picture, 0.0)
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        client.request("GET", "/")
        answer = client.getresponse()
        assert answer.getheader("Content-Type").startswith("multipart/x-mixed-replace; boundary=")
        head = b""
        while b"\r\n\r\n" not in head:
            head += answer.read(1)
        size = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        shown_picture = np.asarray(Image.open(io.BytesIO(answer.read(size))))
        assert np.abs(shown_picture.astype(int) - picture).mean() < 25
        other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        other.request("GET", "/", headers={"Host": f"evil.example:{server.port}"})
        assert other.getresponse().status == 421
    finally:
        server.close()


@pytest.mark.parametrize("target", ["ftp://a/b", "https://127.0.0.1/", "http://example.org:80/"])
def test_outputs_that_make_no_sense(target):
    with pytest.raises(UsageError, match="give a"):
        make_output(target, 60, print)


def test_a_server_that_is_not_there_is_an_error_and_no_frames_are_lost_in_silence():
    output = RtspPush(f"rtsp://me:secret@127.0.0.1:{free_port()}/clear", print)
    with pytest.raises(
        UnrainError, match=r"rtsp://\*\*\*@127.0.0.1.* cannot be sent to \(Connection refused"
    ):
        output.put(natural(48, 64), 0.0)
    output.close()


# ------------------------------------------------------------------------------------------------- camera


@pytest.mark.parametrize(
    "address", ["clip.mp4", "/etc/passwd", "file:///etc/passwd", "concat:a|b", "/dev/sda"]
)
def test_what_is_no_camera_is_refused(address):
    with pytest.raises(UsageError, match="give an address that begins with rtsp://"):
        Camera(address, print, 10**6)


def test_passwords_are_not_shown():
    assert shown("rtsp://me:secret@cam.local:554/a?b") == "rtsp://***@cam.local:554/a?b"
    assert shown("rtsp://cam.local/a") == "rtsp://cam.local/a"


def test_the_newest_frame_wins():
    camera = Camera("http://127.0.0.1:9/", print, 10**6)
    for number in range(5):
        camera._put(natural(8, 8, number))
    frame = camera.newest(0)
    assert frame.number == 5 and (camera.received, camera.dropped) == (5, 4)
    np.testing.assert_array_equal(frame.pixels, natural(8, 8, 4))
    assert camera.newest(0) is None


def test_the_loop_derains_and_cleans_up(model_folder):
    derainer = Derainer(zoo.find(model_folder / "tiny.onnx"))
    pictures = [natural(40, 48, number) for number in range(4)]
    camera = Stills(LiveFrame(one, float(number), number + 1) for number, one in enumerate(pictures))
    output, said = Kept(), []

    done = run(camera, output, derainer, say=said.append, stopped=lambda: not camera.frames)
    assert camera.started and camera.stopped and output.closed and done.frames == 4
    for before, (after, _) in zip(pictures, output.frames, strict=True):
        np.testing.assert_array_equal(after, derainer(before))


def test_rain_on_a_still_scene_is_told_when_it_begins_and_ends(model_folder):
    """Dry, rain from the project's own maker, dry again: 20 seconds each, on a clock of the test's own."""
    rain = pytest.importorskip("unrain.lab.data.rain")
    random = np.random.default_rng(0)
    scene = sky(120, 160)
    seconds = range(60)
    shower = rain.StreakRain(direction=(-12, -8), density=(0.01, 0.012), intensity=(120, 170))
    layers = [shower.layer(scene.shape[:2], random) for _ in range(20)]
    frames = [rain.add_layer(scene, layers[at - 20]) if 20 <= at < 40 else scene for at in seconds]
    camera = Stills(LiveFrame(one, float(at), at + 1) for at, one in enumerate(frames))
    began = datetime(2026, 11, 28, 12, tzinfo=UTC)
    lines = io.StringIO()

    def clock():
        return began + timedelta(seconds=59 - len(camera.frames))

    derainer = Derainer(zoo.find(model_folder / "tiny.onnx"), device="cpu")
    events = RainEvents(derainer.scorer.threshold, lines, clock)
    run(camera, Kept(), derainer, events=events, stopped=lambda: not camera.frames)
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["rain"] for row in rows] == ["ends", "begins", "ends"]
    told = [(datetime.fromisoformat(row["time"]) - began).total_seconds() for row in rows]
    assert told[0] == 5 and 20 < told[1] < 30 and 40 < told[2] < 50
    threshold = derainer.scorer.threshold
    assert rows[0]["score"] < threshold
    assert rows[1]["score"] >= threshold + MARGIN and rows[2]["score"] <= threshold - MARGIN


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_the_command_reads_a_device(tmp_path, model_folder):
    """FFmpeg's own code for V4L2; the kernel's side is that of fake_v4l2.c."""
    fake = tmp_path / "fake.so"
    source = ROOT / "tests" / "live" / "fake_v4l2.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", fake, source, "-ldl"], check=True)
    command = [sys.executable, "-m", "unrain", "live", "/dev/video0", "-o", "out", "--duration", "3"]
    command += ["--model", model_folder / "tiny.onnx", "--threads", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LD_PRELOAD": str(fake)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/dev/video0: 64 x 48, connected" in done.stderr
    (path,) = (tmp_path / "out").iterdir()
    found = frames_of(path)
    assert len(found) >= 2 and found[0][0].shape == (48, 64, 3)
    brightness = [pixels.mean() for pixels, _ in found]
    assert max(brightness) > min(brightness) + 4


@pytest.mark.slow
def test_the_command_reads_mjpeg_over_http_and_connects_again(tmp_path, model_folder, capsys):
    port = free_port()
    server = MjpegServer(f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-m", "unrain", "live", f"http://127.0.0.1:{port}/", "-o", "out"]
    command += ["--model", model_folder / "tiny.onnx", "--threads", "1", "--events", "events.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:

        def feed(until):
            for number in range(1200):
                server.put(natural(48, 64, number % 5), 0.0)
                time.sleep(0.05)
                if until():
                    return True
            return False

        def segment_bytes():
            return sum(path.stat().st_size for path in tmp_path.glob("out/*.mp4"))

        assert feed(lambda: segment_bytes() > 20_000)
        server.close()
        before = segment_bytes()
        server = MjpegServer(f"http://127.0.0.1:{port}/")
        assert feed(lambda: segment_bytes() > before + 20_000)
    finally:
        running.terminate()
        _, said = running.communicate(timeout=60)
        server.close()
    assert running.returncode == 0, said
    assert said.count(": 64 x 48, connected") == 2 and "lost (" in said
    assert sum(len(frames_of(path)) for path in tmp_path.glob("out/*.mp4")) > 10


@pytest.fixture
def rtsp(tmp_path):
    """What starts GStreamer's RTSP server with a description of what it does, and waits for it."""
    started = []

    def start(port, path, launch, *, records=False):
        words = [SYSTEM_PYTHON, "-c", RTSP, str(port), path, launch, "record" * records]
        environment = {"PATH": "/usr/bin:/bin"}
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path, env=environment))
        assert started[-1].stdout.readline() == b"ready\n"
        return started[-1]

    yield start
    for server in started:
        server.kill()
        server.communicate()


def gstreamer():
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); "
        "from gi.repository import Gst; Gst.init(None); "
        "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'videotestsrc')))"
    )
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_sigterm_ends_the_command_and_means_afterwards_what_it_meant_before(
    tmp_path, model_folder, monkeypatch
):
    def running(*_, stopped, **__):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        return SimpleNamespace(frames=1, received=1, dropped=0)

    monkeypatch.setattr("unrain.live.run.run", running)
    words = ["live", "rtsp://127.0.0.1/cam", "-o", str(tmp_path / "out")]
    assert cli.main([*words, "--model", str(model_folder / "tiny.onnx"), "--device", "cpu"]) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.skipif(not gstreamer(), reason="needs GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0)")
def test_the_command_reads_a_real_rtsp_server(tmp_path, model_folder, rtsp, monkeypatch, capsys):
    port = free_port()
    rtsp(port, "/cam", BALL)
    monkeypatch.chdir(tmp_path)
    words = ["live", f"rtsp://127.0.0.1:{port}/cam", "-o", "out", "--duration", "5"]
    assert cli.main([*words, "--model", str(model_folder / "tiny.onnx"), "--threads", "1"]) == 0
    said = capsys.readouterr().err
    assert ": 96 x 64, connected" in said
    (path,) = (tmp_path / "out").iterdir()
    found = frames_of(path)
    assert len(found) >= 5 and found[0][0].shape == (64, 96, 3)
    assert found[-1][1] > found[0][1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or not gstreamer(), reason="needs GStreamer's RTSP server")
def test_frames_are_sent_to_a_real_rtsp_server_again_after_it_was_lost(tmp_path, rtsp):
    port, said = free_port(), []
    server = rtsp(port, "/clear", RECORDER.format("first.mkv"), records=True)
    output = RtspPush(f"rtsp://127.0.0.1:{port}/clear", said.append)
    noise = np.random.default_rng(0).integers(0, 256, (5, 240, 320, 3), np.uint8)
    number = 0

    def feed(until):
        nonlocal number
        for _ in range(1200):
            # Noise, which fills what the system keeps for a server that takes nothing.
            output.put(noise[number % 5], number * 0.1)
            number += 1
            if until():
                return True
            time.sleep(0.05)
        return False

    def holds(name, least=200_000):
        return (tmp_path / name).exists() and (tmp_path / name).stat().st_size > least

    try:
        assert feed(lambda: holds("first.mkv"))
        # While a server takes nothing nobody waits for it.
        server.send_signal(signal.SIGSTOP)
        before = number
        assert feed(lambda: number > before + 80)
        server.kill()
        server.wait()
        assert feed(lambda: any("lost" in line for line in said))
        rtsp(port, "/clear", RECORDER.format("second.mkv"), records=True)
        assert feed(lambda: holds("second.mkv"))
    finally:
        output.close()
    assert sum(line.endswith(": connected") for line in said) == 2
    for name in ("first.mkv", "second.mkv"):
        found = frames_of(tmp_path / name)
        assert len(found) > 2 and found[0][0].shape == (240, 320, 3) and found[0][0].std() > 30
