"""The name of the machine that something runs on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def hardware(device: torch.device, count: int = 1) -> str:
    """Name the machine for a model's card."""
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"
