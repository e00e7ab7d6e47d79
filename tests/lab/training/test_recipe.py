"""Recipes: those that ship, what is refused by name, and what comes back as it was written."""

import hashlib
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from toys import ROOT
from toys_training import TOY

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from unrain import zoo  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.checkpoint import load_checkpoint, sha256  # noqa: E402
from unrain.lab.training import recipe as recipes  # noqa: E402
from unrain.lab.training.module import Deraining  # noqa: E402
from unrain.lab.training.optimiser import learning_rate  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    Contrast,
    SourceSpec,
    read_recipe,
    write_recipe,
)
from unrain.lab.training.stage import Stage  # noqa: E402

FOLDER = ROOT / "recipes"
RECIPES = [path for path in sorted(FOLDER.glob("*/*.toml")) if path.parent.name != "ablation"]


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


def test_a_recipe_with_a_base_is_that_recipe_but_for_its_own_keys(toy):
    more = "initial = { weights = 'a.safetensors' }\nseed = 1\nclip = 2.0"
    (toy / "toy.toml").write_text(TOY.format(more=more))
    (toy / "far").mkdir()
    (toy / "far/middle.toml").write_text("base = '../toy.toml'\nseed = 2\n")
    (toy / "last.toml").write_text("base = 'far/middle.toml'\nclip = 3.0\n[loss]\nssim = 1.0\n")
    before, last = read_recipe(toy / "toy.toml"), read_recipe(toy / "last.toml")
    assert last == replace(before, seed=2, clip=3.0, loss=recipes.LossWeights(l1=0.0, ssim=1.0))
    assert last.initial.weights == str(toy / "a.safetensors")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("3", "toy.toml: base: 3 is no name of a recipe"),
        ("'toy.toml'", "toy.toml: base: toy.toml is based on this recipe"),
        ("'none.toml'", "none.toml"),
    ],
)
def test_a_base_that_is_no_recipe_is_named(toy, base, words):
    (toy / "toy.toml").write_text(f"base = {base}\n" + TOY.format(more=""))
    with pytest.raises(UnrainError, match=words):
        read_recipe(toy / "toy.toml")


def _with_named(toy, listed, more="sources_from = 'known.toml'"):
    (toy / "known.toml").write_text(
        "[streaks]\nphotos = ['set/clean']\nweight = 0.5\nrain = { scratch = 1.0, jpeg = 0.5 }\n"
        "[wrong]\nphoto = 'set'\n"
    )
    (toy / "toy.toml").write_text(TOY.split("[[sources]]")[0].format(more=f"{more}\nsources = [{listed}]"))
    return toy / "toy.toml"


def test_a_source_can_be_taken_by_name_and_changed(toy):
    lighter, plain = "{ use = 'streaks', weight = 0.2 }", "{ use = 'streaks', rain = {} }"
    path = _with_named(toy, f"{{ pairs = 'set' }}, {lighter}, {plain}")
    pairs, lighter, plain = read_recipe(path).sources
    assert pairs == SourceSpec(pairs="set")
    assert (lighter.weight, lighter.photos, lighter.rain.jpeg) == (0.2, ("set/clean",), 0.5)
    assert (plain.weight, plain.rain.scratch, plain.rain.jpeg) == (0.5, 0.0, 0.0)
    # The file is found from a recipe elsewhere that is based on this one; what is written needs it no more.
    (toy / "far").mkdir()
    (toy / "far/other.toml").write_text("base = '../toy.toml'\nsources = [{ use = 'streaks' }]\n")
    other = read_recipe(toy / "far/other.toml")
    assert other.sources == (replace(lighter, weight=0.5),)
    write_recipe(other, toy / "far/copy.toml", "copy")
    (toy / "known.toml").unlink()
    assert read_recipe(toy / "far/copy.toml") == other


