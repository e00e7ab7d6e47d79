"""What the Derainer asks of whatever runs a network."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float32]


class Engine(Protocol):
    """One recursion of a network, and what the caller has to know to feed it.

    Attributes:
        multiple: Height and width of everything fed in are multiples of this.
        halo: Pixels of context around a tile within which a tile's recursion equals the whole picture's.
        recursions: How many recursions the network was trained for.
        recursive: Whether `step` looks at the estimate; if not, there is a single recursion.
        levels: Over how many sizes it was trained from coarse to fine, each starting from the lifted estimate
            of the coarser one; 1 if it knows no lifted estimates.
    """

    @property
    def multiple(self) -> int: ...  # noqa: D102  (described above)

    @property
    def halo(self) -> int: ...  # noqa: D102

    @property
    def recursions(self) -> int: ...  # noqa: D102

    @property
    def recursive(self) -> bool: ...  # noqa: D102

    @property
    def levels(self) -> int: ...  # noqa: D102

    def step(self, rainy: Planes, estimate: Planes) -> Planes:
        """Compute one recursion.

        Args:
            rainy: N x 3 x H x W in [0, 1], H and W multiples of `multiple`.
            estimate: Result of the recursion before, the rainy picture in the first; same shape.

        Returns:
            The next estimate, same shape, not clipped.
        """
