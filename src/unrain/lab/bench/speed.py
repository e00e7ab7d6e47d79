"""`unrain bench speed`: how long a picture takes, beside a peer and beside what the machine could do.

Every round runs every candidate once, one after the other, and a matrix product: whatever else the machine is
doing meets them all alike. Medians over the rounds are given. Each size starts with freshly opened networks,
since an engine prepares for the sizes that come often.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from unrain import zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.lab.bench.candidates import Candidate, open_derainer
from unrain.lab.bench.cost import Given, macs_per_pixel, measure_cost, parse_size
from unrain.lab.bench.options import CPU, MIN_ROUNDS, SIZES
from unrain.lab.data.pairs import read
from unrain.lab.data.rain import RGB8
from unrain.lab.hardware import hardware
from unrain.lab.nets.layers import RecursiveNet

_MATRIX = 1024


@dataclass(frozen=True)
class Speed:
    """How fast a candidate is.

    Attributes:
        model: Its name.
        recursions: T, how many.
        device: What it ran on.
        precision: What it computed in.
        width: Of the picture.
        height: Of the picture.
        seconds: Median time for a picture, from array to array.
        fastest: The shortest.
        slowest: The longest.
        macs_per_pixel: Multiplications of its convolutions and matrix products, all recursions together.
        share: The part of the machine's ceiling that it reaches with these, as if all were computed at full
            size; what overlapping tiles compute twice does not count.
        times_faster: The first peer's median divided by its own; None without a peer.
        times_first: The median of the same model on the first device divided by its own.
        parameters: How many weights it has; None if it was not asked for.
        peak_memory_mb: Peak memory of a fresh process that runs it on a picture of this size, in 10^6 bytes;
            None if it was not asked for, or the system does not tell.
    """

    model: str
    recursions: int
    device: str
    precision: str
    width: int
    height: int
    seconds: float
    fastest: float
    slowest: float
    macs_per_pixel: float
    share: float
    times_faster: float | None
    times_first: float
    parameters: int | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class SpeedTable:
    """Speeds, and what they were measured on.

    Attributes:
        machine: Cores and name.
        threads: How many threads everything ran on.
        rounds: How many times each was run.
        photos: Names of the picture files that were derained; empty for noise.
        ceiling: Median of the machine's fp32 matrix product in the same rounds, in GFLOP/s; a
            multiplication and an addition count as two.
        speeds: One for each candidate, number of recursions and size.
    """

    machine: str
    threads: int
    rounds: int
    photos: list[str]
    ceiling: float
    speeds: list[Speed]


@dataclass(frozen=True, eq=False)
class _Runner:
    """A candidate on a device.

    Attributes:
        candidate: What runs.
        source: Its model or network.
        wanted: How many recursions; None for its own number.
        processor: What it runs on.
        recursions: How many these are.
        macs: Multiplications for each pixel at full size.
    """

    candidate: Candidate
    source: zoo.Model | RecursiveNet
    wanted: int | None
    processor: Processor
    recursions: int
    macs: float


def measure_speed(
    candidates: list[Candidate],
    *,
    peer: Candidate | None = None,
    sizes: tuple[str, ...] = SIZES,
    photos: Sequence[Path] = (),
    recursions: tuple[int, ...] = (),
    processors: Sequence[Processor] = (CPU,),
    levels: int | None = 1,
    rounds: int = MIN_ROUNDS,
    given: Sequence[Given] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> SpeedTable:
    """Run candidates in turn and time them.

    Args:
        candidates: What to time; the peer among them, if there is one.
        peer: Who the others are compared with.
        sizes: WIDTHxHEIGHT of the pictures.
        photos: Picture files, each cut and scaled to every size; one of noise, on which a model does
            everywhere all that it can, if empty.
        recursions: Numbers of recursions to time; the model's own when empty. A peer always makes its own.
        processors: What each exported model runs on in turn, all with the same threads, 0 for as many as
            PyTorch would take; a network runs on the first one's threads.
        levels: How many sizes of a picture are looked at, see `Derainer`.
        rounds: How often each is timed, 5 at least; one round before them is not counted.
        given: What named each candidate, for weights and memory also; these are measured before anything is
            timed.
        progress: Called with (size, rounds done, rounds in all).

    Raises:
        UnrainError: A number, a photo or a candidate is not right.
    """
    if rounds < MIN_ROUNDS:
        raise UnrainError(f"rounds is {rounds}: a median needs {MIN_ROUNDS} or more")
    threads = processors[0].threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    shapes = [parse_size(size) for size in sizes]
    originals = [read(photo) for photo in photos]
    runners = []
    costs = {}
    for i, candidate in enumerate(candidates):
        source = candidate.source
        if not isinstance(source, zoo.Model | RecursiveNet):
            raise UnrainError(f"{candidate.name}: pictures have no speed; give a model")
        places = processors if isinstance(source, zoo.Model) else processors[:1]
        counts = (None,) if candidate is peer or not recursions else recursions
        for wanted, place in itertools.product(counts, places):
            on = replace(place, threads=threads)
            # Opened for its number of recursions, and so that an error comes before anything is timed.
            count = open_derainer(source, wanted, on, levels=levels)[1]
            runners.append(_Runner(candidate, source, wanted, on, count, macs_per_pixel(source, count)))
            for size in sizes if given else ():
                costs[runners[-1], parse_size(size)] = measure_cost(
                    candidate, given[i], count, size=size, processor=on
                )
    products: list[float] = []
    rows = []
    for size, (width, height) in zip(sizes, shapes, strict=True):
        pictures = _pictures(originals, width, height)
        tell = None if progress is None else partial(progress, size)
        timed, its_products = _run(runners, pictures, levels, rounds, tell)
        rows += [(runner, width, height, *what) for runner, what in zip(runners, timed, strict=True)]
        products += its_products
    ceiling = 2 * _MATRIX**3 / statistics.median(products)
    medians = {(runner, width, height): statistics.median(taken) for runner, width, height, _, taken in rows}
    speeds = []
    for runner, width, height, ran_on, taken in rows:
        seconds = medians[runner, width, height]
        reference = next((one for one in runners if one.candidate is peer), None)
        first = next(
            one for one in runners if (one.candidate, one.recursions) == (runner.candidate, runner.recursions)
        )
        cost = costs.get((runner, (width, height)))
        speeds.append(
            Speed(
                model=runner.candidate.name,
                recursions=runner.recursions,
                device=ran_on[0],
                precision=ran_on[1],
                width=width,
                height=height,
                seconds=round(seconds, 4),
                fastest=round(min(taken), 4),
                slowest=round(max(taken), 4),
                macs_per_pixel=round(runner.macs, 1),
                share=round(2 * runner.macs * width * height / seconds / ceiling, 4),
                times_faster=None
                if reference is None
                else round(medians[reference, width, height] / seconds, 2),
                times_first=round(medians[first, width, height] / seconds, 2),
                parameters=cost.parameters if cost else None,
                peak_memory_mb=cost.peak_memory_mb if cost else None,
            )
        )
    names = [photo.name for photo in photos]
    return SpeedTable(hardware(torch.device("cpu")), threads, rounds, names, round(ceiling / 1e9, 1), speeds)


def _run(
    runners: Sequence[_Runner],
    pictures: Sequence[RGB8],
    levels: int | None,
    rounds: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[tuple[tuple[str, str], list[float]]], list[float]]:
    """Run everything on pictures of one size, round by round.

    Returns:
        Of each runner the device and precision, and the mean time of a picture in each round; the times of
        the matrix product. The first round only warms up and is left out.
    """
    derainers = [
        open_derainer(runner.source, runner.wanted, runner.processor, levels=levels)[0] for runner in runners
    ]
    matrix = torch.rand(_MATRIX, _MATRIX)
    products: list[float] = []
    times: list[list[float]] = [[] for _ in runners]
    for done in range(rounds + 1):
        products.append(_timed(torch.mm, matrix, matrix))
        for derainer, taken in zip(derainers, times, strict=True):
            taken.append(statistics.fmean(_timed(derainer, picture) for picture in pictures))
        if progress:
            progress(done, rounds)
    places = [
        (getattr(derainer.engine, "device", "cpu"), getattr(derainer.engine, "precision", "fp32"))
        for derainer in derainers
    ]
    return [(place, taken[1:]) for place, taken in zip(places, times, strict=True)], products[1:]


def _pictures(originals: Sequence[RGB8], width: int, height: int) -> list[RGB8]:
    """Cut and scale photographs to a size; without any, give noise."""
    if not originals:
        return [np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)]
    fitted = (
        ImageOps.fit(Image.fromarray(photo), (width, height), Image.Resampling.LANCZOS) for photo in originals
    )
    return [np.asarray(picture) for picture in fitted]


def _timed(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start
