"""The loss of estimates, and recursions that share a batch."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from unrain.lab.nets import build  # noqa: E402
from unrain.lab.nets.vgg import VGG19  # noqa: E402
from unrain.lab.training.losses import ContrastivePrior  # noqa: E402
from unrain.lab.training.objective import recursive_loss, shares, split_recursions  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    LossWeights,
    Recipe,
)


def test_every_recursion_is_supervised_from_the_last():
    recipe = Recipe("x", (), (), LossWeights(mse=1.0), recursion_weights=(0.25, 1.0))
    clean = torch.zeros(1, 3, 16, 16)
    estimates = [clean + 3, clean + 2, clean + 1]
    assert float(recursive_loss(estimates, clean, clean, recipe)) == pytest.approx(1 + 0.25 * 4)
    assert float(recursive_loss(estimates[:1], clean, clean, recipe)) == pytest.approx(9)


def test_the_contrastive_prior_counts_by_its_weight():
    torch.manual_seed(0)
    rainy, clean, restored = torch.rand(3, 1, 3, 16, 16)
    recipe = Recipe("x", (), (), LossWeights(mse=1.0, contrastive=0.5))
    prior = ContrastivePrior(VGG19((2,) * 16), "cheap")
    with_prior, without = (recursive_loss([restored], rainy, clean, recipe, one) for one in (prior, None))
    expected = without + 0.5 * prior.between(clean, rainy)(restored)
    assert torch.allclose(with_prior, expected)


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
