"""`unrain reproduce`: measure the README's figures again, and compare each with what is stated.

What is stated is read from where the README's tables come from: the models' cards and
`report/reference.toml`.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from unrain import zoo
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench.cache import FOLDER
from unrain.lab.bench.candidates import Candidate, find_peer
from unrain.lab.bench.options import CPU, SIZE
from unrain.lab.bench.report.readme import (
    BASELINES,
    SUMMARY_SUITES,
    real_rain_of,
    reference,
    scores_of,
    shown_models,
)
from unrain.lab.bench.run import INPUT, run
from unrain.lab.bench.speed import measure_speed
from unrain.lab.data.pairs import packed
from unrain.lab.data.rain import RainMaker, StreakRain
from unrain.lab.data.suites import Suite, open_suite
from unrain.lab.nets import build
from unrain.zoo import Model

TABLES = ("sets", "scores", "real", "speed", "large")
REAL = "real/eval"

# Other processors and libraries round differently; figures are stated with two, four and three digits.
_PSNR_OFF, _SSIM_OFF, _STREAKS_OFF = 0.015, 0.0004, 0.004
_LARGE, _LARGEST = (4000, 3000), (9248, 6936)
_RUNS = 5
_WIDE = StreakRain(depths=(3, 3), direction=(8, 14), length=(10, 45), width=(0.5, 1.3), intensity=(60, 140))

Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Figure:
    """A figure of the README, measured again.

    Attributes:
        name: What was measured, and of what.
        stated: As the README has it.
        measured: As it was found, in the same form; empty if it was left out.
        agrees: Whether both agree; None for what depends on the machine, and for what was left out.
        why: Why it was left out.
    """

    name: str
    stated: str
    measured: str
    agrees: bool | None = None
    why: str = ""


def reproduce(
    table: str, data: Path | None, peers: Path | None, *, threads: int, note: Note, progress: Progress
) -> Iterator[Figure]:
    """Measure the figures of a table.

    Args:
        table: One of `TABLES`.
        data: Folder with the data sets; speed and large need none.
        peers: Folder with PReNet's weights; its scores are left out without it.
        threads: Processor threads for scores, 0 for all. Times are measured as they were: on two threads and
            on one.
        note: Called with a line about what is left out.
        progress: Called with (what is measured, done, in all).

    Raises:
        UsageError: There is no such table, or no data folder for it.
        UnrainError: A set or a file of weights is broken.
    """
    if table not in TABLES:
        raise UsageError(f"{table}: no table of the README, choose {', '.join(TABLES[:-1])} or {TABLES[-1]}")
    if table == "speed":
        yield from _speed(peers, progress)
    elif table == "large":
        yield from _large(progress)
    elif data is None:
        raise UsageError(f"{table}: name the folder with the data sets with --data")
    elif table == "sets":
        yield from _sets(data, progress)
    else:
        suites = SUMMARY_SUITES if table == "scores" else (REAL,)
        yield from _measured(data, suites, peers, threads, note, progress)


def digest(suite: Suite, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Return a SHA-256 of a set's pixels, whatever its files are called and however they are packed.

    That of each picture, or of the rainy and the clean one of a pair in a row (height and width as
    little-endian 32-bit integers, then RGB in 8 bits), sorted and hashed once more.
    """
    parts = []
    for done, pair in enumerate(suite, 1):
        part = hashlib.sha256()
        for picture in (pair.rainy,) if suite.kind == "real" else (pair.rainy, pair.clean):
            part.update(np.array(picture.shape[:2], "<u4").tobytes() + picture.tobytes())
        parts.append(part.digest())
        progress(done, len(suite))
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


def _sets(data: Path, progress: Progress) -> Iterator[Figure]:
    for name, stated in reference()["digests"].items():
        if not _is_there(data, name):
            yield Figure(name, stated[:16], "", why=f"not below {data}")
            continue
        found = digest(open_suite(data, name), partial(progress, name))
        yield Figure(name, stated[:16], found[:16], found == stated)


