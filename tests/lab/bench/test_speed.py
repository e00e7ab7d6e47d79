"""What is counted and printed; never how long anything takes."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("pytorch_lightning")
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from unrain import cli, zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.lab.bench import candidates
from unrain.lab.bench.candidates import Candidate, find, find_peer
from unrain.lab.bench.cost import Given, count_parameters, macs_per_pixel, measure_cost
from unrain.lab.bench.memory import peak_memory
from unrain.lab.bench.speed import measure_speed
from unrain.lab.export import export_checkpoint
from unrain.lab.nets import build

pytestmark = pytest.mark.slow


def test_timing_needs_no_trainer():
    code = "import sys, unrain.lab.bench.speed; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_prenet_costs_what_is_published():
    assert macs_per_pixel(build("prenet"), 6) * 256**2 == pytest.approx(66.2e9, rel=1e-3)


def test_a_hand_made_network_is_counted_as_by_hand(tiny_model):
    near, far = 3 * 6 * 7 * 7, 3 * 6 * 3 * 3 / 64
    assert macs_per_pixel(zoo.find(tiny_model), 1) == near + far
    assert macs_per_pixel(zoo.find(tiny_model), 3) == 3 * (near + far)


def test_an_exported_network_counts_as_it_did_before(tmp_path):
    arguments = {"width": 24, "encoder": [1, 1], "decoder": [1]}
    net = build("rdmc_lite", **arguments)
    header = {"network": "rdmc_lite", "arguments": json.dumps(arguments)}
    save_file(net.state_dict(), tmp_path / "net.safetensors", header)
    exported = zoo.find(export_checkpoint(tmp_path / "net.safetensors", tmp_path / "net.onnx"))
    # The exported normalisation is made of matrix products, which count.
    assert macs_per_pixel(exported, 2) == pytest.approx(macs_per_pixel(net, 2), rel=0.05)


def test_every_kind_of_product_is_counted(tmp_path):
    def constant(name, *shape):
        return numpy_helper.from_array(np.zeros(shape, np.float32), name)

    nodes = [
        helper.make_node("ConvTranspose", ["rainy", "up"], ["big"], strides=[2, 2]),
        helper.make_node("Conv", ["big", "down"], ["small"], strides=[2, 2], group=3),
        helper.make_node("MatMul", ["mixture", "small"], ["mixed"]),
        helper.make_node("Gemm", ["mixture", "mixture"], ["squared"], transA=1),
        helper.make_node("MatMul", ["squared", "mixed"], ["derained"]),
    ]
    constants = [constant("up", 3, 3, 2, 2), constant("down", 3, 1, 2, 2), constant("mixture", 64, 64)]
    port = ["batch", 3, "height", "width"]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, port) for name in ("rainy", "derained")]
    graph = helper.make_graph(nodes, "all", ports[:1], ports[1:], constants)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "all.onnx")
    expected = 3 * 3 * 4 + 3 * 4 + 3 * 64 + 64**3 / 64**2 + 3 * 64
    assert macs_per_pixel(zoo.Model("all", tmp_path / "all.onnx", {}), 1) == expected


def test_candidates_are_timed_in_turn_and_compared_with_the_peer(tiny_model, tmp_path, capsys):
    save_file(build("prenet").state_dict(), tmp_path / "theirs.safetensors")
    peer = f"prenet:{tmp_path / 'theirs.safetensors'}"
    options = ["--size", "16x8", "--size", "24x24", "--threads", "1"]
    arguments = [
        "bench",
        "speed",
        str(tiny_model),
        "--peer",
        peer,
        "--recursions",
        "1",
        "--recursions",
        "3",
        *options,
    ]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["threads"] == 1 and report["rounds"] == 5 and report["ceiling"] > 0 and report["machine"]
    rows = report["speeds"]
    assert [(row["model"], row["recursions"], row["width"], row["height"]) for row in rows] == [
        (model, recursions, width, height)
        for width, height in ((16, 8), (24, 24))
        for model, recursions in (("tiny", 1), ("tiny", 3), ("theirs", 6))
    ]
    for row in rows:
        assert row["fastest"] <= row["seconds"] <= row["slowest"]
        assert (row["times_faster"] == 1) == (row["model"] == "theirs")
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert (
        "1 thread;" in out[0]
        and "runs on noise;" in out[0]
        and "times faster than theirs" in out[1]
        and len(out) == 2 + 6
    )


def test_each_size_is_timed_on_the_photographs_with_freshly_opened_networks(
    tiny_model, tmp_path, monkeypatch
):
    Image.fromarray(np.full((30, 60, 3), 200, np.uint8)).save(tmp_path / "bright.png")
    Image.fromarray(np.full((40, 20), 10, np.uint8)).save(tmp_path / "dark.png")
    seen = []

    class Watched(candidates.Derainer):
        def __call__(self, picture):
            seen.append((self, picture.shape, picture.mean()))
            return super().__call__(picture)

    monkeypatch.setattr(candidates, "Derainer", Watched)
    photos = [tmp_path / "bright.png", tmp_path / "dark.png"]
    table = measure_speed([find(str(tiny_model))], sizes=("16x8", "24x24"), photos=photos)
    assert table.photos == ["bright.png", "dark.png"]
    assert [(shape, mean) for _, shape, mean in seen] == [
        *6 * [((8, 16, 3), 200), ((8, 16, 3), 10)],
        *6 * [((24, 24, 3), 200), ((24, 24, 3), 10)],
    ]
    assert len({id(one) for one, _, _ in seen[:12]}) == 1 and seen[0][0] is not seen[12][0]


def test_weights_and_memory_stand_beside_the_times(tiny_model, capsys):
    arguments = ["bench", "speed", str(tiny_model), "--cost", "--size", "16x8", "--threads", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["speeds"]
    assert row["parameters"] == count_parameters(zoo.find(tiny_model))
    assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 1
    assert row["times_faster"] is None


def test_weights_are_those_of_the_network(tiny_model):
    assert count_parameters(build("prenet")) == 168_963
    for model in zoo.models():
        assert count_parameters(model) == model.card["parameters"]
    # Two layers, the factors of the Resize, the strength.
    assert count_parameters(zoo.find(tiny_model)) == 3 * 6 * 7 * 7 + 3 * 6 * 3 * 3 + 4 + 1


def test_memory_is_that_of_a_fresh_process(tiny_model, tmp_path, monkeypatch):
    picture = np.zeros((16, 24, 3), np.uint8)
    arguments = {"picture": picture, "recursions": 1, "processor": Processor("cpu", threads=1)}
    held = np.ones(100_000_000)
    # A file of the working folder must not be imported in place of a library.
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    small = peak_memory(str(tiny_model), "model", **arguments)
    if small is None:
        pytest.skip("the system does not tell a process's peak memory")
    assert held.nbytes == 800_000_000
    # Python, NumPy and ONNX Runtime, but neither PyTorch nor what this process holds.
    assert 20 < small < 400
    save_file(build("prenet").state_dict(), tmp_path / "theirs.safetensors")
    text = f"prenet:{tmp_path / 'theirs.safetensors'}"
    cost = measure_cost(
        find_peer(text), Given(text, peer=True), 2, size="24x16", processor=Processor("cpu", threads=1)
    )
    assert cost.peak_memory_mb > small
    assert (cost.parameters, cost.memory_size) == (168_963, "24x16")
    assert measure_cost(Candidate("theirs", tmp_path), Given(str(tmp_path)), None) is None
    with pytest.raises(UnrainError, match="its memory cannot be measured") as caught:
        peak_memory(str(tmp_path / "none.onnx"), "model", **arguments)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_timed_is_refused(tiny_model, tmp_path, capsys):
    tiny = find(str(tiny_model))
    with pytest.raises(UnrainError, match="pictures have no speed"):
        measure_speed([Candidate("theirs", tmp_path)])
    with pytest.raises(UnrainError, match="a median needs 5"):
        measure_speed([tiny], rounds=4)
    for size in ("12", "0x3", "axb", "1x2x3"):
        with pytest.raises(UnrainError, match="WIDTHxHEIGHT"):
            measure_speed([tiny], sizes=(size,))
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(UnrainError, match=r"broken\.png"):
        measure_speed([tiny], photos=[tmp_path / "broken.png"])
    with pytest.raises(UnrainError, match="NETWORK:FILE"):
        find_peer("prenet:")
    assert cli.main(["bench", str(tiny_model)]) == cli.EXIT_USAGE
    assert "--data" in capsys.readouterr().err
