"""The machine: its name for model cards and reports, its devices as PyTorch names them, and their bf16."""

import os
import platform
from pathlib import Path

import torch

from unrain.errors import UnrainError, UsageError


def hardware(device: torch.device, count: int = 1) -> str:
    """Name a machine by its GPUs, or by its cores and processor.

    Args:
        device: Where the work is done.
        count: How many GPUs are used.
    """
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"


def has_bf16(kind: str = "cpu") -> bool:
    """Return whether there are instructions for bf16; emulated, it is slower than float32.

    Args:
        kind: What computes, as `torch.device.type` has it.
    """
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if kind == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def torch_device(text: str) -> torch.device:
    """Find a device of PyTorch.

    Args:
        text: cpu, cuda:1, mps; empty for a GPU where there is one.

    Raises:
        UsageError: There is no such kind of device.
        UnrainError: It is not on this machine.
    """
    if not text:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(
            f"torch:{text}: PyTorch has no such device, give torch:cpu or torch:cuda:0"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnrainError(
            f"torch:{text}: PyTorch finds {torch.cuda.device_count()} such GPUs; look at its driver, and "
            "whether it was installed for CUDA; or give torch:cpu"
        )
    if device.type == "mps" and not _has_mps():
        raise UnrainError(f"torch:{text}: not on this machine; give torch:cpu")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
