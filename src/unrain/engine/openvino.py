"""OpenVINO behind the `Engine` interface: Intel's GPUs and NPUs, and any x86 or ARM CPU.

Where a CPU has bf16 instructions a network runs at more than three times the speed of ONNX Runtime, in fp32
at nearly twice (`unrain bench speed`).
"""

import contextlib
import hashlib
import importlib
import io
import math
import struct
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from unrain.engine.cache import folder, is_kept, keep_network, recall_network
from unrain.engine.interface import Planes
from unrain.engine.network import NetworkEngine, Port, Run
from unrain.errors import UnrainError
from unrain.onnx_file import input_names
from unrain.version import __version__
from unrain.zoo import Model

if TYPE_CHECKING:
    import openvino as ov

_CONVERTER = "openvino.tools.ovc"


def _load() -> Any:  # noqa: ANN401
    # It would look up the address of an analytics server.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    # Its converter of other frameworks' models takes longer to import than all the rest.
    if apart := "openvino" not in sys.modules:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    import openvino.opset13

    if apart:
        del sys.modules[_CONVERTER]
        openvino.convert_model = _convert_model
    return openvino


def _convert_model(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
    """Import the converter for a program that uses it beside unrain, and call it."""
    return importlib.import_module(_CONVERTER).convert_model(*arguments, **more)


_openvino = _load()
# One for the process, and never closed. A core gives the thread that first uses it another stack for signals,
# and takes it away when it ends. Of two cores that end in the order in which they began, the second puts back
# the stack of the first, which is no more: the next Ctrl-C or SIGTERM would be a segmentation fault.
_CORE = _openvino.Core()
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
# Compiling for one shape pays once a shape has taken so many times what compiling takes.
_WORTH = 2.0
# One of more values also has to be most of what came lately, as frames and tiles of one size are, or a third
# of the last so many: beside a network for the others it takes half as much memory again.
_LARGE = 3 * 640 * 640
_MOST = 0.6
_LATELY = 24
# For so many shapes at once: each keeps the network's weights anew.
_SHAPES = 4
_ABILITIES = "OPTIMIZATION_CAPABILITIES"
_CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}
# Of what is kept: in front of a compiled network, how long compiling took.
_SECONDS = struct.Struct("<d")


def available() -> tuple[str, ...]:
    """Return the devices that OpenVINO finds, with what they can compute in."""
    found = []
    for name in _CORE.available_devices:
        knows = _CORE.get_property(name, _ABILITIES)
        found.append(f"{name}: {', '.join(own for own, its in _CAPABILITIES.items() if its in knows)}")
    return tuple(found)


