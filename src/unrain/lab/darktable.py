"""A model as a package for darktable 5.6 or newer: `<id>/model.onnx` and `<id>/config.json` in a zip.

darktable's module "neural restore" runs such a model on tiles of fixed size that overlap, mirrored at the
edges of the picture: one float input, 1 x 3 x H x W in sRGB, and one output of the same shape. All recursions
are written out, and the result is clipped. The network sees the picture at full size only: its search at
smaller sizes is the Derainer's, not the network's.

The format: https://github.com/darktable-org/darktable-ai, of which the model.yaml of a package becomes its
config.json.
"""

import io
import json
import re
import zipfile
from pathlib import Path, PurePath

import onnx
from onnx import TensorProto, helper

from unrain import files, zoo
from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.errors import UnrainError, UsageError
from unrain.version import __version__

SUFFIX = ".dtmodel"
TILE = 768
"""Side of darktable's tiles, in pixels: what the models that come with it use."""
OVERLAP = 64
"""Pixels by which darktable's tiles reach beyond what is kept of them, on every side."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]*")
# So that the same model gives the same bytes: the earliest time that a zip can hold.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_package(model: zoo.Model, target: Path) -> Path:
    """Write a model as a package for darktable.

    Args:
        model: The model; all its own recursions are written out.
        target: NAME.dtmodel, where NAME becomes the model's identifier: small letters, digits, hyphens.

    Returns:
        The written file.

    Raises:
        UsageError: The name does not fit.
        UnrainError: The model cannot be read, or the file cannot be written.
    """
    if target.suffix != SUFFIX or _ID.fullmatch(target.stem) is None:
        raise UsageError(
            f"{target}: give a name of small letters, digits and hyphens that ends in {SUFFIX}, such as "
            f"denoise-unrain{SUFFIX}"
        )
    engine = OnnxRuntimeEngine(model)
    if TILE % engine.multiple:
        raise UnrainError(f"{model.path}: takes multiples of {engine.multiple} pixels, which {TILE} is not")
    network = tile_network(onnx.load(model.path), engine.recursions if engine.recursive else 1)
    contents = {
        "config.json": json.dumps(_config(model, target.stem), indent=4, ensure_ascii=False).encode() + b"\n",
        "model.onnx": network.SerializeToString(deterministic=True),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(str(PurePath(target.stem) / name), _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    files.write(buffer.getvalue(), target)
    return target


def tile_network(network: onnx.ModelProto, recursions: int) -> onnx.ModelProto:
    """Make a network of one input and one output of fixed size from one recursion.

    Args:
        network: As `unrain export` writes it: inputs `rainy` and perhaps `estimate`, output `derained`.
        recursions: How many are written out, one after the other.

    Returns:
        `input` and `output`, float, 1 x 3 x `TILE` x `TILE`; the output is in [0, 1].
    """
    graph = network.graph
    shared = {weights.name for weights in graph.initializer} | {"", "rainy"}
    nodes = []
    estimate = "rainy"
    for number in range(recursions):
        # Weights and the picture are the same in every recursion, all else has a name of its own.
        names = {name: name for name in shared} | {"rainy": "input", "estimate": _renamed(estimate)}
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}.{number}" if node.name else ""
            copy.input[:] = [names.get(name, f"{name}.{number}") for name in node.input]
            copy.output[:] = [names.get(name, f"{name}.{number}") for name in node.output]
            nodes.append(copy)
        estimate = f"derained.{number}"
    bounds = [helper.make_tensor(f"bound.{one}", TensorProto.FLOAT, [], [one]) for one in (0.0, 1.0)]
    nodes.append(helper.make_node("Clip", [estimate, *(bound.name for bound in bounds)], ["output"]))
    shape = [1, 3, TILE, TILE]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    made = helper.make_graph(nodes, "unrain", ports[:1], ports[1:], [*graph.initializer, *bounds])
    result = helper.make_model(
        made, opset_imports=network.opset_import, ir_version=network.ir_version, producer_name="unrain"
    )
    onnx.checker.check_model(result, full_check=True)
    return result


def _renamed(estimate: str) -> str:
    return "input" if estimate == "rainy" else estimate


def _config(model: zoo.Model, name: str) -> dict[str, object]:
    """Return the manifest, whose `model_card` darktable shows."""
    card = model.card
    return {
        "id": name,
        "name": f"unrain {model.name}",
        "description": f"Rain removal in place of denoising: {card.get('summary', model.name)}",
        # darktable knows a few tasks; this is the one that takes a whole picture to a whole picture.
        "task": "denoise",
        "arch": str(card.get("network", "generic")),
        "backend": "onnx",
        "version": __version__,
        "tiling": True,
        "model_card": {
            "long_description": "Takes rain out of photographs. Works at the size of the export: rain that "
            "is many pixels wide is found in pictures that are made smaller first.",
            "scope": "single-image rain removal",
            "author": "unrain",
            "license": str(card.get("licence", "see the model's author")),
            "training_data": "; ".join(card.get("training_data", [])),
        },
        "attributes": {"input_sizes": [TILE]},
    }
