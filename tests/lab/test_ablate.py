"""Ablations on toy pictures: what is trained, what is trained again, what is written."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from toys import ROOT, toy_pairs

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
pytest.importorskip("matplotlib")

from unrain import cli  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab import ablate as ablation  # noqa: E402
from unrain.lab.ablate import Result, RunResults, ablate, close_rows, laid_over, read_ablation, recipe_of  # noqa: E402
from unrain.lab.data.batches import Batches  # noqa: E402
from unrain.lab.data.pairs import read  # noqa: E402
from unrain.lab.metrics.psnr_ssim import psnr  # noqa: E402
from unrain.lab.nets import build  # noqa: E402

pytestmark = pytest.mark.slow

PLAN = """
suite = "set"
close = {close}
[base]
network = "rdmc_lite"
precision = "fp32"
ema = 0.0
[base.arguments]
width = 24
encoder = [1, 1]
decoder = [1]
[base.loss]
l1 = 1.0
[[base.stages]]
steps = 2
patch = 16
batch = 1
[[base.sources]]
pairs = "set"
[[groups]]
name = "recursions"
[[groups.runs]]
name = "one"
[[groups.runs]]
name = "two"
change = {{ stages = {{ recursions = 2, steps = 1 }} }}
[[groups]]
name = "loss"
[[groups.runs]]
name = "L1"
[[groups.runs]]
name = "SSIM"
change = {{ loss = {{ l1 = 0.0, ssim = 1.0 }} }}
"""


@pytest.fixture
def toy(tmp_path):
    toy_pairs(tmp_path, 2, 18, 20)
    (tmp_path / "plan.toml").write_text(PLAN.format(close=0.0))
    return tmp_path


def test_a_change_is_laid_over_the_base_and_over_each_table_of_an_array():
    base = {"a": 1, "b": {"c": 2, "d": [3]}, "stages": [{"lr": 1, "steps": 5}, {"lr": 2}]}
    change = {"b": {"d": [4, 5], "e": 6}, "stages": {"lr": 9}, "f": {"g": 7}}
    assert laid_over(base, change) == {
        "a": 1,
        "b": {"c": 2, "d": [4, 5], "e": 6},
        "stages": [{"lr": 9, "steps": 5}, {"lr": 9}],
        "f": {"g": 7},
    }


def test_every_run_is_trained_once_and_found_again(toy, monkeypatch):
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    assert [(row.group, row.run) for row in rows] == [
        ("recursions", "one"),
        ("recursions", "two"),
        ("loss", "L1"),
        ("loss", "SSIM"),
    ]
    # The base is in both groups and was trained once.
    assert rows[0].results == rows[2].results
    assert len(list((toy / "out").glob("*/weights.safetensors"))) == 3
    assert [row.results[0].steps for row in rows] == [2, 1, 2, 2]

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", never)
    assert ablate(toy / "plan.toml", toy / "data", out=toy / "out") == rows


def test_a_killed_ablation_goes_on_after_its_last_finished_run(toy, monkeypatch):
    train, trained = ablation.train, []

    def killed(recipe, *args, **options):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(recipe)
        train(recipe, *args, **options)

    monkeypatch.setattr(ablation, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    again = []

    def counted(recipe, *args, **options):
        again.append(recipe)
        train(recipe, *args, **options)

    monkeypatch.setattr(ablation, "train", counted)
    ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    assert len(again) == 2
    assert trained[0] not in again


def test_runs_that_end_close_together_get_the_next_seed(toy):
    (toy / "plan.toml").write_text(PLAN.format(close=1000))
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    assert all([one.seed for one in row.results] == [1, 2] for row in rows)
    assert all(row.psnr == pytest.approx(sum(one.psnr for one in row.results) / 2) for row in rows)


def test_a_run_that_another_ones_second_seed_comes_close_to_gets_one_too(toy, monkeypatch):
    psnrs = {"one": (30.0, 31.0), "two": (30.05, 33.1), "three": (31.55, 31.55)}
    names = {(1, 4.0): "one", (2, 4.0): "two", (1, 5.0): "three"}

    def known(recipe, *_):
        found = psnrs[names[recipe.stages[0].recursions, recipe.clip]][recipe.seed - 1]
        return Result(recipe.seed, found, 0.9, 10, 5, 1.0, 0.1, found)

    monkeypatch.setattr(ablation, "run_once", known)
    base = PLAN.format(close=0.1)
    base = base[: base.index("[[groups]]")].replace("[base]\n", "[base]\nclip = 4.0\n")
    groups = """
