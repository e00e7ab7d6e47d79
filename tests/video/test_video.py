"""Videos: everything but the rain is kept; what goes wrong is reported, and nothing is lost."""

import contextlib
import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unrain import batch, cli, video
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.files import DiskFullError
from unrain.plan import make_plan
from unrain.video import OptionError, VideoOptions, frames, options, writer
from unrain.video.writer import Output, Writer

av = pytest.importorskip("av", reason="PyAV is not installed")

from toys import ROOT  # noqa: E402
from toys_video import Same, clip, raw_h264, run  # noqa: E402

pytestmark = pytest.mark.slow


class Stops(Same):
    """An engine that is interrupted, or fails, at a certain frame."""

    def __init__(self, at, error=KeyboardInterrupt):
        self.left, self.error = at, error

    def step(self, rainy, estimate):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return rainy


class Seen:
    """What an independent look at a file finds in it."""

    def __init__(self, path):
        with av.open(str(path)) as file:
            self.format, self.seconds = file.format.name, file.duration
            self.metadata = {key.lower(): value for key, value in file.metadata.items()}
            (stream,) = file.streams.video
            context = stream.codec_context
            self.codec, self.kind, self.profile = context.name, context.pix_fmt, context.profile
            self.size = (context.width, context.height)
            self.colours = (
                context.color_range,
                context.colorspace,
                context.color_primaries,
                context.color_trc,
            )
            self.aspect, self.unit = stream.sample_aspect_ratio, stream.time_base
            self.language, self.length = stream.metadata.get("language"), stream.duration
            self.chapters = file.chapters()
            self.pts, self.frames, self.sound, self.text, self.turn = [], [], [], [], None
            for packet in file.demux():
                if packet.stream.type == "video":
                    for frame in packet.decode():
                        self.pts.append(frame.pts)
                        self.turn = frame.rotation
                        self.frames.append(frame.to_ndarray(format="rgb24"))
                elif packet.dts is not None:
                    kept = self.sound if packet.stream.type == "audio" else self.text
                    kept.append((packet.pts, packet.duration, bytes(packet)))


