"""What a candidate costs: weights, multiplications and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto
from torch.utils.flop_counter import FlopCounterMode

from unrain import zoo
from unrain.devices import Processor
from unrain.errors import UsageError
from unrain.lab.bench import memory
from unrain.lab.bench.candidates import Candidate
from unrain.lab.bench.options import CPU, SIZE
from unrain.lab.nets.layers import RecursiveNet

_COUNTED_SIDE = 64

_WEIGHTS = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
}


@dataclass(frozen=True)
class Given:
    """What named a candidate on the command line, for another process to find it again.

    Attributes:
        text: A model, a file or a folder; for a peer NETWORK:FILE.
        peer: Whether it was given as a peer.
    """

    text: str
    peer: bool = False


@dataclass(frozen=True)
class Cost:
    """What a candidate costs.

    Attributes:
        parameters: How many weights it has.
        macs_per_pixel: Multiplications of its convolutions and matrix products, all recursions together.
        peak_memory_mb: Peak memory of a fresh process that runs it once on one picture, in 10^6 bytes; None
            where the system does not tell.
        memory_size: WIDTHxHEIGHT of that picture.
    """

    parameters: int
    macs_per_pixel: float
    peak_memory_mb: float | None
    memory_size: str


def measure_cost(
    candidate: Candidate,
    given: Given,
    recursions: int | None,
    *,
    size: str = SIZE,
    processor: Processor = CPU,
) -> Cost | None:
    """Count and measure what a candidate costs.

    Args:
        candidate: What to measure.
        given: What named it.
        recursions: How many, as measured; None where nothing was run.
        size: WIDTHxHEIGHT of the picture that memory is measured on.
        processor: What it runs on, see `open_derainer`.

    Returns:
        The cost; None of pictures that were derained elsewhere.

    Raises:
        UnrainError: The size is none, or the candidate does not run.
    """
    source = candidate.source
    if not isinstance(source, zoo.Model | RecursiveNet) or recursions is None:
        return None
    width, height = parse_size(size)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    peak = memory.peak_memory(
        given.text, kind_of(candidate, given), picture, recursions=recursions, processor=processor
    )
    return Cost(count_parameters(source), round(macs_per_pixel(source, recursions), 1), peak, size)


def kind_of(candidate: Candidate, given: Given) -> memory.Kind:
    """Say how another process opens a candidate."""
    if isinstance(candidate.source, zoo.Model):
        return "model"
    return "peer" if given.peer else "network"


def count_parameters(source: zoo.Model | RecursiveNet) -> int:
    """Count a candidate's weights.

    Args:
        source: A network; or an exported model, whose card says how many the network had. Without a card the
            numbers in its file are counted, with normalisation folded in and a few constants among them.
    """
    if isinstance(source, RecursiveNet):
        return sum(parameter.numel() for parameter in source.parameters())
    known = source.card.get("parameters")
    if isinstance(known, int):
        return known
    constants = onnx.load(source.path).graph.initializer
    return sum(math.prod(one.dims) for one in constants if one.data_type in _WEIGHTS)


def macs_per_pixel(source: zoo.Model | RecursiveNet, recursions: int) -> float:
    """Count the multiplications of convolutions and matrix products that a pixel costs.

    Args:
        source: An exported model, or a network.
        recursions: How many.
    """
    if isinstance(source, zoo.Model):
        return _count_onnx(source) * recursions
    side = math.lcm(_COUNTED_SIDE, source.multiple)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source(torch.zeros(1, 3, side, side), recursions)
    # The counter counts additions, too.
    return float(counter.get_total_flops()) / 2 / side**2


def _count_onnx(model: zoo.Model) -> float:
    """Count one recursion of an exported model by running it and looking at the sizes of what it computes."""
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


def parse_size(size: str) -> tuple[int, int]:
    """Return width and height of WIDTHxHEIGHT.

    Raises:
        UsageError: It is no size.
    """
    try:
        width, height = (int(part) for part in size.split("x"))
    except ValueError:
        width = height = 0
    if width < 1 or height < 1:
        raise UsageError(f"{size}: give a size as WIDTHxHEIGHT, for example 1280x720")
    return width, height
