"""Adapting a model to one's own pictures: two steps of a toy, and what can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toys import ROOT, natural

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors.torch import save_file  # noqa: E402

from unrain import cli, zoo  # noqa: E402
from unrain.derainer import Derainer  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab import adapt as adapting  # noqa: E402
from unrain.lab import export  # noqa: E402
from unrain.lab.adapt import adapt, trainable  # noqa: E402
from unrain.lab.checkpoint import load_checkpoint  # noqa: E402
from unrain.lab.data.pairs import MAX_PIXELS  # noqa: E402
from unrain.lab.data.rain import RainMaker  # noqa: E402
from unrain.lab.nets import build  # noqa: E402

pytestmark = pytest.mark.slow

SMALL = {"width": 24, "encoder": [1, 1], "decoder": [1]}
WEIGHTS = ROOT / "recipes" / "weights"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with toy weights, three rainy pictures, and six clean photographs."""
    rain = RainMaker()
    for seed in range(9):
        folder = tmp_path / ("wet" if seed < 3 else "clean")
        folder.mkdir(exist_ok=True)
        picture = natural(70, 80, seed)
        picture = rain(picture, [], np.random.default_rng(seed)) if seed < 3 else picture
        Image.fromarray(picture).save(folder / f"{seed}.png")
    torch.manual_seed(0)
    header = {
        "network": "rdmc_lite",
        "arguments": json.dumps(SMALL),
        "card": '{"licence": "MIT", "steps": 7, "training_data": ["theirs"]}',
    }
    save_file(build("rdmc_lite", **SMALL).state_dict(), tmp_path / "toy.safetensors", header)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "_PROBE_SIDE", 256)
    monkeypatch.setattr(export, "_PROBE_CUT", 96)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """An export that only remembers the card: turning PyTorch into ONNX takes the longest of all."""

    def exported(weights, out, *, default, card):
        out.write_bytes(b"")
        cards.append({**load_checkpoint(weights).card, **card, "default": default})

    cards = []
    monkeypatch.setattr(adapting, "export_checkpoint", exported)
    return cards


