"""The package for darktable: its layout, its manifest, and its network run as darktable runs it."""

import io
import json
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from toys import natural
from unrain import cli, zoo
from unrain.derainer import Derainer
from unrain.errors import UsageError
from unrain.lab import darktable
from unrain.lab.darktable import OVERLAP, TILE, write_package

# What darktable-ai's own validation asks for.
REQUIRED = {"id": str, "name": str, "description": str, "task": str, "backend": str, "version": str}
TASKS = {"denoise", "rawdenoise", "mask", "upscale", "embed", "depth", "erase"}


def unpacked(path):
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def test_the_package_is_as_darktable_wants_it(tmp_path, capsys):
    target = tmp_path / "denoise-unrain.dtmodel"
    assert cli.main(["export", "rdmc-lite-xs", "--darktable", str(target)]) == 0
    contents = unpacked(target)
    # The first entry's folder names the model, and is the file's name.
    assert {name.split("/")[0] for name in contents} == {"denoise-unrain"}
    config = json.loads(contents["denoise-unrain/config.json"])
    assert all(isinstance(config[key], kind) and config[key] for key, kind in REQUIRED.items())
    assert config["id"] == target.stem and config["task"] in TASKS and config["backend"] == "onnx"
    assert config["tiling"] is True and config["attributes"] == {"input_sizes": [TILE]}
    assert set(config["model_card"]) >= {"long_description", "author", "license", "training_data"}
    assert all(isinstance(value, str) for value in config["model_card"].values())
    before = target.read_bytes()
    write_package(zoo.find("rdmc-lite-xs"), target)
    assert target.read_bytes() == before


def test_names_and_options_that_do_not_fit(tmp_path, capsys):
    for name in ("a.zip", "A.dtmodel", "-a.dtmodel", "a_b.dtmodel"):
        with pytest.raises(UsageError, match="give a name of small letters"):
            write_package(zoo.find("rdmc-lite-xs"), tmp_path / name)
    target = str(tmp_path / "a.dtmodel")
    for words in ([], ["-o", "a.onnx", "--darktable", target], ["--darktable", target, "--recursions", "2"]):
        assert cli.main(["export", "rdmc-lite-xs", *words]) == 2
    assert cli.main(["export", "nosuch", "--darktable", target]) == 2
    assert not list(tmp_path.iterdir())


def test_recursions_are_written_out(model_folder, monkeypatch):
    monkeypatch.setattr(darktable, "TILE", 48)
    network = onnx.load(model_folder / "tiny.onnx")
    made = darktable.tile_network(network, 3)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    single = ort.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = natural(48, 48).transpose(2, 0, 1)[None].astype(np.float32) / 255
    estimate = picture
    for _ in range(3):
        (estimate,) = single.run(None, {"rainy": picture, "estimate": estimate})
    (result,) = session.run(None, {"input": picture})
    np.testing.assert_allclose(result, np.clip(estimate, 0, 1), atol=1e-6)


def as_darktable(session, picture, tile_side):
    """Run a model tile by tile as darktable's src/common/ai/restore.c does: H x W x 3 in [0, 1]."""
    height, width = picture.shape[:2]
    step = tile_side - 2 * OVERLAP

    def mirrored(first, size):
        at = np.abs(np.arange(first, first + tile_side))
        return np.clip(np.where(at >= size, 2 * size - 2 - at, at), 0, size - 1)

    result = np.empty_like(picture)
    for top in range(0, height, step):
        for left in range(0, width, step):
            tile = picture[mirrored(top - OVERLAP, height)[:, None], mirrored(left - OVERLAP, width)]
            (out,) = session.run(None, {"input": tile.transpose(2, 0, 1)[None]})
            inner = out[0].transpose(1, 2, 0)[OVERLAP : OVERLAP + step, OVERLAP : OVERLAP + step]
            there = result[top : top + step, left : left + step]
            there[...] = inner[: there.shape[0], : there.shape[1]]
    return result


@pytest.mark.slow
def test_darktables_tiles_give_what_the_derainer_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(darktable, "TILE", 320)
    target = write_package(zoo.find("rdmc-lite-xs"), tmp_path / "a.dtmodel")
    session = ort.InferenceSession(unpacked(target)["a/model.onnx"], providers=["CPUExecutionProvider"])
    (port,), (out,) = session.get_inputs(), session.get_outputs()
    assert port.shape == out.shape == [1, 3, 320, 320] and port.type == "tensor(float)"
    picture = natural(420, 400).astype(np.float32) / 255
    picture[:, ::37] = np.clip(picture[:, ::37] + 0.4, 0, 1)
    expected = Derainer("rdmc-lite-xs", levels=1)(picture)
    tiled = as_darktable(session, picture, 320)
    # At the edges of the picture darktable mirrors it, where the network's own padding is of zeros.
    off = np.abs(tiled - expected)[100:-100, 100:-100]
    # The overlap is a little less than the network's halo: what is left of a seam cannot be seen.
    assert off.max() < 2 / 255 and off.mean() < 0.01 / 255
    assert np.abs(expected - picture).mean() > 1 / 255
    assert io.BytesIO(target.read_bytes()).read(2) == b"PK"
