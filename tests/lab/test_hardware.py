"""The machine's name, and that asking for it is cheap."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from unrain.lab.hardware import hardware, has_bf16  # noqa: E402
from unrain.lab.training.recipe import LossWeights, Recipe  # noqa: E402
from unrain.lab.training.stage import Stage  # noqa: E402

pytestmark = pytest.mark.slow


def test_the_processor_is_named_with_its_cores():
    assert " cores, " in hardware(torch.device("cpu"))


def test_the_speed_table_is_imported_without_lightning():
    code = "import sys, unrain.lab.bench.speed; print([name for name in sys.modules if 'lightning' in name])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("able", "has"),
    [({}, False), ({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_a_recipe_trains_in_bf16_where_the_processor_has_it_unless_it_names_a_precision(
    able, has, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert has_bf16() is has
    trained = {
        precision: Recipe("x", (), (Stage(1),), LossWeights(), precision=precision).bf16
        for precision in ("auto", "bf16", "fp32")
    }
    assert trained == {"auto": has, "bf16": True, "fp32": False}


@pytest.mark.parametrize("has", [False, True])
def test_emulated_bf16_of_a_gpu_does_not_count(has, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or has)
    assert has_bf16("cuda") is has
    assert asked == [{"including_emulation": False}]
    assert has_bf16("mps") is False
