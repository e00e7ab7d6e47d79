"""BatchNorm's statistics: frozen beside real rain, recalibrated at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Normalise by the running statistics, as at inference, and leave them unchanged."""
    layers = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def recalibrate_batchnorm(
    net: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]
) -> None:
    """Replace BatchNorm's running statistics by their mean over some batches.

    Those of training are a moving average over about ten batches only. The old statistics are used until the
    first batch replaces them: the earlier recursions of a split batch normalise by them. A network without
    BatchNorm stays as it is.

    Args:
        net: The network.
        forward: Runs it on a batch.
        batches: What it is run on.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        return
    momenta, training = [layer.momentum for layer in layers], net.training
    for layer in layers:
        # PyTorch's mark for a mean over all batches since the counter was at zero.
        layer.momentum = None
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr]
    net.train()
    with torch.no_grad():
        for batch in batches:
            forward(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.train(training)
