"""Toys that several tests share: pictures, and a hand-made network that runs in a millisecond."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CONTRACT = {"multiple": 8, "halo": 8, "recursions": 2, "recursive": True}


def tiny_network(seed: int = 0) -> onnx.ModelProto:
    """derained = rainy - 0.3 (conv7x7(both) + up8(conv3x3(mean8(both)))): sees the next 8x8 cell."""
    random = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> TensorProto:
        values = random.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def picture(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, "height", "width"])

    nodes = [
        helper.make_node("Concat", ["rainy", "estimate"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "near_weights"], ["near"], pads=[3, 3, 3, 3]),
        helper.make_node("AveragePool", ["both"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["means", "far_weights"], ["far_means"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["far_means", "", "scales"], ["far"], mode="nearest"),
        helper.make_node("Add", ["near", "far"], ["sum"]),
        helper.make_node("Mul", ["sum", "strength"], ["rain"]),
        helper.make_node("Sub", ["rainy", "rain"], ["derained"]),
    ]
    constants = [
        weights("near_weights", 3, 6, 7, 7),
        weights("far_weights", 3, 6, 3, 3),
        numpy_helper.from_array(np.array([1, 1, 8, 8], np.float32), "scales"),
        numpy_helper.from_array(np.float32(0.3), "strength"),
    ]
    ports = [picture("rainy"), picture("estimate")]
    graph = helper.make_graph(nodes, "tiny", ports, [picture("derained")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"unrain": json.dumps(CONTRACT)})
    onnx.checker.check_model(model)
    return model


def add_loop(network: onnx.ModelProto, times: int | None = None) -> None:
    """Send the result of `tiny_network` round a loop, so many times or without end."""

    def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    def picture(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, "height", "width"])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["still"]),
            helper.make_node("Identity", ["one"], ["next"]),
        ],
        "body",
        [scalar("count", TensorProto.INT64), scalar("goes_on", TensorProto.BOOL), picture("one")],
        [scalar("still", TensorProto.BOOL), picture("next")],
    )
    network.graph.node[-1].output[0] = "before"
    network.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    if times is not None:
        network.graph.initializer.append(numpy_helper.from_array(np.array(times), "times"))
    inputs = ["times" if times is not None else "", "yes", "before"]
    network.graph.node.append(helper.make_node("Loop", inputs, ["derained"], body=body))


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colour picture with the falling spectrum of photographs and a few hard edges, uint8."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    channels = []
    for _ in range(3):
        spectrum = np.fft.rfft2(random.normal(size=(height, width))) / frequency
        spectrum[0, 0] = 0
        waves = np.fft.irfft2(spectrum, s=(height, width))
        channels.append(128 + 50 * waves / max(float(waves.std()), 1e-6))
    image = np.stack(channels, axis=-1)
    image[height // 3 : height // 2, width // 4 :] *= 0.4
    image[:, width // 2 : width // 2 + 2] += 90
    return np.clip(image, 0, 255).astype(np.uint8)


def png_of(width, height):
    """A PNG that says it is this large."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def flat_picture(path, value=200, size=(12, 8)):
    """A file with one colour in it, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, 7)).save(path)
    return path


def toy_pairs(root, count, height, width):
    """Write a set of pairs of noise, root/data/set/rain and root/data/set/clean."""
    rng = np.random.default_rng(0)
    for side in ("rain", "clean"):
        folder = root / "data" / "set" / side
        folder.mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{i}.png")


def sky(height=240, width=320):
    """A picture without rain: a smooth sky over smooth hills."""
    y, x = np.mgrid[:height, :width] / height
    hills = y > 0.6 + 0.05 * np.sin(6 * x)
    tone = np.where(hills, 0.25 + 0.1 * np.sin(3 * x), 0.8 - 0.3 * y)
    return (255 * np.dstack((tone, tone, np.where(hills, tone * 0.7, tone)))).astype(np.uint8)
