"""The trainer's mechanics on toy pictures; training itself is not a test."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab import train as trainer  # noqa: E402
from unrain.lab.data import Stage  # noqa: E402
from unrain.lab.nets.layers import RecursiveNet  # noqa: E402
from unrain.lab.recipe import LossWeights, Recipe, SourceSpec, read_recipe  # noqa: E402

RECIPES = Path(__file__).parents[1] / "recipes"
TOY = """
network = "rdmc_lite"
recursion_weights = [0.5, 1.0]
validation = ["set"]
checkpoint_every = 2
ema = 0.5
{more}
[arguments]
width = 24
encoder = [1, 1]
decoder = [1]
[loss]
l1 = 1.0
ssim = 0.2
[[stages]]
steps = 4
patch = 16
batch = 2
[[stages]]
steps = 2
patch = 24
batch = 2
recursions = 2
[[sources]]
pairs = "set"
[[sources]]
photos = ["set/clean"]
[sources.rain]
scratch = 1.0
"""


@pytest.fixture
def toy(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("rain", "clean"):
        folder = tmp_path / "data" / "set" / side
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    recipe = tmp_path / "toy.toml"
    recipe.write_text(TOY.format(more=""))
    return tmp_path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_is_well_formed(path):
    recipe = read_recipe(path)
    trainer.Deraining(recipe)
    # The pictures that scores are measured on are never trained on.
    used = [
        name for source in recipe.sources for name in (source.pairs or "", *source.photos, *source.layers)
    ]
    assert not [name for name in used if "test" in name or "kodak" in name or name.startswith("real/eval")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("speed = 3", "unknown key 'speed'"),
        ("seed = 'x'", "seed: 'x' is no int"),
        ("seed = true", "seed: True is no int"),
        ("precision = 'fp8'", "precision is 'fp8', choose bf16 or fp32"),
        ("betas = 3", "betas: 3 is no"),
        ("=", "not a TOML file"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(toy, change, message):
    (toy / "toy.toml").write_text(TOY.format(more=change))
    with pytest.raises(UnrainError, match=message) as caught:
        read_recipe(toy / "toy.toml")
    assert "toy.toml" in str(caught.value)


def test_unknown_keys_are_refused_in_inner_tables_too(toy):
    (toy / "toy.toml").write_text(TOY.format(more="") + "drizzle = 1\n")
    with pytest.raises(UnrainError, match="unknown key 'drizzle'"):
        read_recipe(toy / "toy.toml")


def test_a_missing_key_and_a_missing_recipe_are_named(toy):
    (toy / "toy.toml").write_text('network = "rdmc"\n')
    with pytest.raises(UnrainError, match="'sources' is missing"):
        read_recipe(toy / "toy.toml")
    with pytest.raises(UnrainError, match=r"none\.toml: cannot be read"):
        read_recipe(toy / "none.toml")


def test_a_source_is_pairs_or_photos(tmp_path):
    with pytest.raises(UnrainError, match="either pairs or photos"):
        SourceSpec().load(tmp_path)


def test_the_learning_rate_warms_up_and_falls_to_zero_in_every_stage():
    stages = (Stage(100, lr=1.0, warmup=10), Stage(50, lr=0.5, warmup=0))
    rates = [trainer.learning_rate(stages, step) for step in range(151)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], abs=0.03)
    assert rates[99] < 1e-3
    assert rates[100] == pytest.approx(0.5)
    assert rates[150] == 0


def test_every_recursion_is_supervised_from_the_last():
    recipe = Recipe("x", (), (), LossWeights(mse=1.0), recursion_weights=(0.25, 1.0))
    clean = torch.zeros(1, 3, 16, 16)
    estimates = [clean + 3, clean + 2, clean + 1]
    assert float(trainer.recursive_loss(estimates, clean, clean, recipe)) == pytest.approx(1 + 0.25 * 4)
    assert float(trainer.recursive_loss(estimates[:1], clean, clean, recipe)) == pytest.approx(9)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(toy, monkeypatch):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "whole")
    step = trainer.Deraining.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 5:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(trainer.Deraining, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    monkeypatch.setattr(trainer.Deraining, "training_step", step)
    assert not (toy / "parts" / "weights.safetensors").exists()
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    whole, parts = (load_file(toy / run / "weights.safetensors") for run in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-6), name
    for run in ("whole", "parts"):
        with safe_open(toy / run / "weights.safetensors", framework="pt") as file:
            card = json.loads(file.metadata()["card"])
        assert card["steps"] == 6
        assert set(card["validation"]) == {"psnr/set/T1", "psnr/set/T2"}
        assert card["training_data"] == ["set", "set/clean: with rain made from scratch"]


def test_a_run_is_not_started_over_by_accident(toy):
    (toy / "run").mkdir()
    (toy / "run" / "last.ckpt").write_bytes(b"")
    with pytest.raises(UnrainError, match=r"last\.ckpt: a run is there already"):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "run", resume=False)


class Toy(RecursiveNet):
    """A network whose bf16 gradient can be made wrong in one layer."""

    def __init__(self, wrong):
        super().__init__(multiple=1, recursions=1)
        self.good = nn.Conv2d(3, 8, 3, padding=1)
        self.bad = nn.Conv2d(8, 3, 3, padding=1)
        self.wrong = wrong

    def step(self, rainy, estimate):
        features = self.good(estimate)
        if self.wrong and torch.is_autocast_enabled("cpu"):
            self.bad.weight.register_hook(lambda gradient: gradient * 0.6)
        return rainy + self.bad(features)


def test_preflight_names_the_layer_whose_gradient_is_off():
    recipe = Recipe("x", (), (Stage(1),), LossWeights(l1=1.0))
    rng = np.random.default_rng(0)
    batch = tuple(torch.from_numpy(rng.integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)) for _ in range(2))
    fine = trainer.preflight(Toy(wrong=False), batch, recipe)
    assert set(fine) == {"good.weight", "good.bias", "bad.weight", "bad.bias"}
    with pytest.raises(UnrainError, match=r"bad\.weight \(4[01]%\)") as caught:
        trainer.preflight(Toy(wrong=True), batch, recipe)
    assert "good" not in str(caught.value)


def test_preflight_looks_behind_layers_that_start_at_zero():
    recipe = Recipe("x", (), (Stage(1),), LossWeights(l1=1.0))
    net = Toy(wrong=False)
    nn.init.zeros_(net.bad.weight)
    batch = (torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),) * 2
    assert trainer.preflight(net, (batch[0], batch[0].flip(0)), recipe)["good.weight"] < 0.1
    assert not net.bad.weight.any()
