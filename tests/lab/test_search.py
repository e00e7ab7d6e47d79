"""The search's mechanics on toy pictures."""

import numpy as np
import pytest

from toys import toy_pairs

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from unrain import cli  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab import search as searching  # noqa: E402
from unrain.lab.data.batches import Source  # noqa: E402
from unrain.lab.data.pairs import Pair  # noqa: E402
from unrain.lab.nets.rdmc import GATES  # noqa: E402
from unrain.lab.training.callbacks import Progress  # noqa: E402
from unrain.lab.training.module import Deraining  # noqa: E402
from unrain.lab.training.recipe import read_recipe  # noqa: E402
from unrain.lab.training.train import train  # noqa: E402

pytestmark = pytest.mark.slow

SCALARS = {f"net.gates.{name}" for name in GATES} | {"net.upsampling"}
TOY = """
network = "{network}"
checkpoint_every = 2
precision = "fp32"
[arguments]
recursions = 2
{arguments}
[loss]
mse = 0.1
ssim = 1.0
[search]
steps = 3
patch = 32
batch = 2
recursions = 2
warmup = 0
architecture_lr = 0.01
[[stages]]
steps = 1
patch = 32
batch = 2
[[sources]]
pairs = "set"
"""


@pytest.fixture
def toy(tmp_path):
    toy_pairs(tmp_path, 4, 40, 36)
    (tmp_path / "toy.toml").write_text(TOY.format(network="rdmc", arguments="width = 8"))
    return tmp_path


def scalars(checkpoint):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name in SCALARS}


def test_a_killed_search_resumes_with_the_same_result(toy, dies_at):
    whole = searching.search(toy / "toy.toml", toy / "data", out=toy / "whole")
    with dies_at(searching.Searching, 4):
        searching.search(toy / "toy.toml", toy / "data", out=toy / "parts")
    before = scalars(toy / "parts" / "last.ckpt")
    parts = searching.search(toy / "toy.toml", toy / "data", out=toy / "parts")
    assert parts.skips == pytest.approx(whole.skips, abs=1e-6)
    assert parts.bilinear == pytest.approx(whole.bilinear, abs=1e-6)
    assert parts.kept == whole.kept
    # All ten scalars have moved and are in the checkpoint, before and after.
    after = scalars(toy / "parts" / "last.ckpt")
    assert set(before) == set(after) == SCALARS
    assert sum(value.numel() for value in after.values()) == 10
    for name, value in after.items():
        start = 0.0 if name == "net.upsampling" else 0.1
        assert (value != start).all(), name
        assert (value != before[name]).all(), name
    # A search that is done is only read again.
    assert searching.search(toy / "toy.toml", toy / "data", out=toy / "parts").skips == parts.skips


def test_the_recipe_found_trains_the_skips_that_were_kept(toy, capsys):
    assert (
        cli.main(["search", str(toy / "toy.toml"), "--data", str(toy / "data"), "--out", str(toy / "s")]) == 0
    )
    printed = capsys.readouterr().out
    recipe = read_recipe(toy / "s" / "s-found.toml")
    chosen = recipe.arguments["gates"]
    assert [name[:-1] for name in chosen] == ["down", "down", "up", "up"]
    assert recipe.search is None
    assert (recipe.stages, recipe.loss) == (
        read_recipe(toy / "toy.toml").stages,
        read_recipe(toy / "toy.toml").loss,
    )
    rows = [
        line.split() for line in printed.splitlines() if line.startswith(("down", "up")) and "bi" not in line
    ]
    assert sorted(row[0] for row in rows) == sorted(GATES)
    strengths = [abs(float(row[1])) for row in rows]
    assert strengths == sorted(strengths, reverse=True)
    assert {row[0] for row in rows if row[-1] == "kept"} == set(chosen)
    assert "bilinear +" in printed
    assert f"unrain train {toy / 's' / 's-found.toml'}" in printed
    train(toy / "s" / "s-found.toml", toy / "data", out=toy / "run")
    assert set(Deraining(recipe).net.gates) == set(chosen)
    assert (toy / "run" / "weights.safetensors").exists()


