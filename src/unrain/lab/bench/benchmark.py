"""`unrain bench`: whole test sets through the same `Derainer` as every other picture.

What is measured is any entrant (see `unrain.lab.bench.entrants`). A suite is a set of pairs (see
`unrain.lab.data.pairs`), or a folder of clean photographs, which are measured against themselves: a network
should leave a dry picture alone.
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
from numpy.typing import NDArray

from unrain.derainer import Derainer
from unrain.errors import UnrainError
from unrain.lab.bench import metrics
from unrain.lab.bench.entrants import Entrant, find_results, open_derainer, to_8_bit
from unrain.lab.data import Pair, packed, pairs, pictures, read
from unrain.zoo import Model

SUITES = ("rain100l/test", "rain100h/test", "rain800/test", "clean/kodak24")
# A picture that comes out unchanged has no finite PSNR; it counts as this in a mean.
UNCHANGED = 100.0
_NOT_IN_CARD = ("suite", "recursions", "truncated")

Restored = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """What a model scores on a suite.

    Attributes:
        suite: Name of the set.
        pictures: How many were measured: all.
        recursions: Passes T; None where nothing was run, for pictures that somebody else derained.
        psnr: Mean Y-channel PSNR in dB.
        ssim: Mean Y-channel SSIM.
        seconds: Mean time for a picture.
        truncated: Whether results were truncated to 8 bits instead of rounded.
    """

    suite: str
    pictures: int
    recursions: int | None
    psnr: float
    ssim: float
    seconds: float
    truncated: bool = False


def suite_pairs(root: Path, suite: str) -> list[Pair]:
    """Read a suite; photographs without a rainy side are paired with themselves.

    Raises:
        UnrainError: There is no such suite below the data folder, or a file of it is broken.
    """
    folder = root / suite
    # A packed set keeps its source pictures in a folder of its own name, so the list comes first.
    if folder.is_dir() and not packed(root, suite):
        found = pictures(folder)
        if all(path.parent == folder for path in found):
            photos = [(path.stem, read(path)) for path in found]
            return [Pair(name, photo, photo) for name, photo in photos]
    return pairs(root, suite)


def measure(
    restore: Callable[[Pair], Restored],
    suite: str,
    found: list[Pair],
    recursions: int | None,
    *,
    truncate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Derain every picture of a suite and average its scores.

    Args:
        restore: Gives the picture without rain, uint8 or floats in [0, 1].
        suite: The suite's name.
        found: Its pairs.
        recursions: How many passes that takes.
        truncate: Whether to score the results truncated to 8 bits also.
        progress: Called with (pictures done, pictures in all).

    Returns:
        The score of the results rounded to 8 bits and, if wanted, that of the results truncated.

    Raises:
        UnrainError: A result has another size than its picture.
    """
    cuts = (False, True) if truncate else (False,)
    psnrs: dict[bool, list[float]] = {cut: [] for cut in cuts}
    ssims: dict[bool, list[float]] = {cut: [] for cut in cuts}
    seconds = 0.0
    for done, pair in enumerate(found, 1):
        start = time.perf_counter()
        restored = restore(pair)
        seconds += time.perf_counter() - start
        if restored.shape != pair.clean.shape:
            sizes = [f"{side.shape[1]}x{side.shape[0]}" for side in (restored, pair.clean)]
            raise UnrainError(f"{pair.name} of {suite}: the result is {sizes[0]}, the picture {sizes[1]}")
        for cut in cuts:
            picture = to_8_bit(restored, truncate=cut)
            psnr = metrics.psnr(picture, pair.clean)
            psnrs[cut].append(psnr if math.isfinite(psnr) else UNCHANGED)
            ssims[cut].append(metrics.ssim(picture, pair.clean))
        if progress:
            progress(done, len(found))
    return [
        Score(
            suite,
            len(found),
            recursions,
            round(float(np.mean(psnrs[cut])), 3),
            round(float(np.mean(ssims[cut])), 4),
            round(seconds / len(found), 3),
            cut,
        )
        for cut in cuts
    ]


def bench(
    entrants: list[Entrant],
    data: Path,
    *,
    suites: tuple[str, ...] = SUITES,
    recursions: tuple[int, ...] = (),
    threads: int = 0,
    truncate: bool = False,
    card: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[tuple[Entrant, Score]]:
    """Measure entrants on suites, giving each score as soon as it is known.

    Args:
        entrants: What to measure.
        data: The folder that the suites are in.
        suites: Sets of pairs, or folders of clean photographs.
        recursions: Numbers of passes to measure; the model's own when empty.
        threads: CPU threads, 0 for all.
        truncate: Whether to score results truncated to 8 bits also, beside those rounded.
        card: Whether the scores (of rounded results) are also written into the models' cards.
        progress: Called with (entrant and suite, pictures done, pictures in all).

    Raises:
        UnrainError: An entrant or suite is missing or broken, or has no card to write into.
    """
    for entrant in entrants if card else ():
        if not isinstance(entrant.source, Model):
            raise UnrainError(f"{entrant.name}: only exported models have a card; leave --card out")
    for suite in suites:
        found = suite_pairs(data, suite)
        for entrant in entrants:
            for restore, passes in _restorers(entrant, suite, recursions, threads, as_float=truncate):
                label = f"{entrant.name} T={passes or '-'} on {suite}"
                report = (lambda done, total, label=label: progress(label, done, total)) if progress else None
                for score in measure(restore, suite, found, passes, truncate=truncate, progress=report):
                    if card and isinstance(entrant.source, Model) and not score.truncated:
                        _note(entrant.source, score)
                    yield entrant, score


def _restorers(
    entrant: Entrant, suite: str, recursions: tuple[int, ...], threads: int, *, as_float: bool
) -> Iterator[tuple[Callable[[Pair], Restored], int | None]]:
    """Give what derains a pair and its number of passes, for every number of passes asked for."""
    if isinstance(entrant.source, Path):
        look_up = find_results(entrant.source, suite)
        yield lambda pair: look_up(pair.name), None
        return
    for wanted in recursions or (None,):
        derainer, passes = open_derainer(entrant.source, wanted, threads)

        def restore(pair: Pair, derainer: Derainer = derainer) -> Restored:
            # The very values that the Derainer makes of 8 bits: rounding them here is its own rounding.
            return derainer(pair.rainy.astype(np.float32) / np.float32(255) if as_float else pair.rainy)

        yield restore, passes


def _note(model: Model, score: Score) -> None:
    """Write a score into the model's card, with the commit that it was measured at."""
    path = model.path.with_suffix(".json")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    entry = {key: value for key, value in asdict(score).items() if key not in _NOT_IN_CARD}
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
    found = tuple(suite for suite in SUITES if (data / suite).is_dir() or packed(data, suite))
    if not found:
        raise UnrainError(f"{data}: holds none of {', '.join(SUITES)}; name a suite with --suite")
    return found
