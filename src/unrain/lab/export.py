"""Checkpoint to ONNX: one recursion of a network with free batch, height and width, checked against PyTorch.

The file holds one recursion with the inputs `rainy` and `estimate`, so that the number of recursions T is
chosen at run time; or, with a fixed T, all recursions behind the single input `rainy`. BatchNorm is folded
into the convolutions. What an engine needs to know (multiple, halo, recursions, recursive, levels) is in the
file's metadata entry `unrain` and in the JSON card beside it. Weights are stored in half precision where the
results stay within `PARITY`, which is nearly always.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.errors import UnrainError, UsageError
from unrain.files import write, writing_error
from unrain.lab.checkpoint import average, load_checkpoint, save_checkpoint, with_arguments
from unrain.lab.nets.layers import RecursiveNet, pad_to_multiple
from unrain.zoo import Model

OPSET = 18
PARITY = 1e-3
SMALLEST_HALVED = 64
HALO_LEVEL = 0.25 / 255

_PROBE_SIDE = 512
_PROBE_CUT = 192
_PARITY_SIZES = ((2, 33, 47), (1, 101, 70), (1, 1, 5))


class _OneRecursion(nn.Module):
    """x_t = step(O, x_{t-1})."""

    def __init__(self, net: RecursiveNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        return self.net.step(rainy, estimate)


class _Unrolled(nn.Module):
    """x_T from O: all recursions in a row."""

    def __init__(self, net: RecursiveNet, recursions: int) -> None:
        super().__init__()
        self.net = net
        self.recursions = recursions

    def forward(self, rainy: Tensor) -> Tensor:
        estimate = rainy
        for _ in range(self.recursions):
            estimate = self.net.step(rainy, estimate)
        return estimate


def measure_halo(net: RecursiveNet, recursions: int | None = None) -> int:
    """Measure how much context a tile needs.

    The network is run on three pictures (white noise, random blocks of many sizes, a smooth scene with
    streaks), whole and with the top left or bottom right cut off. The halo is the smallest distance from the
    cut, in multiples of `net.multiple`, beyond which no value differs by 0.25/255 or more in any recursion,
    plus one multiple as a margin. Each recursion is measured on its own, from the exact estimate of the one
    before, since recursions are tiled one after the other.

    Args:
        net: The network in evaluation mode.
        recursions: Measure that many recursions unrolled into one network instead.

    Returns:
        Context in pixels on every side, a multiple of `net.multiple`.

    Raises:
        UnrainError: The receptive field exceeds what can be measured, 320 pixels.
    """
    multiple = net.multiple
    side, cut = (size // multiple * multiple for size in (_PROBE_SIDE, _PROBE_CUT))
    rainy = _probes(side)
    single = _OneRecursion(net) if recursions is None else None
    unrolled = _Unrolled(net, recursions or 1)
    halo = 0
    estimate = rainy
    with torch.inference_mode():
        for _ in range(net.recursions if single else 1):
            whole = single(rainy, estimate) if single else unrolled(rainy)
            for corner in (slice(cut, side), slice(0, side - cut)):
                cropped = [image[..., corner, corner] for image in (rainy, estimate)]
                part = single(*cropped) if single else unrolled(cropped[0])
                off = (part - whole[..., corner, corner]).abs().amax(dim=(0, 1)) >= HALO_LEVEL
                # Distance from the cut that made the difference, counted from the crop's own corner.
                rows, columns = torch.nonzero(off if corner.start else off.flip(0, 1), as_tuple=True)
                if len(rows):
                    reach = int(torch.minimum(rows, columns).max()) + 1
                    halo = max(halo, -(-reach // multiple) * multiple)
            estimate = whole
    if halo + multiple > side - cut:
        raise UnrainError(f"the network sees farther than {side - cut} pixels: it cannot be tiled")
    return halo + multiple


def _probes(side: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(3, side, side, generator=random)
    blocks = torch.zeros(3, side, side)
    for size in (1, 2, 4, 8, 16, 32, 64):
        cells = -(-side // size)
        coarse = torch.rand(3, cells, cells, generator=random).round()
        fine = coarse.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :side, :side]
        blocks = torch.where(torch.rand(side, side, generator=random) < 0.3, fine, blocks)
    waves = torch.rand(1, 3, 9, 9, generator=random)
    scene = nn.functional.interpolate(waves, (side, side), mode="bicubic", align_corners=False)[0] * 0.7
    drops = (torch.rand(1, 1, side, side, generator=random) > 0.997).float()
    streaks = nn.functional.conv2d(drops, torch.ones(1, 1, 21, 1), padding=(10, 0))[0]
    return torch.stack([noise, blocks, (scene + 0.4 * streaks).clamp(0, 1)])


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    recursions: int | None = None,
    default: int | None = None,
    card: dict[str, Any] | None = None,
    others: Sequence[Path] = (),
    shares: Sequence[float] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint as an ONNX file with its card beside it, both complete or not at all.

    Args:
        checkpoint: `weights.safetensors` or a Lightning .ckpt, see `load_checkpoint`.
        out: Where the .onnx file goes; the card goes to the same name with .json. A name that ends in
            .safetensors stores the weights in half precision to train on from.
        recursions: Fix T and write all recursions into the file; None writes one, T is chosen at run time.
        default: Default number of recursions at run time; the network's own number when None.
        card: Entries that are added to the card, or replace those that training wrote.
        others: More checkpoints of the same network; the mean of all weights is written.
        shares: Of the mean, for each checkpoint in their order; equal when empty.
        arguments: Arguments of the network that have no weights, such as RDMC-lite's threshold; those of the
            checkpoint otherwise.

    Returns:
        The written file.

    Raises:
        UnrainError: A checkpoint cannot be read, the networks differ, the shares or arguments do not fit, the
            file cannot be written, or ONNX Runtime's results differ from PyTorch's by 1e-3 or more.
    """
    if out.suffix not in (".onnx", ".safetensors"):
        raise UsageError(f"{out}: give a name that ends in .onnx, or in .safetensors")
    if any(count is not None and count < 1 for count in (recursions, default)):
        raise UsageError(f"recursions is {recursions}, by default {default}: give 1 or more")
    parts = [load_checkpoint(one) for one in (checkpoint, *others)]
    try:
        if arguments:
            parts = [with_arguments(one, arguments) for one in parts]
        loaded = average(parts, shares) if others or shares else parts[0]
    except ValueError as error:
        raise UnrainError(f"{', '.join(map(str, (checkpoint, *others)))}: {error}") from error
    if out.suffix == ".safetensors":
        if recursions is not None or default is not None:
            raise UsageError(f"{out}: the number of recursions is for ONNX files, leave it out")
        save_checkpoint(out, loaded, half=True)
        return out
    net = loaded.net
    if not net.recursive and (recursions or 1) > 1:
        raise UsageError(f"{checkpoint}: {loaded.network} is not recursive: leave recursions out")
    # A network that is not recursive is one step.
    unrolled = recursions if net.recursive else 1
    contract = {
        "multiple": net.multiple,
        "halo": measure_halo(net, unrolled),
        "recursions": (default or net.recursions) if unrolled is None else 1,
        "recursive": unrolled is None,
        # Recursions in a row hide the estimate that a finer octave would start from.
        "levels": loaded.card.get("levels", 1) if unrolled is None else 1,
    }
    network = _to_onnx(net, unrolled)
    onnx.helper.set_model_props(network, {"unrain": json.dumps(contract)})
    own = {
        "name": out.stem,
        "network": loaded.network,
        "arguments": loaded.arguments,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        **({"unrolled": recursions} if recursions and net.recursive else {}),
    }
    written = {**own, **loaded.card, **(card or {}), **contract}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            draft = Path(folder) / out.name
            content = b""
            for precision in ("single", "half"):
                if precision == "half":
                    store_half(network)
                draft.write_bytes(network.SerializeToString(deterministic=True))
                try:
                    off = _difference(net, draft, unrolled)
                except UnrainError:
                    # Weights too large for half precision give no finite picture.
                    if precision == "single":
                        raise
                    continue
                if off < PARITY:
                    content, written["weights_stored"] = draft.read_bytes(), precision
                elif precision == "single":
                    raise UnrainError(
                        f"{out.name}: differs from PyTorch by {off:.2g}, {PARITY} is allowed; "
                        "nothing was written"
                    )
            described = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
            write(described.encode(), out.with_suffix(".json"))
            write(content, out)
    except OSError as error:
        raise writing_error(error, out) from error
    return out