def psnr(one, other):
    error = np.mean((np.stack(one).astype(float) - np.stack(other)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


# ----------------------------------------------------------------------------------------- what is kept


def test_everything_but_the_rain_is_kept(tmp_path):
    # Variable frame rate: the gaps differ.
    source = clip(tmp_path / "clip.mp4", times=[0, 24, 60, 84, 150, 151, 200, 224, 300, 340], turned=True)
    report, target = run(source)
    assert target.name == "clip_derained.mp4"
    before, after = Seen(source), Seen(target)
    assert (report.frames, report.problem, report.warnings) == (10, "", ())
    assert after.pts == before.pts == [0, 24, 60, 84, 150, 151, 200, 224, 300, 340]
    for what in (
        "seconds",
        "unit",
        "turn",
        "colours",
        "aspect",
        "size",
        "kind",
        "language",
        "length",
        "sound",
    ):
        assert getattr(after, what) == getattr(before, what), what
    assert after.turn
    assert len(after.sound) > 10
    assert after.metadata["title"] == "Regen"
    assert after.metadata["comment"] == "wet"
    assert psnr(before.frames, after.frames) > 34
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip_derained.mp4"]


@pytest.mark.parametrize("full", [False, True])
def test_colours_come_through_both_conversions(tmp_path, full):
    kind = "yuvj444p" if full else "yuv444p"
    source = clip(tmp_path / "clip.mp4", frames=3, kind=kind, full=full, sound=False)
    _, target = run(source, crf=0)
    before, after = Seen(source), Seen(target)
    assert after.colours == before.colours == (2 if full else 1, 1, 1, 1)
    assert psnr(before.frames, after.frames) > 50
    means = [np.stack(seen.frames).mean((0, 1, 2)) for seen in (before, after)]
    assert np.abs(means[0] - means[1]).max() < 1.5


def test_the_network_sees_the_right_colours(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=2, kind="yuv444p", sound=False)
    seen = []

    class Looks(Same):
        def step(self, rainy, estimate):
            seen.append(rainy[0].transpose(1, 2, 0) * 255)
            return rainy

    run(source, Looks())
    # Drawn by `clip`: red rises from left to right, green from top to bottom.
    assert np.abs(seen[0][24:, :, 0] - np.linspace(0, 255, 64)).mean() < 3
    assert np.abs(seen[0][24:, :, 1] - np.linspace(0, 255, 48)[24:, None]).mean() < 3
    assert seen[0][24:, :, 2].mean() < 3


@pytest.mark.parametrize(
    ("name", "codec", "found"),
    [
        ("a.mkv", None, "h264"),
        ("a.mov", "hevc", "hevc"),
        ("a.webm", None, "vp9"),
        ("a.mp4", "av1", "libdav1d"),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec, found):
    source = clip(
        tmp_path / name, frames=4, codec="libvpx-vp9" if name.endswith("webm") else "libx264", turned=True
    )
    report, target = run(source, codec=codec)
    before, after = Seen(source), Seen(target)
    assert report.warnings == ()
    assert (after.codec, after.format, after.turn) == (found, before.format, before.turn)
    assert after.pts == before.pts
    assert [body for *_, body in after.sound] == [body for *_, body in before.sound]
    assert after.colours == before.colours
    assert psnr(before.frames, after.frames) > 28


def test_old_containers_become_matroska(tmp_path):
    source = clip(tmp_path / "clip.ts", frames=6)
    report, target = run(source)
    assert target.name == "clip_derained.mkv"
    before, after = Seen(source), Seen(target)
    assert len(after.pts) == report.frames == 6
    # Milliseconds from the first packet on, which a transport stream puts anywhere.
    steps = [round((at - before.pts[0]) * before.unit * 1000) for at in before.pts]
    assert [at - after.pts[0] for at in after.pts] == pytest.approx(steps, abs=1)
    assert len(after.sound) == len(before.sound)


def test_an_odd_size_is_kept_and_said(tmp_path):
    source = clip(tmp_path / "clip.webm", frames=4, size=(65, 47), codec="libvpx-vp9")
    report, target = run(source, target=tmp_path / "new.mp4", codec="h264")
    after = Seen(target)
    assert (after.size, after.kind) == ((65, 47), "yuv444p")
    assert any("65 x 47 is odd" in warning for warning in report.warnings)
    report, target = run(source)
    assert (Seen(target).size, Seen(target).kind, report.warnings) == ((65, 47), "yuv420p", ())


def test_ten_bits_are_kept_and_said(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=4, codec="libx265", kind="yuv420p10le")
    report, target = run(source)
    assert Seen(target).kind == "yuv420p10le"
    assert any("10 bits per channel are kept" in warning for warning in report.warnings)
    report, target = run(source, target=tmp_path / "new.mp4", codec="hevc")
    assert (Seen(target).kind, report.warnings) == ("yuv420p10le", ())
    report, target = run(source, target=tmp_path / "new.webm", codec="vp9")
    assert Seen(target).kind == "yuv420p"
    assert any("10 bits per channel are reduced to 8" in warning for warning in report.warnings)


def test_subtitles_are_kept_or_named(tmp_path):
    source = clip(tmp_path / "clip.mkv", frames=5, text=True)
    _, target = run(source)
    assert [body for *_, body in Seen(target).text] == [b"rain"]
    report, target = run(source, target=tmp_path / "new.mp4")
    assert Seen(target).text == []
    (warning,) = report.warnings
    assert "subtitles (stream 2: " in warning and "cannot be kept in .mp4, a name in .mkv after -o" in warning
    assert len(Seen(target).sound) == len(Seen(source).sound)


def test_a_part_of_a_clip(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=40)
    report, target = run(source, start=Fraction(1, 2), duration=Fraction(2, 5))
    after = Seen(target)
    # 0.5 s is tick 300: the first frame from there on is tick 312, the last before 0.9 s is 528.
    assert after.pts == [at - 300 for at in range(312, 540, 24)]
    assert report.frames == 10
    assert after.seconds == pytest.approx(400_000, abs=45_000)
    bodies = [body for *_, body in Seen(source).sound]
    first = bodies.index(after.sound[0][2])
    assert [body for *_, body in after.sound] == bodies[first : first + len(after.sound)]
    assert len(after.sound) == pytest.approx(0.4 * 48000 / 1024, abs=1.5)


def test_still_areas_are_steadied_unless_told_otherwise(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=8, sound=False)

    class Leaves(Same):
        """Takes much away, and leaves a little of it in every third frame."""

        count = 0

        def step(self, rainy, estimate):
            self.count += 1
            return rainy * np.float32(0.8) + np.float32(0.02 * (self.count % 3 == 2))

    _, target = run(source, Leaves(), crf=1)
    steady = np.stack(Seen(target).frames).astype(int)
    _, target = run(source, Leaves(), target=tmp_path / "each.mp4", crf=1, neighbours=False)
    each = np.stack(Seen(target).frames).astype(int)
    still = np.s_[:, 24:]
    assert (
        np.abs(np.diff(steady[still], axis=0)[2:4]).mean()
        < np.abs(np.diff(each[still], axis=0)[2:4]).mean() / 2
    )


@pytest.mark.parametrize("neighbours", [True, False])
def test_strength_counts_behind_the_median(tmp_path, neighbours):
    source = clip(tmp_path / "clip.mp4", frames=8, sound=False)

    class Leaves(Same):
        """Takes much away, and leaves a little of it in every third frame."""

        def __init__(self):
            self.count = 0

        def step(self, rainy, estimate):
            self.count += 1
            return rainy * np.float32(0.8) + np.float32(0.02 * (self.count % 3 == 2))

    frames = {}
    for strength in (0, 0.5, 1):
        target = tmp_path / f"{strength}.mkv"
        options = VideoOptions(crf=0, neighbours=neighbours)
        video.derain(source, target, Derainer(Leaves()), options, strength=strength)
        frames[strength] = np.stack(Seen(target).frames).astype(int)
    before = np.stack(Seen(source).frames).astype(int)
    # What the codec's colours lose, and no more.
    assert np.abs(frames[0] - before).mean() < 2
    assert np.abs(frames[1] - before).mean() > 10
    assert np.abs(frames[0.5] - (frames[0] + frames[1]) / 2).mean() < 1


def test_hardly_any_rain_is_that_of_the_whole_clip(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=4, sound=False)

    class Once(Same):
        """Finds rain in one frame."""

        count = 0

        def step(self, rainy, estimate):
            self.count += 1
            return rainy * np.float32(0.5 if self.count == 2 else 1)

    assert run(source, target=tmp_path / "same.mp4")[0].hardly_any_rain
    assert not run(source, Once(), target=tmp_path / "once.mp4")[0].hardly_any_rain


# -------------------------------------------------------------------------------------- what goes wrong


def test_a_clip_that_is_cut_off_is_written_as_far_as_it_goes(tmp_path):
    whole = clip(tmp_path / "whole.mkv", frames=100)
    source = tmp_path / "clip.mkv"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    report, target = run(source)
    assert 0 < report.frames < 100
    assert len(Seen(target).pts) == report.frames
    assert "cut off: " in report.problem and "of 4.0 s are in the file" in report.problem


def test_a_clip_with_its_index_in_front_that_is_cut_off(tmp_path):
    whole = clip(tmp_path / "whole.mp4", frames=100, movflags="faststart")
    source = tmp_path / "clip.mp4"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    report, target = run(source)
    assert 0 < report.frames < 100
    assert len(Seen(target).pts) == report.frames
    assert report.problem


def test_damage_in_the_middle_is_said(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=60, size=(160, 120), sound=False)
    data = bytearray(source.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 400] = b"\xa5" * 400
    source.write_bytes(data)
    report, target = run(source)
    assert report.frames > 20
    assert "damaged" in report.problem
    assert len(Seen(target).pts) == report.frames


def bad(name, path):
    """Make a file that cannot be derained."""
    if name == "empty":
        path.write_bytes(b"")
    elif name == "picture":
        Image.new("RGB", (20, 20)).save(path, "JPEG")
    elif name == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif name == "play list":
        path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n")
    elif name == "no index":
        clip(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif name == "sound only":
        with av.open(str(path), "w") as file:
            tone = file.add_stream("aac", rate=48000, layout="mono")
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 48000, 0
            file.mux(tone.encode(piece))
            file.mux(tone.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "clip.mp4: the file is empty"),
        ("picture", "clip.mp4: a picture, not a video"),
        ("noise", "clip.mp4: not a readable video"),
        ("play list", "clip.mp4: not a readable video"),
        ("no index", "clip.mp4: not a readable video, or its index is missing"),
        ("sound only", "clip.mp4: there is no video in it, only audio"),
        ("missing", "clip.mp4: no such file"),
    ],
)
def test_what_is_no_video(tmp_path, name, words):
    source = bad(name, tmp_path / "clip.mp4")
    with pytest.raises(UnrainError) as caught:
        run(source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clip_derained.mp4").exists()
    assert not list(tmp_path.glob(".unrain*"))


def test_a_start_beyond_the_end(tmp_path):
    source = clip(tmp_path / "clip.mp4")
    with pytest.raises(UnrainError, match=r"--start 20 s is beyond its end \(0\.4 s\)"):
        run(source, start=Fraction(20))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_result_that_appears_meanwhile_is_kept(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=2, sound=False)
    target = video.beside(source)

    class Meddles(Same):
        def step(self, rainy, estimate):
            target.write_bytes(b"mine")
            return rainy

    (outcome,) = batch.run(make_plan([str(source)]), lambda: Derainer(Meddles()))
    assert outcome.message == (
        f"{target}: appeared while this run was busy and is kept, --overwrite replaces it"
    )
    assert target.read_bytes() == b"mine"
    assert sorted(tmp_path.iterdir()) == [source, target]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(UnrainError, match=r"clip\.mp4: a pipe or a device, not a file"):
        run(tmp_path / "clip.mp4")


def test_too_many_pixels(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=2)
    with pytest.raises(UnrainError, match="64 x 48, more than the limit of 100 pixels"):
        video.derain(source, tmp_path / "new.mp4", Derainer(Same()), max_pixels=100)


def test_frames_that_become_too_large_midway_are_not_decoded(tmp_path):
    source = tmp_path / "clip.mpg"
    source.write_bytes(raw_h264((64, 48)) + raw_h264((640, 480)))
    decoded = []

    class Watching(Same):
        def step(self, rainy, estimate):
            decoded.append(rainy.mean())
            return rainy

    whole = video.derain(source, tmp_path / "whole.mp4", Derainer(Watching()))
    assert (whole.frames, whole.problem, len(decoded)) == (12, "", 12)
    del decoded[:]
    report = video.derain(source, tmp_path / "new.mp4", Derainer(Watching()), max_pixels=10_000)
    assert report.frames == len(decoded) <= 6
    assert "frames are damaged" in report.problem


def test_sound_of_an_unknown_codec_is_named_and_dropped(tmp_path):
    source = clip(tmp_path / "clip.mkv")
    # What is left of a codec's name in a damaged header.
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_XYZ"))
    report, target = run(source)
    assert report.warnings == ("sound (stream 1) cannot be kept in .mkv",)
    assert len(Seen(target).frames) == 10


@pytest.mark.parametrize(
    ("name", "codec", "held"),
    [
        ("new.webm", "h264", "vp9 or av1"),
        ("new.mov", "vp9", "h264 or hevc"),
        ("new.mov", "av1", "h264 or hevc"),
    ],
)
def test_a_container_that_cannot_hold_the_codec(tmp_path, name, codec, held):
    source = clip(tmp_path / "clip.mp4", frames=2)
    with pytest.raises(OptionError, match=f"--codec {codec}: .*{name} cannot hold it, choose {held}"):
        run(source, target=tmp_path / name, codec=codec)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("codec", "size", "deep"),
    # With these x265 aborted the process, and SVT-AV1 never came to an end.
    [
        ("hevc", (48, 32), True),
        ("hevc", (40, 16), False),
        ("av1", (16, 200), False),
        ("av1", (100, 24), False),
    ],
)
def test_sizes_that_an_encoder_does_not_survive_are_refused(tmp_path, codec, size, deep):
    kind = "yuv420p10le" if deep else "yuv420p"
    source = clip(tmp_path / "clip.mkv", frames=6, size=size, kind=kind, sound=False)
    with pytest.raises(UnrainError, match=f"{size[0]} x {size[1]} is too small for {codec}, choose another"):
        run(source, target=tmp_path / "new.mkv", codec=codec)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]


@pytest.mark.parametrize("buffered", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capfd, buffered):
    source = clip(tmp_path / "clip.mp4", frames=30, size=(160, 120))
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 3000

        def write(self, data):
            self.left -= len(data)
            if not buffered:
                self.check()
            return self.file.write(data)

        def seek(self, *place):  # writes what is buffered
            self.check()
            return self.file.seek(*place)

        def flush(self):
            self.check()
            self.file.flush()

        def check(self):
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def opened(path, mode="r", **more):
        file = real(path, mode, **more)
        return Full(file) if "x" in mode else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(DiskFullError, match=r"clip_derained\.mp4: no space left on the disk"):
        run(source)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    # PyAV prints a second error itself.
    assert "Traceback" not in capfd.readouterr().err


def test_ffmpeg_never_sees_the_disks_errors():
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    file = Full()
    output = Output(file)
    assert output.write(b"abcde") == 5
    output.check()
    # Of two errors in a row PyAV would print the second with a traceback.
    assert [output.write(b"fgh"), output.seek(2), output.write(b"C"), output.tell()] == [3, 2, 1, 3]
    assert file.getvalue() == b"abcde"
    with pytest.raises(OSError, match="No space left"):
        output.check()


def test_damaged_packets_are_said_to_be_the_sources(tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4", frames=30)
    copy = Writer._copy

    def damaged(writer, packet):
        packet.pts = packet.dts = 7
        copy(writer, packet)

    monkeypatch.setattr(Writer, "_copy", damaged)
    with pytest.raises(
        UnrainError, match=r"/clip\.mp4: cannot be put into \.mp4 \(.*\), part of it may be damaged"
    ):
        run(source)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_error_of_the_network_leaves_nothing(tmp_path):
    source = clip(tmp_path / "clip.mp4")
    with pytest.raises(UnrainError, match="no memory"):
        run(source, Stops(4, UnrainError("no memory")))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_ctrl_c_keeps_what_was_done(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=50)
    report, target = run(source, Stops(20))
    assert report.interrupted
    assert report.frames == 20
    after = Seen(target)
    assert after.pts == Seen(source).pts[:20]
    assert after.sound
    assert report.problem == "stopped after 20 frames (0.8 s)"


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path):
    source = clip(tmp_path / "clip.mp4")
    with pytest.raises(KeyboardInterrupt):
        run(source, Stops(0))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


INTERRUPTED = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from toys_video import clip, run
from unrain.video import pipeline

class Interrupted(ThreadPoolExecutor):
    left = int(sys.argv[1])

    def submit(self, *arguments):
        future = super().submit(*arguments)
        Interrupted.left -= 1
        if not Interrupted.left:
            raise KeyboardInterrupt
        return future

pipeline.ThreadPoolExecutor = Interrupted
try:
    run(clip(Path("clip.mp4"), frames=30))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("started", [1, 2])
def test_ctrl_c_while_the_threads_are_started_ends_the_run(tmp_path, started):
    search = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command = [sys.executable, "-c", INTERRUPTED, str(started)]
    environment = {**os.environ, "PYTHONPATH": search}
    # A run that hangs is ended here.
    done = subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.fixture
def heeds_interrupts():
    """Ctrl-C raises as usual, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for one thread")
@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_the_file_is_brought_to_the_disk_loses_nothing(tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4")
    real, calls = os.fsync, []

    def interrupted(file):
        calls.append(file)
        if len(calls) == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        real(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    report, target = run(source)
    assert report.interrupted
    assert Seen(target).pts == Seen(source).pts


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4", frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        UnrainError, match=r"clip\.mp4: videos need av, which is not installed: pip install 'unrain\["
    ):
        run(source)


# --------------------------------------------------------------------------------------- times, numbers


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1:30", 90), ("0:01:30.5", Fraction(181, 2)), (".5", Fraction(1, 2))]
)
def test_times(text, seconds):
    assert video.parse_time(text, "--start") == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1:70", "1:2:3:4", "1e3", "nan"])
def test_what_is_no_time(text):
    with pytest.raises(OptionError, match="--start"):
        video.parse_time(text, "--start")


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": "x"},
        {"crf": -1},
        {"crf": 64},
        {"codec": "hevc", "crf": 52},
        {"duration": Fraction(0)},
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(OptionError):
        VideoOptions(**wrong)


@pytest.mark.parametrize(
    ("name", "codec", "worst"),
    [("a.mp4", None, 51), ("a.webm", None, 63), ("a.mkv", "vp9", 63), ("a.mp4", "av1", 63)],
)
def test_the_codec_bounds_the_quality(tmp_path, name, codec, worst):
    source = clip(tmp_path / "clip.mp4", frames=2, sound=False)
    report, _ = run(source, target=tmp_path / name, codec=codec, crf=worst)
    assert report.frames == 2
    with pytest.raises(OptionError, match=f"give 0 .* to {worst}"):
        run(source, target=tmp_path / f"other{name}", codec=codec, crf=worst + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "clip.mp4"])


def test_video_md_has_the_codecs(tmp_path):
    rows = [
        [cell.strip() for cell in line.split("|")[1:5]]
        for line in (ROOT / "docs" / "video.md").read_text().splitlines()
        if re.match(r"\| `\w+` .*\| 0 to ", line)
    ]
    assert [re.match(r"`(\w+)`", name)[1] for name, *_ in rows] == list(video.CODECS)
    for (_, bounds, default, containers), (name, codec) in zip(rows, video.CODECS.items(), strict=True):
        assert (bounds, default) == (f"0 to {codec.worst}", str(codec.crf))
        for suffix in video.WRITTEN:
            held = suffix[1:].upper() in containers.upper().split(", ")
            with contextlib.nullcontext() if held else pytest.raises(OptionError):
                VideoOptions(name).check(tmp_path / f"a{suffix}")


def test_times_that_a_file_tells_wrong():
    times = frames.FrameTimes(10, decoding_order=False)
    assert [times.next(pts, None) for pts in (0, 10, 10, None, 50)] == [0, 10, 11, 21, 50]


# ------------------------------------------------------------------------------------- the command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder and a network that does nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unrain.derainer.open_engine", lambda model, processor: Same())
    return tmp_path


def test_a_folder_with_pictures_and_videos_goes_on_after_a_bad_one(here, capsys):
    (here / "in").mkdir()
    clip(here / "in" / "b.mp4", frames=3)
    bad("noise", here / "in" / "a.mp4")
    Image.new("RGB", (20, 10), (9, 99, 200)).save(here / "in" / "c.png")
    assert cli.main(["in", "-o", "out"]) == 1
    said = capsys.readouterr().err
    assert sorted(path.name for path in (here / "out").iterdir()) == ["b_derained.mp4", "c_derained.png"]
    assert "unrain: error: in/a.mp4: not a readable video" in said
    assert "in/b.mp4 -> out/b_derained.mp4" in said and "3 frames, " in said
    assert said.splitlines()[-2:] == [
        "unrain: hardly any rain found in 2 of 2",
        "unrain: 2 derained, 0 skipped, 1 failed",
    ]
    assert cli.main(["in/b.mp4", "-o", "out"]) == 0
    assert "exists, --overwrite replaces it" in capsys.readouterr().err


def test_a_video_is_never_its_own_result(here, capsys):
    clip(here / "a.mp4", frames=2)
    before = (here / "a.mp4").read_bytes()
    assert cli.main(["a.mp4", "-o", "./a.mp4", "--overwrite"]) == 2
    assert "is the input a.mp4" in capsys.readouterr().err
    assert (here / "a.mp4").read_bytes() == before


def test_ctrl_c_on_the_command_line(here, capsys, monkeypatch):
    clip(here / "a.mp4", frames=30)
    clip(here / "b.mp4", frames=2)
    monkeypatch.setattr("unrain.derainer.open_engine", lambda model, processor: Stops(10))
    assert cli.main(["a.mp4", "b.mp4"]) == 130
    said = capsys.readouterr().err
    assert (
        "a.mp4: stopped after 10 frames (0.4 s); a_derained.mp4 holds what was done and can be played" in said
    )
    assert "interrupted: 0 derained, 0 skipped, 1 failed, 1 not started" in said
    assert len(Seen(here / "a_derained.mp4").pts) == 10
    assert not (here / "b_derained.mp4").exists()


def test_the_bar_says_frames_a_second_and_the_time_left(here, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = 0.0
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("rich.console.monotonic", lambda: now)
    monkeypatch.setattr("unrain.cli.derain.time", SimpleNamespace(monotonic=lambda: now))
    job = batch.Job(Path("a.mp4"), {"derained": Path("b.mp4")})
    with cli.derain.Screen(1, quiet=False, verbose=False) as screen:
        for done in range(1, 6):
            now += 40
            screen.tile_done(job, done, 10)
        shown = Console(width=120, file=io.StringIO())
        shown.print(screen.bar.progress.get_renderable())
    line = shown.file.getvalue()
    assert line.startswith("a.mp4 5/10 frames, 0.03 a second ")
    assert line.rstrip().endswith("50% 0:03:20")


ENDED = """
import signal, sys
from unrain import cli, derainer

class Ended:
    multiple, halo, recursions, recursive, levels = 1, 0, 1, False, 1
    left = int(sys.argv[1])

    def step(self, rainy, estimate):
        self.left -= 1
        if self.left < 0:
            signal.raise_signal(signal.SIGTERM)
        return rainy

derainer.open_engine = lambda model, processor: Ended()
sys.exit(cli.main(sys.argv[2:]))
"""


def ended(folder, at, *arguments):
    """Run unrain in a process of its own that gets SIGTERM at a certain frame or picture."""
    environment = {**os.environ, "PYTHONPATH": str(Path(video.__file__).parents[2])}
    command = [sys.executable, "-c", ENDED, str(at), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, timeout=600, check=False
    )
    return done.returncode, done.stderr


def test_sigterm_keeps_what_was_done_of_a_video(tmp_path):
    clip(tmp_path / "a.mp4", frames=30)
    clip(tmp_path / "b.mp4", frames=2)
    code, said = ended(tmp_path, 10, "a.mp4", "b.mp4")
    assert code == 143
    assert (
        "a.mp4: stopped after 10 frames (0.4 s); a_derained.mp4 holds what was done and can be played" in said
    )
    assert "interrupted: 0 derained, 0 skipped, 1 failed, 1 not started" in said
    assert Seen(tmp_path / "a_derained.mp4").pts == Seen(tmp_path / "a.mp4").pts[:10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a_derained.mp4", "b.mp4"]


def test_sigterm_sums_up_a_folder_and_leaves_no_temporary_file(tmp_path):
    for name in "abc":
        Image.new("RGB", (20, 10), (9, 99, 200)).save(tmp_path / f"{name}.png")
    code, said = ended(tmp_path, 1, ".")
    assert code == 143
    assert said.startswith("a.png -> a_derained.png (")
    assert said.endswith("unrain: interrupted: 1 derained, 0 skipped, 0 failed, 2 not started\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_derained.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.mp4", "--start", "soon"], "--start soon: give seconds, MM:SS or HH:MM:SS"),
        (["a.mp4", "--codec", "divx"], "--codec divx: unknown, choose one of h264"),
        (["a.mp4", "--crf", "99"], "--crf 99: give 0 (best) to 63"),
        (["a.mp4", "--crf", "55"], "--crf 55: a_derained.mp4 is written with h264, give 0 (best) to 51"),
        (["a.webm", "a.mp4", "--crf", "55"], "--crf 55: a_derained.mp4 is written with h264"),
        (["a.mp4", "--compare"], "--rain-layer and --compare are for pictures"),
        (["a.mp4", "-o", "-"], "standard output takes a picture"),
        (["a.mp4", "-o", "a.avi"], "extension .avi: use one of .m4v .mkv .mov .mp4 .webm"),
        (["a.mp4", "-o", "a.jpg"], "extension .jpg: use one of .m4v"),
        (["a.png", "--crf", "20"], "are for videos, but none is named"),
        (["a.png", "--encoder", "nvenc"], "are for videos, but none is named"),
        (["a.webm", "--encoder", "nvenc"], "--encoder nvenc: a_derained.webm is written with vp9"),
    ],
)
def test_wrong_usage(here, capsys, arguments, words):
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_where_the_results_of_videos_go(here):
    for name in ("a.mp4", "b.AVI", "c_derained.mp4"):
        (here / name).touch()
    plan = make_plan(["."], rain_layer=True)
    assert [str(job.targets["derained"]) for job in plan.jobs] == ["a_derained.mp4", "b_derained.mkv"]
    assert all(list(job.targets) == ["derained"] for job in plan.jobs)


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("fails", [True, False])
def test_hardware_that_cannot_decode_is_said_and_the_processor_does_it(tmp_path, monkeypatch, fails):
    """A stand-in for FFmpeg: a device that does not open, after it has read some; one that gives up."""
    source = clip(tmp_path / "a.mp4")
    run(source, target=tmp_path / "plain.mp4")
    real, asked = av.open, []

    def opening(file, *words, hwaccel=None, **more):
        if hwaccel is not None:
            asked.append(hwaccel)
            if fails:
                file.read(100)
                raise av.error.PermissionError(1, "Operation not permitted")
        return real(file, *words, **more)

    monkeypatch.setattr(av, "open", opening)
    monkeypatch.setattr("av.codec.hwaccel.HWAccel", lambda kind: kind)
    report, target = run(source, target=tmp_path / "hard.mp4", hwaccel="cuda")
    assert asked == ["cuda"]
    assert report.warnings == ("cuda cannot decode it here: the processor does",)
    for one, other in zip(decoded(tmp_path / "plain.mp4"), decoded(target), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_such_hardware():
    with pytest.raises(OptionError, match="--hwaccel gpu: unknown, choose one of cuda"):
        VideoOptions(hwaccel="gpu")


def hardware(encoder, kind="nv12", **options):
    """One of FFmpeg's hardware encoders, ready to be opened."""
    try:
        context = av.CodecContext.create(encoder, "w")
    except ValueError:
        pytest.skip(f"this build of PyAV has no {encoder}")
    context.width, context.height, context.pix_fmt = 640, 480, kind
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.options = options
    return context


def once_the_same(one, other):
    """Tell whether two ways write the same bytes, in one of four tries.

    From the same frames x264 wrote other bytes in two of a hundred files, with one thread, too.
    """
    return any(one().read_bytes() == other().read_bytes() for _ in range(4))


@pytest.mark.parametrize(
    ("family", "codec"), [("nvenc", "h264"), ("qsv", "hevc"), ("amf", "av1"), ("videotoolbox", "h264")]
)
def test_hardware_that_cannot_encode_is_said_and_the_processor_does_it(tmp_path, capfd, family, codec):
    """The real encoders, on a machine without their hardware; or a build of PyAV that does not have them."""
    with contextlib.suppress(av.FFmpegError, pytest.skip.Exception):
        hardware(f"{codec}_{family}").open()
        pytest.skip("this machine has the hardware")
    source = clip(tmp_path / "a.mp4", kind="yuv420p10le", frames=4)

    def plain():
        plain.report, target = run(source, target=tmp_path / "plain.mp4", codec=codec)
        return target

    def hard():
        report, target = run(source, target=tmp_path / "hard.mp4", codec=codec, encoder=family)
        said = f"{family} cannot encode it here: the processor does"
        assert report.warnings == (said, *plain.report.warnings)
        return target

    assert once_the_same(plain, hard)
    assert capfd.readouterr() == ("", "")


class StandIn:
    """Stands for PyAV with h264_nvenc on hardware: libx264, which also takes NV12.

    Args:
        monkeypatch: Of the test.
        kinds: The pixel formats that it says it takes.
        fails: At which frame it fails, over all streams; None for never.
        refused: How many streams do not open after the trial.
    """

    def __init__(self, monkeypatch, kinds=("nv12", "p010le"), fails=None, refused=0):
        self.options, self.encoded, self.fails, self.refused = [], 0, fails, refused
        self.kinds = kinds
        self.real = SimpleNamespace(Codec=av.Codec, CodecContext=av.CodecContext, open=av.open)
        monkeypatch.setattr(av, "Codec", self.codec)
        monkeypatch.setattr(av, "CodecContext", SimpleNamespace(create=self.create))
        monkeypatch.setattr(av, "open", self.open)

    def codec(self, name, mode):
        if name != "h264_nvenc":
            return self.real.Codec(name, mode)
        return SimpleNamespace(video_formats=[av.VideoFormat(kind) for kind in self.kinds])

    def create(self, name, mode):
        assert name == "h264_nvenc"
        return Watched(self.real.CodecContext.create("libx264", mode), encode=self.encode)

    def open(self, *words, **more):
        container = self.real.open(*words, **more)

        def add_stream(name, *, options, **more):
            if name != "h264_nvenc":
                return container.add_stream(name, options=options, **more)
            self.options.append(options)
            stream = container.add_stream("libx264", options=options, **more)
            context = Watched(stream.codec_context, open=self.opened)
            return Watched(stream, encode=self.encode, codec_context=context)

        return Watched(container, add_stream=add_stream)

    def encode(self, real, frame=None):
        self.encoded += frame is not None
        if frame is not None and self.fails == self.encoded:
            raise av.error.ExternalError(1, "Generic error in an external library")
        return real.encode(frame)

    def opened(self, real):
        if self.refused:
            self.refused -= 1
            raise av.error.ExternalError(1, "no more sessions")
        real.open()


class Watched:
    """Something of PyAV's, of which some attributes are replaced: methods get the real thing first."""

    def __init__(self, real, add_stream=None, **replaced):
        self.__dict__["real"] = real
        for name, value in replaced.items():
            self.__dict__[name] = (lambda *words, f=value: f(real, *words)) if callable(value) else value
        if add_stream:
            self.__dict__["add_stream"] = add_stream

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def __enter__(self):
        self.real.__enter__()
        return self

    def __exit__(self, *details):
        self.real.__exit__(*details)


def test_hardware_that_can_encode_does(tmp_path, monkeypatch):
    source = clip(tmp_path / "a.mp4", turned=True)
    stand_in = StandIn(monkeypatch)
    report, target = run(source, encoder="nvenc", crf=10)
    # One frame more: the trial's.
    assert (report.frames, report.warnings, stand_in.encoded) == (10, (), 11)
    assert stand_in.options == [{"rc": "vbr", "cq": "11"}]
    monkeypatch.undo()
    before, after = Seen(source), Seen(target)
    for what in ("pts", "seconds", "unit", "turn", "colours", "aspect", "size", "kind", "language", "sound"):
        assert getattr(after, what) == getattr(before, what), what
    assert psnr(before.frames, after.frames) > 30


@pytest.mark.parametrize(
    ("how", "size"),
    [({"fails": 1}, (64, 48)), ({"refused": 1}, (64, 48)), ({"kinds": ()}, (64, 48)), ({}, (65, 48))],
)
def test_hardware_that_gives_up_before_the_first_frame_loses_nothing(tmp_path, monkeypatch, how, size):
    """At its first frame, when the stream is opened, for want of a pixel format, or at an odd size."""
    source = clip(tmp_path / "a.mkv", size=size, kind="yuv444p", sound=False)

    def plain():
        plain.report, target = run(source, target=tmp_path / "plain.mp4")
        return target

    def hard():
        with monkeypatch.context() as patch:
            StandIn(patch, **how)
            report, target = run(source, target=tmp_path / "hard.mp4", encoder="nvenc")
        said = "nvenc cannot encode it here: the processor does"
        assert report.warnings == (said, *plain.report.warnings)
        return target

    assert once_the_same(plain, hard)


def test_hardware_that_gives_up_midway_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    source = clip(tmp_path / "a.mp4", sound=False)
    StandIn(monkeypatch, fails=5)
    words = r"nvenc failed after \d frames \(Generic error in an external library\), leave out --encoder"
    with pytest.raises(UnrainError, match=words):
        run(source, encoder="nvenc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


# As FFmpeg 8 lists them.
_NVENC = (
    "yuv420p",
    "nv12",
    "p010le",
    "yuv444p",
    "p016le",
    "nv16",
    "p210le",
    "p216le",
    "yuv444p10msble",
    "bgr0",
)
_QSV = ("nv12", "p010le", "p012le", "yuyv422", "y210le", "qsv", "bgra", "x2rgb10le", "vuyx", "xv30le")


@pytest.mark.parametrize(
    ("offered", "source", "chosen", "said"),
    [
        (_NVENC, "yuv420p", "yuv420p", None),
        (_NVENC, "yuv420p10le", "p010le", None),
        (_NVENC, "yuv422p", "nv16", None),
        (_NVENC, "yuv422p10le", "p210le", None),
        (_NVENC, "yuv444p10le", "yuv444p10msble", None),
        (_NVENC, "gbrp", "yuv444p", None),
        (_QSV, "yuv420p", "nv12", None),
        (_QSV, "yuv420p12le", "p012le", None),
        (_QSV, "yuv422p", "yuyv422", None),
        (_QSV, "yuv422p10le", "y210le", None),
        (_QSV, "yuv444p", "vuyx", None),
        (("nv12", "p010le", "vuyx", "xv30le"), "yuv422p", "vuyx", None),
        (_QSV, "yuv444p10le", "xv30le", None),
        (
            ("nv12", "qsv"),
            "yuv420p10le",
            "nv12",
            "10 bits per channel are reduced to 8, the most that enc has",
        ),
        (("nv12", "qsv"), "yuv444p", "nv12", r"enc stores colour at half resolution \(4:2:0\)"),
    ],
)
def test_hardware_gets_the_sources_depth_and_chroma_or_says_so(offered, source, chosen, said):
    writer = SimpleNamespace(
        _target="a.mp4", _reader=SimpleNamespace(format=av.VideoFormat(source), width=64, height=48)
    )
    kind, warnings = Writer._pixel_format(
        writer, "enc", [av.VideoFormat(name) for name in offered], even=True
    )
    assert kind == chosen
    assert len(warnings) == (said is not None)
    assert said is None or re.match(said, warnings[0])


def test_the_formats_of_hardware_hold_the_same_pixels():
    ramp = np.linspace(4000, 60000, 64).astype(np.uint16)
    pixels = np.stack(
        [np.tile(ramp, (48, 1)), np.tile(ramp[:48, None], (1, 64)), np.full((48, 64), 30000)], 2
    )
    how = {"dst_colorspace": 1, "src_color_range": 2, "dst_color_range": 1}
    back = {"src_colorspace": 1, "src_color_range": 1, "dst_color_range": 2}
    for (_, bits), kinds in writer._FORMATS.items():
        for kind in kinds:
            encoded = av.VideoFrame.from_ndarray(pixels.astype(np.uint16), "rgb48le").reformat(
                format=kind, **how
            )
            seen = encoded.reformat(format="rgb48le", **back).to_ndarray()
            assert np.abs(seen.astype(float) - pixels).mean() < (1000 if bits == 8 else 600), kind


@pytest.mark.parametrize("family", options.ENCODERS)
def test_ffmpeg_knows_the_options_of_hardware_and_their_bounds(family):
    """FFmpeg refuses a value before it looks for hardware."""
    refused = (ValueError, OverflowError)
    for codec in options.ENCODERS[family].scales:
        for crf in (None, 0, video.CODECS[codec].worst):
            settings = options.ENCODERS[family].settings(codec, crf)
            with contextlib.suppress(av.FFmpegError):
                try:
                    hardware(f"{codec}_{family}", **settings).open()
                except refused as error:
                    pytest.fail(f"{codec}_{family} {settings}: {error}")
        for name in settings:
            # Its HEVC has no B frames.
            if (codec, name) != ("hevc", "qp_b"):
                with pytest.raises(refused):
                    hardware(f"{codec}_{family}", **{name: "x"}).open()


def test_the_quality_of_hardware_goes_from_best_to_worst():
    for family in options.ENCODERS.values():
        for codec, (best, worst) in family.scales.items():
            highest = video.CODECS[codec].worst
            values = [int(family.settings(codec, crf)[family.quality[0]]) for crf in range(highest + 1)]
            assert (values[0], values[-1]) == (best, worst)
            assert values == sorted(values, reverse=best > worst)


@pytest.mark.parametrize(
    ("name", "chosen", "words"),
    [
        ("a.mp4", {"encoder": "gpu"}, "--encoder gpu: unknown, choose one of nvenc, qsv, amf, videotoolbox"),
        (
            "a.mp4",
            {"encoder": "nvenc", "codec": "vp9"},
            "nvenc: it has no vp9, choose --codec h264 or hevc or av1",
        ),
        (
            "a.webm",
            {"encoder": "amf"},
            "a.webm is written with vp9, which it does not have, choose --codec av1",
        ),
        ("a.webm", {"encoder": "videotoolbox"}, "choose another container with -o, such as .mkv"),
        ("a.gif", {"encoder": "nvenc"}, "an animation takes no .*--encoder"),
    ],
)
def test_encoders_that_there_are_not(tmp_path, name, chosen, words):
    with pytest.raises(OptionError, match=words):
        VideoOptions(**chosen).check(tmp_path / name)
