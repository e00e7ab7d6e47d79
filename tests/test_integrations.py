"""The plug-ins for other programs, against the same `Derainer` as everything else."""

import http.client
import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import yaml

import unrain
from toys import ROOT, add_loop, natural, tiny_network
from unrain import zoo
from unrain.derainer import Derainer
from unrain.errors import UnrainError, UsageError

FOLDER = ROOT / "integrations"


def loaded(path):
    """Import a file that is in no package."""
    spec = importlib.util.spec_from_file_location(f"integration_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_integration_has_its_page_and_its_line():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8")
    for folder in (path for path in FOLDER.iterdir() if path.is_dir()):
        assert (folder / "README.md").is_file()
        assert f"]({folder.name}/README.md)" in lines


@pytest.fixture
def node(monkeypatch, tiny_model):
    """The node of ComfyUI, where the hand-made network is the only model."""
    models = [zoo.Model("tiny", tiny_model, zoo.find(tiny_model).card)]
    monkeypatch.setattr(zoo, "models", lambda: models)
    monkeypatch.setattr(zoo, "find", lambda name: models[0])
    (kind,) = loaded(FOLDER / "comfyui" / "__init__.py").NODE_CLASS_MAPPINGS.values()
    return kind()


def test_comfyui_offers_the_models(node):
    inputs = node.INPUT_TYPES()
    assert inputs["required"]["image"] == ("IMAGE",)
    assert inputs["required"]["model"] == (["tiny"], {"default": "tiny"})
    named = [*inputs["required"], *inputs["optional"]]
    arguments = dict.fromkeys(named, 1) | {"image": torch.rand(1, 9, 9, 3), "model": "tiny"}
    assert len(getattr(node, node.FUNCTION)(**arguments)) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)


@pytest.mark.parametrize("channels", [3, 4])
def test_comfyui_derains_a_batch_as_unrain_does(node, tiny_model, channels):
    pictures = np.stack([natural(24, 40, seed) for seed in range(2)]).astype(np.float32) / 255
    batch = np.concatenate([pictures, np.full((2, 24, 40, channels - 3), 0.3, np.float32)], axis=-1)
    derained, rain = node.derain(torch.from_numpy(batch), "tiny", 0.5, recursions=1)
    assert derained.shape == rain.shape == batch.shape
    assert derained.dtype == rain.dtype == torch.float32
    for before, after in zip(pictures, derained.numpy(), strict=True):
        expected = unrain.derain(before, model=tiny_model, recursions=1, strength=0.5)
        np.testing.assert_array_equal(after[..., :3], expected)
    np.testing.assert_array_equal(derained.numpy()[..., 3:], batch[..., 3:])
    np.testing.assert_allclose(rain.numpy(), np.maximum(batch - derained.numpy(), 0))


@pytest.fixture(scope="module")
def chainner():
    return loaded(FOLDER / "chainner" / "make.py")


@pytest.mark.parametrize(("model", "recursions"), [("tiny", 1), ("tiny", 3), (zoo.DEFAULT, 1)])
def test_one_input_gives_what_unrain_gives(chainner, tiny_model, model, recursions):
    model = zoo.find(tiny_model if model == "tiny" else model)
    made = chainner.one_input(onnx.load(model.path), recursions)
    assert [port.name for port in (*made.graph.input, *made.graph.output)] == ["input", "output"]
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = natural(32, 48).astype(np.float32) / 255
    (result,) = session.run(None, {"input": picture.transpose(2, 0, 1)[None]})
    expected = Derainer(model, recursions=recursions, levels=1)(picture)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), expected, atol=2e-6)


def test_chainner_finds_the_scale(chainner):
    """It fixes height and width at 16, and compares what ONNX infers for the output."""
    made = chainner.one_input(onnx.load(zoo.find(zoo.DEFAULT).path), 1)
    for dim, value in zip(made.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 16), strict=True):
        dim.dim_value = value
    for dim in made.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(made, data_prop=True).graph.output[0]
    assert [dim.dim_value for dim in inferred.type.tensor_type.shape.dim][1:] == [3, 16, 16]


@pytest.mark.parametrize("wrong", ["ports", "loop", "recursions"])
def test_what_cannot_be_written_in_a_row_is_refused(chainner, wrong):
    network, recursions = tiny_network(), 1
    if wrong == "ports":
        network.graph.input[0].name = "picture"
    elif wrong == "loop":
        add_loop(network, 3)
    else:
        del network.graph.input[1]
        recursions = 2
    with pytest.raises(UsageError if wrong == "recursions" else UnrainError):
        chainner.one_input(network, recursions)


def test_the_script_writes_a_file_and_replaces_none(tmp_path):
    out = tmp_path / "one.onnx"
    command = [sys.executable, FOLDER / "chainner" / "make.py", "rdmc-lite-xs", "-o", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "multiples of 8" in done.stdout
    onnx.checker.check_model(onnx.load(out))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "kept" in done.stderr


def space(file):
    return (FOLDER / "huggingface-space" / file).read_text(encoding="utf-8")


def test_the_space_has_its_configuration():
    _, header, _ = space("README.md").split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["sdk"] == "docker" and len(about["short_description"]) <= 60
    port = str(about["app_port"])
    assert f"EXPOSE {port}\n" in space("Dockerfile") and f"--port {port} " in space("Dockerfile")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the container runs Linux")
def test_the_spaces_command_serves_under_its_name_and_no_other(tmp_path):
    pytest.importorskip("fastapi")
    (shell, option, line) = yaml.safe_load(re.search(r"^CMD (.+)$", space("Dockerfile"), re.MULTILINE)[1])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = line.replace("7860", str(port)).replace("0.0.0.0", "127.0.0.1")
    program = tmp_path / "unrain"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m unrain "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "SPACE_HOST": "owner-name.hf.space",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([shell, option, line], env=environment, stderr=subprocess.PIPE)
    try:

        def status(host):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/healthz", headers={"Host": host})
            return connection.getresponse().status

        for _ in range(600):
            try:
                assert status("owner-name.hf.space") == 200
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        assert status("owner-name.hf.space") == 200
        assert status("evil.example") >= 400
    finally:
        process.terminate()
        process.wait(30)
