"""`unrain bench speed`: how long a picture takes, beside a peer and beside what the machine could do.

Every round runs every candidate once, one after the other, and a matrix product: whatever else the machine is
doing meets them all alike. Medians over the rounds are given.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from unrain import zoo
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.lab.bench.candidates import Candidate, open_derainer
from unrain.lab.bench.cost import Given, macs_per_pixel, measure_cost, parse_size
from unrain.lab.bench.options import CPU, MIN_ROUNDS, SIZES
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
        ceiling: Median of the machine's fp32 matrix product in the same rounds, in GFLOP/s; a
            multiplication and an addition count as two.
        speeds: One for each candidate, number of recursions and size.
    """

    machine: str
    threads: int
    rounds: int
    ceiling: float
    speeds: list[Speed]


@dataclass(frozen=True, eq=False)
class _Runner:
    """A candidate on a device.

    Attributes:
        candidate: What runs.
        derainer: What runs it.
        recursions: How many.
        macs: Multiplications for each pixel at full size.
    """

    candidate: Candidate
    derainer: Derainer
    recursions: int
    macs: float


def measure_speed(
    candidates: list[Candidate],
    *,
    peer: Candidate | None = None,
    sizes: tuple[str, ...] = SIZES,
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
        recursions: Numbers of recursions to time; the model's own when empty. A peer always makes its own.
        processors: What each exported model runs on in turn, all with the same threads, 0 for as many as
            PyTorch would take; a network runs on the first one's threads.
        levels: How many sizes of a picture are looked at, see `Derainer`.
        rounds: How often each is timed, 5 at least; one round before them is not counted.
        given: What named each candidate, for weights and memory also; these are measured before anything is
            timed.
        progress: Called with (size, rounds done, rounds in all).

    Raises:
        UnrainError: A number or a candidate is not right.
    """
    if rounds < MIN_ROUNDS:
        raise UnrainError(f"rounds is {rounds}: a median needs {MIN_ROUNDS} or more")
    threads = processors[0].threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    pictures = [parse_size(size) for size in sizes]
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
            derainer, count = open_derainer(source, wanted, on, levels=levels)
            runners.append(_Runner(candidate, derainer, count, macs_per_pixel(source, count)))
            for size in sizes if given else ():
                costs[runners[-1], parse_size(size)] = measure_cost(
                    candidate, given[i], count, size=size, processor=on
                )
    random = np.random.default_rng(0)
    matrix = torch.rand(_MATRIX, _MATRIX)
    products: list[float] = []
    rows = []
    for size, (width, height) in zip(sizes, pictures, strict=True):
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        times: list[list[float]] = [[] for _ in runners]
        for done in range(rounds + 1):
            product = _timed(torch.mm, matrix, matrix)
            for runner, taken in zip(runners, times, strict=True):
                taken.append(_timed(runner.derainer, picture))
            if done:
                products.append(product)
            if progress:
                progress(size, done, rounds)
        rows += [
            (runner, width, height, taken[1:])  # the first of each only warms up
            for runner, taken in zip(runners, times, strict=True)
        ]
    ceiling = 2 * _MATRIX**3 / statistics.median(products)
    medians = {(runner, width, height): statistics.median(taken) for runner, width, height, taken in rows}
    speeds = []
    for runner, width, height, taken in rows:
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
                device=getattr(runner.derainer.engine, "device", "cpu"),
                precision=getattr(runner.derainer.engine, "precision", "fp32"),
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
    return SpeedTable(hardware(torch.device("cpu")), threads, rounds, round(ceiling / 1e9, 1), speeds)


def _timed(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start
