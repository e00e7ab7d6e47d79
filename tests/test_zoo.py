"""Models are found by name or by file, and their cards are read."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest

from unrain import zoo
from unrain.derainer import Derainer
from unrain.errors import UnrainError, UsageError


@pytest.fixture
def shelf(tmp_path, monkeypatch, tiny_model):
    """A zoo of two models, one of them the default."""
    for name in ("aaa", zoo.DEFAULT):
        shutil.copy(tiny_model, tmp_path / f"{name}.onnx")
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "multiple": 8}))
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    return tmp_path


def test_the_default_comes_first(shelf):
    assert [model.name for model in zoo.models()] == [zoo.DEFAULT, "aaa"]
    assert zoo.models()[1].card == {"name": "aaa", "multiple": 8}


def test_by_name(shelf):
    model = zoo.find("aaa")
    assert (model.name, model.path) == ("aaa", shelf / "aaa.onnx")


def test_by_file(shelf, tiny_model):
    assert zoo.find(tiny_model).card["name"] == "tiny"
    lone = shutil.copy(tiny_model, shelf / "Lone.onnx")
    (shelf / "Lone.onnx").rename(shelf / "lone.bin")
    assert zoo.find(str(shelf / "lone.bin")) == zoo.Model("lone", shelf / "lone.bin", {})
    with pytest.raises(UsageError, match=r"Lone\.onnx: no such model file"):
        zoo.find(lone)


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
def test_a_name_of_any_bytes_is_text(shelf, tiny_model):
    path = shelf / os.fsdecode(b"caf\xe9.onnx")
    shutil.copy(tiny_model, path)
    assert (zoo.find(path).name, zoo.find(path).path) == ("caf\ufffd", path)


def test_unknown_names_list_the_known_ones(shelf):
    with pytest.raises(UsageError, match=rf"nope: unknown model, known ones: {zoo.DEFAULT}, aaa"):
        zoo.find("nope")


@pytest.mark.parametrize("name", ["../aaa", "aa*", "", ".."])
def test_a_name_is_no_path_and_no_pattern(shelf, name):
    with pytest.raises(UsageError, match="unknown model"):
        zoo.find(name)


def test_an_empty_zoo_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    assert zoo.models() == []
    with pytest.raises(UnrainError, match="known ones: none, so install unrain again"):
        zoo.find(zoo.DEFAULT)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"name": "\xff"}', "utf-8"),
        (b"1" * 10_000, "digits"),
    ],
)
def test_a_broken_card(shelf, card, words):
    (shelf / "aaa.json").write_bytes(card)
    with pytest.raises(UnrainError, match=rf"aaa\.json: the model's card cannot be read \(.*{words}.*get it"):
        zoo.find("aaa")


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names")
def test_cards_and_models_are_files(shelf):
    (shelf / "aaa.json").unlink()
    (shelf / "aaa.json").symlink_to("/dev/zero")
    with pytest.raises(UnrainError, match=r"aaa\.json: a pipe or a device, not a file"):
        zoo.find("aaa")
    os.mkfifo(shelf / "pipe.onnx")
    with pytest.raises(UnrainError, match=r"pipe\.onnx: a pipe or a device, not a file"):
        Derainer(shelf / "pipe.onnx")


def test_a_card_that_is_far_too_large(shelf):
    with (shelf / "aaa.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnrainError, match=r"aaa\.json: larger than 4,194,304 bytes, get it again"):
        zoo.find("aaa")


def test_models_can_be_told_apart_in_a_cache(shelf):
    assert len({zoo.find("aaa"), zoo.find("aaa"), zoo.find(zoo.DEFAULT)}) == 2


@pytest.fixture
def own(shelf, tmp_path, monkeypatch, tiny_model):
    """The user's folder, outside the zoo, with one model."""
    folder = tmp_path / "user" / "models"
    folder.mkdir(parents=True)
    monkeypatch.setenv("UNRAIN_MODELS", str(folder))
    for suffix in (".onnx", ".json"):
        shutil.copy(tiny_model.with_suffix(suffix), folder / f"mine{suffix}")
    return folder


def test_models_of_ones_own_follow_those_of_the_package(own):
    assert [model.name for model in zoo.models()] == [zoo.DEFAULT, "aaa", "mine"]
    assert [model.name for model in zoo.built_in()] == [zoo.DEFAULT, "aaa"]
    assert zoo.find("mine").path == own / "mine.onnx"
    assert zoo.find("mine").card["name"] == "tiny"
    with pytest.raises(UsageError, match=rf"known ones: {zoo.DEFAULT}, aaa, mine"):
        zoo.find("nope")


def test_no_model_of_ones_own_takes_the_name_of_a_built_in_one(own, shelf):
    shutil.copy(own / "mine.onnx", own / "aaa.onnx")
    assert zoo.find("aaa").path == shelf / "aaa.onnx"
    assert [model.name for model in zoo.models()] == [zoo.DEFAULT, "aaa", "mine"]


def test_a_name_leads_nowhere_outside_the_folder(own):
    shutil.copy(own / "mine.onnx", own.parent / "outside.onnx")
    for name in ("../outside", "./mine", ".mine", "mine\n"):
        with pytest.raises(UsageError, match="unknown model"):
            zoo.find(name)
        with pytest.raises(UsageError, match="no model that was added, those are: mine"):
            zoo.remove(name)
    assert (own.parent / "outside.onnx").is_file()


def test_removing_takes_the_card_too_and_only_what_was_added(own, shelf):
    assert zoo.remove("mine") == own / "mine.onnx"
    assert list(own.iterdir()) == []
    with pytest.raises(UsageError, match="mine: no model that was added, those are: none"):
        zoo.remove("mine")
    with pytest.raises(UsageError, match="aaa: came with unrain and stays"):
        zoo.remove("aaa")
    assert (shelf / "aaa.onnx").is_file()


@pytest.mark.parametrize(
    ("system", "folder"),
    [("linux", ".local/share/unrain/models"), ("darwin", "Library/Application Support/unrain/models")],
)
def test_where_the_users_folder_is(monkeypatch, tmp_path, system, folder):
    platforms = {"linux": "platformdirs.unix:Unix", "darwin": "platformdirs.macos:MacOS"}
    module, _, name = platforms[system].partition(":")
    kind = getattr(importlib.import_module(module), name)
    monkeypatch.delenv("UNRAIN_MODELS")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.PlatformDirs", kind)
    assert zoo.user_folder() == tmp_path / folder


def test_the_package_has_its_own_folder_of_weights():
    assert Path(zoo.__file__).parent / "weights" == zoo.WEIGHTS