@pytest.mark.parametrize(
    ("listed", "more", "words"),
    [
        ("{ use = 'rain' }", None, "toy.toml: sources: .*known.toml has no 'rain', but streaks, wrong"),
        ("{ use = 3 }", None, "known.toml has no 3, but streaks, wrong"),
        ("{ use = 'wrong' }", None, "toy.toml: sources: unknown key 'photo'"),
        ("{ use = 'streaks' }", "", "toy.toml: sources: use needs sources_from"),
        ("{ use = 'streaks' }", "sources_from = 3", "toy.toml: sources_from: 3 is no name of a file"),
        ("{ use = 'streaks' }", "sources_from = 'none.toml'", "none.toml"),
    ],
)
def test_a_source_that_is_not_there_is_named(toy, listed, more, words):
    path = _with_named(toy, listed, *([] if more is None else [more]))
    with pytest.raises(UnrainError, match=words):
        read_recipe(path)


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
        ("precision = 'fp8'", "precision is 'fp8', choose auto, bf16 or fp32"),
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
    with pytest.raises(UnrainError, match=r"none\.toml: no such file"):
        read_recipe(toy / "none.toml")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SourceSpec(photos=("x",), exposure=(2.0, 1.0)), "exposure is 2.0 to 1.0"),
        (SourceSpec(photos=("x",), exposure=(0.0, 1.0)), "exposure is 0.0 to 1.0"),
        (SourceSpec(pairs="x", exposure=(1.0, 2.0)), "exposure is for photos"),
        (SourceSpec(pairs="x", native=True), "native is for photos"),
        (SourceSpec(pairs="x", upright=2), "upright is 2: give 1 or more, more for photos only"),
        (SourceSpec(photos=("x",), upright=0), "upright is 0"),
        (SourceSpec(photos=("x",), enlarged=(0.5, 2.0)), "enlarged is 0.5 to 2.0: give two factors from 1"),
        (SourceSpec(photos=("x",), enlarged=(3.0, 2.0)), "enlarged is 3.0 to 2.0"),
        (SourceSpec(pairs="x", enlarged=(1.0, 2.0)), "enlarged is 1.0 to 2.0: .* for photos only"),
        (SourceSpec(pairs="x", stride=0), "stride is 0"),
        (SourceSpec(photos=("x",), crossed=True), "crossed is for pairs"),
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


@pytest.mark.parametrize(
    "more", ["share = 0.5", 'initial = { weights = "a.safetensors" }\nshare = 0.0', "share = 1.5"]
)
def test_a_share_is_a_part_of_the_way_from_somewhere(toy, more):
    (toy / "share.toml").write_text(TOY.format(more=more))
    with pytest.raises(UnrainError, match="share is"):
        read_recipe(toy / "share.toml")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("lifted = 1.0", "lifted: give a weight above 0 in a stage with split"),
        ("split = true\nlifted = -1.0", "lifted: give a weight above 0"),
        ("split = true\nlifted = 1.0\nrecursions = 2", "batch: split needs at least one patch for each"),
    ],
)
def test_a_lifted_share_is_part_of_a_split_batch(toy, stage, message):
    text = TOY.format(more="").replace("recursions = 2\n[[sources]]", f"{stage}\n[[sources]]")
    (toy / "lifted.toml").write_text(text)
    with pytest.raises(UnrainError, match=message):
        read_recipe(toy / "lifted.toml")


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


def test_other_weights_than_a_teachers_are_refused(tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"others")
    teacher = recipes.Distillation(str(tmp_path / "teacher.safetensors"), sha256="0" * 64)
    with pytest.raises(UnrainError, match=r"teacher\.safetensors: not the weights with the SHA-256 0000"):
        teacher.load()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width = 24", "width = " + "9" * 5000, "not a TOML file"),
        ("width = 24", "width = " + "[" * 5000, "not a TOML file"),
        ("steps = 4", "steps = -4", "steps is -4, give 1 or more"),
        ("patch = 16", "patch = 99999999999999999999", "patch is 99999999999999999999, give 1 or more"),
        ("recursions = 2", "recursions = 0", "recursions is 0, give 1 or more"),
        ("checkpoint_every = 2", "checkpoint_every = 0", "checkpoint_every is 0, give 1 or more"),
    ],
)
def test_numbers_that_no_run_has_are_one_line(tmp_path, old, new, message):
    path = tmp_path / "toy.toml"
    path.write_text(TOY.format(more="").replace(old, new))
    with pytest.raises(UnrainError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"deep = " + b"[" * 100_000, r"not a TOML file \(nested too deeply\)"),
        (b"name = '\xff'", r"not a TOML file \(.*utf-8.*\)"),
        (b"#" * (1 << 21), "larger than 1,048,576 bytes"),
    ],
    ids=["deep", "no UTF-8", "large"],
)
def test_what_is_no_recipe_at_all_is_one_line(tmp_path, content, words):
    (tmp_path / "odd.toml").write_bytes(content)
    with pytest.raises(UnrainError, match=rf"odd\.toml: {words}.*give a file such as recipes/") as caught:
        read_recipe(tmp_path / "odd.toml")
    assert "\n" not in str(caught.value)