class OpenVinoEngine(NetworkEngine):
    """A network run by OpenVINO."""

    library = "OpenVINO"

    def __init__(
        self, model: Model, threads: int = 0, *, device: str = "CPU", precision: str = "auto"
    ) -> None:
        """Open the file, and try it on a small picture unless it came with the package.

        Args:
            model: Where the file is, and its card.
            threads: CPU threads to use, 0 for one on every physical core.
            device: As OpenVINO calls it: CPU, GPU, GPU.1, NPU.
            precision: auto for bf16 or fp16 where the device has instructions for it, else fp32.

        Raises:
            UsageError: `threads` is negative.
            UnrainError: The device is missing, does not know the precision, or does not work; the file is no
                ONNX model, not one of this kind, or does not work.
        """
        self.device = "openvino" if device == "CPU" else f"openvino:{device}"
        self._name = device
        self.precision = self._precision(precision)
        self._own = threading.local()
        self._lock = threading.Lock()
        # The shapes that ran lately; of each how long it has run so far, and what was compiled for it.
        self._lately: deque[tuple[int, ...]] = deque(maxlen=_LATELY)
        self._spent: dict[tuple[int, ...], float] = {}
        self._of_shape: dict[tuple[int, ...], Any] = {}
        super().__init__(model, threads)

    def _precision(self, wanted: str) -> str:
        if (kind := self._name.partition(".")[0]) not in {
            name.partition(".")[0] for name in _CORE.available_devices
        }:
            found = ", ".join(_CORE.available_devices) or "none"
            raise UnrainError(
                f"{self.device}: OpenVINO finds no {kind} here, but {found}; look at its driver"
            )
        knows = set(_CORE.get_property(self._name, _ABILITIES))
        if wanted == "auto":
            return next(
                name for name in ("bf16", "fp16", "fp32") if name == "fp32" or _CAPABILITIES[name] in knows
            )
        if wanted != "fp32" and _CAPABILITIES[wanted] not in knows:
            raise UnrainError(f"{self.device}: has no instructions for {wanted}; give --precision fp32")
        return wanted

    def _open(self, data: bytes, threads: int) -> tuple[dict[str, Port], dict[str, Port]]:
        self._data = data
        self._digest = hashlib.sha256(data).hexdigest()
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self._name == "CPU":
            # Pinned threads of two processes would wait for the same cores.
            self._settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        elif (compiled := folder("openvino")) is not None:
            self._settings["CACHE_DIR"] = str(compiled)
        self._network: ov.Model | None = None
        self._any_shape, self._compiling = self._compiled()
        self._seen_large = False
        inputs = _ports(self._any_shape.inputs)
        self._used = tuple(inputs)
        # OpenVINO leaves out what nothing uses.
        unused = [name for name in input_names(data) if name not in inputs]
        inputs |= dict.fromkeys(unused, next(iter(inputs.values()), Port("none", False, ())))
        return inputs, _ports(self._any_shape.outputs)

    def _compiled(self, shape: tuple[int, ...] | None = None) -> tuple[Any, float]:
        """Return the network, compiled for a shape or for any, and how long compiling takes or once took.

        On a CPU it is kept between runs, so that the next neither reads the file's graph nor compiles it.
        """
        key = self._key(shape)
        if self._name == "CPU" and (kept := recall_network("openvino", key)) is not None:
            # A library that refuses its own file compiles anew.
            with contextlib.suppress(RuntimeError, struct.error):
                (seconds,) = _SECONDS.unpack_from(kept)
                return _CORE.import_model(kept[_SECONDS.size :], self._name, self._settings), seconds
        start = time.perf_counter()
        if self._network is None:
            self._network = _CORE.read_model(self._data, b"")
            means_as_convolutions(self._network)
        network = self._network
        if shape is not None:
            network = network.clone()
            network.reshape({port.get_any_name(): list(shape) for port in network.inputs})
            use_means_twice(network)
        compiled = _CORE.compile_model(network, self._name, self._settings)
        seconds = time.perf_counter() - start
        if self._name == "CPU":
            # What it returns without a stream differs between versions.
            exported = io.BytesIO(_SECONDS.pack(seconds))
            exported.seek(0, io.SEEK_END)
            compiled.export_model(exported)
            keep_network("openvino", key, exported.getvalue())
        return compiled, seconds

    def _key(self, shape: tuple[int, ...] | None) -> str:
        """Return what a compiled network depends on, in a few letters."""
        facts = [
            __version__,
            _openvino.get_version(),
            _CORE.get_property(self._name, "FULL_DEVICE_NAME"),
            *sorted(_CORE.get_property(self._name, _ABILITIES)),
            *(f"{name} {value}" for name, value in sorted(self._settings.items())),
            str(shape),
            self._digest,
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]

    def _start(self, feeds: dict[str, Planes]) -> Run:
        whole = {name: np.ascontiguousarray(feeds[name]) for name in self._used}
        shape = next(iter(whole.values())).shape
        request = self._request(shape)

        def work() -> tuple[Planes, ...]:
            start = time.perf_counter()
            for name, planes in whole.items():
                request.set_tensor(name, _openvino.Tensor(planes, shared_memory=True))
            request.infer()
            results = tuple(np.array(tensor.data) for tensor in request.output_tensors)
            with self._lock:
                self._lately.append(shape)
                self._spent[shape] = self._spent.get(shape, 0.0) + time.perf_counter() - start
            return results

        return Run(work, request.cancel)

    def _request(self, shape: tuple[int, ...]) -> Any:  # noqa: ANN401
        """Return what runs pictures of a shape in this thread: a request serves one at a time."""
        requests: dict[Any, Any] = self._own.__dict__.setdefault("requests", {})
        with self._lock:
            compiled = self._of_shape.get(shape)
            if compiled is None:
                pays = self._pays(shape)
                self._make_room(shape, pays=pays)
                for old in set(requests) - {self._any_shape, *self._of_shape.values()}:
                    del requests[old]
                if pays:
                    # In which it runs at up to half as much speed again.
                    compiled, _ = self._compiled(shape)
                    self._of_shape[shape] = compiled
                else:
                    if self._any_shape is None:
                        self._any_shape, _ = self._compiled()
                    compiled = self._any_shape
                    self._seen_large = self._seen_large or _is_large(shape)
        if compiled not in requests:
            requests[compiled] = compiled.create_infer_request()
        return requests[compiled]

    def _make_room(self, shape: tuple[int, ...], *, pays: bool) -> None:
        """Let go of networks before another runs a shape; they are had again from the cache.

        The one of any shape holds memory for the largest picture that it saw, one of a large shape for that.
        """
        if pays and self._seen_large:
            self._any_shape, self._seen_large = None, False
        for old in list(self._of_shape):
            full = pays and len(self._of_shape) >= _SHAPES
            if full or ((pays or _is_large(shape)) and _is_large(old) and not self._stays(old)):
                del self._of_shape[old]

    def _pays(self, shape: tuple[int, ...]) -> bool:
        """Whether a network of its own pays for a shape: it has come much, or is most and has one on disk."""
        if _is_large(shape):
            if self._is_most(shape, more=1):
                if self._name == "CPU" and is_kept("openvino", self._key(shape)):
                    return True
            elif not self._comes_often(shape):
                return False
        return self._spent.get(shape, 0.0) > _WORTH * self._compiling

    def _stays(self, shape: tuple[int, ...]) -> bool:
        return self._is_most(shape) or self._comes_often(shape)

    def _is_most(self, shape: tuple[int, ...], more: int = 0) -> bool:
        """Whether a shape is most of the values that came lately, or would be if it came more often."""
        values = sum(math.prod(one) for one in self._lately) + more * math.prod(shape)
        return (self._lately.count(shape) + more) * math.prod(shape) >= _MOST * values

    def _comes_often(self, shape: tuple[int, ...]) -> bool:
        return 3 * self._lately.count(shape) >= _LATELY


