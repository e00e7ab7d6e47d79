"""Which of the processors work here, and the engine for one of them."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import platform
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unrain.devices import (
    AUTO,
    INSTALL,
    PACKAGES,
    Device,
    DeviceWarning,
    Processor,
    check_precision,
    parse,
)
from unrain.engine.cache import forget, keep, recall
from unrain.engine.interface import Planes
from unrain.engine.network import NetworkEngine, first_line
from unrain.errors import UnrainError
from unrain.version import __version__
from unrain.zoo import DEFAULT, Model, find

# The lab is known by name only.
_OPENVINO = "unrain.engine.openvino"
_TORCH = "unrain.lab.torch_graph"
# What a self-test may differ by from the CPU's result: the mean of what rounding to 8 bits does is 59 dB.
_LEAST_FIDELITY = 45.0
_TEST_SIDE = 256
_TEST_RUNS = 3


def missing(kind: str) -> str:
    """Say why a kind of device cannot be had in this installation; empty if it may be.

    No library is loaded but ONNX Runtime.
    """
    if kind in ("openvino", "torch"):
        return "" if importlib.util.find_spec(kind) else f"{kind} is not installed"
    from unrain.engine.onnx_runtime import provider_of

    if kind == "coreml" and platform.system() != "Darwin":
        return "only on a Mac"
    if kind == "directml" and platform.system() != "Windows":
        return "only on Windows"
    try:
        provider_of(kind)
    except UnrainError as error:
        return str(error).partition(": ")[2]
    return ""


def names(kind: str) -> tuple[str, ...]:
    """Return which devices of an installed kind its library finds; nothing where it does not tell."""
    if kind == "openvino":
        from unrain.engine.openvino import available

        return available()
    return ()


def open_engine(model: Model, processor: Processor | None = None) -> NetworkEngine:
    """Open a model.

    Args:
        model: What to open.
        processor: What it is to run on.

    Raises:
        UsageError: There is no such device or precision, or `threads` is negative.
        UnrainError: The device cannot be had, does not know the precision, or does not work; the file is no
            model.
    """
    processor = processor or Processor()
    check_precision(processor.precision)
    device = parse(processor.device)
    if device is None:
        return _open_fastest(model, processor)
    if why := missing(device.kind):
        remedy = "give another device" if why.startswith("only on") else INSTALL[device.kind]
        raise UnrainError(f"{device}: {why}: {remedy}")
    return _open(model, device, processor)


def _open_fastest(model: Model, processor: Processor) -> NetworkEngine:
    """Open a model on the fastest device; one that worked earlier may be broken by now."""
    device = _fastest(processor)
    try:
        return _open(model, device, processor)
    except UnrainError:
        # If the device works, the file is what is wrong.
        if device.kind == "cpu" or device.kind in _times(tested(processor, anew=True)):
            raise
    return _open(model, _fastest(processor), processor)


def _open(model: Model, device: Device, processor: Processor) -> NetworkEngine:
    precision, threads = processor.precision, processor.threads
    opened: NetworkEngine
    if device.kind == "torch":
        opened = _loaded(device, _TORCH).TorchGraphEngine(
            model, threads, device=device.which, precision=precision
        )
        return opened
    if device.kind == "openvino":
        opened = _loaded(device, _OPENVINO).OpenVinoEngine(
            model, threads, device=device.which or "CPU", precision=precision
        )
        return opened
    from unrain.engine.onnx_runtime import OnnxRuntimeEngine, provider_of

    known = provider_of(device.kind).precisions
    wanted = next(iter(known)) if precision == "auto" else precision
    if wanted not in known:
        raise UnrainError(
            f"{device}: computes in {' or '.join(known)}, not in {wanted}; give --precision auto"
        )
    number = int(device.which or 0)
    return OnnxRuntimeEngine(model, threads, device=device.kind, number=number, precision=wanted)


def _loaded(device: Device, module: str) -> Any:  # noqa: ANN401
    """Import what runs a device's networks.

    Raises:
        UnrainError: Its library is broken.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library may raise anything
        raise UnrainError(
            f"{device}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            f"uninstall {device.kind} and install it anew, or give --device cpu"
        ) from error


