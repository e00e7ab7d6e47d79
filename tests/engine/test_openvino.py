"""OpenVINO gives what ONNX Runtime gives, on any size, and is as quiet."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from toys import CONTRACT, natural, tiny_network
from unrain import zoo
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.engine import open_engine
from unrain.errors import UnrainError

pytest.importorskip("openvino")

MODELS = [pytest.param(model, id=model.name) for model in zoo.models()]


def pair(model, precision):
    return (
        open_engine(model, Processor("cpu", threads=1)),
        open_engine(model, Processor("openvino", precision, threads=1)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_zoo_gives_the_same(model):
    cpu, openvino = pair(model, "fp32")
    for name in ("multiple", "halo", "recursions", "recursive", "levels"):
        assert getattr(cpu, name) == getattr(openvino, name)
    random = np.random.default_rng(0)
    for batch, height, width in ((1, 64, 96), (2, 32, 48), (1, 96, 64)):
        rainy, estimate = random.random((2, batch, 3, height, width), np.float32)
        before = rainy.copy(), estimate.copy()
        np.testing.assert_allclose(openvino.step(rainy, estimate), cpu.step(rainy, estimate), atol=2e-5)
        assert (rainy == before[0]).all() and (estimate == before[1]).all()


@pytest.mark.slow
def test_bf16_is_close(capsys):
    model = zoo.find("rdmc-lite-xs")
    try:
        cpu, openvino = pair(model, "bf16")
    except UnrainError as error:
        assert "no instructions for bf16; give --precision fp32" in str(error)
        pytest.skip("this processor has no bf16")
    picture = natural(96, 128)
    after = [Derainer(engine)(picture).astype(float) for engine in (cpu, openvino)]
    assert 10 * np.log10(255**2 / np.square(after[0] - after[1]).mean()) > 48


def test_the_hand_made_network(tiny_model):
    cpu, openvino = pair(zoo.find(tiny_model), "fp32")
    rainy = np.random.default_rng(0).random((1, 3, 24, 32), np.float32)
    np.testing.assert_allclose(openvino.step(rainy, rainy), cpu.step(rainy, rainy), atol=1e-5)


def test_results_do_not_change_afterwards_and_threads_do_not_meet(tiny_model):
    engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
    random = np.random.default_rng(0)
    pictures = [random.random((1, 3, 16 + 8 * i, 32), np.float32) for i in range(4)]
    alone = [engine.step(one, one) for one in pictures]
    copies = [one.copy() for one in alone]
    together: list = [None] * 4

    def work(i):
        for _ in range(5):
            together[i] = engine.step(pictures[i], pictures[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, copy, other in zip(alone, copies, together, strict=True):
        np.testing.assert_array_equal(one, copy)
        np.testing.assert_array_equal(one, other)


def test_an_input_that_nothing_uses(tmp_path):
    import onnx
    from onnx import helper

    network = tiny_network()
    del network.graph.node[:]
    del network.graph.initializer[:]
    network.graph.node.append(helper.make_node("Neg", ["rainy"], ["derained"]))
    onnx.save(network, tmp_path / "a.onnx")
    model = zoo.Model("a", tmp_path / "a.onnx", dict(CONTRACT))
    rainy = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    for engine in pair(model, "fp32"):
        np.testing.assert_array_equal(engine.step(rainy, rainy), -rainy)


def test_no_such_device(tiny_model):
    with pytest.raises(UnrainError, match="openvino:NPU: OpenVINO finds no NPU here, but CPU"):
        open_engine(zoo.find(tiny_model), Processor("openvino:NPU"))


def test_a_file_that_is_no_model(tmp_path):
    broken = tmp_path / "a.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UnrainError, match=r"a\.onnx: not a model that OpenVINO can open"):
        open_engine(zoo.Model("a", broken, {}), Processor("openvino"))


def test_the_means_become_convolutions():
    from unrain.engine import openvino as engine

    model = zoo.find("rdmc-lite-xs")
    network = engine._openvino.Core().read_model(model.path.read_bytes(), b"")

    def means():
        """The products that are no products of weights alone."""
        nodes = [node for node in network.get_ordered_ops() if node.get_type_name() == "MatMul"]
        return [node for node in nodes if node.get_output_partial_shape(0).is_dynamic]

    assert len(means()) == 38
    engine.means_as_convolutions(network)
    assert means() == []


def test_a_network_that_uses_its_flattened_features_otherwise_is_left_alone():
    from unrain.engine import openvino as engine

    ops, ov = engine._openvino.opset13, engine._openvino
    given = ops.parameter([-1, 4, -1, -1], np.float32)
    flat = ops.reshape(given, ops.constant(np.array([0, 4, -1])), special_zero=True)
    mean = ops.matmul(ops.constant(np.full((1, 1, 4), 0.25, np.float32)), flat, False, False)
    softmax = ops.softmax(ops.subtract(flat, mean), axis=2)
    network = ov.Model([softmax], [given])
    before = [node.get_type_name() for node in network.get_ordered_ops()]
    engine.means_as_convolutions(network)
    assert [node.get_type_name() for node in network.get_ordered_ops()] == before


@pytest.mark.skipif(sys.platform != "linux", reason="the sockets are watched by strace")
@pytest.mark.slow
def test_no_socket_is_opened(cwd, tmp_path):
    """The library's analytics are never asked: no address is looked up, nothing is connected to."""
    code = """
import sys, socket
import numpy as np
def refuse(*arguments, **more):
    raise SystemExit("a socket was wanted")
socket.socket = socket.getaddrinfo = socket.create_connection = refuse
from unrain.derainer import Derainer
Derainer("rdmc-lite-xs", device="openvino", threads=1)(np.zeros((32, 32, 3), np.uint8))
assert sys.modules["openvino_telemetry"] is None
import os
folder = "/proc/self/fd/"
there = [folder + name for name in os.listdir(folder) if os.path.exists(folder + name)]
kinds = [os.readlink(one) for one in there]
assert not [kind for kind in kinds if kind.startswith("socket:")], kinds
"""
    environment = {
        "PATH": "",
        "XDG_CACHE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(zoo.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr + done.stdout
