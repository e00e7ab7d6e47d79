"""What runs a network: one small interface, and ONNX Runtime behind it."""

import json
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from unrain.errors import UnrainError, UsageError
from unrain.zoo import Model

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


class OnnxEngine:
    """A network in an ONNX file: inputs `rainy` and, when recursive, `estimate`; output `derained`.

    The numbers which `Engine` lists come from the model's card, and where that is silent from the
    metadata entry `unrain` inside the file.
    """

    def __init__(self, model: Model, threads: int = 0) -> None:
        """Open the file.

        Args:
            model: Where the file is, and its card.
            threads: CPU threads to use, 0 for one on every physical core.

        Raises:
            UsageError: `threads` is negative.
            UnrainError: The file is no ONNX model, or not one of this kind.
        """
        if threads < 0:
            raise UsageError(f"threads is {threads}: give 1 or more, or 0 for all cores")
        if not model.path.is_file():
            raise UnrainError(f"{model.path}: no such model file; `unrain models` lists the built-in ones")
        options = session_options(threads)
        # Tiles differ in size: a memory plan for one is of no use to the next.
        options.enable_mem_pattern = False
        try:
            self._session = ort.InferenceSession(
                str(model.path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise UnrainError(
                f"{model.path}: not a model that ONNX Runtime can open ({first_line(error)}); "
                "give an .onnx file written by `unrain export`"
            ) from error
        self._path = model.path
        self._check_ports()
        self._read_contract(model.card)

    def _check_ports(self) -> None:
        inputs = {port.name: port for port in self._session.get_inputs()}
        outputs = [port.name for port in self._session.get_outputs()]
        if set(inputs) not in ({"rainy"}, {"rainy", "estimate"}) or outputs != ["derained"]:
            raise UnrainError(
                f"{self._path}: has inputs {', '.join(inputs)} and outputs {', '.join(outputs)} instead of "
                "rainy, estimate and derained; give a file written by `unrain export`"
            )
        for port in inputs.values():
            sizes = port.shape
            free = len(sizes) == 4 and sizes[1] == 3 and not any(isinstance(sizes[i], int) for i in (2, 3))
            if not free or port.type != "tensor(float)":
                raise UnrainError(
                    f"{self._path}: input {port.name} is {port.type} {sizes} instead of float N x 3 x H x W "
                    "with free height and width; write it anew with `unrain export`"
                )
        self._inputs = tuple(inputs)

    def _read_contract(self, card: dict[str, Any]) -> None:
        try:
            inside = json.loads(self._session.get_modelmeta().custom_metadata_map.get("unrain", "{}"))
            silent = {"recursions": 1, "recursive": "estimate" in self._inputs, "levels": 1}
            contract = {**silent, **inside, **card}
            self.multiple = int(contract["multiple"])
            self.halo = int(contract["halo"])
            self.recursions = int(contract["recursions"])
            self.recursive = bool(contract["recursive"])
            self.levels = int(contract["levels"])
        except (KeyError, TypeError, ValueError) as error:
            raise UnrainError(
                f"{self._path}: its card and metadata do not give {error}; "
                f"put multiple, halo, recursions and recursive into {self._path.with_suffix('.json').name}"
            ) from error
        if self.multiple < 1 or self.halo < 0 or self.recursions < 1:
            raise UnrainError(
                f"{self._path}: multiple {self.multiple}, halo {self.halo} and recursions {self.recursions} "
                "make no sense together; mend its card"
            )
        if self.levels < 1 or (self.levels > 1 and not self.recursive):
            raise UnrainError(
                f"{self._path}: the card says levels = {self.levels}: give 1 or more, and 1 for a network "
                "that does not look at the estimate"
            )
        if self.recursive != ("estimate" in self._inputs):
            raise UnrainError(
                f"{self._path}: the card says recursive = {self.recursive}, its inputs say otherwise; "
                "mend its card"
            )

    def step(self, rainy: Planes, estimate: Planes) -> Planes:
        """Compute one recursion, see `Engine.step`.

        Raises:
            UnrainError: The network fails, for want of memory for instance.
        """
        feeds = {"rainy": rainy, "estimate": estimate}
        try:
            (result,) = self._session.run(None, {name: feeds[name] for name in self._inputs})
        except Exception as error:  # as above: no common base
            height, width = rainy.shape[-2:]
            raise UnrainError(
                f"{self._path}: failed on {width} x {height} pixels ({first_line(error)}); "
                "if memory is short, choose a smaller tile"
            ) from error
        planes: Planes = result
        if planes.shape != rainy.shape:
            raise UnrainError(
                f"{self._path}: gives {planes.shape} for {rainy.shape}; write it anew with `unrain export`"
            )
        return planes


def session_options(threads: int) -> ort.SessionOptions:
    """Return how every network here runs in ONNX Runtime, on so many CPU threads, 0 for all."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores from everything else, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says."""
    return str(error).strip().partition("\n")[0]
