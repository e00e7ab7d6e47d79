"""ONNX Runtime: what it must not do beside running a network."""

import os
import subprocess
import sys

import pytest

RUN = """
import numpy as np, unrain
unrain.derain(np.zeros((32, 32, 3), np.uint8), model={model!r}, device="cpu")
"""
# Variables with which ONNX Runtime reports nothing by itself.
QUIET = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")


@pytest.mark.parametrize("quiet", [True, False], ids=["as it is", "without the line in unrain"])
def test_it_opens_no_session_of_telemetry(tiny_model, tmp_path, quiet):
    environment = {key: value for key, value in os.environ.items() if key not in QUIET}
    environment["TMPDIR"] = str(tmp_path)
    code = RUN.format(model=str(tiny_model)) if quiet else "import onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    # The library's telemetry keeps its session there from its import on.
    found = [path.name for path in tmp_path.iterdir()]
    if not quiet and not found:
        pytest.skip("this ONNX Runtime has no telemetry to be seen")
    assert bool(found) is not quiet
