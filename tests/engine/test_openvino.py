"""OpenVINO gives what ONNX Runtime gives, on any size, and is as quiet."""

import hashlib
import importlib
import os
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
from unrain.engine import cache as engine_cache
from unrain.engine import open_engine
from unrain.errors import UnrainError

pytest.importorskip("openvino")
engine_openvino = importlib.import_module("unrain.engine.openvino")

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


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of what was compiled, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unrain" / "openvino"


def compiled_anew(tiny_model, monkeypatch):
    """Open a network and run it; tell how often it was compiled, and what it gave."""
    count = []
    monkeypatch.setattr(engine_openvino, "means_as_convolutions", count.append)
    engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
    rainy = np.random.default_rng(0).random((1, 3, 24, 32), np.float32)
    return len(count), engine.step(rainy, rainy)


def test_what_was_compiled_is_kept(tiny_model, kept, monkeypatch):
    first, expected = compiled_anew(tiny_model, monkeypatch)
    assert first == 1 and len(list(kept.glob("*.blob"))) == 1
    again, planes = compiled_anew(tiny_model, monkeypatch)
    assert again == 0
    np.testing.assert_array_equal(planes, expected)


def test_another_model_or_library_is_compiled_anew(tiny_model, kept, monkeypatch, tmp_path):
    compiled_anew(tiny_model, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(engine_openvino._openvino, "get_version", lambda: "2030.1")
        assert compiled_anew(tiny_model, monkeypatch)[0] == 1
    # The same network but for a name that nothing looks at.
    network = tiny_network()
    network.graph.name = "other"
    (tmp_path / "other.onnx").write_bytes(network.SerializeToString())
    assert compiled_anew(tmp_path / "other.onnx", monkeypatch)[0] == 1
    assert len(list(kept.glob("*.blob"))) == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"more"])
def test_a_damaged_one_is_compiled_anew(tiny_model, kept, monkeypatch, damage):
    _, expected = compiled_anew(tiny_model, monkeypatch)
    (blob,) = kept.glob("*.blob")
    whole = blob.read_bytes()
    blob.write_bytes(damage(whole))
    again, planes = compiled_anew(tiny_model, monkeypatch)
    assert again == 1
    np.testing.assert_array_equal(planes, expected)
    assert len(blob.read_bytes()) == len(whole)
    assert compiled_anew(tiny_model, monkeypatch)[0] == 0


def test_one_that_the_library_refuses_is_compiled_anew(tiny_model, kept, monkeypatch):
    compiled_anew(tiny_model, monkeypatch)
    (blob,) = kept.glob("*.blob")
    for content in (b"no network at all", b"short"):
        blob.write_bytes(hashlib.sha256(content).digest() + content)
        assert compiled_anew(tiny_model, monkeypatch)[0] == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_nothing_is_taken_from_a_folder_that_others_may_write(tiny_model, kept, monkeypatch):
    compiled_anew(tiny_model, monkeypatch)
    kept.chmod(0o777)
    assert compiled_anew(tiny_model, monkeypatch)[0] == 1
    kept.chmod(0o700)
    assert compiled_anew(tiny_model, monkeypatch)[0] == 0


def test_the_least_recently_used_goes(kept, monkeypatch):
    monkeypatch.setattr(engine_cache, "_MOST_BYTES", 1000)
    for key, used in (("a", 3), ("b", 1), ("c", 2)):
        engine_cache.keep_network("openvino", key, bytes(260))
        os.utime(kept / f"{key}.blob", (used, used))
    engine_cache.keep_network("openvino", "d", bytes(260))
    assert sorted(path.stem for path in kept.glob("*.blob")) == ["a", "c", "d"]
    assert engine_cache.recall_network("openvino", "c") == bytes(260)
    assert engine_cache.recall_network("openvino", "b") is None


def test_a_size_that_lasts_is_compiled_for_itself_and_kept(tiny_model, kept, monkeypatch):
    monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
    rainy = np.random.default_rng(0).random((1, 3, 24, 32), np.float32)
    for wanted in (2, 2):
        engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
        expected = engine.step(rainy, rainy)
        np.testing.assert_allclose(engine.step(rainy, rainy), expected, atol=1e-6)
        assert list(engine._of_shape) == [(1, 3, 24, 32)]
        assert len(list(kept.glob("*.blob"))) == wanted


def test_a_large_size_is_compiled_for_itself_once_it_is_a_third_of_what_came(tiny_model, kept, monkeypatch):
    monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
    monkeypatch.setattr(engine_openvino, "_LARGE", 3 * 16 * 16)
    engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
    often = np.zeros((1, 3, 24, 32), np.float32)
    others = [np.zeros((1, 3, 8 * rows, 24), np.float32) for rows in range(1, 9)]
    for odd in others:
        engine.step(odd, odd)
    for odd in others[:7]:
        engine.step(often, often)
        engine.step(odd, odd)
    assert often.shape not in engine._of_shape
    engine.step(often, often)
    engine.step(often, often)
    assert often.shape in engine._of_shape


def test_a_large_size_that_is_most_of_what_came_is_compiled_and_then_taken_at_once(
    tiny_model, kept, monkeypatch
):
    monkeypatch.setattr(engine_openvino, "_LARGE", 3 * 16 * 16)
    large, small, other = (np.zeros((1, 3, *size), np.float32) for size in ((160, 160), (8, 8), (152, 160)))
    for before in (False, True):
        monkeypatch.setattr(engine_openvino, "_WORTH", np.inf)
        engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
        for planes in (small, large):
            engine.step(planes, planes)
        assert (large.shape in engine._of_shape) is before
        monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
        engine.step(large, large)
        engine.step(other, other)
        assert list(engine._of_shape) == [large.shape]


