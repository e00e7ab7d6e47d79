"""Flicker: what is counted, on which clips, and what the commands print."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from toys import natural

av = pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("torch", reason="needs the extra lab")

from toys_video import Same, clip, run  # noqa: E402
from unrain.derainer import Derainer  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.bench.video import flicker  # noqa: E402
from unrain.lab.bench.video.flicker import Meter, compare, compare_starts, measure  # noqa: E402
from unrain.lab.bench.video.synthetic_clips import RAINS, Clip, made_clips, write_demo  # noqa: E402

pytestmark = pytest.mark.slow


class Halves(Same):
    """A recursive network that goes half the way from its estimate to a grey below the frame's own."""

    recursive = True

    def step(self, rainy, estimate):
        grey = np.float32(rainy.mean() * 0.9)
        return (estimate + grey) / 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with the photographs that the clips are made from."""
    root = tmp_path_factory.mktemp("data")
    names = ("kodak24/kodim03", "kodak24/kodim05", "kodak24/kodim07", "kodak24/kodim23", "weather/cloudy13")
    for seed, name in enumerate(names):
        path = root / "clean" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(natural(240, 360, seed)).save(path)
    return root


@pytest.fixture(scope="module")
def clips(data):
    return {made.name: made.frames for made in made_clips(data, 4)}


@pytest.fixture(scope="module")
def still(clips):
    return Clip("still camera", clips["still camera"])


def test_only_still_places_count():
    before = np.full((4, 6, 3), 100, np.uint8)
    after = before.copy()
    after[:, :3] = 200
    wet = after.copy()
    wet[0, 5] = 124
    meter = Meter()
    meter.add(before, before)
    assert np.isnan(meter.flicker)
    meter.add(after, wet)
    # Half of 24 places stand still, one of them changed by 24.
    assert meter.flicker == 2.0
    assert meter.errors == [0.0, 24.0]
    assert meter.psnr == pytest.approx(10 * np.log10(255**2 / 12))


def test_clips_move_as_they_are_called(clips):
    assert len(clips) == 7
    for frames in clips.values():
        assert [(frame.shape, frame.dtype) for frame in frames] == [((240, 352, 3), np.uint8)] * 4
    assert all(np.array_equal(frame, clips["still camera"][0]) for frame in clips["still camera"])
    for before, after in pairwise(clips["pan, 1 pixel a frame"]):
        assert np.array_equal(before[:, 1:], after[:, :-1])
    for name in ("pan, 0.4 pixels a frame", "zoom", "large thing, 5 pixels a frame"):
        assert all(np.any(before != after) for before, after in pairwise(clips[name])), name
    for frame in clips["small things, 6 to 9 pixels a frame"]:
        assert 0 < np.any(frame != clips["still camera"][0], axis=2).mean() < 0.02
    changes = [np.any(before != after) for before, after in pairwise(clips["scene cut"])]
    assert changes == [False, True, False]


def test_rain_is_elsewhere_in_every_frame_and_the_same_every_time(still):
    assert still.rainy("none") == list(still.frames)
    light, heavy = still.rainy("light"), still.rainy("heavy")
    assert np.any(light[0] != light[1])
    assert np.array_equal(light, still.rainy("light"))
    added = [np.mean(np.asarray(frames, int) - np.asarray(still.frames)) for frames in (light, heavy)]
    assert 0 < 2 * added[0] < added[1]


def test_neighbours_are_compared_with_each_frame_by_itself(still):
    class Leaves(Same):
        """Takes four fifths of what is above the clean frame."""

        def step(self, rainy, estimate):
            clean = still.frames[0].transpose(2, 0, 1)[None] / np.float32(255)
            return (clean + (rainy - clean) * np.float32(0.2)).astype(np.float32)

    row = compare(Clip("longer", [*still.frames, *still.frames]), "light", Derainer(Leaves()))
    assert row.clean.flicker == 0
    assert row.clean.psnr > 100
    assert row.rainy.psnr < row.alone.psnr < row.steadied.psnr
    assert row.rainy.flicker > row.alone.flicker > row.steadied.flicker > 0
    assert -0.5 < row.worst <= row.steadied.psnr - row.alone.psnr


def test_recursions_start_from_what_they_are_said_to(still):
    found = compare_starts(still, "light", Derainer(Halves(), recursions=1))
    once = compare(still, "light", Derainer(Halves(), recursions=1)).alone
    twice = compare(still, "light", Derainer(Halves(), recursions=2)).alone
    assert found["the frame itself"].errors == pytest.approx(once.errors, rel=1e-4)
    # Between the two recursions stands a picture of 8 bits.
    assert found["the frame itself, two recursions"].errors == pytest.approx(twice.errors, rel=0.01)
    # Nearer to the grey with each frame.
    before = found["the result of the frame before"].errors
    assert before[0] == found["the frame itself"].errors[0]
    assert before == sorted(before)
    assert before[1] < before[2]
    assert found["the minimum of three frames"].errors != once.errors
    with pytest.raises(UnrainError, match="one recursion only"):
        compare_starts(still, "light", Derainer(Same()))


def test_files_are_compared(tmp_path):
    source = clip(tmp_path / "clip.mp4", frames=4, sound=False)
    same, new = measure(source, [source, run(source)[1]])
    assert same.psnr > 100
    assert new.psnr > 30
    assert new.flicker < 2
    short = clip(tmp_path / "short.mp4", frames=3, sound=False)
    assert len(measure(source, [short], 3)[0].errors) == 3
    with pytest.raises(UnrainError, match=r"short\.mp4: ends after 3 frames, give --frames 3 or less"):
        measure(source, [short])
    with pytest.raises(UnrainError, match=r"clip\.mp4: ends after 4 frames"):
        measure(source, [source], 9)
    with pytest.raises(UnrainError, match=r"32 x 48 pixels, but .* has 64 x 48"):
        measure(source, [clip(tmp_path / "narrow.mp4", frames=4, size=(32, 48), sound=False)])
    (tmp_path / "no.mp4").write_bytes(b"none")
    with pytest.raises(UnrainError, match=r"no\.mp4: no video that can be read"):
        measure(source, [tmp_path / "no.mp4"])


def test_the_demo_has_picture_and_sound_of_one_length(data, tmp_path):
    for name, with_rain in (("rainy.mp4", True), ("clean.mp4", False)):
        write_demo(tmp_path / name, data, rainy=with_rain, count=3)
    rainy, clean = measure(tmp_path / "clean.mp4", [tmp_path / "rainy.mp4", tmp_path / "clean.mp4"])
    assert len(rainy.errors) == 3
    assert rainy.flicker > clean.flicker + 1
    with av.open(str(tmp_path / "rainy.mp4")) as file:
        (video,), (sound,) = file.streams.video, file.streams.audio
        assert (video.width, video.height, video.average_rate) == (1280, 720, 24)
        assert float(video.duration * video.time_base) == 3 / 24
        assert float(sound.duration * sound.time_base) == pytest.approx(3 / 24, abs=0.03)


def test_the_commands(data, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(flicker, "made_clips", lambda root: made_clips(root, 2)[:2])
    assert flicker.main(["table", str(tiny_model), "--data", str(data)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("tiny.onnx, 2 recursions, 12 frames of 352x240")
    assert [row.split(" | ")[1] for row in rows[2:]] == list(RAINS) * 2
    assert flicker.main(["starts", str(tiny_model), "--data", str(data)]) == 0
    assert "| the result of the frame before | " in capsys.readouterr().out
    source = clip(tmp_path / "clip.mp4", frames=3, sound=False)
    assert flicker.main(["files", str(source), str(source), "--frames", "2"]) == 0
    assert capsys.readouterr().out.count(f"{source}: 138.13 / ") == 2
    assert flicker.main(["files"]) == 1
    assert "no clips: name the clean one" in capsys.readouterr().err
    assert flicker.main(["demo", str(tmp_path / "a.webm"), "--data", str(data)]) == 1
    assert "a.webm: give a name that ends in .mp4" in capsys.readouterr().err
    assert flicker.main(["table", "--data", str(tmp_path)]) == 1
    assert "no such file, check the name" in capsys.readouterr().err