def _to_onnx(net: RecursiveNet, recursions: int | None) -> onnx.ModelProto:
    # Two tensors of their own: given the same one twice, the exporter would merge both inputs.
    shape = (2, 3, 4 * net.multiple, 6 * net.multiple)
    rainy, estimate = torch.rand(shape), torch.rand(shape)
    batch, rows, columns = (torch.export.Dim(dim, min=1) for dim in ("batch", "rows", "columns"))
    free = {0: batch, 2: net.multiple * rows, 3: net.multiple * columns}
    single = recursions is None
    with _quiet():
        program = torch.onnx.export(
            _OneRecursion(net) if single else _Unrolled(net, recursions or 1),
            (rainy, estimate) if single else (rainy,),
            input_names=["rainy", "estimate"] if single else ["rainy"],
            output_names=["derained"],
            dynamic_shapes=(free, free) if single else (free,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    network = program.model_proto
    for part in (network.graph, *network.graph.node, *network.graph.input, *network.graph.output):
        # The exporter notes where in whose folders each line of code was.
        del part.metadata_props[:]
        part.doc_string = ""
    del network.graph.value_info[:]
    left = {node.op_type for node in network.graph.node} & {"BatchNormalization"}
    if left or network.functions:
        raise UnrainError("the network still has BatchNorm after folding: put it right behind a convolution")
    onnx.checker.check_model(network)
    return network


def store_half(network: onnx.ModelProto) -> None:
    """Store an ONNX file's weights in half precision, in place, and cast them to single when it is loaded.

    ONNX Runtime folds the casts away: the file has half the size, and running it costs what it did.
    """
    casts = []
    for weights in network.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        # Scalars and shapes, epsilons among them, cost nothing and may be out of half's range.
        if values.dtype == np.float32 and values.size >= SMALLEST_HALVED:
            name = weights.name
            with np.errstate(over="ignore"):
                halved = values.astype(np.float16)
            weights.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *network.graph.node]
    del network.graph.node[:]
    network.graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's remarks about torchvision and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(net: RecursiveNet, path: Path, recursions: int | None) -> float:
    """Return the largest difference of an exported network's results, in [0, 1], from PyTorch's."""
    engine = OnnxRuntimeEngine(Model(path.stem, path, {}), threads=torch.get_num_threads())
    random = torch.Generator().manual_seed(1)
    largest = 0.0
    for batch, height, width in _PARITY_SIZES:
        rainy = torch.rand(batch, 3, height, width, generator=random)
        count = recursions or net.recursions
        with torch.inference_mode():
            expected = net(rainy, count if net.recursive else None)[-1].numpy()
        padded = pad_to_multiple(rainy, net.multiple).numpy()
        estimate = padded
        for _ in range(count if engine.recursive else 1):
            estimate = engine.step(padded, estimate)
        off = np.abs(estimate[..., :height, :width] - expected).max()
        largest = float(np.maximum(largest, off))  # keeps what is not a number
    return largest
