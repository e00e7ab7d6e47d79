"""Models keep their weights inside: every place where an ONNX file can name another file is looked at."""

import onnx
import pytest
from onnx import TensorProto, helper

from toys import tiny_network
from unrain import zoo
from unrain.derainer import Derainer
from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.errors import UnrainError
from unrain.onnx_file import has_loops, input_names, metadata


def outside(name="secret"):
    """A tensor whose values are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return tensor


def only_the_name(name="secret"):
    """The same, without a word on where its values are: some readers look for the name alone."""
    tensor = outside(name)
    tensor.ClearField("data_location")
    return tensor


def inside(name="fine"):
    return helper.make_tensor(name, TensorProto.FLOAT, [1], [0.5])


def in_a_graph(tensor):
    return helper.make_graph([], "inner", [], [], [tensor])


def in_a_branch(network, tensor):
    node = network.graph.node.add(op_type="If")
    node.attribute.append(helper.make_attribute("then_branch", in_a_graph(tensor)))


def in_a_list_of_graphs(network, tensor):
    attribute = network.graph.node[0].attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(in_a_graph(tensor))


def in_a_list_of_tensors(network, tensor):
    network.graph.node[0].attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(
        tensor
    )


def in_a_function(network, tensor):
    function = network.functions.add(name="f", domain="own")
    function.node.add(op_type="Constant").attribute.append(helper.make_attribute("value", tensor))


def as_a_functions_default(network, tensor):
    network.functions.add(name="f").attribute_proto.append(helper.make_attribute("value", tensor))


def in_a_sparse_list(network, tensor):
    attribute = network.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add().values.CopyFrom(tensor)


PLACES = {
    "initializer": lambda network, tensor: network.graph.initializer.append(tensor),
    "sparse initializer": lambda network, tensor: network.graph.sparse_initializer.add().values.CopyFrom(
        tensor
    ),
    "sparse indices": lambda network, tensor: network.graph.sparse_initializer.add().indices.CopyFrom(tensor),
    "attribute": lambda network, tensor: network.graph.node[0].attribute.append(
        helper.make_attribute("value", tensor)
    ),
    "attribute's list": in_a_list_of_tensors,
    "sparse list": in_a_sparse_list,
    "branch": in_a_branch,
    "list of graphs": in_a_list_of_graphs,
    "function": in_a_function,
    "function's default": as_a_functions_default,
    "training": lambda network, tensor: network.training_info.add().algorithm.initializer.append(tensor),
}


@pytest.mark.parametrize("tensor", [outside, only_the_name])
@pytest.mark.parametrize("place", PLACES)
def test_other_files_are_found_wherever_they_are_named(place, tensor):
    network = tiny_network()
    PLACES[place](network, inside())
    has_loops(network.SerializeToString())
    PLACES[place](network, tensor())
    with pytest.raises(ValueError, match="its weights are in another file"):
        has_loops(network.SerializeToString())


def test_the_engine_refuses_them_in_one_line(tmp_path):
    network = tiny_network()
    PLACES["initializer"](network, outside())
    (tmp_path / "spy.onnx").write_bytes(network.SerializeToString())
    with pytest.raises(UnrainError, match=r"spy\.onnx: not a model .* \(its weights are in another file\)"):
        Derainer(tmp_path / "spy.onnx")


def test_loops_are_told():
    network = tiny_network()
    assert not has_loops(network.SerializeToString())
    network.graph.node.add(op_type="If").attribute.append(
        helper.make_attribute(
            "then_branch", helper.make_graph([helper.make_node("Loop", [], [])], "g", [], [])
        )
    )
    assert has_loops(network.SerializeToString())


@pytest.mark.parametrize("model", zoo.models(), ids=lambda model: model.name)
def test_what_ships_passes(model):
    assert not has_loops(model.path.read_bytes())
    assert not OnnxRuntimeEngine(model).loops


def number(value):
    """A varint."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + number(rest) if rest else bytes([low])


def test_nesting_ends():
    data = b""
    for _ in range(60):
        # An attribute of a node of a graph of an attribute.
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + number(len(data)) + data
    with pytest.raises(ValueError, match="nested too deeply"):
        has_loops(b"\x3a" + number(len(data)) + data)


def test_the_number_of_parts_is_bounded(monkeypatch):
    monkeypatch.setattr("unrain.onnx_file._MOST_FIELDS", 1000)
    with pytest.raises(ValueError, match="more parts than any network has"):
        has_loops(b"\x08\x01" * 1001)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\x05abc",  # longer than the file
        b"\x3a",  # no length
        b"\x0b\x0c",  # a group
        b"\x00\x00",  # field 0
        b"\x3a" + b"\xff" * 11,  # a length without end
        b"\x39\x00",  # eight bytes of which one is there
    ],
)
def test_damaged_files_are_refused(data):
    with pytest.raises(ValueError, match="no ONNX file"):
        has_loops(data)


def test_names_and_metadata_are_those_that_the_library_reads():
    network = tiny_network()
    network.graph.input.add(name="weights").type.tensor_type.elem_type = TensorProto.FLOAT
    network.graph.initializer.append(inside("weights"))
    helper.set_model_props(network, {"unrain": "{}", "Größe": "1"})
    data = network.SerializeToString()
    assert input_names(data) == ["rainy", "estimate"]
    assert metadata(data) == {"unrain": "{}", "Größe": "1"}
    assert metadata(tiny_network().SerializeToString()).keys() <= {"unrain"}
