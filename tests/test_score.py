"""Does it rain in a picture: the score, what is made of it, and the commands that use it."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from toys import ROOT, natural, sky
from unrain import cli, image, zoo
from unrain.cli.derain import AUTO, spelled_out
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.engine import open_engine
from unrain.errors import UnrainError
from unrain.score import Score, Scorer, _direction, scorer

LAUNCH = ROOT / "examples" / "launch.jpg"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def streaks(angle, height=200, width=200, seed=0):
    """Bright lines, so many degrees from upright."""
    random = np.random.default_rng(seed)
    layer = np.zeros((height, width), np.float32)
    for _ in range(80):
        x, y = random.uniform(0, width), random.uniform(0, height)
        for step in np.arange(-12, 12, 0.25):
            column = round(x + step * np.sin(np.radians(angle)))
            row = round(y - step * np.cos(np.radians(angle)))
            if 0 <= row < height and 0 <= column < width:
                layer[row, column] = 1
    return layer


def test_rain_scores_high_and_its_absence_low():
    rainy = np.asarray(Image.open(LAUNCH))
    found = scorer()(rainy)
    assert found.score > 75 and found.verdict == "heavy" and found.layer > 4
    clear = scorer()(sky())
    assert clear.score < scorer().threshold and clear.verdict == "clear" and clear.layer < 0.5


def test_so_much_light_is_rain_whatever_the_features_say(monkeypatch):
    for levels, verdict, score in ((60, "heavy", 100), (2, "clear", pytest.approx(0.67, abs=0.01))):
        seen = np.array([-5.0], np.float32), np.full((32, 32), levels / 255, np.float32)
        monkeypatch.setattr(Scorer, "evidence", lambda self, image, seen=seen: seen)
        found = scorer()(sky())
        assert (found.score, found.verdict) == (score, verdict)
        assert found.layer == pytest.approx(levels, rel=1e-3)


@pytest.mark.parametrize("angle", [-60, -20, 0, 15, 45, 80])
def test_the_direction_is_that_of_the_streaks(angle):
    found = _direction(streaks(angle))
    off = (found - angle + 90) % 180 - 90
    assert abs(off) < 10


def test_no_direction_without_streaks():
    assert _direction(np.zeros((40, 40), np.float32)) is None
    assert _direction(natural(64, 64)[..., 0].astype(np.float32)) is None


def test_every_kind_of_array_scores_alike():
    rainy = np.asarray(Image.open(LAUNCH).resize((160, 107)))
    scores = [
        scorer()(one).score
        for one in (rainy, rainy.astype(np.uint16) * 257, (rainy / 255).astype(np.float32))
    ]
    assert max(scores) - min(scores) < 0.1
    grey = scorer()(rainy[..., 1]).score
    assert 0 <= grey <= 100 and scorer()(rainy[:1, :5]).verdict in ("clear", "light", "heavy")


def test_the_verdict_follows_threshold_and_light():
    rainy = np.asarray(Image.open(LAUNCH).resize((320, 214)))
    sure = scorer()(rainy)
    strict = Scorer(threshold=100.0)(rainy)
    assert strict.score == pytest.approx(sure.score) and strict.verdict == "clear"
    assert Score(51.23, "light", 0.567, -3.4).as_dict() == {
        "score": 51.2,
        "verdict": "light",
        "layer": 0.57,
        "direction": -3,
    }


def test_the_command_prints_a_table_csv_and_json(here, capsys):
    Path("in").mkdir()
    Image.fromarray(sky()).save("in/a,b.png")
    Image.open(LAUNCH).save("in/wet.png")
    Path("in/bad.png").write_bytes(b"no picture")
    Path("in/notes.txt").write_text("x")
    assert cli.main(["score", "in", "--json"]) == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [Path(row["file"]).name for row in rows] == ["a,b.png", "wet.png"]
    assert rows[0]["verdict"] == "clear" and rows[1]["verdict"] == "heavy"
    assert printed.err.startswith("unrain: error: in/bad.png: no picture")
    Path("in/bad.png").unlink()
    assert cli.main(["score", "in", "--csv"]) == 0
    parsed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    for row, other in zip(parsed, rows, strict=True):
        assert row["file"] == other["file"] and float(row["score"]) == other["score"]
        assert row["direction"] == ("" if other["direction"] is None else str(other["direction"]))
    assert cli.main(["score", "in/wet.png"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["score", "verdict", "layer", "direction", "file"]
    assert line.split()[1] == "heavy" and line.endswith("in/wet.png")
    assert cli.main(["score", "in", "--csv", "--json"]) == 2
    assert cli.main(["score"]) == 2
    Path("empty").mkdir()
    assert cli.main(["score", "empty"]) == 1


@pytest.mark.parametrize("number", [[], ["30"]])
def test_only_rainy_leaves_the_others_alone(here, capsys, number):
    Path("in").mkdir()
    Image.fromarray(sky()).save("in/dry.png", dpi=(72, 72))
    Image.open(LAUNCH).resize((160, 107)).save("in/wet.png")
    options = ["--model", "rdmc-lite-xs", "-o", "out", "--only-rainy", *number]
    assert cli.main(["in", *options]) == 0
    said = capsys.readouterr().err
    assert "in/dry.png: skipped, no rain in it (score " in said
    assert sorted(path.name for path in Path("out").iterdir()) == ["wet_derained.png"]
    assert cli.main(["in", *options, "--others", "copy"]) == 0
    assert "copied to out/dry_derained.png" in capsys.readouterr().err
    assert Path("out/dry_derained.png").read_bytes() == Path("in/dry.png").read_bytes()
    assert cli.main(["in/dry.png", "-o", "dry.jpg", "--only-rainy", "--others", "copy"]) == 0
    assert np.abs(image.read(Path("dry.jpg")).pixels.astype(int) - sky()).mean() < 1
    assert cli.main(["in", "--only-rainy", "101"]) == 2


@pytest.mark.parametrize(
    ("word", "score"),
    [
        *((word, True) for word in ("70", "0", "99.5", ".5", "101")),
        *((word, False) for word in (".", "..", "2024", "in", "1.2.3", "-o")),
    ],
)
def test_a_folder_after_only_rainy_is_no_number(tmp_path, monkeypatch, word, score):
    monkeypatch.chdir(tmp_path)
    Path("2024").mkdir()
    made = spelled_out(["--only-rainy", word, "x"])
    assert made == ["--only-rainy", *([] if score else [str(AUTO)]), word, "x"]


@pytest.mark.parametrize("device, package, off", [("openvino", "openvino", 3), ("torch:cpu", "torch", 0.1)])
def test_every_device_finds_what_the_cpu_finds(device, package, off):
    pytest.importorskip(package)
    if device.startswith("torch"):
        pytest.importorskip("unrain.lab.torch_graph")
    rainy = np.asarray(Image.open(LAUNCH).resize((320, 214)))
    expected = Scorer(processor=Processor("cpu"))
    found = Scorer(processor=Processor(device))
    for picture in (rainy, sky()):
        assert found(picture).score == pytest.approx(expected(picture).score, abs=off)
        assert found(picture).verdict == expected(picture).verdict
    assert Derainer("rdmc-lite-xs", device=device).scorer._engine.device.startswith(device.partition(":")[0])


@pytest.mark.parametrize(("device", "package"), [("cpu", "onnxruntime"), ("openvino", "openvino")])
def test_an_engine_that_was_opened_elsewhere_brings_its_processor_to_the_detector(device, package):
    """Where there are both, `auto` would take one of them, and all threads."""
    pytest.importorskip(package)
    engine = open_engine(zoo.find("rdmc-lite-xs"), Processor(device, "fp32", 1))
    detector = Derainer(engine).scorer._engine
    assert detector.processor == engine.processor == Processor(device, "fp32", 1)


def test_the_detector_of_an_engine_of_ones_own_runs_on_what_is_asked_for():
    own = SimpleNamespace(multiple=1, halo=0, recursions=1, recursive=False, levels=1, device="abacus")
    derainer = Derainer(own, device="cpu", threads=1)
    assert derainer.scorer._engine.processor == Processor("cpu", "fp32", 1)


def test_the_device_that_is_asked_for_is_the_detectors_too(here, capsys):
    Image.fromarray(sky()).save("a.png")
    assert cli.main(["score", "a.png", "--device", "tensorrt"]) == 1
    assert capsys.readouterr().err.startswith("unrain: error: tensorrt: ")
    assert cli.main(["score", "a.png", "--device", "gpu"]) == 2
    assert cli.main(["score", "a.png", "--precision", "fp8"]) == 2
    with pytest.raises(UnrainError, match="has no output evidence"):
        Scorer(zoo.find("rdmc-lite-xs"), threshold=50, processor=Processor("cpu"))(sky())
