"""DSCR: InfoNCE against NumPy, who learns from what, and encoders that tell rain from backgrounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from toys import natural
from unrain.lab.data.batches import Source
from unrain.lab.data.rain import RainMaker
from unrain.lab.training import dscr as dscr_module
from unrain.lab.training.dscr import (
    DSCR,
    PLAIN,
    Augmentation,
    Encoder,
    Samples,
    info_nce,
    measure,
    separation,
    train_encoders,
    with_rain,
)

pytestmark = pytest.mark.slow


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=seeded(seed)), dim=1)


def streaks(count: int, size: int = 32) -> torch.Tensor:
    """Grey vertical lines on black."""
    columns = (torch.rand(count, 1, 1, size, generator=seeded(5)) > 0.8).float()
    return (columns * 0.5).expand(count, 3, size, size).contiguous()


def photos(count: int, size: int = 32) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(6))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_is_its_formula_in_double_precision(temperature):
    sides = [directions(count, seed) for seed, count in enumerate((5, 4, 7))]
    queries, positives, negatives = (side.double().numpy() for side in sides)
    terms = []
    for query in queries:
        against = sum(np.exp(query @ negative / temperature) for negative in negatives)
        for positive in positives:
            attraction = np.exp(query @ positive / temperature)
            terms.append(-np.log(attraction / (attraction + against)))
    assert info_nce(*sides, temperature).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_info_nce_falls_as_the_query_comes_to_the_positive():
    query, positive, negatives = directions(1, 0), directions(1, 1), directions(6, 2)
    losses = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        between = torch.nn.functional.normalize((1 - share) * query + share * positive, dim=1)
        losses.append(info_nce(between, positive, negatives).item())
    assert losses == sorted(losses, reverse=True)
    assert info_nce(negatives[:1], positive, negatives) > losses[0]


@pytest.mark.parametrize("name", ["rain", "restored"])
def test_the_derainers_loss_is_lower_for_what_is_a_positive(name):
    dscr, layers, clean = DSCR(PLAIN).eval(), streaks(1), photos(1)
    right = {"rain": layers, "restored": clean}
    wrong = {"rain": clean, "restored": clean + layers}
    losses = []
    for taken in (right, wrong):
        parts = {**right, name: taken[name]}
        keys = {"rainy": clean + layers, "layers": layers, "clean": clean}
        losses.append(sum(dscr.derainer_loss(**parts, **keys, random=seeded())))
    assert losses[0] < losses[1]


def test_the_derainer_learns_through_its_own_pictures_alone():
    dscr = DSCR()
    parts = {
        "rain": streaks(2),
        "restored": photos(2),
        "rainy": photos(2) + streaks(2),
        "layers": streaks(3),
        "clean": photos(4),
    }
    for part in parts.values():
        part.requires_grad_()
    losses = dscr.derainer_loss(**parts, random=seeded())
    losses.rain.backward(retain_graph=True)
    assert parts["rain"].grad.any() and parts["restored"].grad is None
    losses.clean.backward()
    assert parts["restored"].grad.any()
    assert all(parts[key].grad is None for key in ("rainy", "layers", "clean"))
    assert all(weight.grad is None for weight in dscr.parameters())


def test_the_encoders_learn_from_synthetic_samples_alone():
    dscr, layers, clean = DSCR(), streaks(3).requires_grad_(), photos(4).requires_grad_()
    losses = dscr.encoder_loss(layers, clean, seeded())
    losses.rain.backward()
    assert all(weight.grad is None for weight in dscr.clean.parameters())
    losses.clean.backward()
    assert layers.grad is None and clean.grad is None
    # The bias before instance normalisation has no effect.
    learning = {n: w for n, w in dscr.named_parameters() if not n.endswith("features.0.bias")}
    assert [name for name, weight in learning.items() if not weight.grad.any()] == []


def test_layers_without_rain_teach_nothing():
    clear = torch.zeros(2, 3, 32, 32)
    assert len(with_rain(torch.cat([clear, streaks(1)]))) == 1
    assert DSCR().encoder_loss(clear, photos(2), seeded()) == (0, 0)
    rain = streaks(1).requires_grad_()
    losses = DSCR().derainer_loss(rain, photos(1), photos(1), clear, photos(2), seeded())
    losses.rain.backward()
    assert losses == (0, 0) and not rain.grad.any()


def test_patches_that_the_derainer_found_dry_are_left_out_of_the_rain_space():
    rain = torch.cat([streaks(1), torch.full((2, 3, 32, 32), -0.1)]).requires_grad_()
    keys = (photos(3), photos(3), streaks(2), photos(2))
    losses = DSCR(PLAIN).derainer_loss(rain, *keys, seeded())
    losses.rain.backward()
    assert rain.grad[0].any() and not rain.grad[1:].any()
    clear = torch.zeros(2, 3, 32, 32, requires_grad=True)
    none = DSCR(PLAIN).derainer_loss(clear, *keys, seeded())
    none.rain.backward()
    assert none.rain == 0 and none.clean > 0 and not clear.grad.any()
    # They count in the mean.
    alone = DSCR(PLAIN)
    both = (
        alone.derainer_loss(rain, *keys, seeded()).rain,
        alone.derainer_loss(rain[:1], *keys, seeded()).rain,
    )
    torch.testing.assert_close(3 * both[0], both[1])


@pytest.mark.parametrize("most", [1e-6, 2.0, 1e6])
def test_no_patch_pulls_with_more_than_its_share_and_others_as_they_would(most, monkeypatch):
    monkeypatch.setattr(dscr_module, "_PULL", most)
    dscr, layers, clean = DSCR(PLAIN), streaks(2), photos(3)
    restored = photos(2).flip(-1).requires_grad_()
    loss = dscr.derainer_loss(streaks(2), restored, photos(2), layers, clean, seeded()).clean
    (3 * loss).backward()
    plain = restored.detach().clone().requires_grad_()
    _, clear, rained = dscr._keys(layers, clean, seeded())
    expected = info_nce(dscr.clean(plain), dscr.clean(clear), dscr.clean(torch.cat([photos(2), rained])))
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    lengths = plain.grad.flatten(1).norm(dim=1)
    share = (3 * most / 2 / lengths).clamp(max=1).view(-1, 1, 1, 1)
    assert (share < 1).all() if most < 1 else (share == 1).all() or most == 2
    torch.testing.assert_close(restored.grad, plain.grad * share, rtol=1e-3, atol=1e-7)


def test_embeddings_have_length_one():
    embedded = Encoder()(torch.rand(3, 3, 40, 64))
    assert embedded.shape == (3, 128)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", ["layers", "photos"])
def test_augmentation_is_seeded_and_stays_in_range(kind):
    vary = getattr(Augmentation(), kind)
    pictures = photos(6)
    first, again, other = (vary(pictures, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == pictures.shape and first.min() >= 0 and first.max() <= 1
    torch.testing.assert_close(getattr(PLAIN, kind)(pictures, seeded()), pictures)


def test_a_turn_is_a_rotation_in_pixels_also_of_oblong_pictures():
    """A disc keeps its place in the middle and its size; a bar leans by the angle asked for."""
    size = (64, 128)
    y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    disc = (torch.hypot(x, y) < 20).float().expand(8, 1, *size)
    bar = ((x.abs() < 2) & (y.abs() < 25)).float().expand(8, 1, *size)
    turn = Augmentation(angle=20, intensity=(1, 1), sums=0)
    assert (turn.layers(disc, seeded()) - disc).abs().mean() < 0.01
    leaning = turn.layers(bar, seeded())[:, 0]
    slopes = (leaning * x * y).sum((1, 2)) / (leaning * y * y).sum((1, 2))
    angles = torch.rad2deg(torch.atan(slopes)).abs()
    assert angles.max() < 21 and angles.std() > 3


def test_flips_exchange_left_and_right():
    ramp = torch.linspace(0, 1, 32).expand(16, 1, 32, 32)
    for angle in (0, 1e-3):
        flipped = Augmentation(angle=angle, intensity=(1, 1), sums=0).layers(ramp, seeded())
        kinds = [bool(one[0, 0, 0] > 0.5) for one in flipped]
        assert 0 < sum(kinds) < 16
        for one, kind in zip(flipped, kinds, strict=True):
            torch.testing.assert_close(one, ramp[0].flip(-1) if kind else ramp[0], rtol=0, atol=1e-3)


def test_sums_are_of_two_different_layers():
    layers = torch.eye(3).view(3, 1, 1, 3)
    summed = Augmentation(flip=False, angle=0, intensity=(1, 1), sums=1.0).layers(layers, seeded())
    torch.testing.assert_close(summed, layers + layers.roll(1, 0))


def test_a_few_steps_tell_rain_from_backgrounds():
    known, unknown = (
        Samples(Source(photos=[natural(96, 96, seed) for seed in seeds], maker=RainMaker()), size=32)
        for seeds in (range(6), range(6, 9))
    )
    trained = separation(train_encoders(known, steps=15, batch=8), known, unknown, count=32)
    assert trained.rain > 0.9
    assert 0 <= trained.clean <= 1


def test_the_command_tells_how_well_both_spaces_are_separated(tmp_path, capsys):
    for number in range(5):
        for name, picture in (("clean", natural(48, 64, number)), ("layers", natural(48, 64)[..., 0] // 3)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    measure(tmp_path, photos=5, steps=1, size=32, count=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == [
        "untrained, held-out layers",
        "untrained, rain drawn from scratch",
    ]
    assert lines[2].startswith("trained, held-out layers: rain from backgrounds ")
    assert lines[4].startswith("1 steps")
