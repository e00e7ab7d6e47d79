"""A network in an ONNX file, whatever library runs it: what is checked before and after every run."""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from unrain.devices import Processor
from unrain.engine.interface import Planes
from unrain.errors import UnrainError, UsageError
from unrain.files import one_line, read
from unrain.onnx_file import has_loops, metadata
from unrain.zoo import WEIGHTS, Model, json_object

# The least and the most that a card may say; far beyond any network that is known.
_RANGES = {"multiple": (1, 1024), "halo": (0, 4096), "recursions": (1, 1000), "levels": (1, 8)}
_TRIAL_SIDE = 64
_TRIAL_SECONDS = 30.0
_WAIT_SECONDS = 0.5
# How long a network that is told to stop may take to do so.
_LAST_SECONDS = 10.0
# What a protocol buffer may have.
LARGEST = (1 << 31) - 1
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Port:
    """An input or output of a network.

    Attributes:
        kind: The type of its numbers, in the library's words.
        is_float: Whether that is single precision.
        sizes: Its sides; what is free is no number.
    """

    kind: str
    is_float: bool
    sizes: tuple[object, ...]


class NetworkEngine(ABC):
    """A network in an ONNX file: inputs `rainy` and, when recursive, `estimate`; output `derained`.

    A rain detector has a second output, `evidence`, see `detect`.

    The numbers which `Engine` lists come from the model's card, and where that is silent from the
    metadata entry `unrain` inside the file.

    Attributes:
        loops: Whether the network repeats anything in a loop, which may never end.
        device: What it runs on, as `--device` calls it.
        precision: What it computes in.
        threads: CPU threads, 0 for one on every physical core.
    """

    library: str
    """What people call the library that runs the network."""
    device: str
    precision: str

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
        self.threads = threads
        packaged = WEIGHTS in model.path.parents
        # Read once, so that what is checked is what runs.
        data = read(model.path, LARGEST, "more than an ONNX file may have: give another model")
        try:
            # Looking takes a while, and the package's own have none, which a test sees to.
            self.loops = not packaged and has_loops(data)
            inside = metadata(data).get("unrain", "{}")
            inputs, outputs = self._open(data, threads)
        except UnrainError:
            raise
        except Exception as error:  # the libraries' exceptions have no common base
            raise UnrainError(
                f"{model.path}: not a model that {self.library} can open ({first_line(error)}); "
                "give an .onnx file written by `unrain export`"
            ) from error
        self._check_ports(inputs, outputs)
        self._inputs = tuple(inputs)
        self._read_contract(inside, model.card)
        if not packaged:
            self._try()

    @property
    def processor(self) -> Processor:
        """What another network is to be opened with to run where this one does."""
        return Processor(self.device, self.precision, self.threads)

    @abstractmethod
    def _open(self, data: bytes, threads: int) -> tuple[dict[str, Port], dict[str, Port]]:
        """Load a model that keeps all its weights inside, and return its inputs and outputs by name."""

    @abstractmethod
    def _start(self, feeds: dict[str, Planes]) -> "Run":
        """Prepare a run."""

    def _check_ports(self, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
        known = list(outputs) in (["derained"], ["derained", "evidence"])
        if set(inputs) not in ({"rainy"}, {"rainy", "estimate"}) or not known:
            raise UnrainError(
                f"{self._path}: has inputs {one_line(', '.join(inputs))} and outputs "
                f"{one_line(', '.join(outputs))} instead of "
                "rainy, estimate and derained; give a file written by `unrain export`"
            )
        if not outputs["derained"].is_float:
            raise UnrainError(
                f"{self._path}: output derained is {outputs['derained'].kind} instead of float; "
                "write it anew with `unrain export`"
            )
        for name, port in inputs.items():
            sizes = port.sizes
            free = len(sizes) == 4 and sizes[1] == 3 and not any(isinstance(sizes[i], int) for i in (2, 3))
            if not free or not port.is_float:
                raise UnrainError(
                    f"{self._path}: input {name} is {port.kind} {one_line(list(sizes))} instead of float "
                    "N x 3 x H x W with free height and width; write it anew with `unrain export`"
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
        return self._step(rainy, estimate, None)[0]

    def detect(self, rainy: Planes) -> tuple[Planes, Planes]:
        """Run a rain detector.

        Args:
            rainy: N x 3 x H x W in [0, 1], H and W multiples of `multiple`.

        Returns:
            What `step` gives, and the evidence of rain, N x what it has of it.

        Raises:
            UnrainError: The network is no detector, or fails.
        """
        derained, *more = self._step(rainy, rainy, None)
        if not more:
            raise UnrainError(f"{self._path}: has no output evidence; give a rain detector")
        return derained, more[0]

    def _step(self, rainy: Planes, estimate: Planes, seconds: float | None) -> tuple[Planes, ...]:
        feeds = {"rainy": rainy, "estimate": estimate}
        height, width = rainy.shape[-2:]
        try:
            found = _interruptible(self._start({name: feeds[name] for name in self._inputs}), seconds)
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
        if found[0].shape != rainy.shape:
            raise UnrainError(
                f"{self._path}: gives {found[0].shape} for {rainy.shape}; write it anew with `unrain export`"
            )
        if not all(np.isfinite(planes).all() for planes in found):
            raise UnrainError(
                f"{self._path}: gives values that are infinite or no numbers; give another model, or "
                "train it anew"
            )
        return found


@dataclass(frozen=True)
class Run:
    """A run of a network.

    Attributes:
        work: Computes all outputs, and returns them in their order.
        stop: Makes `work` end early, from another thread.
    """

    work: Callable[[], tuple[Planes, ...]]
    stop: Callable[[], None]


def _interruptible(run: Run, seconds: float | None) -> tuple[Planes, ...]:
    """Run a network so that Ctrl-C in the main thread, or a time limit, ends it.

    Python handles a signal between two of its own instructions, and the library's run is a single one: so
    that runs in a thread of its own while this one waits.
    """
    if seconds is None and threading.current_thread() is not threading.main_thread():
        return run.work()
    outcome: Future[tuple[Planes, ...]] = Future()

    def work() -> None:
        try:
            outcome.set_result(run.work())
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
        run.stop()
        wait([outcome], _LAST_SECONDS)
        raise
    return outcome.result()


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, without any odd line ends in it."""
    return one_line(str(error).strip().partition("\n")[0])


def _short(value: object) -> str:
    """Show a value of a card, which may be as long as it likes."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
