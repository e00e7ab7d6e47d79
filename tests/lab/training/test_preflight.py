"""The preflight finds the layer whose gradient is wrong."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from torch import nn  # noqa: E402

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.nets import build  # noqa: E402
from unrain.lab.nets.layers import RecursiveNet  # noqa: E402
from unrain.lab.training.preflight import preflight  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    LossWeights,
    Recipe,
)
from unrain.lab.training.stage import Stage  # noqa: E402


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
    recipe = Recipe("x", (), (Stage(1),), LossWeights(l1=1.0), precision="bf16")
    rng = np.random.default_rng(0)
    batch = tuple(torch.from_numpy(rng.integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)) for _ in range(2))
    fine = preflight(Toy(wrong=False), batch, recipe)
    assert set(fine) >= {"good.weight", "good.bias", "bad.weight", "bad.bias", "bad.input0.0"}
    with pytest.raises(UnrainError, match=r"bad\.weight \(4[01]%\)") as caught:
        preflight(Toy(wrong=True), batch, recipe)
    assert "good" not in str(caught.value)
    assert 'precision = "fp32"' in str(caught.value)


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
    recipe = Recipe("x", (), (Stage(1),), LossWeights(l1=1.0), precision="bf16")
    net = Toy(wrong=False)
    nn.init.zeros_(net.bad.weight)
    batch = (torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),) * 2
    assert preflight(net, (batch[0], batch[0].flip(0)), recipe)["good.weight"] < 0.1
    assert not net.bad.weight.any()
