"""`unrain bench sizes`: what is gained on one photograph in several sizes, and what that takes.

Clean photographs are reduced to each size (never enlarged) and rain is drawn on them (`raindrops`): once as
large as the picture is, once as fine as in a small one. Everything goes through the same `Derainer` as every
other picture. Candidates are run one after the other on each picture, so that other load meets them alike.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unrain import zoo
from unrain.derainer import Derained, Derainer
from unrain.devices import Processor
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench import memory
from unrain.lab.bench.cache import Results, fingerprint, identity, open_results
from unrain.lab.bench.candidates import Candidate, halo_of, open_derainer
from unrain.lab.bench.cost import Given, kind_of
from unrain.lab.bench.options import SHORTEST, Levels, Rain, Side, SizesOptions
from unrain.lab.bench.raindrops import rain_layer
from unrain.lab.data.rain import RGB8, add_layer
from unrain.lab.data.suites import Suite, open_suite
from unrain.lab.hardware import hardware
from unrain.lab.metrics.chroma import chroma_change
from unrain.lab.metrics.measures import finite
from unrain.lab.metrics.psnr_ssim import psnr
from unrain.lab.nets.layers import RecursiveNet


@dataclass(frozen=True)
class SizeRow:
    """What a candidate makes of photographs of one size in one rain: means over the photographs.

    Attributes:
        model: Its name.
        recursions: T, how many.
        levels: At how many sizes of a picture it may work; "auto" for as many as fit.
        rain: "scaled" or "fine".
        size: The long side in pixels, or "native".
        pictures: How many photographs were measured; 0 where it was left out.
        psnr_rainy: Y-channel PSNR of the rainy pictures in dB.
        psnr: Y-channel PSNR of the results in dB.
        gain: Their difference.
        chroma: Mean absolute difference of Cb and Cr from the clean photographs, in steps of 8 bits.
        chroma_rainy: The same of the rainy pictures.
        seconds: Median time of a picture, from array to array.
        peak_memory_mb: Peak memory of a fresh process that derains the largest of the pictures, in 10^6
            bytes; None where the system does not tell.
        worked_at: Where the network ran on most pictures, for example "1/4" of their size.
        reused: How many pictures an earlier run had measured already.
    """

    model: str
    recursions: int
    levels: Levels
    rain: Rain
    size: Side
    pictures: int
    psnr_rainy: float | None = None
    psnr: float | None = None
    gain: float | None = None
    chroma: float | None = None
    chroma_rainy: float | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    worked_at: str | None = None
    reused: int = 0


@dataclass(frozen=True)
class SizesTable:
    """The rows, and what they were measured on.

    Attributes:
        machine: Cores and name.
        processor: What everything ran on.
        photographs: How many were read.
        rows: Candidate by candidate, rain by rain, from small to large.
        left_out: Lines on what was not measured, and why.
        unreadable: Lines on photographs that could not be read.
    """

    machine: str
    processor: Processor
    photographs: int
    rows: list[SizeRow]
    left_out: list[str]
    unreadable: list[str]


@dataclass(frozen=True, eq=False)
class _Runner:
    """A candidate, ready to run.

    Attributes:
        candidate: What runs.
        given: What named it.
        levels: At how many sizes of a picture.
        recursions: How many.
        halo: Context at the edges of a network's tiles; None of an exported model.
        derainer: What runs it.
        up_to: The long side up to which it runs; None for any.
    """

    candidate: Candidate
    given: Given
    levels: Levels
    recursions: int
    halo: int | None
    derainer: Derainer
    up_to: int | None


def measure_sizes(
    candidates: Sequence[Candidate],
    given: Sequence[Given],
    photos: Path,
    options: SizesOptions,
    *,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> SizesTable:
    """Measure candidates on photographs of several sizes.

    Args:
        candidates: What derains.
        given: What named each.
        photos: The folder of clean photographs.
        options: The rest.
        folder: Where results are kept for the next run; None keeps nothing.
        progress: Called with (photograph, its measurements done, its measurements in all).

    Raises:
        UsageError: A candidate is a folder of pictures, or no photograph is as large as a size.
        UnrainError: There are no photographs, or a candidate does not run.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = options.threads or torch.get_num_threads()
    photos = photos.resolve()
    suite = open_suite(photos.parent, photos.name, real=True)
    runners = list(_runners(candidates, given, options))
    sizes = sorted({size for size in options.size if isinstance(size, int)})
    if sizes and sizes[0] < SHORTEST:
        raise UsageError(f"size is {sizes[0]}: give {SHORTEST} or more pixels, or native")
    wanted: list[Side] = list(sizes)
    if "native" in options.size:
        wanted.append("native")
    rains = tuple(dict.fromkeys(options.rain))
    kept = {
        (i, rain, size): _open(suite, runner, rain, size, options, folder)
        for i, runner in enumerate(runners)
        for rain in rains
        for size in wanted
        if runner.up_to is None or (isinstance(size, int) and size <= runner.up_to)
    }
    names: dict[Side, list[str]] = {size: [] for size in wanted}
    sides: dict[str, int] = {}
    unreadable = []
    for name in suite.names:
        try:
            clean = suite.load(name).clean
        except UnrainError as error:
            unreadable.append(str(error))
            continue
        side = sides[name] = max(clean.shape[:2])
        its_sizes: list[Side] = [size for size in sizes if size <= side]
        its_sizes += [size for size in wanted if size == "native" and side > max(sizes, default=0)]
        for size in its_sizes:
            names[size].append(name)
        measured = 0
        for size in its_sizes:
            reduced = reduce_to(clean, size) if isinstance(size, int) else clean
            for rain in rains:
                results = {i: kept[i, rain, size] for i in range(len(runners)) if (i, rain, size) in kept}
                _measure(reduced, name, rain, runners, results, options)
                measured += 1
                if progress:
                    progress(name, measured, len(its_sizes) * len(rains))
    if not any(names.values()):
        if not sides:
            raise UnrainError(f"{photos}: no photograph could be read ({unreadable[0]})")
        longest = max(sides.values())
        raise UsageError(
            f"{photos}: no photograph is larger than {longest}; give a smaller --size, or others"
        )
    rows = [
        _row(runner, rain, size, names[size], kept.get((i, rain, size)))
        for i, runner in enumerate(runners)
        for rain in rains
        for size in wanted
        if names[size]
    ]
    return SizesTable(
        hardware(torch.device("cpu")),
        replace(options.processor, threads=threads),
        len(sides),
        rows,
        [*_too_small(sides, sizes), *_too_large(runners, wanted, names)],
        unreadable,
    )