def test_either_step_moves_its_own_parameters_on_its_own_half(toy, monkeypatch):
    seen = []
    loss = searching.Searching.loss

    def spy(self, half, recursions):
        seen.append(half[1])
        moving = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        assert all(parameter.grad is None for parameter in self.parameters())
        expected = SCALARS if len(seen) % 2 else set(dict(self.named_parameters())) - SCALARS
        assert moving == expected
        return loss(self, half, recursions)

    monkeypatch.setattr(searching.Searching, "loss", spy)
    searching.search(toy / "toy.toml", toy / "data", out=toy / "s")
    assert len(seen) == 6
    # Every patch of one half is found in a picture of that half, and in none of the other.
    halves = searching.Halves(read_recipe(toy / "toy.toml"), toy / "data").sides
    for number, clean in enumerate(seen):
        for patch in clean.permute(0, 2, 3, 1).numpy():
            mine = number % 2 == 0  # the architecture learns on the half held back
            assert [any(within(patch, pair.clean) for pair in side[0].pairs) for side in halves] == [
                not mine,
                mine,
            ]


def within(patch, picture):
    """Whether a patch, mirrored or not, was cut from a picture."""
    size = patch.shape[0]
    return any(
        (picture[y : y + size, x : x + size] == one).all()
        for one in (patch, patch[:, ::-1])
        for y in range(picture.shape[0] - size + 1)
        for x in range(picture.shape[1] - size + 1)
    )


def test_the_halves_share_nothing_and_are_shuffled():
    pictures = [np.full((2, 2, 3), i, np.uint8) for i in range(21)]
    source = Source(photos=pictures, layers=pictures[:5])
    one, other = searching.halves(source, np.random.default_rng(0))
    values = [[int(picture[0, 0, 0]) for picture in side.photos] for side in (one, other)]
    assert sorted(values[0] + values[1]) == list(range(21))
    assert values[0] != list(range(10))
    assert [len(side.layers) for side in (one, other)] == [2, 3]
    assert len(source) == 21
    pairs = [Pair(str(i), *pictures[:2]) for i in range(4)]
    one, other = searching.halves(Source(pairs=pairs), np.random.default_rng(0))
    assert {pair.name for pair in one.pairs}.isdisjoint(pair.name for pair in other.pairs)
    with pytest.raises(ValueError, match="cannot be divided"):
        searching.halves(Source(pairs=pairs[:1]), np.random.default_rng(0))


def test_the_strongest_two_of_either_direction_are_kept_whatever_their_sign():
    strengths = dict(zip(GATES, (0.1, -0.5, 0.2, 0.3, 0.01, 0.02, -0.03, 0.0), strict=True))
    assert searching.kept(strengths, 2) == ("down1", "down3", "up2", "up1")
    assert searching.kept({"down0": 0.1, "up3": 0.2}, 2) == ("down0", "up3")


@pytest.mark.parametrize(
    ("network", "arguments"), [("rdmc", "width = 8\ngates = []"), ("rdmc_lite", "width = 24")]
)
def test_a_network_without_skips_is_refused(toy, network, arguments):
    (toy / "toy.toml").write_text(TOY.format(network=network, arguments=arguments))
    with pytest.raises(UnrainError, match=r"toy\.toml: its network has no skips"):
        searching.search(toy / "toy.toml", toy / "data", out=toy / "s")
    assert not (toy / "s").exists()


def test_a_recipe_without_a_search_and_a_set_that_is_too_small_are_refused(toy):
    for side in ("rain", "clean"):
        for i in (1, 2, 3):
            (toy / "data" / "set" / side / f"{i}.png").unlink()
    with pytest.raises(UnrainError, match="needs two pictures or more"):
        searching.search(toy / "toy.toml", toy / "data", out=toy / "s")
    text = (toy / "toy.toml").read_text().replace("[search]", "[[stages]]")
    (toy / "toy.toml").write_text(text.replace("architecture_lr = 0.01", ""))
    with pytest.raises(UnrainError, match=r"has no \[search\] table"):
        searching.search(toy / "toy.toml", toy / "data", out=toy / "s")


def test_the_progress_bar_counts_batches_not_the_steps_of_both_optimisers(toy, monkeypatch):
    totals = []
    end = Progress.on_train_batch_end

    def noted(self, *args):
        totals.append(self.train_progress_bar.total)
        end(self, *args)

    monkeypatch.setattr(Progress, "on_train_batch_end", noted)
    searching.search(toy / "toy.toml", toy / "data", out=toy / "out")
    assert totals == [3, 3, 3]
