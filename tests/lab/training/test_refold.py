"""A network that folds more pixels, started from the coarser levels of another."""

import pytest
import torch
from torch import nn

from unrain.lab.nets.rdmc_lite import RDMCLite
from unrain.lab.training import refold as module
from unrain.lab.training.refold import refold


def source(*, levels: int = 3, linear: bool = False) -> RDMCLite:
    """Return a network of random weights, if wanted with a finest level that only convolves."""
    torch.manual_seed(1)
    net = RDMCLite(width=24, encoder=(1,) * levels, decoder=(1,) * (levels - 1), recursions=1).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "scale" in name or "gate" in name:
                value.normal_(0, 0.5)
            elif name.startswith("exit"):
                value.normal_(0, 0.02)
        if linear:
            net.gate_finer[0] = 0
            for part in [*net.encoders[0].children(), *net.decoders[0].children()]:
                for name, value in part.named_parameters():
                    if "scale" in name:
                        value.zero_()
    return net


def folded(width: int = 48, encoder=(1, 1), decoder=(1,), dilations=(1, 2, 3)) -> RDMCLite:
    torch.manual_seed(2)
    return RDMCLite(
        width=width, encoder=encoder, decoder=decoder, dilations=dilations, fold=4, recursions=1
    ).eval()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 64, 96, generator=generator) for _ in range(4)]


@torch.no_grad()
def seen_by(layer: nn.Module, net: RDMCLite, picture: torch.Tensor) -> torch.Tensor:
    found = []
    handle = layer.register_forward_hook(lambda _, inputs, output: found.append(output))
    net.step(picture, picture)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(("width", "dilations"), [(48, (1, 2, 3)), (96, (1, 2, 3, 1, 2, 3))])
def test_a_finest_level_that_only_convolves_can_be_left_out_exactly(width, dilations, pictures, monkeypatch):
    monkeypatch.setattr(module, "_NOISE", 0.0)
    before, now = source(linear=True), folded(width, dilations=dilations)
    refold(now, before, pictures)
    other = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(5))
    expected = seen_by(before.decoders[1], before, other).repeat(1, width // 48, 1, 1)
    assert torch.allclose(seen_by(now.decoders[0], now, other), expected, atol=2e-3 * expected.abs().max())


def test_skips_of_all_kinds_are_taken_over(pictures, monkeypatch):
    monkeypatch.setattr(module, "_NOISE", 0.0)
    before, now = source(levels=4, linear=True), folded(encoder=(1, 1, 1), decoder=(1, 1))
    refold(now, before, pictures)
    expected = seen_by(before.decoders[1], before, pictures[0])
    assert torch.allclose(
        seen_by(now.decoders[0], now, pictures[0]), expected, atol=2e-3 * expected.abs().max()
    )


def test_more_blocks_begin_near_the_identity(pictures):
    before = source(linear=True)
    plain, longer = folded(), folded(encoder=(2, 3), decoder=(2,))
    for net in (plain, longer):
        refold(net, before, pictures)
    expected = seen_by(plain.decoders[0], plain, pictures[0])
    difference = seen_by(longer.decoders[0], longer, pictures[0]) - expected
    assert 0 < difference.square().mean() < 0.01 * expected.square().mean()


def test_wider_copies_differ_from_each_other(pictures):
    now = folded(64, dilations=(1, 2, 3, 1))
    refold(now, source(), pictures)
    kernel = now.decoders[0][0].project1.weight
    assert not torch.allclose(kernel[:16], kernel[48:], atol=1e-4)


def test_the_same_levels_are_taken_over_exactly_but_for_blocks_that_begin_near_the_identity(pictures):
    before = source()
    same, longer = source(), RDMCLite(width=24, encoder=(1, 2, 2), decoder=(1, 1), recursions=1)
    for parameter in same.parameters():
        nn.init.zeros_(parameter)
    for net in (same, longer):
        refold(net, before, pictures)
    estimate = pictures[1].roll(3, -1)
    with torch.no_grad():
        change, found, near = (
            net.step(pictures[0], estimate) - pictures[0] for net in (before, same, longer)
        )
    assert (found - change).abs().max() < 1e-3 * change.abs().max()
    assert 0 < (near - change).square().mean() < 0.01 * change.square().mean()


def test_blocks_that_the_source_has_more_of_are_left_out(pictures):
    before = source(linear=True)
    now = RDMCLite(width=24, encoder=(0, 1, 1), decoder=(0, 1), recursions=1)
    refold(now, before, pictures)
    # A finest level that only convolves has blocks without effect.
    with torch.no_grad():
        expected, found = (net.step(pictures[0], pictures[1]) for net in (before, now))
    assert torch.allclose(found, expected, atol=1e-3 * (expected - pictures[0]).abs().max())


def test_what_a_network_with_a_finest_level_takes_away_is_found_in_part(pictures):
    before, now = source(), folded()
    refold(now, before, pictures)
    with torch.no_grad():
        expected, found = (net.step(pictures[1], pictures[1]) - pictures[1] for net in (before, now))
    assert (found - expected).square().mean() < 0.9 * expected.square().mean()


def test_the_seed_decides(pictures):
    def weights(seed):
        net = folded(64, dilations=(1, 2, 3, 1))
        refold(net, source(), pictures, seed)
        return net.downs[0].weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (folded(encoder=(1, 1, 1), decoder=(1, 1)), "does not go on where"),
        (RDMCLite(width=48, encoder=(1, 1), decoder=(1,), fold=2), "does not go on where"),
        (RDMCLite(width=24, encoder=(1, 1, 1, 1), decoder=(1, 1, 1), fold=1), "does not go on where"),
        (folded(dilations=(1, 2)), "dilations do not fit"),
        (folded(64, dilations=(1, 2, 2, 1)), "dilations do not fit"),
    ],
)
def test_networks_that_do_not_fit(net, message, pictures):
    with pytest.raises(ValueError, match=message):
        refold(net, source(), pictures)
