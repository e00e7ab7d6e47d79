"""Exported models in PyTorch give what ONNX Runtime gives."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from unrain import zoo
from unrain.devices import Processor
from unrain.engine import open_engine
from unrain.errors import UnrainError, UsageError
from unrain.lab.torch_graph import TorchGraph, TorchGraphEngine

MODELS = [pytest.param(model, id=model.name) for model in zoo.models()]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_zoo_gives_the_same(model):
    cpu = open_engine(model, Processor("cpu", threads=1))
    torch_engine = open_engine(model, Processor("torch:cpu"))
    assert (torch_engine.device, torch_engine.precision) == ("torch:cpu", "fp32")
    rainy, estimate = np.random.default_rng(0).random((2, 1, 3, 64, 96), np.float32)
    expected = cpu.step(rainy, estimate)
    np.testing.assert_allclose(torch_engine.step(rainy, estimate), expected, atol=2e-5)
    half = open_engine(model, Processor("torch:cpu", "bf16")).step(rainy, estimate)
    assert 0 < np.abs(half - expected).max() < 0.05


def test_the_hand_made_network(tiny_model):
    rainy = np.random.default_rng(0).random((1, 3, 24, 32), np.float32)
    one, other = (open_engine(zoo.find(tiny_model), Processor(name)) for name in ("cpu", "torch:cpu"))
    np.testing.assert_allclose(other.step(rainy, rainy), one.step(rainy, rainy), atol=1e-5)


def one_operator(name, inputs, attributes, shapes):
    node = helper.make_node(name, [f"i{i}" for i in range(len(inputs))], ["out"], **attributes)
    ports = [
        helper.make_tensor_value_info(f"i{i}", helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for i, value in enumerate(inputs)
    ]
    out = helper.make_tensor_value_info("out", shapes, None)
    graph = helper.make_graph([node], "g", ports, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


random = np.random.default_rng(0)
PICTURE = random.random((2, 4, 6, 8), np.float32) - np.float32(0.5)
INT = onnx.TensorProto.INT64
FLOAT = onnx.TensorProto.FLOAT
CASES = [
    ("Gather", [np.arange(5), np.array([-1, 2])], {"axis": 0}, INT),
    ("Gather", [PICTURE, np.array([[0, 1], [3, -2]])], {"axis": 1}, FLOAT),
    ("Slice", [PICTURE, np.array([1]), np.array([-1]), np.array([2]), np.array([2])], {}, FLOAT),
    ("Pad", [PICTURE, np.array([0, 0, 1, 2, 0, 0, 2, 1])], {"mode": "reflect"}, FLOAT),
    ("Pad", [PICTURE, np.array([0, 0, 1, 2, 0, 0, 2, 1])], {"mode": "edge"}, FLOAT),
    ("Pad", [PICTURE, np.array([0, 1, 1, 2, 0, 0, 2, 1])], {}, FLOAT),
    ("Shape", [PICTURE], {"start": 1, "end": 3}, INT),
    ("Shape", [PICTURE], {"start": -3}, INT),
    ("Reshape", [PICTURE, np.array([0, -1, 8])], {}, FLOAT),
    ("Squeeze", [PICTURE[:1, :1], np.array([0, 1])], {}, FLOAT),
    ("Unsqueeze", [PICTURE, np.array([0, 2])], {}, FLOAT),
    ("ReduceSum", [PICTURE, np.array([1, 3])], {"keepdims": 0}, FLOAT),
    ("ReduceMax", [PICTURE, np.array([2])], {"keepdims": 1}, FLOAT),
    ("PRelu", [PICTURE, random.random((4, 1, 1), np.float32)], {}, FLOAT),
    ("LeakyRelu", [PICTURE], {"alpha": 0.3}, FLOAT),
    ("Clip", [PICTURE, np.array(-0.1, np.float32), np.array(0.2, np.float32)], {}, FLOAT),
    ("Div", [np.array([7, 9]), np.array([2, 2])], {}, INT),
    ("DepthToSpace", [PICTURE], {"blocksize": 2, "mode": "CRD"}, FLOAT),
    ("MaxPool", [PICTURE], {"kernel_shape": [2, 2], "strides": [2, 2]}, FLOAT),
    ("AveragePool", [PICTURE], {"kernel_shape": [2, 2], "strides": [2, 2]}, FLOAT),
    ("GlobalAveragePool", [PICTURE], {}, FLOAT),
    ("Flatten", [PICTURE], {}, FLOAT),
    ("Gemm", [PICTURE[0, 0], PICTURE[0, 1].T, PICTURE[0, 2, 0, :6]], {}, FLOAT),
    ("Transpose", [PICTURE], {"perm": [0, 2, 3, 1]}, FLOAT),
    ("Cast", [np.array([1.7, -2.2], np.float32)], {"to": INT}, INT),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}, INT),
]


@pytest.mark.parametrize(
    "name, inputs, attributes, kind", CASES, ids=lambda one: one if isinstance(one, str) else ""
)
def test_each_operator_is_that_of_the_reference(name, inputs, attributes, kind):
    from onnx.reference import ReferenceEvaluator

    model = one_operator(name, inputs, attributes, kind)
    feeds = {f"i{i}": value for i, value in enumerate(inputs)}
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    (found,) = TorchGraph(model)({key: torch.from_numpy(np.array(value)) for key, value in feeds.items()})
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("sizes", "attributes"), [([], {"num_outputs": 3}), ([[5, 1, 2]], {})])
def test_parts_are_those_of_the_reference(sizes, attributes):
    from onnx.reference import ReferenceEvaluator

    inputs = [PICTURE, *map(np.array, sizes)]
    model = one_operator("Split", inputs, {"axis": 3, **attributes}, FLOAT)
    names = ["out", "second", "third"]
    model.graph.node[0].output[:] = names
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names[1:])
    feeds = {f"i{i}": value for i, value in enumerate(inputs)}
    found = TorchGraph(model)({key: torch.from_numpy(value) for key, value in feeds.items()})
    for one, expected in zip(found, ReferenceEvaluator(model).run(None, feeds), strict=True):
        np.testing.assert_array_equal(one.numpy(), expected)


def test_resizing_is_that_of_the_reference():
    from onnx.reference import ReferenceEvaluator

    ways = [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ]
    for way in ways:
        model = one_operator("Resize", [PICTURE, PICTURE, PICTURE], way, FLOAT)
        model.graph.node[0].input[1] = ""
        del model.graph.input[1:]
        scales = helper.make_tensor("i2", FLOAT, [4], [1.0, 1.0, 2.0, 2.0])
        model.graph.initializer.append(scales)
        (expected,) = ReferenceEvaluator(model).run(None, {"i0": PICTURE})
        (found,) = TorchGraph(model)({"i0": torch.from_numpy(PICTURE), "i2": torch.tensor([1.0, 1, 2, 2])})
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, attributes, words",
    [
        ("Conv", {"pads": [1, 0, 0, 0]}, "differs from side to side"),
        ("DepthToSpace", {"blocksize": 2}, "mode DCR"),
        ("Softmax", {}, "operator Softmax is not known"),
        ("Gemm", {"transB": 1}, "Gemm with transB"),
    ],
)
def test_what_is_not_known_is_said(name, attributes, words):
    inputs = [PICTURE, np.zeros((1, 4, 1, 1), np.float32)] if name == "Conv" else [PICTURE]
    with pytest.raises(UnrainError, match=words):
        TorchGraph(one_operator(name, inputs, attributes, FLOAT))(
            {f"i{i}": torch.from_numpy(value) for i, value in enumerate(inputs)}
        )


def test_a_run_that_is_stopped_ends(tiny_model):
    engine = open_engine(zoo.find(tiny_model), Processor("torch:cpu"))
    rainy = np.zeros((1, 3, 16, 16), np.float32)
    run = engine._start({name: rainy for name in ("rainy", "estimate")})
    run.stop()
    with pytest.raises(RuntimeError, match="ended early"):
        run.work()


@pytest.mark.parametrize("text, kind", [("gpu", UsageError), ("cuda:7", UnrainError), ("mps", UnrainError)])
def test_no_such_device(tiny_model, text, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(kind, match=f"torch:{text}: .*torch:cpu"):
        TorchGraphEngine(zoo.find(tiny_model), device=text)
