"""Turn a model of unrain into an ONNX file with one input: `python make.py rdmc-lite -o one.onnx`.

Programs that run picture networks, such as chaiNNer, feed one picture, N x 3 x H x W RGB in [0, 1], and take
one back. unrain's files have a second input, the estimate of the recursion before.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from unrain import UnrainError, UsageError, files, zoo

INPUT, OUTPUT = "input", "output"


def one_input(network: onnx.ModelProto, recursions: int) -> onnx.ModelProto:
    """Write the recursions of a network in a row, and clip the result to [0, 1].

    Args:
        network: An ONNX file of unrain, with the inputs `rainy` and perhaps `estimate`.
        recursions: How many.

    Returns:
        Another one; weights are shared by the recursions.

    Raises:
        UsageError: The network is not recursive, and more than one recursion is asked for.
        UnrainError: It is no network of this kind.
    """
    graph = network.graph
    inputs = [port.name for port in graph.input]
    if inputs not in (["rainy", "estimate"], ["rainy"]) or [port.name for port in graph.output] != [
        "derained"
    ]:
        raise UnrainError("not a model of unrain: give one that unrain models lists")
    if inputs == ["rainy"] and recursions > 1:
        raise UsageError("the network is not recursive: leave --recursions out")
    if any(
        attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute
    ):
        raise UnrainError("the network has branches or loops, which cannot be written in a row")
    nodes, estimate = [], INPUT
    for number in range(1, recursions + 1):
        names = {"rainy": INPUT, "estimate": estimate}
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                copy.input[position] = names.get(name, name)
            for position, name in enumerate(node.output):
                if name:
                    names[name] = copy.output[position] = f"{name}/{number}"
            copy.name = f"{node.name}/{number}" if node.name else ""
            nodes.append(copy)
        estimate = names["derained"]
    nodes.append(helper.make_node("Clip", [estimate, "clip/low", "clip/high"], [OUTPUT]))
    limits = [
        numpy_helper.from_array(np.float32(limit), f"clip/{name}")
        for name, limit in (("low", 0), ("high", 1))
    ]
    shape = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [shape[0], 3, "height", "width"])
        for name in (INPUT, OUTPUT)
    ]
    made = helper.make_model(
        helper.make_graph(nodes, graph.name, ports[:1], ports[1:], [*graph.initializer, *limits]),
        opset_imports=network.opset_import,
        ir_version=network.ir_version,
    )
    onnx.checker.check_model(made)
    return made


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name that unrain models lists, or an ONNX file of unrain export")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the ONNX file to write")
    parser.add_argument("--recursions", type=int, help="the model's own number by default")
    options = parser.parse_args()
    try:
        model = zoo.find(options.model)
        network = onnx.load(model.path)
        own = model.card.get("recursions", 1) if len(network.graph.input) > 1 else 1
        made = one_input(network, options.recursions or own)
        files.write(made.SerializeToString(deterministic=True), options.output, overwrite=False)
    except UnrainError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    multiple = model.card.get("multiple", 1)
    print(f"{options.output}: RGB in [0, 1], height and width multiples of {multiple}")  # noqa: T201


if __name__ == "__main__":
    main()