def test_a_large_size_keeps_its_own_network_beside_samples_of_a_small_one(tiny_model, kept, monkeypatch):
    monkeypatch.setattr(engine_openvino, "_LARGE", 3 * 16 * 16)
    monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
    engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
    large, small = (np.zeros((1, 3, *size), np.float32) for size in ((160, 160), (16, 16)))
    for planes in (large, large, *[small] * 8):
        engine.step(planes, planes)
    assert list(engine._of_shape) == [large.shape, small.shape]


def test_a_large_size_that_stays_away_gives_its_memory_back(tiny_model, kept, monkeypatch):
    monkeypatch.setattr(engine_openvino, "_LARGE", 3 * 16 * 16)
    monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
    engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
    large, *others = (np.zeros((1, 3, 160, 160 + more), np.float32) for more in (0, 8, 16, 24))
    for planes in (large, large, *others[:2]):
        engine.step(planes, planes)
    assert list(engine._of_shape) == [large.shape]
    engine.step(others[2], others[2])
    assert not engine._of_shape and len(engine._own.requests) == 1


def test_the_network_of_any_size_is_opened_anew_only_where_it_holds_memory(tiny_model, kept, monkeypatch):
    monkeypatch.setattr(engine_openvino, "_LARGE", 3 * 64 * 64)
    large, small = (np.zeros((1, 3, *size), np.float32) for size in ((160, 160), (16, 16)))
    opened = []
    compiled = engine_openvino.OpenVinoEngine._compiled
    monkeypatch.setattr(
        engine_openvino.OpenVinoEngine,
        "_compiled",
        lambda engine, shape=None: opened.append(shape) or compiled(engine, shape),
    )
    monkeypatch.setattr(engine_openvino, "_WORTH", 0.0)
    for expected in ([None, large.shape, None], [None, large.shape]):
        engine = open_engine(zoo.find(tiny_model), Processor("openvino", "fp32", 1))
        for planes in (large, large, small):
            # The second time it is on disk, and taken for the first picture.
            engine.step(planes, planes)
        assert opened == expected
        opened.clear()


def test_the_librarys_converter_is_there_for_others():
    code = """
import sys
import unrain.engine.openvino
assert not [name for name in sys.modules if name.startswith("openvino.tools.ovc")]
import openvino
try:
    openvino.convert_model(None)
except Exception as error:
    print(type(error).__module__)
assert "openvino.tools.ovc" in sys.modules
from openvino.tools.ovc import convert_model
"""
    environment = {"PYTHONPATH": str(Path(zoo.__file__).parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_no_such_device(tiny_model):
    with pytest.raises(UnrainError, match="openvino:NPU: OpenVINO finds no NPU here, but CPU"):
        open_engine(zoo.find(tiny_model), Processor("openvino:NPU"))


def test_a_file_that_is_no_model(tmp_path):
    broken = tmp_path / "a.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UnrainError, match=r"a\.onnx: not a model that OpenVINO can open"):
        open_engine(zoo.Model("a", broken, {}), Processor("openvino"))


INTERRUPTED = """
import signal
from unrain import zoo
from unrain.devices import Processor
from unrain.engine import open_engine

signal.signal(signal.SIGINT, signal.default_int_handler)
engines = [open_engine(zoo.find("rdmc-lite-xs"), Processor("openvino", threads=1)) for _ in range(3)]
while engines:
    del engines[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_signal_after_networks_were_closed_in_turn_ends_nothing():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_the_means_become_convolutions():
    model = zoo.find("rdmc-lite-xs")
    network = engine_openvino._openvino.Core().read_model(model.path.read_bytes(), b"")

    def means():
        """The products that are no products of weights alone."""
        nodes = [node for node in network.get_ordered_ops() if node.get_type_name() == "MatMul"]
        return [node for node in nodes if node.get_output_partial_shape(0).is_dynamic]

    assert len(means()) == 38
    engine_openvino.means_as_convolutions(network)
    assert means() == []


def test_a_mean_is_used_twice_in_a_network_of_one_shape():
    """OpenVINO then leaves no subtraction to be computed by itself, and the result is the same."""
    core = engine_openvino._openvino.Core()
    network = core.read_model(zoo.find("rdmc-lite-xs").path.read_bytes(), b"")
    engine_openvino.means_as_convolutions(network)
    network.reshape({port.get_any_name(): [1, 3, 48, 64] for port in network.inputs})
    rainy = natural(48, 64).transpose(2, 0, 1)[None].astype(np.float32) / 255
    planes, alone = [], []
    for change in (lambda network: None, engine_openvino.use_means_twice):
        change(network)
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True})
        request = compiled.create_infer_request()
        planes.append(request.infer([rainy, rainy])[0])
        ran = [node for node in request.profiling_info if node.status == node.Status.EXECUTED]
        alone.append(sum(node.node_type == "Add" for node in ran))
    assert alone[1] == 0 < alone[0]
    np.testing.assert_allclose(planes[1], planes[0], atol=1e-5)


def test_a_network_that_uses_its_flattened_features_otherwise_is_left_alone():
    ov = engine_openvino._openvino
    ops = ov.opset13
    given = ops.parameter([-1, 4, -1, -1], np.float32)
    flat = ops.reshape(given, ops.constant(np.array([0, 4, -1])), special_zero=True)
    mean = ops.matmul(ops.constant(np.full((1, 1, 4), 0.25, np.float32)), flat, False, False)
    softmax = ops.softmax(ops.subtract(flat, mean), axis=2)
    network = ov.Model([softmax], [given])
    before = [node.get_type_name() for node in network.get_ordered_ops()]
    engine_openvino.means_as_convolutions(network)
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