def reduce_to(picture: RGB8, side: int) -> RGB8:
    """Reduce a picture by a Lanczos filter until its long side is this.

    Raises:
        ValueError: It would have to be enlarged.
    """
    height, width = picture.shape[:2]
    if side > max(height, width):
        raise ValueError(f"{width}x{height} would have to be enlarged to {side}")
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _runners(
    candidates: Sequence[Candidate], given: Sequence[Given], options: SizesOptions
) -> Iterator[_Runner]:
    for candidate, name in zip(candidates, given, strict=True):
        source = candidate.source
        if not isinstance(source, zoo.Model | RecursiveNet):
            raise UsageError(f"{candidate.name}: derained pictures have one size only; give a model")
        for recursions in (None,) if name.peer else options.recursions or (None,):
            # A network takes pictures whole otherwise: too much memory, and no octave to be sampled.
            halo = halo_of(source, recursions) if isinstance(source, RecursiveNet) else None
            for levels in dict.fromkeys(options.levels):
                number = None if levels == "auto" else levels
                derainer, count = open_derainer(
                    source, recursions, options.processor, levels=number, halo=halo
                )
                up_to = options.peer_side if name.peer and number == 1 else None
                yield _Runner(candidate, name, levels, count, halo, derainer, up_to)


def _open(
    suite: Suite, runner: _Runner, rain: Rain, size: Side, options: SizesOptions, folder: Path | None
) -> Results:
    about = {
        "sizes of": runner.candidate.name,
        "identity": identity(runner.candidate),
        "photographs": suite.name,
        "files": suite.fingerprint,
        "recursions": runner.recursions,
        "levels": runner.levels,
        "processor": asdict(options.processor),
        "rain": rain,
        "size": size,
        "seed": options.seed,
        "code": fingerprint("unrain.lab.bench.sizes"),
    }
    return open_results(folder, about, fresh=options.fresh)


