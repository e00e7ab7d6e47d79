"""Training from coarse to fine: lifted estimates, and recursions over levels."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from unrain import octaves  # noqa: E402
from unrain.lab.nets import build  # noqa: E402
from unrain.lab.nets.layers import RecursiveNet  # noqa: E402
from unrain.lab.training.objective import split_recursions  # noqa: E402
from unrain.lab.training.octaves import coarse_to_fine, halve, lift, lifted_estimate  # noqa: E402


class Darker(RecursiveNet):
    """Takes 0.1 of the estimate away, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self, rainy: torch.Tensor, estimate: torch.Tensor) -> torch.Tensor:
        self.given.append((rainy, estimate))
        return estimate - 0.1


def random_net() -> RecursiveNet:
    torch.manual_seed(0)
    net = build("rdmc_lite", width=24, encoder=[1, 1], decoder=[1])
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def test_each_level_starts_from_the_lifted_estimate_of_the_coarser_one() -> None:
    net = Darker()
    rainy = torch.full((1, 3, 22, 30), 0.8)
    derained = coarse_to_fine(net, rainy, 3)
    assert derained.shape == rainy.shape
    torch.testing.assert_close(derained, torch.full_like(rainy, 0.5))
    assert [tuple(one.shape[-2:]) for one, _ in net.given] == [(8, 8), (12, 16), (24, 32)]
    for (small, before), value in zip(net.given, (0.8, 0.7, 0.6), strict=True):
        torch.testing.assert_close(small, torch.full_like(small, 0.8))
        torch.testing.assert_close(before, torch.full_like(before, value))


def test_one_level_is_one_recursion() -> None:
    net, rainy = random_net(), torch.rand(2, 3, 15, 18)
    torch.testing.assert_close(coarse_to_fine(net, rainy, 1), net(rainy, 1)[0])


def test_training_and_inference_shrink_and_lift_alike() -> None:
    random = np.random.default_rng(3)
    coarse = random.random((12, 16, 3), np.float32)
    picture = octaves.lift(coarse, 2, slice(0, 48), slice(0, 64)).clip(
        0, 1
    )  # smooth, as photographs are at their pixels
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    small = octaves.shrink(picture, 1)
    np.testing.assert_allclose(halve(tensor)[0].permute(1, 2, 0), small, atol=0.035)
    layer = 0.3 * random.random((24, 32, 3), np.float32)
    half = torch.from_numpy(small).permute(2, 0, 1)[None]
    lifted = lift(tensor, half, half - torch.from_numpy(layer).permute(2, 0, 1)[None])
    expected = (picture - octaves.lift(np.minimum(layer, small), 1, slice(0, 48), slice(0, 64))).clip(0, 1)
    np.testing.assert_allclose(lifted[0].permute(1, 2, 0), expected, atol=0.01)


def test_a_share_of_a_split_batch_starts_from_the_lifted_estimate() -> None:
    net, rainy = random_net(), torch.rand(4, 3, 16, 20)
    apart = split_recursions(net, rainy, [2, 1], lifted=1)
    torch.testing.assert_close(apart[:2], net(rainy[:2], 1)[0])
    torch.testing.assert_close(apart[2:3], net(rainy[2:3], 2)[1])
    torch.testing.assert_close(apart[3:], net.step(rainy[3:], lifted_estimate(net, rainy[3:])))
    apart[3:].square().mean().backward()
    assert all(one.grad is not None for one in net.parameters())
