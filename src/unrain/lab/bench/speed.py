"""`unrain bench --speed`: how long a picture takes, beside a peer and beside what the machine could do.

Every round runs every entrant once, one after the other, and a matrix product: whatever else the machine is
doing meets them all alike. Medians over the rounds are given.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch.utils.flop_counter import FlopCounterMode

from unrain import zoo
from unrain.errors import UnrainError
from unrain.lab.bench.entrants import Entrant, open_derainer
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.train import hardware

SIZES = ("481x321",)
ROUNDS = 5

_MATRIX = 1024
_COUNTED_SIDE = 64


@dataclass(frozen=True)
class Speed:
    """How fast an entrant is.

    Attributes:
        model: Its name.
        recursions: Passes T.
        width: Of the picture.
        height: Of the picture.
        seconds: Median time for a picture, from array to array.
        fastest: The shortest.
        slowest: The longest.
        macs_per_pixel: Multiplications of its convolutions and matrix products, all passes together.
        share: The part of the machine's ceiling that it reaches.
        times_faster: The first peer's median divided by its own; None without a peer.
    """

    model: str
    recursions: int
    width: int
    height: int
    seconds: float
    fastest: float
    slowest: float
    macs_per_pixel: float
    share: float
    times_faster: float | None


@dataclass(frozen=True)
class Report:
    """Speeds, and what they were measured on.

    Attributes:
        machine: Cores and name.
        threads: How many threads everything ran on.
        rounds: How many times each was run.
        ceiling: Median of the machine's fp32 matrix product in the same rounds, in GFLOP/s; a
            multiplication and an addition count as two.
        speeds: One for each entrant, number of passes and size.
    """

    machine: str
    threads: int
    rounds: int
    ceiling: float
    speeds: list[Speed]


def measure_speed(
    entrants: list[Entrant],
    *,
    peer: Entrant | None = None,
    sizes: tuple[str, ...] = SIZES,
    recursions: tuple[int, ...] = (),
    threads: int = 0,
    rounds: int = ROUNDS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Run entrants in turn and time them.

    Args:
        entrants: What to time; the peer among them, if there is one.
        peer: Who the others are compared with.
        sizes: WIDTHxHEIGHT of the pictures.
        recursions: Numbers of passes to time; the model's own when empty. A peer always makes its own.
        threads: CPU threads; 0 for as many as PyTorch would take.
        rounds: How often each is timed, 5 at least; one round before them is not counted.
        progress: Called with (size, rounds done, rounds in all).

    Raises:
        UnrainError: A number or an entrant is not right.
    """
    if rounds < ROUNDS:
        raise UnrainError(f"rounds is {rounds}: a median needs {ROUNDS} or more")
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    runners = []
    for entrant in entrants:
        source = entrant.source
        if not isinstance(source, zoo.Model | RecursiveNet):
            raise UnrainError(f"{entrant.name}: pictures have no speed; give a model")
        for wanted in (None,) if entrant is peer or not recursions else recursions:
            derainer, passes = open_derainer(source, wanted, threads)
            runners.append((entrant, derainer, passes, macs_per_pixel(source, passes)))
    random = np.random.default_rng(0)
    matrix = torch.rand(_MATRIX, _MATRIX)
    products: list[float] = []
    rows = []
    for size in sizes:
        width, height = _parse(size)
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        times: list[list[float]] = [[] for _ in runners]
        for done in range(rounds + 1):
            product = _timed(torch.mm, matrix, matrix)
            for (_, derainer, _, _), taken in zip(runners, times, strict=True):
                taken.append(_timed(derainer, picture))
            if done:
                products.append(product)
            if progress:
                progress(size, done, rounds)
        rows += [
            (runner, width, height, taken[1:])  # the first of each only warms up
            for runner, taken in zip(runners, times, strict=True)
        ]
    ceiling = 2 * _MATRIX**3 / statistics.median(products)
    yardstick = {
        (width, height): statistics.median(taken)
        for (entrant, *_), width, height, taken in rows
        if entrant is peer
    }
    speeds = []
    for (entrant, _, passes, macs), width, height, taken in rows:
        seconds = statistics.median(taken)
        reference = yardstick.get((width, height))
        speeds.append(
            Speed(
                model=entrant.name,
                recursions=passes,
                width=width,
                height=height,
                seconds=round(seconds, 4),
                fastest=round(min(taken), 4),
                slowest=round(max(taken), 4),
                macs_per_pixel=round(macs, 1),
                share=round(2 * macs * width * height / seconds / ceiling, 4),
                times_faster=None if reference is None else round(reference / seconds, 2),
            )
        )
    return Report(hardware(torch.device("cpu")), threads, rounds, round(ceiling / 1e9, 1), speeds)


def macs_per_pixel(source: zoo.Model | RecursiveNet, passes: int) -> float:
    """Count the multiplications of convolutions and matrix products that a pixel costs.

    Args:
        source: An exported model, or a network.
        passes: Passes over the picture.
    """
    if isinstance(source, zoo.Model):
        return _count_onnx(source) * passes
    side = math.lcm(_COUNTED_SIDE, source.multiple)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source(torch.zeros(1, 3, side, side), passes)
    # The counter counts additions, too.
    return float(counter.get_total_flops()) / 2 / side**2


def _count_onnx(model: zoo.Model) -> float:
    """Count one pass of an exported model by running it and looking at the sizes of what it computes."""
    network = onnx.load(model.path)
    graph = network.graph
    counted = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    constants = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    wanted = {name for node in counted for name in (*node.input, *node.output) if name not in constants}
    outside = {port.name for port in (*graph.input, *graph.output)}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - outside - {""}))
    options = ort.SessionOptions()
    # As it stands in the file: a fused node has no such outputs.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    multiple = int(model.card.get("multiple", 0)) or _COUNTED_SIDE
    side = math.lcm(_COUNTED_SIDE, multiple)
    picture = np.zeros((1, 3, side, side), np.float32)
    feeds = {port.name: picture for port in graph.input}
    names = [port.name for port in session.get_outputs()]
    shapes = constants | {name: picture.shape for name in feeds}
    shapes |= {name: np.shape(value) for name, value in zip(names, session.run(names, feeds), strict=True)}
    return sum(_macs(node, shapes) for node in counted) / side**2


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    left, right = (shapes[name] for name in node.input[:2])
    out = shapes[node.output[0]]
    if node.op_type == "Conv":
        # The weights are out x in / groups x height x width.
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(out) * left[0 if transposed else -1]
    return math.prod(out) * left[-1]


def _timed(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def _parse(size: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in size.split("x"))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1:
        raise UnrainError(f"{size}: give a size as WIDTHxHEIGHT, for example 1280x720")
    return width, height
