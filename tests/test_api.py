"""What `import unrain` gives: one function, one class, a list of models, all of them typed."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

import unrain
from toys import ROOT, natural, tiny_network
from unrain import zoo


def test_every_kind_of_picture_is_taken(tmp_path, tiny_model):
    pixels = natural(24, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = unrain.Derainer(tiny_model)(pixels)
    assert (expected != pixels).any()
    for picture in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        result = unrain.derain(picture, model=tiny_model)
        assert isinstance(result, np.ndarray if picture is pixels else Image.Image)
        np.testing.assert_array_equal(np.asarray(result), expected)


@pytest.mark.parametrize("picture", [b"xx", None, 3, [[1, 2]], io.BytesIO()])
def test_anything_else_is_refused(tiny_model, picture):
    with pytest.raises(unrain.UsageError, match="a picture is a file name, a Pillow image or a NumPy array"):
        unrain.derain(picture, model=tiny_model)


def test_recursions_end_early_with_until(tiny_model):
    pixels = natural(24, 32)
    once = unrain.derain(pixels, model=tiny_model, recursions=1)
    assert (unrain.derain(pixels, model=tiny_model) != once).any()
    np.testing.assert_array_equal(unrain.derain(pixels, model=tiny_model, until=255), once)


def test_strength_needs_no_other_model(tmp_path, tiny_model, monkeypatch):
    pixels = natural(24, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = unrain.derain(pixels, model=tiny_model)
    monkeypatch.setattr("unrain.derainer.open_engine", None)
    np.testing.assert_array_equal(unrain.derain(pixels, model=tiny_model, strength=0), pixels)
    np.testing.assert_array_equal(unrain.derain(pixels, model=tiny_model, strength=1), whole)
    half = unrain.derain(pixels, model=tiny_model, strength=0.5)
    np.testing.assert_allclose(half, (pixels + whole.astype(float)) / 2, atol=0.5)
    from_file = unrain.derain(tmp_path / "a.png", model=tiny_model, strength=0.5)
    np.testing.assert_array_equal(np.asarray(from_file), half)
    with pytest.raises(unrain.UsageError, match=r"strength is 2: give 0 to 1\.5"):
        unrain.derain(pixels, model=tiny_model, strength=2)


@pytest.mark.parametrize("as_model", [False, True])
def test_a_model_that_is_replaced_is_loaded_again(tmp_path, tiny_model, as_model):
    pixels = natural(24, 32)
    path = tmp_path / "tiny.onnx"
    shutil.copy(tiny_model, path)
    model = zoo.find(path) if as_model else path
    before = unrain.derain(pixels, model=model)
    new = tmp_path / "new.onnx"
    onnx.save(tiny_network(seed=1), new)
    # Neither the time nor the size tells them apart.
    assert new.stat().st_size == path.stat().st_size
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.replace(path)
    after = unrain.derain(pixels, model=model)
    assert (after != before).any()
    np.testing.assert_array_equal(after, unrain.Derainer(path)(pixels))


def test_a_relative_path_is_another_model_in_another_folder(tmp_path, monkeypatch, tiny_model):
    pixels = natural(24, 32)
    results = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        onnx.save(tiny_network(seed), folder / "tiny.onnx")
        monkeypatch.chdir(folder)
        results.append(unrain.derain(pixels, model="tiny.onnx"))
    assert (results[0] != results[1]).any()


def test_a_model_stays_loaded(monkeypatch, tiny_model):
    pixels = natural(24, 32)
    unrain.derain(pixels, model=tiny_model)
    monkeypatch.setattr("unrain.derainer.open_engine", None)
    unrain.derain(pixels, model=tiny_model)


@pytest.mark.slow
def test_unknown_names_are_errors(tmp_path):
    with pytest.raises(AttributeError, match="no attribute 'derrain'"):
        _ = unrain.derrain
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text("import unrain\nunrain.derrain('a.jpg')\nunrain.derain('a.jpg').save('b.jpg')\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(program)]
    command += ["--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert 'program.py:2: error: Module has no attribute "derrain"' in lines[0]
