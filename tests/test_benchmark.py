import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")
pytest.importorskip("torch")
from unrain import cli
from unrain.errors import UnrainError
from unrain.lab.bench import benchmark, metrics
from unrain.lab.data import pairs


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for side, high in (("rain", 256), ("clean", 200)):
        folder = tmp_path / "data" / "set" / "test" / side
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, high, (24, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shutil.copytree(tmp_path / "data" / "set" / "test" / "clean", tmp_path / "data" / "photos")
    return tmp_path / "data"


class Halve:
    """A derainer whose scores can be worked out by hand."""

    recursions = 2

    def __call__(self, picture):
        return picture // 2


def test_a_score_is_the_mean_over_every_picture(data):
    found = pairs(data, "set/test")
    score = benchmark.measure(Halve(), "set/test", found)
    expected = [metrics.psnr(pair.rainy // 2, pair.clean) for pair in found]
    assert score.pictures == 3
    assert score.recursions == 2
    assert score.psnr == pytest.approx(np.mean(expected), abs=1e-3)
    assert score.ssim == pytest.approx(
        np.mean([metrics.ssim(pair.rainy // 2, pair.clean) for pair in found]), abs=1e-4
    )


def test_photographs_are_measured_against_themselves(data):
    found = benchmark.suite_pairs(data, "photos")
    assert len(found) == 3
    assert all((pair.rainy == pair.clean).all() for pair in found)

    def leave(picture):
        return picture

    leave.recursions = 1
    assert benchmark.measure(leave, "photos", found).psnr == benchmark.UNCHANGED


def test_the_command_prints_every_score_and_notes_it_in_the_card(data, tmp_path, model_folder, capsys):
    shutil.copytree(model_folder, tmp_path / "models")
    tiny = tmp_path / "models" / "tiny.onnx"
    card = tiny.with_suffix(".json")
    arguments = ["bench", str(tiny), "--data", str(data), "--suite", "set/test", "--suite", "photos"]
    assert cli.main([*arguments, "--recursions", "1", "--recursions", "2", "--card"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 + 4
    scores = json.loads(card.read_text())["scores"]
    assert set(scores) == {"set/test T1", "set/test T2", "photos T1", "photos T2"}
    assert scores["set/test T1"]["pictures"] == 3
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["suite"] for row in rows] == ["set/test", "photos"]


def test_unknown_suites_are_refused(data):
    with pytest.raises(UnrainError, match="holds none of rain100l/test"):
        benchmark.find_suites(data, ())
    with pytest.raises(UnrainError, match="none: no such folder"):
        benchmark.suite_pairs(data, "none")
