"""The processors that `--device` names, and what `--precision` can be."""

from dataclasses import dataclass

from unrain.errors import UsageError

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
AUTO = ("cuda", "tensorrt", "rocm", "directml", "coreml", "openvino", "cpu")
"""What `auto` chooses from: the fastest that works; between equals the first."""

_PLAIN = "pip uninstall -y onnxruntime"
INSTALL = {
    "cpu": "pip install unrain",
    "openvino": "pip install 'unrain[openvino]'",
    "cuda": f"{_PLAIN} && pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "tensorrt": "pip install 'unrain[tensorrt]'",
    "rocm": f"{_PLAIN} && pip install onnxruntime-migraphx",
    "directml": f"{_PLAIN} && pip install onnxruntime-directml",
    "coreml": "pip install unrain",
    "torch": "pip install 'unrain[lab]'",
}
"""For each kind of device the line that installs what it needs."""

ABOUT = {
    "cpu": "any processor, by ONNX Runtime",
    "openvino": "CPUs in bf16 where they have it, Intel's GPUs and NPUs (openvino:GPU, openvino:NPU)",
    "cuda": "NVIDIA's GPUs, by ONNX Runtime",
    "tensorrt": "NVIDIA's RTX GPUs, by TensorRT",
    "rocm": "AMD's GPUs on Linux",
    "directml": "any GPU on Windows",
    "coreml": "Apple's GPUs and neural engine",
    "torch": "PyTorch: torch:cpu, torch:cuda:1, torch:mps",
}


PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "openvino",
)
"""The distributions that bring devices besides the CPU."""


class DeviceWarning(UserWarning):
    """A device that was to be had is left out."""


@dataclass(frozen=True)
class Device:
    """A processor, as `--device` names it.

    Attributes:
        kind: One of `INSTALL`.
        which: Which one of that kind: a number, or the library's own name for it; empty for the first.
    """

    kind: str
    which: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.which}" if self.which else self.kind


def parse(text: str) -> Device | None:
    """Read a device's name; None for `auto`.

    Raises:
        UsageError: There is no such device.
    """
    kind, colon, which = text.partition(":")
    if text == "auto":
        return None
    if kind not in INSTALL or (colon and not which):
        raise UsageError(f"{text}: no such device, give auto or {', '.join(INSTALL)}; see unrain devices")
    free = kind in ("openvino", "torch")
    if which and not free and (kind in ("cpu", "coreml") or not which.isdecimal()):
        raise UsageError(f"{text}: give {kind}" + ("" if kind in ("cpu", "coreml") else f", or {kind}:1"))
    return Device(kind, which)


def check_precision(precision: str) -> None:
    """Refuse a precision that is none.

    Raises:
        UsageError: It is none.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"{precision}: no such precision, give {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class Processor:
    """What a network is to run on.

    Attributes:
        device: One of `INSTALL`, with :WHICH for another than the first; auto for the fastest that is
            installed and works. What does not work is left out with a `DeviceWarning`.
        precision: One of `PRECISIONS`; auto for what the device computes fastest and well.
        threads: CPU threads, 0 for one on every physical core.
    """

    device: str = "auto"
    precision: str = "auto"
    threads: int = 0


def version(distribution: str) -> str:
    """Return the version of an installed distribution; empty if it is not installed."""
    # Takes as long to import as a small picture to read.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
