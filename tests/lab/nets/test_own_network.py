"""Networks of other packages: found by their entry points, and what is said when one is wrong."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import EntryPoint

import pytest
import torch

from toys import ROOT
from unrain.errors import UnrainError
from unrain.lab import nets
from unrain.lab.bench.cache import identity
from unrain.lab.bench.candidates import Candidate
from unrain.lab.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unrain.lab.nets.layers import RecursiveNet

EXAMPLE = ROOT / "examples" / "own_network"


@pytest.fixture
def installed(monkeypatch):
    """What installs entry points: NAME="module:attribute"."""

    def install(*points):
        found = [EntryPoint(name, value, nets.GROUP) for name, value in points]
        monkeypatch.setattr(nets, "entry_points", lambda group: found if group == nets.GROUP else [])

    return install


@pytest.fixture
def own(installed, monkeypatch):
    """The example's network, as if it were installed."""
    monkeypatch.syspath_prepend(EXAMPLE)
    installed(("own_network", "own_network:OwnNetwork"))
    yield
    sys.modules.pop("own_network", None)


def test_a_network_of_another_package_is_built_by_its_name(own):
    net = nets.build("own_network", width=4, blocks=1)
    assert (type(net).__name__, type(net).__module__) == ("OwnNetwork", "own_network")
    picture = torch.rand(1, 3, 5, 7)
    # It starts as a network that changes nothing.
    assert torch.equal(net(picture)[-1], picture)
    assert nets.package_of("own_network") == "own_network:OwnNetwork"
    assert nets.package_of("rdmc") is None


def test_a_checkpoint_of_it_loads_where_the_package_is_and_is_refused_where_it_is_not(
    own, installed, tmp_path
):
    path = tmp_path / "own.safetensors"
    net = nets.build("own_network", width=4, blocks=1)
    save_checkpoint(path, Checkpoint(net, "own_network", {"width": 4, "blocks": 1}, {}))
    loaded = load_checkpoint(path)
    assert loaded.net.state_dict().keys() == net.state_dict().keys()
    installed()
    with pytest.raises(UnrainError, match=r"own\.safetensors: .*no network is called 'own_network'"):
        load_checkpoint(path)


def test_scores_are_stale_when_its_code_changes(installed, tmp_path, monkeypatch):
    code = tmp_path / "changing.py"
    shutil.copy(EXAMPLE / "own_network" / "__init__.py", code)
    monkeypatch.syspath_prepend(tmp_path)
    installed(("changing", "changing:OwnNetwork"))
    net = nets.build("changing", width=4, blocks=1)
    before = identity(Candidate("changing", net))
    assert identity(Candidate("changing", net)) == before
    code.write_text(code.read_text() + "# another\n")
    assert identity(Candidate("changing", net)) != before
    sys.modules.pop("changing")


def test_unrains_own_names_cannot_be_taken(installed):
    installed(("rdmc_lite", "antigravity:fly"))
    assert type(nets.build("rdmc_lite", width=24)).__name__ == "RDMCLite"


@pytest.mark.parametrize(
    ("points", "error", "words"),
    [
        ([], ValueError, "no network is called 'mine': choose one of prenet, rdmc, rdmc_lite, semi_drdnet$"),
        ([("other", "a:B")], ValueError, "choose one of other, prenet"),
        ([("mine", "no_such_package:Net")], UnrainError, "ModuleNotFoundError.*mend or uninstall"),
        ([("mine", "json:loads_not")], UnrainError, "mine: the network of json:loads_not cannot be loaded"),
        ([("mine", "collections:OrderedDict")], UnrainError, "makes no RecursiveNet"),
        ([("mine", "sys:version")], UnrainError, "makes no RecursiveNet"),
        ([("mine", "a:B"), ("mine", "c:D")], UnrainError, "mine: a:B and c:D each bring a network"),
    ],
)
def test_what_is_said_when_there_is_none(installed, points, error, words):
    installed(*points)
    with pytest.raises(error, match=words):
        nets.build("mine")


def test_the_example_keeps_to_what_it_says():
    code = (EXAMPLE / "own_network" / "__init__.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 60
    sys.path.insert(0, str(EXAMPLE))
    try:
        from own_network import OwnNetwork
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("own_network", None)
    assert issubclass(OwnNetwork, RecursiveNet)


@pytest.mark.slow
def test_from_an_empty_environment_to_a_score(tmp_path):
    """The commands of the example's README, in a new environment that borrows the packages of this one."""
    pytest.importorskip("hatchling", reason="needs hatchling, as pip does without a network")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=os.name == "posix")
    places = {"base": str(environment), "platbase": str(environment)}
    site, scripts = (sysconfig.get_path(kind, "venv", vars=places) for kind in ("purelib", "scripts"))
    borrowed = [str(ROOT / "src"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    with open(os.path.join(site, "borrowed.pth"), "w") as file:  # noqa: PTH118, PTH123
        file.write("\n".join(dict.fromkeys(borrowed)))
    python = os.path.join(scripts, "python")  # noqa: PTH118
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    own = {"PYTHONPATH": "", "UNRAIN_MODELS": str(tmp_path / "models"), "OMP_NUM_THREADS": "1"}
    printed = {}
    for line in block.splitlines():
        words = shlex.split(line)
        if words[0] == "pip":
            # Without a network nothing is resolved: unrain and the lab are borrowed.
            words = [*words[:2], "--no-deps", "--no-build-isolation", "--no-index", "-q", words[-1]]
        program = {"python": [], "pip": ["-m", "pip"], "unrain": ["-m", "unrain"]}[words[0]]
        done = subprocess.run(
            [python, *program, *words[1:]],
            cwd=tmp_path,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        printed[" ".join(words[:2])] = done.stdout
    rows = [line.split() for line in printed["unrain bench"].splitlines()]
    scores = {row[0]: float(row[4]) for row in rows[1:]}
    assert scores["own"] > scores["input"] + 2
    assert (tmp_path / "derained" / "cat_derained.jpg").is_file()
    assert (tmp_path / "models" / "own.onnx").is_file()
    checkpoint = (tmp_path / "runs" / "own" / "weights.safetensors").read_bytes()
    assert b"own-network 1.0" in checkpoint
