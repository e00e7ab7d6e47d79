"""The networks, one paper a file: `build("rdmc", width=32)` makes one by name."""

from importlib import import_module
from typing import Any

from unrain.lab.nets.layers import RecursiveNet

NETS: dict[str, str] = {
    "prenet": "unrain.lab.nets.prenet:PReNet",
    "rdmc": "unrain.lab.nets.rdmc:RDMC",
    "rdmc_lite": "unrain.lab.nets.rdmc_lite:RDMCLite",
    "semi_drdnet": "unrain.lab.nets.semi_drdnet:SemiDRDNet",
}


def build(name: str, **arguments: Any) -> RecursiveNet:  # noqa: ANN401  (whatever the network's constructor takes)
    """Make a network from its name and constructor arguments, as a recipe or checkpoint writes them.

    Args:
        name: A key of `NETS`.
        **arguments: The network's own constructor arguments.

    Returns:
        The network with fresh weights.

    Raises:
        ValueError: When no network has this name.
    """
    if name not in NETS:
        raise ValueError(f"no network is called {name!r}: choose one of {', '.join(sorted(NETS))}")
    module, _, class_name = NETS[name].partition(":")
    network: RecursiveNet = getattr(import_module(module), class_name)(**arguments)
    return network
