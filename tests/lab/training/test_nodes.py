"""Training on several machines: two process groups on this one stand for them."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from toys import ROOT
from toys_training import TOY

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors.torch import load_file  # noqa: E402

from unrain.errors import UsageError  # noqa: E402
from unrain.lab.training import train as trainer  # noqa: E402
from unrain.lab.training.recipe import read_recipe  # noqa: E402

STEPS = 12


@pytest.fixture
def recipe(toy):
    text = TOY.format(more="").replace("batch = 2", "batch = 4").replace("steps = 4", f"steps = {STEPS - 2}")
    (toy / "toy.toml").write_text(text)
    return toy / "toy.toml"


def start(recipe, out):
    """Start one process on each of two nodes, as torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "GROUP_RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "TORCHELASTIC_RUN_ID": "toy",
        }
        command = [sys.executable, "-m", "unrain", "train", recipe, "--data", recipe.parent / "data"]
        command += ["--nodes", "2", "--out", out]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    return processes


@pytest.mark.slow
def test_two_nodes_of_which_one_is_killed_end_where_one_process_ends(recipe, tmp_path):
    out = tmp_path / "two"
    processes = start(recipe, out)
    until = time.monotonic() + 120
    while not (out / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    assert not (out / "weights.safetensors").exists()
    processes[0].kill()
    for process in processes:
        process.communicate()
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] < STEPS
    for process in start(recipe, out):
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said.decode()
    trainer.train(recipe, recipe.parent / "data", out=tmp_path / "one")
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name].float(), weights.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("environment", "asked", "problem"),
    [
        ({}, (1, 2), "--nodes 2: start it on every machine with torchrun or srun"),
        ({"WORLD_SIZE": "3"}, (1, 2), "--devices 1 --nodes 2: make 2 processes, but 3 were started"),
        ({"SLURM_NTASKS": "2"}, (2, 2), "--devices 2 --nodes 2: make 4 processes, but 2 were started"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            (1, 1),
            "--devices 1: but torchrun started 2 processes",
        ),
        ({}, (3, 1), "a batch of 4 cannot be shared out evenly to 3 processes"),
    ],
)
def test_a_wrong_number_of_processes_is_said_at_once(recipe, monkeypatch, environment, asked, problem):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        trainer.check_processes(read_recipe(recipe), *asked)
    assert str(caught.value).startswith(problem)