def _measured(
    data: Path, suites: Sequence[str], peers: Path | None, threads: int, note: Note, progress: Progress
) -> Iterator[Figure]:
    """Measure scores, or streaks for real rain."""
    stated = reference()
    for suite in suites:
        candidates = {Candidate(model.name, model): model.name for model in shown_models(zoo.built_in())}
        for title, (file, trained_on) in BASELINES.items():
            if (
                suite not in (trained_on, REAL)
                or title not in stated["real_rain" if suite == REAL else "scores"]
            ):
                continue
            if peers is None:
                yield Figure(f"{title}, {suite}", "", "", why="name the folder of its weights with --peers")
            else:
                candidates[find_peer(f"prenet:{peers / file}")] = title
        if not _is_there(data, suite):
            yield from (
                Figure(f"{name}, {suite}", "", "", why=f"{suite} is not below {data}")
                for name in candidates.values()
            )
            continue
        for one in run(
            list(candidates),
            [(data, suite, suite == REAL)],
            metrics=("streaks",) if suite == REAL else (),
            processor=replace(CPU, threads=threads),
            inputs=True,
            folder=FOLDER,
            note=note,
            progress=progress,
        ):
            name = "the rainy input" if one.candidate is INPUT else candidates[one.candidate]
            score, label = one.scores[0], f"{name}, {suite}"
            model = one.candidate.source if isinstance(one.candidate.source, Model) else None
            if suite == REAL:
                wanted = real_rain_of(model) if model else stated["real_rain"].get(name)
                if wanted and score.streaks_removed is not None:
                    off = abs(wanted["streaks"] - score.streaks_removed)
                    before, now = (
                        f"{100 * value:.1f} %" for value in (wanted["streaks"], score.streaks_removed)
                    )
                    yield Figure(label, before, now, off < _STREAKS_OFF)
                continue
            expected = scores_of(model) if model else stated["scores"].get(name, {})
            if suite in expected and score.psnr is not None and score.ssim is not None:
                psnr, ssim = expected[suite]
                yield Figure(
                    label,
                    f"{psnr:.2f} / {ssim:.4f}",
                    f"{score.psnr:.2f} / {score.ssim:.4f}",
                    abs(psnr - score.psnr) < _PSNR_OFF and abs(ssim - score.ssim) < _SSIM_OFF,
                )


def _speed(peers: Path | None, progress: Progress) -> Iterator[Figure]:
    """Time the networks side by side; PReNet's speed does not depend on its weights."""
    title, (file, _) = next(iter(BASELINES.items()))
    peer = find_peer(f"prenet:{peers / file}") if peers else Candidate("PReNet", build("prenet").eval())
    models = [Candidate(model.name, model) for model in shown_models(zoo.built_in())]
    threads = min(2, os.cpu_count() or 1)
    processors = (replace(CPU, threads=threads),)
    measured = measure_speed(
        [*models, peer], peer=peer, sizes=(SIZE,), processors=processors, progress=progress
    )
    stated = reference()["seconds"]
    slowest = stated[title]["small"]
    for speed, name in zip(measured.speeds, [*(model.name for model in models), title], strict=True):
        seconds = stated[name]["small"]
        told, found = f"{seconds:.2g} s", f"{speed.seconds:.2g} s"
        if name != title:
            told += f", {slowest / seconds:.0f} times as fast as PReNet"
            found += f", {speed.times_faster or 0:.0f} times as fast"
        yield Figure(f"{name}, {SIZE}, {threads} threads", told, found)


def _large(progress: Progress) -> Iterator[Figure]:
    """Run the command line on large pictures, in processes of their own."""
    stated = reference()
    with tempfile.TemporaryDirectory(prefix="unrain-") as folder:
        for model in shown_models(zoo.built_in()):
            what = f"{model.name}, 12 megapixels, one thread"
            seconds, _ = _resources(Path(folder), _LARGE, [model.name], what, _RUNS, progress)
            yield Figure(what, f"{stated['seconds'][model.name]['large']} s", f"{seconds:.1f} s")
        what = f"{zoo.DEFAULT}, 12 megapixels, full size alone"
        alone = [zoo.DEFAULT, "--levels", "1"]
        seconds, _ = _resources(Path(folder), _LARGE, alone, what, 1, progress)
        yield Figure(what, f"{stated['full_size']['seconds']} s", f"{seconds:.0f} s")
        what = f"{zoo.DEFAULT}, 64 megapixels, full size alone, memory"
        _, memory = _resources(Path(folder), _LARGEST, alone, what, 1, progress)
        yield Figure(what, f"{stated['full_size']['gigabytes']} GB", f"{memory:.1f} GB")


def _resources(
    folder: Path, size: tuple[int, int], arguments: list[str], what: str, runs: int, progress: Progress
) -> tuple[float, float]:
    """Derain a picture of a size by the command line; return processor seconds (median) and peak memory, GB.

    Raises:
        UnrainError: A run fails, or the system does not tell what a process has used.
    """
    if not hasattr(os, "wait4"):
        raise UnrainError(
            "large: this system does not tell what a process has used, run it on Linux or macOS"
        )
    picture = folder / f"{size[0]}x{size[1]}.jpg"
    if not picture.exists():
        clean = np.asarray(skimage.data.rocket())  # type: ignore[no-untyped-call]
        rainy = RainMaker(from_scratch=_WIDE)(clean, [], np.random.default_rng(4))
        Image.fromarray(rainy).resize(size, Image.Resampling.BICUBIC).save(picture, quality=92)
    command = [
        sys.executable,
        "-m",
        "unrain",
        str(picture),
        "--device",
        "cpu",
        "--threads",
        "1",
        "-q",
        "--overwrite",
    ]
    seconds, memory = [], 0.0
    for done in range(1, runs + 1):
        process = subprocess.Popen([*command, "--model", *arguments])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UnrainError(f"large: unrain ended with {process.returncode} on {picture.name}, see above")
        seconds.append(used.ru_utime)
        memory = max(memory, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9)
        progress(what, done, runs)
    return statistics.median(seconds), memory


def _is_there(data: Path, suite: str) -> bool:
    return (data / suite).is_dir() or bool(packed(data, suite))