def _is_large(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) > _LARGE


def _ports(ports: list[Any]) -> dict[str, Port]:
    return {
        port.get_any_name(): Port(
            port.get_element_type().get_type_name(),
            port.get_element_type() == _openvino.Type.f32,
            tuple(size.get_length() if size.is_static else str(size) for size in port.get_partial_shape()),
        )
        for port in ports
    }


# What changes each number for itself, so that it does not matter how they are laid out.
_ELEMENTWISE = {"Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt", "Convert"}


def means_as_convolutions(network: "ov.Model") -> None:
    """Turn means over channels, which are exported as products with a row, into convolutions, in place.

    OpenVINO's convolutions keep the channels of a pixel together, its products the pixels of a channel: going
    from one to the other moves all features. Nothing is changed in a network that does anything else with its
    flattened features.
    """
    flat: set[ov.Node] = set()
    rows: dict[ov.Node, Any] = {}
    nodes = network.get_ordered_ops()
    for node in nodes:
        flattened = [value.get_node() in flat for value in node.input_values()]
        kind = node.get_type_name()
        if not any(flattened):
            if kind == "Reshape" and _flattens(node):
                flat.add(node)
        elif kind == "MatMul" and flattened == [False, True] and (row := _row(node)) is not None:
            flat.add(node)
            rows[node] = row
        elif kind == "Reshape" and node.get_output_partial_shape(0).rank.get_length() == 4:
            rows[node] = None
        elif kind in _ELEMENTWISE and all(
            known or _is_number(value) for known, value in zip(flattened, node.input_values(), strict=True)
        ):
            flat.add(node)
        else:
            return
    # In turn, so that each finds its inputs in four dimensions.
    for node in nodes:
        if node.get_type_name() == "Reshape" and (node in flat or node in rows):
            _rewire(node, node.input_value(0))
        elif node in rows:
            kernel = _openvino.opset13.constant(rows[node].reshape(1, -1, 1, 1))
            features = node.input_value(1)
            mean = _openvino.opset13.convolution(features, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
            _rewire(node, mean.output(0))
        elif node in flat:
            node.validate_and_infer_types()
    network.validate_nodes_and_infer_types()


def use_means_twice(network: "ov.Model") -> None:
    """Turn (features - mean) * scale into features * scale - mean * scale, in place.

    OpenVINO would join a convolution and the one subtraction that uses it, which it cannot do where one mean
    serves all channels, and then computes that by itself, slowly. A mean that is used twice it leaves to the
    kernels that it writes for what is elementwise. It only does for networks of one shape.
    """
    ops = _openvino.opset13
    for node in network.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        centred, scale = node.input_values()
        if centred.get_node().get_type_name() != "Subtract":
            continue
        features, mean = centred.get_node().input_values()
        if mean.get_node().get_type_name() == "Convolution":
            apart = ops.subtract(ops.multiply(features, scale), ops.multiply(mean, scale))
            _rewire(node, apart.output(0))


def _flattens(node: "ov.Node") -> bool:
    """Whether a reshape joins rows and columns, and leaves the channels."""
    before, after = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
    if not before.rank.is_static or not after.rank.is_static or (len(before), len(after)) != (4, 3):
        return False
    return bool(before[1].is_static and after[1].is_static and before[1] == after[1])


def _row(node: "ov.Node") -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Return the constant 1 x 1 x C by which a product multiplies what is C x pixels, if it does."""
    attributes = node.get_attributes()
    constant = node.input_value(0).get_node()
    if constant.get_type_name() == "Convert":  # stored in half precision
        constant = constant.input_value(0).get_node()
    if attributes["transpose_a"] or attributes["transpose_b"] or constant.get_type_name() != "Constant":
        return None
    row = np.asarray(constant.data, np.float32)
    return row if row.ndim == 3 and row.shape[:2] == (1, 1) else None


def _is_number(value: Any) -> bool:  # noqa: ANN401
    shape = value.get_partial_shape()
    return bool(shape.is_static and np.prod(list(shape.to_shape())) == 1)


def _rewire(node: "ov.Node", source: Any) -> None:  # noqa: ANN401
    """Give all that a node feeds another source."""
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(source)
