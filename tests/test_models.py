"""Every model that ships, walked: its card, that it takes rain out and leaves a clean picture alone."""

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from toys import ROOT
from unrain import zoo
from unrain.derainer import Derainer
from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.onnx_file import has_loops

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
MODELS = zoo.models()
CARD = {
    *("name", "summary", "network", "arguments", "parameters", "licence"),
    *("recipe", "reproducible", "note", "training_data", "steps", "wall_time", "hardware"),
    *("scores", "scores_by", "scores_commit"),
    *("multiple", "halo", "recursions", "recursive"),
}

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_the_default_ships():
    assert zoo.DEFAULT in [model.name for model in MODELS]
    assert sum(model.path.stat().st_size for model in MODELS) < 40e6


@pytest.mark.parametrize("path", sorted(zoo.WEIGHTS.rglob("*.onnx")), ids=lambda path: path.stem)
def test_nothing_that_ships_has_loops(path):
    assert not has_loops(path.read_bytes())


@every_model
def test_the_card_says_everything(model):
    assert model.card.keys() >= CARD
    assert model.card["name"] == model.name
    assert len(list((ROOT / "recipes").glob(f"*/{model.card['recipe']}"))) == 1
    assert (
        model.card["reproducible"]
        or "cannot be repeated" in model.card["note"]
        or "not kept" in model.card["note"]
    )
    assert model.card["summary"] and model.card["training_data"] and model.card["scores"]
    for score in model.card["scores"].values():
        assert 5 < score["psnr"] <= 100 and 0 < score["ssim"] <= 1 and score["pictures"] > 0
    # A lone .onnx file knows as much about running it as the card does.
    lone = OnnxRuntimeEngine(zoo.Model(model.name, model.path, {}))
    for key in ("multiple", "halo", "recursions", "recursive"):
        assert getattr(lone, key) == model.card[key]


@pytest.fixture(scope="module")
def clean():
    return {"launch": skimage.data.rocket(), "cat": skimage.data.chelsea()}


@every_model
@pytest.mark.parametrize("name", ["launch", "cat"])
def test_rain_is_taken_out_of_the_examples(model, name, clean):
    rainy = np.asarray(Image.open(EXAMPLES / f"{name}.jpg"))
    result = Derainer(model)(rainy)
    gain = peak_signal_noise_ratio(clean[name], result) - peak_signal_noise_ratio(clean[name], rainy)
    assert gain > 2


@every_model
@pytest.mark.parametrize("name", ["launch", "cat"])
def test_a_clean_picture_is_left_alone(model, name, clean):
    assert peak_signal_noise_ratio(clean[name], Derainer(model)(clean[name])) > 34


@every_model
def test_flat_pictures_stay_flat(model):
    for value in (0, 128, 255):
        flat = np.full((65, 70, 3), value, np.uint8)
        assert np.abs(Derainer(model)(flat).astype(int) - value).max() <= 3


@every_model
def test_a_model_offers_only_recursions_that_were_measured(model):
    measured = {int(name.rpartition(" T")[2]) for name in model.card["scores"]}
    assert model.card["recursive"] == (max(measured) > 1)


@every_model
def test_the_examples_are_reproducible(model):
    rainy = np.asarray(Image.open(EXAMPLES / "cat.jpg"))
    assert (Derainer(model)(rainy) == Derainer(model)(rainy)).all()


@every_model
def test_what_runs_are_the_weights_that_training_resumes_from(model):
    pytest.importorskip("torch")
    from unrain.lab.bench.candidates import open_derainer
    from unrain.lab.checkpoint import load_checkpoint

    net = load_checkpoint(ROOT / "recipes" / "weights" / f"{model.name}.safetensors").net
    rainy = np.asarray(Image.open(EXAMPLES / "launch.jpg"))[100:297, 50:273]
    for recursions in (1, 2) if model.card["recursive"] else (None,):
        exact, _ = open_derainer(net, recursions)
        difference = Derainer(model, recursions=recursions)(rainy).astype(int) - exact(rainy)
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01
