"""A network in PyTorch behind the `Engine` interface, so that one which is not exported can be measured."""

from __future__ import annotations

import torch

from unrain.devices import Processor
from unrain.engine import Planes
from unrain.errors import UsageError
from unrain.lab.hardware import torch_device
from unrain.lab.nets.layers import RecursiveNet

# More context than a picture has: the lab takes every picture whole.
_WHOLE = 1 << 20


class TorchEngine:
    """A network that has not been exported; see `Engine` for the attributes which the Derainer reads.

    A network that is not recursive from outside makes all its recursions in one `step`.

    Attributes:
        recursions_per_step: How many recursions of the network one `step` makes.
    """

    def __init__(
        self, net: RecursiveNet, *, recursions: int | None = None, processor: Processor | None = None
    ) -> None:
        """Take a network.

        Args:
            net: The network; it is put into evaluation mode.
            recursions: How many a network that is not recursive makes; its own number when None.
            processor: Its threads, 0 for PyTorch's own choice; its device if that is torch, else the CPU.

        Raises:
            UsageError: Several recursions of a network that makes one only.
        """
        if not net.recursive and net.recursions == 1 and (recursions or 1) > 1:
            raise UsageError(f"recursions is {recursions}, but this network makes one only: leave it out")
        processor = processor or Processor()
        kind, _, which = processor.device.partition(":")
        self._where = torch_device(which) if kind == "torch" else torch.device("cpu")
        self._net = net.eval().to(self._where)
        self._threads = processor.threads
        self.recursive = net.recursive
        self.recursions = net.recursions if self.recursive else 1
        self.recursions_per_step = 1 if self.recursive else recursions or net.recursions
        self.levels = net.levels if self.recursive else 1
        self.multiple = net.multiple
        self.halo = _WHOLE

    def step(self, rainy: Planes, estimate: Planes) -> Planes:
        """Make one recursion, or all of them; see `Engine.step`."""
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            whole = torch.from_numpy(rainy).to(self._where)
            if self.recursive:
                result = self._net.step(whole, torch.from_numpy(estimate).to(self._where))
            else:
                result = self._net(whole, self.recursions_per_step)[-1]
        planes: Planes = result.cpu().numpy()
        return planes
