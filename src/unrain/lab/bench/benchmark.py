"""`unrain bench`: whole test sets through the same `Derainer` as every other picture.

A suite is a set of pairs (see `unrain.lab.data.pairs`), or a folder of clean photographs, which are measured
against themselves: a network should leave a dry picture alone.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench import metrics
from unrain.lab.data import Pair, pairs, pictures, read
from unrain.zoo import Model

SUITES = ("rain100l/test", "rain100h/test", "rain800/test", "clean/kodak24")
# A picture that comes out unchanged has no finite PSNR; it counts as this in a mean.
UNCHANGED = 100.0


@dataclass(frozen=True)
class Score:
    """What a model scores on a suite.

    Attributes:
        suite: Name of the set.
        pictures: How many were measured: all.
        recursions: Passes T.
        psnr: Mean Y-channel PSNR in dB.
        ssim: Mean Y-channel SSIM.
        seconds: Mean time for a picture.
    """

    suite: str
    pictures: int
    recursions: int
    psnr: float
    ssim: float
    seconds: float


def suite_pairs(root: Path, suite: str) -> list[Pair]:
    """Read a suite; photographs without a rainy side are paired with themselves.

    Raises:
        UnrainError: There is no such suite below the data folder, or a file of it is broken.
    """
    folder = root / suite
    if not (root / "pairs.jsonl").is_file() or folder.is_dir():
        found = pictures(folder)
        if all(path.parent == folder for path in found):
            photos = [(path.stem, read(path)) for path in found]
            return [Pair(name, photo, photo) for name, photo in photos]
    return pairs(root, suite)


def measure(
    derainer: Derainer, suite: str, found: list[Pair], progress: Callable[[int, int], None] | None = None
) -> Score:
    """Derain every picture of a suite and average its scores.

    Args:
        derainer: The model, with its number of passes.
        suite: The suite's name.
        found: Its pairs.
        progress: Called with (pictures done, pictures in all).
    """
    psnrs, ssims, seconds = [], [], 0.0
    for done, pair in enumerate(found, 1):
        start = time.perf_counter()
        restored = derainer(pair.rainy)
        seconds += time.perf_counter() - start
        psnr = metrics.psnr(restored, pair.clean)
        psnrs.append(psnr if math.isfinite(psnr) else UNCHANGED)
        ssims.append(metrics.ssim(restored, pair.clean))
        if progress:
            progress(done, len(found))
    return Score(
        suite,
        len(found),
        derainer.recursions,
        round(float(np.mean(psnrs)), 3),
        round(float(np.mean(ssims)), 4),
        round(seconds / len(found), 3),
    )


def bench(
    models: list[Model],
    data: Path,
    *,
    suites: tuple[str, ...] = SUITES,
    recursions: tuple[int, ...] = (),
    threads: int = 0,
    card: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[tuple[Model, Score]]:
    """Measure models on suites, giving each score as soon as it is known.

    Args:
        models: What to measure.
        data: The folder that the suites are in.
        suites: Sets of pairs, or folders of clean photographs.
        recursions: Numbers of passes to measure; the model's own when empty.
        threads: CPU threads, 0 for all.
        card: Whether the scores are also written into the model's card.
        progress: Called with (model and suite, pictures done, pictures in all).

    Raises:
        UnrainError: A model or suite is missing or broken.
    """
    for suite in suites:
        found = suite_pairs(data, suite)
        for model in models:
            for passes in recursions or (None,):
                derainer = Derainer(model, recursions=passes, threads=threads)
                label = f"{model.name} T={derainer.recursions} on {suite}"
                report = (lambda done, total, label=label: progress(label, done, total)) if progress else None
                score = measure(derainer, suite, found, report)
                if card:
                    _note(model, score)
                yield model, score


def _note(model: Model, score: Score) -> None:
    """Write a score into the model's card, with the commit that it was measured at."""
    path = model.path.with_suffix(".json")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    entry = {key: value for key, value in asdict(score).items() if key not in ("suite", "recursions")}
    card.setdefault("scores", {})[f"{score.suite} T{score.recursions}"] = entry
    card["scores_by"] = f"unrain bench {model.name} --data DATA --card"
    card["scores_commit"] = _commit()
    part = path.with_suffix(".part")
    part.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _commit() -> str:
    """Return the checkout's commit, with a plus when files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()


def find_suites(data: Path, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wanted suites, or those of the usual ones that lie below the data folder.

    Raises:
        UnrainError: None of the usual suites is there.
    """
    if wanted:
        return wanted
    found = []
    for suite in SUITES:
        try:
            suite_pairs(data, suite)
        except UnrainError:
            continue
        found.append(suite)
    if not found:
        raise UnrainError(f"{data}: holds none of {', '.join(SUITES)}; name a suite with --suite")
    return tuple(found)
