"""ONNX Runtime behind the `Engine` interface: the CPU, and other processors by its execution providers."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import onnxruntime as ort

from unrain.devices import INSTALL
from unrain.engine.interface import Planes
from unrain.engine.network import LARGEST, NetworkEngine, Port, Run
from unrain.errors import UnrainError
from unrain.files import read
from unrain.onnx_file import has_loops
from unrain.zoo import Model

CPU = "CPUExecutionProvider"
# Where it was imported before unrain, and on Windows, where the variable is not read.
ort.disable_telemetry_events()
# ONNX Runtime's levels: 0 to 4, each with those above.
_FATAL_ONLY = 4
# Of what goes wrong before there is a session.
ort.set_default_logger_severity(_FATAL_ONLY)
_FP32: Mapping[str, Mapping[str, str]] = MappingProxyType({"fp32": {}})


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        name: As ONNX Runtime calls it.
        precisions: Its options for each precision that it can be told to compute in, the usual one first.
        numbered: Whether one of several processors can be chosen by its number.
        plugin: The package that adds it to a plain ONNX Runtime; empty if it is built into one.
    """

    name: str
    precisions: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: _FP32)
    numbered: bool = True
    plugin: str = ""


PROVIDERS = {
    "cpu": (Provider(CPU, numbered=False),),
    "cuda": (Provider("CUDAExecutionProvider", {"fp32": {"use_tf32": "0"}}),),
    "tensorrt": (
        Provider("NvTensorRTRTXExecutionProvider", plugin="onnxruntime_ep_nv_tensorrt_rtx"),
        Provider("TensorrtExecutionProvider", {"fp32": {}, "fp16": {"trt_fp16_enable": "1"}}),
    ),
    "rocm": (
        Provider("MIGraphXExecutionProvider", {"fp32": {}, "fp16": {"migraphx_fp16_enable": "1"}}),
        Provider("ROCMExecutionProvider"),
    ),
    "directml": (Provider("DmlExecutionProvider"),),
    "coreml": (Provider("CoreMLExecutionProvider", {"fp32": {"ModelFormat": "MLProgram"}}, numbered=False),),
}
"""Of each device the providers that serve it, the preferred one first."""


class OnnxRuntimeEngine(NetworkEngine):
    """A network run by ONNX Runtime."""

    library = "ONNX Runtime"

    def __init__(
        self, model: Model, threads: int = 0, *, device: str = "cpu", number: int = 0, precision: str = "fp32"
    ) -> None:
        """Open the file, and try it on a small picture unless it came with the package.

        Args:
            model: Where the file is, and its card.
            threads: CPU threads to use, 0 for one on every physical core.
            device: One of `PROVIDERS`.
            number: Which processor of that kind.
            precision: One that the provider knows.

        Raises:
            UsageError: `threads` is negative.
            UnrainError: The device is missing or does not work; the file is no ONNX model, not one of this
                kind, or does not work.
        """
        self.device = device if number == 0 else f"{device}:{number}"
        self.precision = precision
        self._provider = provider_of(device)
        self._number = number
        super().__init__(model, threads)

    def _open(self, data: bytes, threads: int) -> tuple[dict[str, Port], dict[str, Port]]:
        try:
            self._session = self._on_provider(data, threads)
        except UnrainError:
            raise
        except Exception as error:
            if self._provider.name == CPU:
                raise
            # If the file is what is wrong, the CPU says so.
            ort.InferenceSession(data, sess_options=session_options(threads), providers=[CPU])
            raise self._does_not_start() from error
        # ONNX Runtime takes the CPU without a word where a provider cannot start.
        if self._provider.name not in self._session.get_providers():
            raise self._does_not_start()
        self._session.disable_fallback()
        # Names that are no UTF-8 are found here, those of sizes too.
        return _ports(self._session.get_inputs()), _ports(self._session.get_outputs())

    def _on_provider(self, data: bytes, threads: int) -> ort.InferenceSession:
        options = session_options(threads)
        # Tiles differ in size: a memory plan for one is of no use to the next.
        options.enable_mem_pattern = False
        provider = self._provider
        if not provider.plugin:
            chosen = dict(provider.precisions[self.precision])
            if provider.numbered:
                chosen["device_id"] = str(self._number)
            # Left to itself the library prints on standard output, and takes the CPU.
            return ort.InferenceSession(
                data, sess_options=options, providers=[(provider.name, chosen)], enable_fallback=0
            )
        _register(provider)
        there = [one for one in ort.get_ep_devices() if one.ep_name == provider.name]
        if self._number >= len(there):
            raise UnrainError(f"{self.device}: {len(there)} of them here; give another device")
        options.add_provider_for_devices([there[self._number]], {})
        return ort.InferenceSession(data, sess_options=options)

    def _does_not_start(self) -> UnrainError:
        kind = self.device.partition(":")[0]
        return UnrainError(
            f"{self.device}: ONNX Runtime cannot start {self._provider.name}; install its driver and "
            f"libraries ({INSTALL[kind]}), or give --device cpu"
        )

    def _start(self, feeds: dict[str, Planes]) -> Run:
        options = ort.RunOptions()
        options.log_severity_level = _FATAL_ONLY

        def work() -> tuple[Planes, ...]:
            return tuple(self._session.run(None, feeds, options))

        def stop() -> None:
            options.terminate = True

        return Run(work, stop)


def provider_of(device: str) -> Provider:
    """Return the provider that serves a device in this installation.

    Raises:
        UnrainError: There is none.
    """
    for provider in PROVIDERS[device]:
        if provider.name in ort.get_available_providers():
            return provider
        if provider.plugin and importlib.util.find_spec(provider.plugin):
            return provider
    raise UnrainError(f"{device}: this installation of ONNX Runtime does not have it")


def _register(provider: Provider) -> None:
    if provider.name in {one.ep_name for one in ort.get_ep_devices()}:
        return
    package = importlib.import_module(provider.plugin)
    try:
        ort.register_execution_provider_library(provider.name, package.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise UnrainError(f"{provider.plugin}: ONNX Runtime cannot load it ({error})") from error


def _ports(ports: list[ort.NodeArg]) -> dict[str, Port]:
    return {port.name: Port(port.type, port.type == "tensor(float)", tuple(port.shape)) for port in ports}


def open_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open an ONNX file that keeps all its weights inside, on the CPU.

    Args:
        path: The file. It is read once, so that what is checked is what runs.
        options: See `session_options`.

    Raises:
        UnrainError: The file cannot be read.
        Exception: It is no such model. ONNX Runtime's exceptions have no common base.
    """
    data = read(path, LARGEST, "more than an ONNX file may have: give another model")
    has_loops(data)
    return ort.InferenceSession(data, sess_options=options, providers=[CPU])


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
