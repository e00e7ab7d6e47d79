"""What runs a network: one small interface, and ONNX Runtime behind it."""

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from unrain.errors import UnrainError, UsageError
from unrain.files import one_line, read
from unrain.onnx_file import has_loops
from unrain.zoo import WEIGHTS, Model, json_object

Planes = NDArray[np.float32]

# The least and the most that a card may say; far beyond any network that is known.
_RANGES = {"multiple": (1, 1024), "halo": (0, 4096), "recursions": (1, 1000), "levels": (1, 8)}
_TRIAL_SIDE = 64
_TRIAL_SECONDS = 30.0
_WAIT_SECONDS = 0.5
# How long a network that is told to stop may take to do so.
_LAST_SECONDS = 10.0
# ONNX Runtime's levels: 0 to 4, each with those above.
_FATAL_ONLY = 4
# What a protocol buffer may have.
_LARGEST = (1 << 31) - 1
_LONGEST_SHOWN = 40


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

    Attributes:
        loops: Whether the network repeats anything in a loop, which may never end.
    """

    def __init__(self, model: Model, threads: int = 0) -> None:
        """Open the file, and try it on a small picture unless it came with the package.

        Args:
            model: Where the file is, and its card.
            threads: CPU threads to use, 0 for one on every physical core.

        Raises:
            UsageError: `threads` is negative.
            UnrainError: The file is no ONNX model, not one of this kind, or does not work.
        """
        if threads < 0:
            raise UsageError(f"threads is {threads}: give 1 or more, or 0 for all cores")
        if not model.path.exists():
            raise UnrainError(f"{model.path}: no such model file; `unrain models` lists the built-in ones")
        self._path = model.path
        options = session_options(threads)
        # Tiles differ in size: a memory plan for one is of no use to the next.
        options.enable_mem_pattern = False
        try:
            self._session, self.loops = open_session(model.path, options)
            # Names that are no UTF-8 are found here, those of sizes too.
            inputs = {port.name: (port.type, port.shape) for port in self._session.get_inputs()}
            outputs = {port.name: port.type for port in self._session.get_outputs()}
            inside = self._session.get_modelmeta().custom_metadata_map.get("unrain", "{}")
        except UnrainError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise UnrainError(
                f"{model.path}: not a model that ONNX Runtime can open ({first_line(error)}); "
                "give an .onnx file written by `unrain export`"
            ) from error
        self._check_ports(inputs, outputs)
        self._inputs = tuple(inputs)
        self._read_contract(inside, model.card)
        if model.path.parent != WEIGHTS:
            self._try()

    def _check_ports(self, inputs: Mapping[str, tuple[str, Any]], outputs: Mapping[str, str]) -> None:
        if set(inputs) not in ({"rainy"}, {"rainy", "estimate"}) or list(outputs) != ["derained"]:
            raise UnrainError(
                f"{self._path}: has inputs {one_line(', '.join(inputs))} and outputs "
                f"{one_line(', '.join(outputs))} instead of "
                "rainy, estimate and derained; give a file written by `unrain export`"
            )
        if (kind := outputs["derained"]) != "tensor(float)":
            raise UnrainError(
                f"{self._path}: output derained is {kind} instead of float; "
                "write it anew with `unrain export`"
            )
        for name, (kind, sizes) in inputs.items():
            free = len(sizes) == 4 and sizes[1] == 3 and not any(isinstance(sizes[i], int) for i in (2, 3))
            if not free or kind != "tensor(float)":
                raise UnrainError(
                    f"{self._path}: input {name} is {kind} {one_line(sizes)} instead of float N x 3 x H x W "
                    "with free height and width; write it anew with `unrain export`"
                )

    def _read_contract(self, inside: str, card: dict[str, Any]) -> None:
        silent = {"recursions": 1, "recursive": "estimate" in self._inputs, "levels": 1}
        try:
            contract = {**silent, **json_object(inside), **card}
        except ValueError as error:
            raise UnrainError(f"{self._path}: its metadata cannot be read ({error}), get it again") from error
        if missing := {*_RANGES, "recursive"} - contract.keys():
            raise UnrainError(
                f"{self._path}: its card and metadata do not give {' and '.join(sorted(missing))}; "
                f"put multiple, halo, recursions and recursive into {self._path.with_suffix('.json').name}"
            )
        for name, (least, most) in _RANGES.items():
            value = contract[name]
            if type(value) is not int or not least <= value <= most:
                raise UnrainError(
                    f"{self._path}: its card or metadata say {name} = {_short(value)}, which must be a whole "
                    f"number from {least} to {most}; mend its card"
                )
        self.multiple: int = contract["multiple"]
        self.halo: int = contract["halo"]
        self.recursions: int = contract["recursions"]
        self.levels: int = contract["levels"]
        self.recursive = "estimate" in self._inputs
        if contract["recursive"] is not self.recursive:
            raise UnrainError(
                f"{self._path}: the card says recursive = {_short(contract['recursive'])}, its inputs say "
                "otherwise; mend its card"
            )
        if self.levels > 1 and not self.recursive:
            raise UnrainError(
                f"{self._path}: the card says levels = {self.levels}: give 1 for a network that does not "
                "look at the estimate"
            )

    def _try(self) -> None:
        """Run a foreign network once, on a small picture and for a limited time."""
        side = -(-_TRIAL_SIDE // self.multiple) * self.multiple
        ramp = np.broadcast_to(np.linspace(0, 1, side, dtype=np.float32), (1, 3, side, side)).copy()
        self._step(ramp, ramp, _TRIAL_SECONDS)

    def step(self, rainy: Planes, estimate: Planes) -> Planes:
        """Compute one recursion, see `Engine.step`. In the main thread, Ctrl-C ends it.

        Raises:
            UnrainError: The network fails, for want of memory for instance, or gives what is no picture.
        """
        return self._step(rainy, estimate, None)

    def _step(self, rainy: Planes, estimate: Planes, seconds: float | None) -> Planes:
        feeds = {"rainy": rainy, "estimate": estimate}
        height, width = rainy.shape[-2:]
        try:
            (result,) = self._run({name: feeds[name] for name in self._inputs}, seconds)
        except TimeoutError as error:
            raise UnrainError(
                f"{self._path}: needs more than {seconds:g} s for {width} x {height} pixels, perhaps without "
                "end; give another model"
            ) from error
        except Exception as error:  # as above: no common base
            raise UnrainError(
                f"{self._path}: failed on {width} x {height} pixels ({first_line(error)}); "
                "if memory is short, choose a smaller tile"
            ) from error
        planes: Planes = result
        if planes.shape != rainy.shape:
            raise UnrainError(
                f"{self._path}: gives {planes.shape} for {rainy.shape}; write it anew with `unrain export`"
            )
        if not np.isfinite(planes).all():
            raise UnrainError(
                f"{self._path}: gives values that are infinite or no numbers; give another model, or "
                "train it anew"
            )
        return planes

    def _run(self, feeds: dict[str, Planes], seconds: float | None) -> list[Any]:
        """Run the network so that Ctrl-C in the main thread, or a time limit, ends it.

        Python handles a signal between two of its own instructions, and the library's run is a single one: so
        that runs in a thread of its own while this one waits.
        """
        options = ort.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        if seconds is None and threading.current_thread() is not threading.main_thread():
            results: list[Any] = self._session.run(None, feeds, options)
            return results
        outcome: Future[list[Any]] = Future()

        def work() -> None:
            try:
                outcome.set_result(self._session.run(None, feeds, options))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=work, name="unrain-network", daemon=True).start()
        end = math.inf if seconds is None else time.monotonic() + seconds
        try:
            # Windows delivers Ctrl-C only between waits that end.
            while not outcome.done() and time.monotonic() < end:
                wait([outcome], min(_WAIT_SECONDS, end - time.monotonic()))
            if not outcome.done():
                raise TimeoutError
        except BaseException:
            options.terminate = True
            wait([outcome], _LAST_SECONDS)
            raise
        return outcome.result()


def open_session(path: Path, options: ort.SessionOptions) -> tuple[ort.InferenceSession, bool]:
    """Open an ONNX file that keeps all its weights inside.

    Args:
        path: The file. It is read once, so that what is checked is what runs.
        options: See `session_options`.

    Returns:
        The session, and whether the network has loops.

    Raises:
        UnrainError: The file cannot be read.
        Exception: It is no such model. ONNX Runtime's exceptions have no common base.
    """
    data = read(path, _LARGEST, "more than an ONNX file may have: give another model")
    loops = has_loops(data)
    return ort.InferenceSession(data, sess_options=options, providers=["CPUExecutionProvider"]), loops


def session_options(threads: int) -> ort.SessionOptions:
    """Return how every network here runs in ONNX Runtime, on so many CPU threads, 0 for all."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # What goes wrong is raised as an exception, so the library need not print it too.
    options.log_severity_level = _FATAL_ONLY
    # A file may not choose another format, which nobody has checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Threads that spin while they wait take the cores from everything else, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, without any odd line ends in it."""
    return one_line(str(error).strip().partition("\n")[0])


def _short(value: object) -> str:
    """Show a value of a card, which may be as long as it likes."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