[[groups]]
name = "a"
[[groups.runs]]
name = "one"
[[groups.runs]]
name = "two"
change = { stages = { recursions = 2 } }
[[groups.runs]]
name = "three"
change = { clip = 5.0 }
[[groups]]
name = "b"
runs = [{ name = "three", change = { clip = 5.0 } }]
"""
    (toy / "plan.toml").write_text(base + groups)
    (toy / "out").mkdir()
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    # 30.0 and 30.05 are close; then the mean of 30.05 and 33.1, and 31.55.
    assert [len(row.results) for row in rows] == [2, 2, 2, 2]
    psnrs["three"] = (35.0, 35.0)
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    assert [len(row.results) for row in rows] == [2, 2, 1, 1]


def test_what_is_held_out_is_measured_and_not_trained_on(toy, monkeypatch):
    data = toy / "data"
    for folder, count in (("photos", 4), ("more", 2), ("layers", 2)):
        (data / folder).mkdir()
        for number in range(count):
            # Each picture of a value of its own, and its sources' rain: 10 times its number.
            grey = np.full((20, 20, 3), 100 + number if folder != "layers" else 10 * (number + 1), np.uint8)
            Image.fromarray(grey).save(data / folder / f"{number}.png")
    source = """photos = ["photos", "more"]
layers = ["layers"]
rain = { from_layers = { intensity = [1.0, 1.0] } }

