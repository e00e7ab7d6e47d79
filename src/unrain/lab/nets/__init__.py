"""The networks, one paper a file: `build("rdmc", width=32)` makes one by name.

Other packages add theirs by entry points of the group `unrain.networks` (examples/own_network).
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.lab.nets.layers import RecursiveNet

GROUP = "unrain.networks"
NETS: dict[str, str] = {
    "prenet": "unrain.lab.nets.prenet:PReNet",
    "rdmc": "unrain.lab.nets.rdmc:RDMC",
    "rdmc_lite": "unrain.lab.nets.rdmc_lite:RDMCLite",
    "semi_drdnet": "unrain.lab.nets.semi_drdnet:SemiDRDNet",
}


def build(name: str, **arguments: Any) -> RecursiveNet:  # noqa: ANN401  (whatever the network's constructor takes)
    """Make a network from its name and constructor arguments, as a recipe or checkpoint writes them.

    Args:
        name: A key of `NETS`, or of an installed package's entry points in `GROUP`.
        **arguments: The network's own constructor arguments.

    Returns:
        The network with fresh weights.

    Raises:
        ValueError: No network has this name.
        UnrainError: The package that brings it is broken, or two packages use its name.
    """
    if name in NETS:
        module, _, class_name = NETS[name].partition(":")
        network: RecursiveNet = getattr(import_module(module), class_name)(**arguments)
        return network
    found = {point.value: point for point in _installed() if point.name == name}
    if not found:
        known = sorted(NETS.keys() | {point.name for point in _installed()})
        raise ValueError(f"no network is called {name!r}: choose one of {', '.join(known)}")
    if len(found) > 1:
        packages = " and ".join(sorted(map(package, found.values())))
        raise UnrainError(f"{name}: {packages} each bring a network of this name, uninstall one")
    (point,) = found.values()
    return _make(point, arguments)


def package_of(name: str) -> str | None:
    """Return which package brings a network and in what version, for its card; None for unrain's own."""
    points = [] if name in NETS else [point for point in _installed() if point.name == name]
    return package(points[0]) if points else None


def package(point: EntryPoint) -> str:
    """Return the name and version of the package that an entry point is from."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _installed() -> list[EntryPoint]:
    """List the networks of other packages; nothing of them is imported."""
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _make(point: EntryPoint, arguments: dict[str, Any]) -> RecursiveNet:
    """Make a network of another package.

    Raises:
        UnrainError: The package cannot be imported, or gives something else.
        Exception: What its constructor raises for these arguments.
    """
    try:
        kind = point.load()
    except Exception as error:  # other people's code may raise anything
        raise UnrainError(
            f"{point.name}: the network of {package(point)} cannot be loaded "
            f"({type(error).__name__}: {one_line(error)}), mend or uninstall that package"
        ) from error
    network = kind(**arguments) if callable(kind) else kind
    if not isinstance(network, RecursiveNet):
        raise UnrainError(
            f"{point.name}: {point.value} of {package(point)} makes no RecursiveNet "
            "(unrain.lab.nets.layers), mend that package"
        )
    return network
