"""ONNX models run by PyTorch, operator by operator: any processor that PyTorch knows, from an exported file.

Shapes are computed on the CPU, so that a GPU is never waited for. Only the operators that `unrain export`
writes are known.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from unrain.engine.interface import Planes
from unrain.engine.network import NetworkEngine, Port, Run
from unrain.errors import UnrainError
from unrain.lab.hardware import torch_device
from unrain.zoo import Model

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Tensor | None], Attributes], Tensor | tuple[Tensor, ...]]

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchGraph(torch.nn.Module):
    """A model's operators in order, with its weights as buffers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take a model.

        Args:
            model: With all its weights inside.

        Raises:
            UnrainError: It has an operator that is not known here.
        """
        super().__init__()
        self._constants: dict[str, Tensor] = {}
        self._buffer_names: dict[str, str] = {}
        for number, weights in enumerate(model.graph.initializer):
            # A copy: the file's own memory may not be written to.
            value = torch.from_numpy(np.array(onnx.numpy_helper.to_array(weights)))
            if value.is_floating_point():
                self._buffer_names[weights.name] = f"weights{number}"
                self.register_buffer(f"weights{number}", value.float())
            else:
                self._constants[weights.name] = value
        self._nodes = []
        for node in model.graph.node:
            if node.op_type not in OPERATORS or node.domain:
                raise UnrainError(
                    f"operator {node.op_type} is not known to PyTorch here: give another device"
                )
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            self._nodes.append((OPERATORS[node.op_type], list(node.input), list(node.output), attributes))
        self._last_use = {
            name: number for number, (_, inputs, _, _) in enumerate(self._nodes) for name in inputs
        }
        self._outputs = tuple(port.name for port in model.graph.output)

    def forward(self, feeds: dict[str, Tensor], stopped: threading.Event | None = None) -> tuple[Tensor, ...]:
        """Run the model, and return its outputs.

        Args:
            feeds: Its inputs by name.
            stopped: Ends the run early once it is set.

        Raises:
            RuntimeError: An operator fails, or the run was ended.
        """
        values = {**self._constants, **feeds}
        values |= {name: self.get_buffer(buffer) for name, buffer in self._buffer_names.items()}
        for number, (operator, inputs, outputs, attributes) in enumerate(self._nodes):
            if stopped is not None and stopped.is_set():
                raise RuntimeError("ended early")
            result = operator([values[name] if name else None for name in inputs], attributes)
            values.update(zip(outputs, result if isinstance(result, tuple) else (result,), strict=True))
            for name in inputs:
                # What nothing needs any more makes room.
                if self._last_use[name] == number and name not in self._outputs:
                    values.pop(name, None)
        return tuple(values[name] for name in self._outputs)


class TorchGraphEngine(NetworkEngine):
    """A network in an ONNX file, run by PyTorch; see `NetworkEngine`."""

    library = "PyTorch"

    def __init__(self, model: Model, threads: int = 0, *, device: str = "", precision: str = "auto") -> None:
        """Open the file, and try it on a small picture unless it came with the package.

        Args:
            model: Where the file is, and its card.
            threads: CPU threads, 0 for PyTorch's own choice.
            device: As PyTorch calls it: cpu, cuda:1, mps; empty for a GPU where there is one.
            precision: auto for fp16 on a GPU, else fp32.

        Raises:
            UsageError: PyTorch has no such device or `threads` is negative.
            UnrainError: The device is missing; the file is no ONNX model, not one of this kind, or does not
                work.
        """
        self._torch_device = torch_device(device)
        self.device = f"torch:{self._torch_device}"
        gpu = self._torch_device.type != "cpu"
        self.precision = ("fp16" if gpu else "fp32") if precision == "auto" else precision
        self._dtype = _PRECISIONS[self.precision]
        self._layout = torch.channels_last if gpu else torch.contiguous_format
        if threads > 0:
            torch.set_num_threads(threads)
        super().__init__(model, threads)

    def _open(self, data: bytes, threads: int) -> tuple[dict[str, Port], dict[str, Port]]:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
        self._graph = TorchGraph(model).to(self._torch_device).eval()
        return _ports(model.graph.input), _ports(model.graph.output)

    def _start(self, feeds: dict[str, Planes]) -> Run:
        stopped = threading.Event()
        kind = self._torch_device.type

        def work() -> tuple[Planes, ...]:
            with (
                torch.inference_mode(),
                torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32),
            ):
                given = {
                    name: torch.from_numpy(np.ascontiguousarray(planes))
                    .to(self._torch_device)
                    .contiguous(memory_format=self._layout)
                    for name, planes in feeds.items()
                }
                found = self._graph(given, stopped)
                return tuple(planes.float().cpu().contiguous().numpy() for planes in found)

        return Run(work, stopped.set)


def _ports(values: Sequence[onnx.ValueInfoProto]) -> dict[str, Port]:
    ports = {}
    for value in values:
        kind = value.type.tensor_type
        sizes = tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param for size in kind.shape.dim
        )
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        ports[value.name] = Port(name, kind.elem_type == onnx.TensorProto.FLOAT, sizes)
    return ports


def _numbers(tensor: Tensor | None) -> list[int]:
    assert tensor is not None
    return [int(number) for number in tensor.reshape(-1).tolist()]


def _window(attributes: Attributes) -> tuple[list[int], list[int], list[int]]:
    """Return kernel, stride and padding of a window that is padded alike on both sides."""
    size = len(attributes["kernel_shape"])
    pads = list(attributes.get("pads", [0] * 2 * size))
    if pads[:size] != pads[size:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnrainError("padding that differs from side to side: give another device")
    return list(attributes["kernel_shape"]), list(attributes.get("strides", [1] * size)), pads[:size]


def _cast(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    value: Tensor = inputs[0]
    # Half-precision weights are kept in single: that is what their casts are for.
    return value.to(torch.from_numpy(np.zeros(0, kind)).dtype)


def _conv(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    _, stride, padding = _window({"kernel_shape": list(inputs[1].shape[2:]), **attributes})
    bias = inputs[2] if len(inputs) > 2 else None
    dilation = list(attributes.get("dilations", [1] * len(stride)))
    return F.conv2d(inputs[0], inputs[1], bias, stride, padding, dilation, attributes.get("group", 1))


def _pool(inputs: Sequence[Any], attributes: Attributes, *, largest: bool) -> Tensor:
    kernel, stride, padding = _window(attributes)
    if largest:
        return F.max_pool2d(inputs[0], kernel, stride, padding)
    if any(padding):
        raise UnrainError("a padded mean: give another device")
    return F.avg_pool2d(inputs[0], kernel, stride)


def _depth_to_space(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    if attributes.get("mode", b"DCR") != b"CRD":
        raise UnrainError("DepthToSpace of mode DCR: give another device")
    return F.pixel_shuffle(inputs[0], attributes["blocksize"])


def _split(inputs: Sequence[Any], attributes: Attributes) -> tuple[Tensor, ...]:
    value, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1:
        return tuple(value.split(inputs[1].tolist(), axis))
    # ONNX: all parts but the last are equally large.
    return tuple(value.split(-(-value.shape[axis] // attributes["num_outputs"]), axis))


def _pad(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    value: Tensor = inputs[0]
    pads = _numbers(inputs[1])
    pairs = list(zip(pads[: value.ndim], pads[value.ndim :], strict=True))
    modes = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}
    mode = modes[attributes.get("mode", b"constant")]
    # PyTorch mirrors the last axes only, and only those that grow.
    while len(pairs) > 2 and pairs[0] == (0, 0):
        pairs.pop(0)
    return F.pad(value, [side for pair in reversed(pairs) for side in pair], mode)


def _resize(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    mode, grid = (
        attributes.get("mode", b"nearest"),
        attributes.get("coordinate_transformation_mode", b"half_pixel"),
    )
    scales = [float(scale) for scale in inputs[2].tolist()]
    rounding = attributes.get("nearest_mode", b"round_prefer_floor")
    # At whole factors the two are the same.
    usual = {(b"asymmetric", b"floor"), (b"half_pixel", b"round_prefer_floor")}
    if mode == b"nearest" and (grid, rounding) in usual and all(scale.is_integer() for scale in scales):
        return F.interpolate(inputs[0], scale_factor=scales[2:], mode="nearest")
    if (mode, grid) == (b"linear", b"half_pixel"):
        return F.interpolate(inputs[0], scale_factor=scales[2:], mode="bilinear", align_corners=False)
    raise UnrainError("a way of resizing that is not known: give another device")


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    value: Tensor = inputs[0]
    sizes = _numbers(inputs[1])
    if not attributes.get("allowzero", 0):
        sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return value.reshape(sizes)


def _shape(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    sizes = list(inputs[0].shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))])


def _slice(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    value: Tensor = inputs[0]
    starts, ends = _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 else list(range(len(starts)))
    steps = _numbers(inputs[4]) if len(inputs) > 4 else [1] * len(starts)
    part = [slice(None)] * value.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        part[axis] = slice(start, end, step)
    return value[tuple(part)]


def _squeeze(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    value: Tensor = inputs[0]
    return value.squeeze() if len(inputs) < 2 else value.squeeze(tuple(_numbers(inputs[1])))


def _unsqueeze(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    value: Tensor = inputs[0]
    for axis in sorted(_numbers(inputs[1])):
        value = value.unsqueeze(axis)
    return value


def _clip(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    low, high = (inputs[place] if len(inputs) > place else None for place in (1, 2))
    return torch.clamp(inputs[0], low, high)


def _reduce(inputs: Sequence[Any], attributes: Attributes, reduce: Callable[..., Tensor]) -> Tensor:
    axes = tuple(_numbers(inputs[1])) if len(inputs) > 1 else tuple(range(inputs[0].ndim))
    return reduce(inputs[0], axes, keepdim=bool(attributes.get("keepdims", 1)))


def _each(change: Callable[..., Tensor]) -> Operator:
    return lambda inputs, attributes: change(*inputs)


def _gemm(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    if attributes:
        raise UnrainError(f"Gemm with {', '.join(attributes)} is not known to PyTorch here")
    matrix, other, added = inputs
    return torch.addmm(added, matrix, other)


OPERATORS: dict[str, Operator] = {
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "And": _each(torch.logical_and),
    "AveragePool": lambda inputs, attributes: _pool(inputs, attributes, largest=False),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(
        [one for one in inputs if one is not None], attributes["axis"]
    ),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Div": _each(lambda one, other: torch.div(one, other) if one.is_floating_point() else one // other),
    "Flatten": lambda inputs, attributes: _first(inputs).flatten(attributes.get("axis", 1)),
    "Gather": lambda inputs, attributes: _gather(inputs, attributes.get("axis", 0)),
    "Gemm": _gemm,
    "GlobalAveragePool": _each(lambda features: features.mean((2, 3), keepdim=True)),
    "GreaterOrEqual": _each(torch.ge),
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(_first(inputs), attributes.get("alpha", 0.01)),
    "Less": _each(torch.lt),
    "MatMul": _each(torch.matmul),
    "Max": _each(torch.maximum),
    "MaxPool": lambda inputs, attributes: _pool(inputs, attributes, largest=True),
    "Min": _each(torch.minimum),
    "Mul": _each(torch.mul),
    "PRelu": _each(lambda value, slope: torch.where(value < 0, value * slope, value)),
    "Pad": _pad,
    "Pow": _each(torch.pow),
    "Range": _each(lambda start, end, step: torch.arange(start.item(), end.item(), step.item())),
    "Reciprocal": _each(torch.reciprocal),
    "ReduceMax": lambda inputs, attributes: _reduce(inputs, attributes, torch.amax),
    "ReduceSum": lambda inputs, attributes: _reduce(inputs, attributes, torch.sum),
    "Relu": _each(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _each(torch.sigmoid),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(torch.sub),
    "Transpose": lambda inputs, attributes: _first(inputs).permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
"""What each operator does; sizes and axes are tensors on the CPU."""


def _first(inputs: Sequence[Tensor | None]) -> Tensor:
    assert inputs[0] is not None
    return inputs[0]


def _gather(inputs: Sequence[Any], axis: int) -> Tensor:
    value, index = inputs
    # Those below zero count from the end.
    places = index.reshape(-1).to(value.device) % value.shape[axis]
    taken = torch.index_select(value, axis, places)
    shape = (*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])
    return taken.reshape(shape)