def _fastest(processor: Processor) -> Device:
    """Choose the fastest device that is installed and gives what the CPU gives."""
    results = tested(processor)
    times = _times(results)
    for kind in results:
        # That the CPU knows fp32 only is no news.
        if kind not in times and (kind != "cpu" or not times):
            said = f"{kind} is left out: {results[kind]}; see unrain devices"
            warnings.warn(said, DeviceWarning, stacklevel=4)
    if not times:
        raise UnrainError(
            f"no device here computes in {processor.precision}: give --precision auto, see unrain devices"
        )
    return Device(min(times, key=lambda kind: times[kind]))


def _times(results: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of those that work."""
    return {kind: float(result) for kind, result in results.items() if isinstance(result, int | float)}


def tested(processor: Processor, *, alone: bool = False, anew: bool = False) -> dict[str, Any]:
    """Return what `self_test` found of the devices that are installed, now or earlier with the same packages.

    Args:
        processor: What is wanted of them.
        alone: Test the CPU even where there is nothing to compare it with. Otherwise its time is 0 there, and
            it says itself which precisions it knows.
        anew: Forget what was found earlier, for every processor.
    """
    key = _key(processor)
    # What was tested once needs no library to be looked for.
    if anew:
        forget()
    results = recall(key)
    if not results or not set(results) <= set(AUTO):
        found = [kind for kind in AUTO if not missing(kind)]
        if found == ["cpu"] and not alone:
            return {"cpu": 0.0}
        results = self_test(found, processor)
        keep(key, results)
    return results


def self_test(kinds: list[str], processor: Processor) -> dict[str, Any]:
    """Run the default model on several kinds of devices, and compare each result with the CPU's.

    Returns:
        For each kind the seconds that a small picture takes, or why it does not work.
    """
    model = find(DEFAULT)
    random = np.random.default_rng(0)
    side = _TEST_SIDE
    ramp = np.linspace(0.1, 0.8, side, dtype=np.float32)
    rainy = np.broadcast_to(ramp, (1, 3, side, side)) + 0.3 * (random.random((1, 1, 1, side)) > 0.9)
    rainy = np.ascontiguousarray(np.clip(rainy, 0, 1), np.float32)
    expected = _timed(_open(model, Device("cpu"), replace(processor, precision="fp32")), rainy)
    results: dict[str, Any] = {}
    for kind in kinds:
        try:
            if kind == "cpu" and processor.precision in ("auto", "fp32"):
                seconds, planes = expected
            else:
                seconds, planes = _timed(_open(model, Device(kind), processor), rainy)
        except Exception as error:  # whatever a driver does, it is no reason to fail
            results[kind] = str(error).removeprefix(f"{kind}: ").strip().partition("\n")[0].partition(";")[0]
            continue
        off = float(np.square(planes - expected[1], dtype=np.float64).mean())
        # Also where it is no number.
        if not off <= 10 ** (-_LEAST_FIDELITY / 10):
            results[kind] = f"its result is {-10 * np.log10(off):.1f} dB from the CPU's"
        else:
            results[kind] = round(seconds, 5)
    return results


def _timed(engine: NetworkEngine, rainy: Planes) -> tuple[float, Planes]:
    """Return the shortest time of a few runs, the first left out, and the result."""
    planes = engine.step(rainy, rainy)
    times = []
    for _ in range(_TEST_RUNS):
        start = time.perf_counter()
        engine.step(rainy, rainy)
        times.append(time.perf_counter() - start)
    return min(times), planes


def _key(processor: Processor) -> str:
    """Return what a self-test depends on, in a few letters."""
    facts = [
        __version__,
        *_installed(),
        platform.node(),
        platform.machine(),
        str(os.cpu_count()),
        str(processor),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def _installed() -> list[str]:
    """Return which packages that bring devices are installed, as the folders with their metadata are called.

    That is name and version. `importlib.metadata` takes as long to import as a small picture to read.
    """
    wanted = {name.replace("-", "_") for name in ("onnxruntime", *PACKAGES)}
    found = set()
    for place in sys.path:
        # Some are missing, some are archives.
        with contextlib.suppress(OSError):
            found |= {
                path.name
                for path in Path(place).iterdir()
                if path.suffix == ".dist-info" and path.name.partition("-")[0].lower() in wanted
            }
    return sorted(found)
