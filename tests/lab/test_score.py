"""The rain detector: how it is made, and how its quality is counted."""

import numpy as np
import onnx
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from toys import natural
from unrain import zoo
from unrain.devices import Processor
from unrain.lab import score
from unrain.score import DETECTOR, Scorer

CPU = Processor("cpu")


def test_auc_is_that_of_the_rank_test():
    random = np.random.default_rng(0)
    rainy, clean = random.integers(0, 30, 40), random.integers(-5, 25, 60)
    expected = mannwhitneyu(rainy, clean).statistic / (40 * 60)
    assert score.auc(rainy, clean) == pytest.approx(expected)
    across, up = score.roc(rainy, clean)
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(up, across) == pytest.approx(expected)


def test_the_fit_is_at_the_minimum_of_its_loss():
    random = np.random.default_rng(1)
    features = random.normal(size=(80, 3)) * [1, 5, 0.1] + [0, 3, -2]
    rainy = features @ [1, 0.2, -3] + random.normal(size=80) > 7

    def loss(weights, bias):
        spread = features.std(axis=0)
        evidence = features @ weights + bias
        share = np.where(rainy, 0.5 / rainy.mean(), 0.5 / (1 - rainy.mean()))
        return (share * (np.logaddexp(0, evidence) - rainy * evidence)).sum() + 2 * (
            (weights * spread) ** 2
        ).sum()

    weights, bias = score.fit(features, rainy, penalty=2)
    best = loss(weights, bias)
    for direction in np.vstack((np.eye(4), -np.eye(4))) * 1e-2:
        assert loss(weights + direction[:3], bias + direction[3]) > best
    assert ((features @ weights + bias > 0) == rainy).mean() > 0.8


def test_the_shipped_detector_gives_what_the_network_gives(tmp_path):
    """Its layer is the zoo's network's, and its evidence a weighted sum of the features' means."""
    network = onnx.load(zoo.find(score.SOURCE).path)
    _, depth = score._deepest(network)
    pixels = natural(48, 64)
    made = onnx.load(DETECTOR)
    weights, bias = (
        onnx.numpy_helper.to_array(next(one for one in made.graph.initializer if one.name == name))
        for name in ("score.weights", "score.bias")
    )
    path = tmp_path / "features.onnx"
    onnx.save(score.detector(network, np.eye(depth), 0.0), path)
    features, plain = Scorer(zoo.Model("features", path, zoo.find(DETECTOR).card), processor=CPU).evidence(
        pixels
    )
    evidence, layer = Scorer(processor=CPU).evidence(pixels)
    assert features.shape == (depth,)
    np.testing.assert_allclose(evidence, features @ weights + bias, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layer, plain, atol=1e-5)


@pytest.mark.slow
def test_a_detector_is_fitted_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score, "RAINY", ("wet",))
    monkeypatch.setattr(score, "CLEAN", ("dry",))
    random = np.random.default_rng(0)
    for name in ("wet", "dry"):
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = natural(40, 48, number).astype(int)
            if name == "wet":
                pixels[:, random.integers(0, 48, 9)] += 90
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(tmp_path / name / f"{number}.png")
    out = tmp_path / "made" / "rain.onnx"
    out.parent.mkdir()
    card = score.make_detector(tmp_path, out)
    assert card["pictures"] == {"wet": 8, "dry": 8} and out.with_suffix(".json").exists()
    monkeypatch.setattr(score, "Scorer", lambda processor: Scorer(zoo.find(out), processor=processor))
    plot = tmp_path / "roc.svg"
    score.table(rainy=(tmp_path / "wet",), clean=(tmp_path / "dry",), plot=plot, worst=2)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith(f"| {tmp_path / 'wet'} | {tmp_path / 'dry'} "))
    assert float(row.split("|")[4]) == 1 and "8, 8" in row
    assert sum(line.startswith("clean, highest: ") for line in lines) == 2
    assert plot.read_text().startswith("<?xml")
