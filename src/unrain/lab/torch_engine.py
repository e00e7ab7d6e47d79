"""A network in PyTorch behind the `Engine` interface, so that one which is not exported can be measured."""

from __future__ import annotations

import torch

from unrain.engine import Planes
from unrain.errors import UnrainError
from unrain.lab.nets.layers import RecursiveNet

# More context than a picture has: the lab takes every picture whole.
_WHOLE = 1 << 20


class TorchEngine:
    """A network that has not been exported; see `Engine` for the attributes which the Derainer reads.

    A network which is not recursive seen from outside makes all its passes in one `step`.

    Attributes:
        passes: How many passes of the network one `step` makes.
    """

    def __init__(self, net: RecursiveNet, *, passes: int | None = None, threads: int = 0) -> None:
        """Take a network.

        Args:
            net: The network; it is put into evaluation mode.
            passes: How many passes a network which is not recursive makes; its own number when None.
            threads: CPU threads, 0 for PyTorch's own choice.

        Raises:
            UnrainError: More passes are wanted of a network that makes one only.
        """
        if not net.recursive and net.recursions == 1 and (passes or 1) > 1:
            raise UnrainError(f"recursions is {passes}, but this network makes one pass only: leave it out")
        self._net = net.eval()
        self._threads = threads
        self.recursive = net.recursive
        self.recursions = net.recursions if self.recursive else 1
        self.passes = 1 if self.recursive else passes or net.recursions
        self.multiple = net.multiple
        self.halo = _WHOLE

    def step(self, rainy: Planes, estimate: Planes) -> Planes:
        """Make one pass, or all of them; see `Engine.step`."""
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            whole = torch.from_numpy(rainy)
            if self.recursive:
                result = self._net.step(whole, torch.from_numpy(estimate))
            else:
                result = self._net(whole, self.passes)[-1]
        planes: Planes = result.numpy()
        return planes
