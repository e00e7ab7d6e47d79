"""`unrain bench fidelity`: how close a device and precision come to the CPU in fp32, on whole test sets."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unrain import files, zoo
from unrain.devices import Processor
from unrain.lab.bench.candidates import open_derainer
from unrain.lab.bench.options import FidelityOptions
from unrain.lab.data.suites import open_suite
from unrain.lab.metrics.psnr_ssim import psnr

_PERFECT = 100.0


@dataclass(frozen=True)
class Fidelity:
    """How close the results on a test set are.

    Attributes:
        model: The model's name.
        suite: The test set.
        device: What was compared with the CPU.
        precision: What it computed in.
        pictures: How many.
        psnr: Of the two results in RGB, not rounded, mean over pictures, in dB; 100 at most.
        least: Of the picture with the least.
        score: Mean PSNR of the Y channel to the ground truth; None of real rain.
        score_cpu: The same of the CPU in fp32.
    """

    model: str
    suite: str
    device: str
    precision: str
    pictures: int
    psnr: float
    least: float
    score: float | None
    score_cpu: float | None


def measure_fidelity(
    model: zoo.Model,
    suites: Sequence[tuple[Path, str, bool]],
    options: FidelityOptions,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Fidelity]:
    """Derain whole test sets on the CPU in fp32 and on other devices, and compare.

    Args:
        model: An exported model; its own number of recursions, at full size as the field's protocol has it.
        suites: For each the folder it is in, its name, and whether it is real rain.
        options: What to compare with the CPU.
        progress: Called with (test set, pictures done, pictures in all).

    Raises:
        UnrainError: A test set or device is missing or broken.
    """
    cpu, _ = open_derainer(model, None, Processor("cpu", "fp32", options.threads))
    others = [open_derainer(model, None, processor)[0] for processor in options.processors()]
    found = []
    for root, name, real in suites:
        suite = open_suite(root, name, real=real)
        close: list[list[float]] = [[] for _ in others]
        scores: list[list[float]] = [[] for _ in [cpu, *others]]
        for done, one in enumerate(suite.names, 1):
            pair = suite.load(one)
            rainy = pair.rainy.astype(np.float32) / np.float32(255)
            results = [derainer(rainy) for derainer in (cpu, *others)]
            for result, kept in zip(results[1:], close, strict=True):
                kept.append(_psnr(results[0], result))
            if suite.kind == "pairs":
                for result, kept in zip(results, scores, strict=True):
                    shown = np.rint(result * np.float32(255)).astype(np.uint8)
                    kept.append(psnr(shown, pair.clean))
            if progress:
                progress(f"fidelity on {suite.name}", done, len(suite))
        reference, *own = (statistics.fmean(kept) if kept else None for kept in scores)
        for derainer, kept, score in zip(others, close, own, strict=True):
            engine: Any = derainer.engine
            found.append(
                Fidelity(
                    model.name,
                    suite.name,
                    engine.device,
                    engine.precision,
                    len(kept),
                    round(statistics.fmean(kept), 2),
                    round(min(kept), 2),
                    None if score is None else round(score, 3),
                    None if reference is None else round(reference, 3),
                )
            )
    return found


def note(model: zoo.Model, found: Sequence[Fidelity]) -> None:
    """Write what was measured into the model's card.

    Raises:
        UnrainError: The card cannot be written.
    """
    path = model.path.with_suffix(".json")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    entries = card.setdefault("fidelity", {})
    for one in found:
        entry: dict[str, Any] = {"pictures": one.pictures, "psnr": one.psnr, "least": one.least}
        if one.score is not None:
            entry |= {"score": one.score, "score_cpu": one.score_cpu}
        entries.setdefault(f"{one.device} {one.precision}", {})[one.suite] = entry
    files.write((json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode(), path)


def _psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    error = float(np.square(one - other, dtype=np.float64).mean())
    return _PERFECT if error == 0 else min(_PERFECT, -10 * math.log10(error))
