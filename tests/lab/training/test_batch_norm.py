"""BatchNorm's statistics are recalibrated."""

import copy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from torch import nn  # noqa: E402

from unrain.lab.training.data import RecipeData  # noqa: E402
from unrain.lab.training.module import Deraining  # noqa: E402
from unrain.lab.training.objective import split_recursions  # noqa: E402
from unrain.lab.training.recipe import (  # noqa: E402
    read_recipe,
)
from unrain.lab.training.stage import Stage  # noqa: E402


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
