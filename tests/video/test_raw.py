"""Raw frames on standard input: the same results as through a file, in both depths, and honest endings."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from toys import ROOT, natural
from unrain import cli
from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.video import OptionError, RawFormat, VideoOptions, derain_raw, parse_raw
from unrain.video.temporal import TemporalMedian

SIZE = RawFormat(40, 24)


@pytest.fixture
def derainer(tiny_model):
    return Derainer(tiny_model, threads=1)


def clip(count=4, kind=np.uint8):
    frames = [natural(24, 40, seed) for seed in range(count)]
    return [frame if kind == np.uint8 else frame.astype(np.uint16) * 257 for frame in frames]


def run(frames, derainer, form=SIZE, **options):
    target = io.BytesIO()
    data = b"".join(frame.astype(frame.dtype.newbyteorder("<")).tobytes() for frame in frames)
    report = derain_raw(io.BytesIO(data), target, form, derainer, **options)
    dtype = "u1" if form.kind == "rgb24" else "<u2"
    return report, np.frombuffer(target.getvalue(), dtype).reshape(-1, form.height, form.width, 3)


@pytest.mark.parametrize(("kind", "dtype"), [("rgb24", np.uint8), ("rgb48le", np.uint16)])
def test_without_neighbours_each_frame_is_a_picture(derainer, kind, dtype):
    frames = clip(kind=dtype)
    report, results = run(
        frames, derainer, RawFormat(40, 24, kind), options=VideoOptions(neighbours=False), strength=0.5
    )
    assert (report.frames, report.problem, report.interrupted) == (4, "", False)
    for frame, result in zip(frames, results, strict=True):
        np.testing.assert_array_equal(result, derainer.derain(frame).at(0.5))


def test_with_neighbours_frames_are_steadied_as_in_a_video(derainer):
    still = natural(24, 40)
    frames = [np.clip(still.astype(int) + step, 0, 255).astype(np.uint8) for step in (0, 3, -2, 1)]
    _, results = run(frames, derainer)
    median = TemporalMedian()
    expected = []
    for frame in frames:
        expected += [pixels for _, pixels in median.push(None, frame, derainer(frame))]
    expected += [pixels for _, pixels in median.flush()]
    np.testing.assert_array_equal(results, np.stack(expected))
    alone = np.stack([derainer(frame) for frame in frames])
    assert (results != alone).any()


def test_a_stream_that_ends_within_a_frame_keeps_what_was_whole(derainer):
    data = b"".join(frame.tobytes() for frame in clip(2)) + b"half"
    target = io.BytesIO()
    report = derain_raw(io.BytesIO(data), target, SIZE, derainer)
    assert report.frames == 2 and len(target.getvalue()) == 2 * SIZE.length
    assert report.problem == (
        "standard input: ends within frame 3, after 4 of 2,880 bytes: is it 40x24 rgb24?"
    )


@pytest.mark.parametrize(("data", "words"), [(b"", "ended before the first frame"), (b"x", "within frame 1")])
def test_nothing_is_no_success(derainer, data, words):
    with pytest.raises(UnrainError, match=words):
        derain_raw(io.BytesIO(data), io.BytesIO(), SIZE, derainer)


@pytest.mark.parametrize(
    "text", ["", "1920", "0x5", "5x0", "40x24:yuv420p", "-4x4", "40x24 ;", "9" * 9 + "x1"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(OptionError, match="give the size of the frames, such as 1920x1080"):
        parse_raw(text, 10**9)


def test_sizes():
    assert parse_raw("1920x1080", 10**9) == RawFormat(1920, 1080, "rgb24")
    assert parse_raw("4x2:rgb48le", 10**9).length == 48
    with pytest.raises(OptionError, match="more than 100 pixels, --max-pixels allows more"):
        parse_raw("20x20", 100)


@pytest.mark.parametrize(
    "arguments",
    [
        ["photo.png", "--raw", "4x4"],
        ["-", "--raw", "4x4", "-o", "out.png"],
        ["-", "--raw", "4x4", "--crf", "3"],
        ["-", "--raw", "4x4", "--start", "3"],
        ["-", "--raw", "4x4", "--encoder", "nvenc"],
        ["-", "--raw", "4x4", "--quality", "3"],
        ["-", "--raw", "4x4", "--dry-run"],
        ["-", "--raw", "4x4", "--compare"],
    ],
)
def test_what_does_not_go_with_raw_frames_is_refused(capsys, cwd, arguments):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "unrain", "-", "--raw", "40x24", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )


def test_from_a_pipe_to_a_pipe(tiny_model, derainer):
    frames = clip(3)
    with command("--model", tiny_model, "--no-neighbours", "--device", "cpu") as process:
        process.stdin.write(frames[0].tobytes())
        process.stdin.flush()
        # A frame leaves before the next one arrives: good for cameras, too.
        first = process.stdout.read(SIZE.length)
        assert first == derainer(frames[0]).tobytes()
        rest, said = process.communicate(frames[1].tobytes() + frames[2].tobytes())
    assert rest == derainer(frames[1]).tobytes() + derainer(frames[2]).tobytes()
    assert process.returncode == 0
    assert b"standard input -> standard output" in said and b"3 frames" in said


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_reader_that_goes_away_is_no_error_of_ours(tiny_model):
    with command("--model", tiny_model, "-q") as process:
        process.stdout.close()
        try:
            process.stdin.write(natural(24, 40).tobytes() * 200)
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.wait(60)
        assert process.returncode == 141
        assert process.stderr.read() == b""
