"""The notebooks run from top to bottom, and are kept with small results."""

import json
import os
import re
import shutil

import pytest

from toys import ROOT

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@every
def test_they_are_kept_with_results_that_are_small(path):
    assert path.stat().st_size < 200_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    # Nobody's folders are in them.
    assert not re.search(r"/(home|work|tmp|Users)/", path.read_text(encoding="utf-8"))


@every
def test_links_lead_somewhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)\s#]+)", "".join(cell["source"])):
                assert "://" in link or (FOLDER / link).exists(), link


@pytest.mark.slow
@every
def test_they_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    for cell in cells(notebook):
        # Each step of a training is like the one before, and a narrow network works like a wider one.
        for full, small in (
            ("steps = 60", "steps = 2"),
            ("width = 4", "width = 2\ngates = []\ndilations = [1]"),
        ):
            cell["source"] = cell["source"].replace(full, small)
    resources = {"metadata": {"path": str(tmp_path / "examples" / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for kept, found in zip(cells(nbformat.read(path, 4)), cells(notebook), strict=True):
        # How much arrives at once is chance.
        kinds = [{output["output_type"] for output in cell["outputs"]} for cell in (kept, found)]
        assert kinds[0] == kinds[1], found["source"]
