"""Does it rain in a clip: frames that are spread over it, the score made of them, and what uses it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="needs the extra video")

from toys import ROOT, sky  # noqa: E402
from unrain import cli  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.score import Score  # noqa: E402
from unrain.video import VideoOptions, score_video  # noqa: E402

RAINY = np.asarray(Image.open(ROOT / "examples" / "launch.jpg").resize((160, 106)))


def stamped(path, frames, *, rate=10, group=250, size=(64, 48), **options):
    """Write a clip whose frames' numbers are their greys."""
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "1", "g": str(group)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
    return path


def scenes(path, pictures, rate=2):
    """Write a clip of pictures, one frame each."""
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in pictures:
            whole = np.ascontiguousarray(pixels[:height, :width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(whole, "rgb24")))
        file.mux(stream.encode(None))
    return path


def looked_at(path, **options):
    """Return the numbers of the frames that were scored, and what was found."""
    seen = []

    def scorer(pixels):
        seen.append(round(float(pixels.mean())))
        return Score(float(seen[-1]) % 100, "clear", 0.0, None)

    found = score_video(path, scorer, VideoOptions(**options))
    return np.array(seen), found


@pytest.mark.parametrize("group", [250, 12])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_are_spread_over_the_clip_whatever_its_key_frames(tmp_path, suffix, group):
    seen, found = looked_at(stamped(tmp_path / f"a{suffix}", 200, group=group))
    # One a second.
    assert len(seen) == found.frames == 20
    assert np.abs(seen - np.arange(0, 200, 10)).max() <= 2


def test_long_and_short_clips_and_parts_of_one(tmp_path):
    long = stamped(tmp_path / "long.mp4", 250, rate=2)
    seen, _ = looked_at(long)
    assert len(seen) == 24 and seen[0] < 10 and seen[-1] > 230 and (np.diff(seen) > 5).all()
    seen, _ = looked_at(stamped(tmp_path / "short.mp4", 3))
    assert len(seen) == 3
    seen, found = looked_at(long, start=50, duration=10)
    assert seen.min() >= 99 and seen.max() <= 121 and len(seen) == 10
    assert 0 <= found.at <= 10


def test_the_score_is_one_that_an_eighth_exceeds_and_the_rainiest_is_told(tmp_path):
    seen, found = looked_at(stamped(tmp_path / "a.mp4", 90, rate=10))
    assert found.frames == 9 == len(seen)
    assert found.score.score == sorted(seen)[-2] and found.most == max(seen)
    assert found.at == pytest.approx(8, abs=0.2)


def test_a_damaged_clip_and_one_without_frames(tmp_path):
    whole = stamped(tmp_path / "a.ts", 200, group=12).read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[: len(whole) // 2])
    assert looked_at(tmp_path / "cut.ts")[1].frames > 3
    (tmp_path / "none.mp4").write_bytes(b"no video" * 9)
    with pytest.raises(UnrainError, match="not a readable video"):
        looked_at(tmp_path / "none.mp4")


def test_the_command_scores_clips_animations_and_pictures_alike(cwd, capsys):
    dry = sky(106, 160)
    Path("in").mkdir()
    scenes(Path("in/half.mp4"), [dry] * 10 + [RAINY] * 10)
    scenes(Path("in/moment.mp4"), [dry] * 18 + [RAINY] * 2)
    Image.fromarray(dry).save("in/a.gif", save_all=True, append_images=[Image.fromarray(RAINY)], duration=400)
    Image.fromarray(dry).save("in/dry.png")
    assert cli.main(["score", "in", "--json", "--device", "cpu"]) == 0
    rows = {Path(row["file"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert rows["half.mp4"]["verdict"] == "heavy" and rows["half.mp4"]["at"] >= 5
    assert rows["moment.mp4"]["verdict"] == "clear" and rows["moment.mp4"]["most"] > 60
    assert rows["a.gif"]["frames"] == 2 and rows["a.gif"]["at"] == 0.4
    assert "frames" not in rows["dry.png"] and rows["dry.png"]["verdict"] == "clear"
    assert cli.main(["score", "in", "--csv", "--device", "cpu"]) == 0
    table = {Path(row["file"]).name: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert table["dry.png"]["frames"] == "" and float(table["half.mp4"]["most"]) == rows["half.mp4"]["most"]
    assert cli.main(["score", "in/half.mp4", "--device", "cpu"]) == 0
    assert "in/half.mp4 (10 frames, most at " in capsys.readouterr().out


def test_clips_without_rain_are_left_alone_or_copied(cwd, capsys, model_folder):
    dry = sky(106, 160)
    Path("in").mkdir()
    scenes(Path("in/dry.mp4"), [dry] * 6)
    scenes(Path("in/old.avi"), [dry] * 6)
    scenes(Path("in/wet.mp4"), [RAINY] * 6)
    options = ["--model", str(model_folder / "tiny.onnx"), "-o", "out", "--only-rainy", "--device", "cpu"]
    assert cli.main(["in", *options]) == 0
    assert "in/dry.mp4: skipped, no rain in it (score " in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["wet_derained.mp4"]
    assert cli.main(["in", *options, "--others", "copy"]) == 0
    said = capsys.readouterr().err
    # The bytes of an AVI are no Matroska.
    assert "copied to out/dry_derained.mp4" in said and "copied to out/old_derained.avi" in said
    for name, copy in (("dry.mp4", "dry_derained.mp4"), ("old.avi", "old_derained.avi")):
        assert Path("out", copy).read_bytes() == Path("in", name).read_bytes()
    Path("out/old_derained.avi").write_bytes(b"somebody's own")
    assert cli.main(["in/old.avi", *options, "--others", "copy", "--overwrite"]) == 0
    assert "not copied: out/old_derained.avi exists" in capsys.readouterr().err
    assert Path("out/old_derained.avi").read_bytes() == b"somebody's own"
