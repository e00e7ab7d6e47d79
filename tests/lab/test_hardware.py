"""The machine's name, and that asking for it is cheap."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from unrain.lab.hardware import hardware  # noqa: E402

pytestmark = pytest.mark.slow


def test_the_processor_is_named_with_its_cores():
    assert " cores, " in hardware(torch.device("cpu"))


def test_the_speed_table_is_imported_without_lightning():
    code = "import sys, unrain.lab.bench.speed; print([name for name in sys.modules if 'lightning' in name])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