def _measure(
    clean: RGB8,
    name: str,
    rain: Rain,
    runners: Sequence[_Runner],
    results: dict[int, Results],
    options: SizesOptions,
) -> None:
    """Run everything on one picture that has not been run on it before."""
    missing = [i for i, found in results.items() if name not in found.rows]
    if not missing:
        return
    height, width = clean.shape[:2]
    rainy = add_layer(clean, rain_layer(height, width, rain, name=name, seed=options.seed))
    before = {"psnr_rainy": finite(psnr(rainy, clean)), "chroma_rainy": chroma_change(rainy, clean)}
    pixels = height * width
    for i in missing:
        runner, rows = runners[i], results[i].rows
        start = time.perf_counter()
        derained = runner.derainer.derain(rainy)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {
            **before,
            "psnr": finite(psnr(derained.image, clean)),
            "chroma": chroma_change(derained.image, clean),
            "seconds": seconds,
            "worked_at": _worked_at(derained),
            "pixels": pixels,
        }
        if all(pixels > other["pixels"] for other in rows.values()):
            row["peak_memory_mb"] = memory.peak_memory(
                runner.given.text,
                kind_of(runner.candidate, runner.given),
                rainy,
                recursions=runner.recursions,
                processor=options.processor,
                levels=None if runner.levels == "auto" else runner.levels,
                halo=runner.halo,
            )
        results[i].add(name, row)


def _worked_at(derained: Derained) -> str:
    return ", ".join("1" if octave == 0 else f"1/{2**octave}" for octave in derained.octaves)


def _row(runner: _Runner, rain: Rain, size: Side, names: Sequence[str], results: Results | None) -> SizeRow:
    what = (runner.candidate.name, runner.recursions, runner.levels, rain, size)
    if results is None:
        return SizeRow(*what, pictures=0)
    rows = [results.rows[name] for name in names]

    def mean(name: str, digits: int) -> float:
        return round(statistics.fmean(row[name] for row in rows), digits)

    largest = max(rows, key=lambda row: (row["pixels"], row.get("peak_memory_mb") is not None))
    return SizeRow(
        *what,
        pictures=len(rows),
        psnr_rainy=mean("psnr_rainy", 3),
        psnr=mean("psnr", 3),
        gain=round(statistics.fmean(row["psnr"] - row["psnr_rainy"] for row in rows), 3),
        chroma=mean("chroma", 4),
        chroma_rainy=mean("chroma_rainy", 4),
        seconds=round(statistics.median(row["seconds"] for row in rows), 6),
        peak_memory_mb=largest.get("peak_memory_mb"),
        worked_at=Counter(row["worked_at"] for row in rows).most_common(1)[0][0],
        reused=min(results.reused, len(rows)),
    )


def _too_small(sides: dict[str, int], sizes: Sequence[int]) -> Iterator[str]:
    """Say for each size which photographs are smaller."""
    for size in sizes:
        small = [f"{name} ({side})" for name, side in sides.items() if side < size]
        if small:
            yield f"smaller than {size}, left out there: {', '.join(small)}"


def _too_large(
    runners: Sequence[_Runner], wanted: Sequence[Side], names: dict[Side, list[str]]
) -> Iterator[str]:
    """Say which sizes are too large for a candidate."""
    for name, up_to in {runner.candidate.name: runner.up_to for runner in runners if runner.up_to}.items():
        over = [str(size) for size in wanted if names[size] and (not isinstance(size, int) or size > up_to)]
        if over:
            yield f"{name} at full size: left out at {', '.join(over)}, above --peer-side {up_to}"