[[base.sources]]
photos = ["photos"]
"""
    text = (toy / "plan.toml").read_text().replace('suite = "set"', "hold_out = 2")
    (toy / "plan.toml").write_text(
        text[: text.index('[[groups]]\nname = "loss')].replace('pairs = "set"', source)
    )
    monkeypatch.setattr(ablation, "HELD_OUT_SIDE", 16)
    trained = []
    monkeypatch.setattr(
        "unrain.lab.training.data.Batches",
        lambda sources, *a, **k: trained.extend(sources) or Batches(sources, *a, **k),
    )
    (toy / "out/held-out/rain").mkdir(parents=True)
    (toy / "out/held-out/rain/9-009.png").write_bytes(b"of an earlier plan")
    rows = ablate(toy / "plan.toml", data, out=toy / "out")

    def values(pictures):
        return [int(one.flat[0]) for one in pictures]

    assert [(values(one.photos), values(one.layers)) for one in trained[:2]] == [
        ([100, 102, 100], [10]),
        ([100, 102], []),
    ]
    # The second picture of two, twice; and the second layer. The source without rain gives none.
    sides = [
        [read(path) for path in sorted((toy / "out/held-out" / side).iterdir())] for side in ("rain", "clean")
    ]
    assert [values(side) for side in sides] == [[121, 123, 121], [101, 103, 101]]
    assert {one.shape for side in sides for one in side} == {(16, 16, 3)}
    # Untrained but for a step, the network leaves the rain where it is: the PSNR is that of the light added.
    assert rows[0].psnr == pytest.approx(np.mean([psnr(*pair) for pair in zip(*sides, strict=True)]), abs=3)
    assert "whole held-out" in (toy / "out" / "table.md").read_text()


def test_a_plan_that_holds_nothing_out_is_refused(toy):
    text = (toy / "plan.toml").read_text()
    for every, message in ((3, "so many pictures"), (1, "hold_out is 1"), (-1, "hold_out is -1")):
        (toy / "plan.toml").write_text(f"hold_out = {every}\n{text}")
        with pytest.raises(UnrainError, match=message):
            ablate(toy / "plan.toml", toy / "data", out=toy / "out")


def test_files_named_in_a_plan_are_relative_to_it(toy):
    ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    (toy / "out" / "01" / "weights.safetensors").rename(toy / "start.safetensors")
    text, start = (toy / "plan.toml").read_text(), 'initial = { weights = "start.safetensors" }'
    (toy / "plan.toml").write_text(text.replace("[base]\n", f"[base]\n{start}\n"))
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "again")
    assert ablate(toy / "plan.toml", toy / "data", out=toy / "again") == rows


def row(group, run, *psnrs):
    return RunResults(
        group, run, tuple(Result(i + 1, p, 0.9, 10, 5, 1.0, 0.1, p + 1) for i, p in enumerate(psnrs))
    )


def test_close_are_rows_of_one_group_only():
    rows = [row("a", "1", 30.0), row("a", "2", 30.1), row("a", "3", 31.0), row("b", "1", 31.0)]
    assert [one.run for one in close_rows(rows, 0.2)] == ["1", "2"]
    apart = [replace(rows[0].results[0], own=40.0), replace(rows[2].results[0], own=40.1)]
    rows = [RunResults("a", str(i), (one,)) for i, one in enumerate(apart)]
    assert [one.run for one in close_rows(rows, 0.2)] == ["0", "1"], "close by own statistics"


def test_batchnorm_by_own_statistics_is_what_training_computes(toy):
    net = build("rdmc", width=2, recursions=1).eval()
    own = ablation.own_statistics(net)
    picture = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        before, found = net(picture)[-1], own.eval()(picture)[-1]
        assert not torch.allclose(before, found, atol=1e-3)
        # The given network is as it was; a training forward pass of it is the reference.
        assert torch.equal(net(picture)[-1], before)
        torch.testing.assert_close(found, net.train()(picture)[-1])
    assert ablation.own_statistics(build("rdmc_lite", width=24, encoder=(1, 1), decoder=(1,))) is None


def test_a_network_with_batchnorm_is_measured_both_ways(toy):
    text = (toy / "plan.toml").read_text().replace('"rdmc_lite"', '"rdmc"')
    text = text.replace("width = 24\nencoder = [1, 1]\ndecoder = [1]", "width = 2")
    text = text.replace("batch = 1", "batch = 2")
    (toy / "plan.toml").write_text(text[: text.index('[[groups]]\nname = "loss"')])
    rows = ablate(toy / "plan.toml", toy / "data", out=toy / "out")
    assert all(result.own != result.psnr for row in rows for result in row.results)


def test_results_are_written_as_numbers_as_text_and_as_a_picture(toy):
    plan = read_ablation(toy / "plan.toml")
    rows = [row("recursions", "one", 30.0, 31.0), row("recursions", "two", 32.5)]
    ablation.write_results(rows, plan, toy, "unrain ablate plan.toml")
    with (toy / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(one["run"], one["seed"], float(one["psnr"])) for one in read] == [
        ("one", "1", 30.0),
        ("one", "2", 31.0),
        ("two", "1", 32.5),
    ]
    text = (toy / "table.md").read_text()
    assert (
        "| recursions | one | 10 | 5 | 1 | 0.10 | 30.50 (30.00, 31.00) | 0.9000 | 31.50 (31.00, 32.00) |"
        in text
    )
    assert "| | two | 10 |" in text.replace("|  |", "| |")
    first = (toy / "plot.svg").read_bytes()
    assert ElementTree.fromstring(first).tag.endswith("svg")
    ablation.write_results(rows, plan, toy, "unrain ablate plan.toml")
    assert (toy / "plot.svg").read_bytes() == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('suite = "set"', 'suit = "set"', "unknown key 'suit'"),
        ("steps = 1 }", "stepz = 1 }", "recursions: two: stages: unknown key 'stepz'"),
        ('precision = "fp32"', 'precision = "fp8"', "precision is 'fp8'"),
        ('suite = "set"', "seeds = []", "seeds is empty"),
    ],
)
def test_a_wrong_plan_is_refused_by_name_before_anything_is_trained(toy, old, new, message):
    plan = toy / "plan.toml"
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(UnrainError, match=message):
        read_ablation(plan)


def test_a_plan_without_groups_is_refused(toy):
    text = (toy / "plan.toml").read_text()
    (toy / "plan.toml").write_text("groups = []\n" + text[: text.index("[[groups]]")])
    with pytest.raises(UnrainError, match="needs at least one"):
        read_ablation(toy / "plan.toml")


def test_shipped_plans_are_right():
    for path in sorted((ROOT / "recipes" / "ablation").glob("*.toml")):
        plan = read_ablation(path)
        recipes = {(g.name, r.name): recipe_of(plan, r, 1, path) for g in plan.groups for r in g.runs}
        assert len(recipes) == sum(len(group.runs) for group in plan.groups), "names repeat"
        # What is measured is never trained on.
        sources = [spec for recipe in recipes.values() for spec in recipe.sources]
        assert all(spec.hold_out if plan.hold_out else spec.pairs != plan.suite for spec in sources)
        for group in plan.groups:
            ours = [json.dumps(r.change, sort_keys=True) for r in group.runs]
            assert len(set(ours)) == len(ours), f"{group.name}: runs that are the same"


def test_the_command_prints_a_line_for_each_run(toy, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "ablate", lambda *_, **__: [row("recursions", "one", 30.0, 31.0)])
    assert cli.main(["ablate", str(toy / "plan.toml"), "--data", str(toy)]) == 0
    assert capsys.readouterr().out.split() == ["recursions", "one", "30.50", "dB", "(30.00,", "31.00)"]