def test_a_toy_is_adapted_and_unrain_takes_it(here, capsys):
    command = [
        "adapt",
        "toy.safetensors",
        "--real",
        "wet",
        "--clean",
        "clean",
        "--steps",
        "2",
        "-o",
        "mine.onnx",
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "2 pairs held out: " in said and " kept within 0.1 dB" in said
    assert "2 steps, " in said and said.endswith("use it: unrain IN --model mine.onnx\n")
    assert sorted(path.name for path in here.iterdir()) == [
        "clean",
        "mine.json",
        "mine.onnx",
        "toy.safetensors",
        "wet",
    ]
    card = json.loads(Path("mine.json").read_text())
    assert card["training_data"][-2:] == [
        "wet: real rain without ground truth",
        "clean: clean, unpaired",
    ]
    assert card["licence"] == "MIT" and card["went_on_from"]["steps"] == 7
    assert card["drawn_rain"]["pairs"] == 2
    assert str(here) not in json.dumps(card)
    picture = natural(40, 50)
    assert Derainer("mine.onnx")(picture).shape == picture.shape


def test_without_clean_photographs_rain_is_drawn_on_the_networks_results(here, quick):
    found = adapt("toy.safetensors", Path("wet"), steps=1)
    assert found.model == Path("toy-adapted.onnx") and found.model.exists()
    assert found.pairs == 1
    assert quick[0]["training_data"] == [
        "theirs",
        "results of the network: with rain made from scratch",
        "wet: real rain without ground truth",
    ]


def test_pairs_are_learnt_from_and_measured_on(here, quick):
    for side in ("rain", "clean"):
        (here / "pairs" / side).mkdir(parents=True)
        for seed in range(2):
            picture = natural(40, 40, seed) // 2 + (10 if side == "rain" else 0)
            Image.fromarray(picture).save(here / "pairs" / side / f"{seed}.png")
    found = adapt("toy.safetensors", Path("wet"), pairs=Path("pairs"), steps=1)
    # The toy gives the picture back: 10 of 255 more is 8.6 of Y.
    assert found.before == pytest.approx(20 * np.log10(255 / 8.6), abs=0.1)
    assert found.pairs == 1 and quick[0]["training_data"][1] == "pairs"


def test_a_network_that_became_worse_goes_back_until_it_is_good_enough(here, quick, monkeypatch):
    start = load_checkpoint(here / "toy.safetensors").net
    seen = []

    def scored(net, tests, recursions):
        way = (net.exit.bias - start.exit.bias).abs().sum()
        seen.append(float(way))
        return 30.0 if len(seen) in (1, 4) else 29.0

    monkeypatch.setattr(adapting, "score", scored)
    found = adapt("toy.safetensors", Path("wet"), clean=Path("clean"), steps=2)
    assert found.share == 0.25 and found.kept
    assert seen[0] == 0 < seen[1]
    assert seen[2:] == pytest.approx([seen[1] / 2, seen[1] / 4], rel=1e-3)


def test_the_command_says_when_the_score_was_not_kept(here, monkeypatch, capsys):
    found = adapting.Adapted(Path("a.onnx"), 30.0, 29.5, 3, 0.25, 0.5, 0.25, 9.0)
    monkeypatch.setattr(adapting, "adapt", lambda *_, **__: found)
    assert cli.main(["adapt", "x", "--real", "wet"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "3 pairs held out: 30.00 dB before, 29.50 dB after; NOT kept within 0.1 dB, with 25% of the change",
        "these have drawn rain; other rain may get worse: --pairs holds some of it out",
        "streaks removed from your pictures: 25% before, 50% after",
    ]
    assert cli.main(["adapt", "x", "--real", "wet", "--pairs", "both"]) == 0
    assert "drawn rain" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("toy.onnx", {}, r"toy\.onnx: an ONNX file cannot be trained"),
        ("none.safetensors", {}, r"none\.safetensors: no such checkpoint"),
        ("sunshine", {}, "sunshine: unknown model"),
        (
            "toy.safetensors",
            {"real": Path("sunny")},
            "sunny: no such folder, give one with pictures after --real",
        ),
        ("toy.safetensors", {"clean": Path("sunny")}, "sunny: no such folder, give one with .* --clean"),
        ("toy.safetensors", {"clean": Path("one")}, "one: one picture is too few"),
        ("toy.safetensors", {"out": Path("mine.pt")}, r"mine\.pt: give a name that ends in \.onnx"),
        ("toy.safetensors", {"out": Path("old.onnx")}, r"old\.onnx: is there already"),
    ],
)
def test_what_is_wrong_is_named(here, model, options, message):
    Path("old.onnx").write_bytes(b"mine")
    Path("one").mkdir()
    Image.fromarray(natural(20, 20)).save("one/a.png")
    with pytest.raises(UnrainError, match=message):
        adapt(model, **{"real": Path("wet"), **options})
    assert Path("old.onnx").read_bytes() == b"mine"


def test_weights_of_a_shipped_model_are_looked_for_and_their_lack_is_explained(here, monkeypatch):
    monkeypatch.setenv("UNRAIN_WEIGHTS", str(here))
    with pytest.raises(UnrainError, match=r"rdmc-lite: its weights .* are not in .*; take recipes/weights"):
        trainable("rdmc-lite")
    (here / "rdmc-lite.safetensors").write_bytes(b"")
    assert trainable("rdmc-lite") == (here / "rdmc-lite.safetensors", 1)


@pytest.mark.parametrize("path", sorted(WEIGHTS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_weights_for_training_are_those_that_ship(path):
    if path.stem not in {model.name for model in zoo.models()}:
        pytest.skip("a stage on the way to a model")
    picture = natural(33, 47).astype(np.float32) / 255
    net = load_checkpoint(path).net
    _, recursions = trainable(path.stem)
    with torch.inference_mode():
        expected = net(torch.from_numpy(picture).permute(2, 0, 1)[None], recursions)[-1][0].permute(1, 2, 0)
    assert np.abs(Derainer(path.stem)(picture) - expected.clamp(0, 1).numpy()).max() < 1e-3


def test_a_large_picture_is_taken_in_pieces_of_its_own_size(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (1300, 1400, 3), np.uint8)
    assert picture.shape[0] * picture.shape[1] > MAX_PIXELS
    Image.fromarray(picture).save(tmp_path / "large.bmp")
    pieces = adapting._pieces(tmp_path, "--real")
    assert [piece.shape for piece in pieces] == [(600, 600, 3)] * 4
    assert (pieces[3] == picture[675:1275, 750:1350]).all()
