"""The README's figures measured again: what agrees, what differs, what is left out."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from toys import ROOT, toy_pairs
from unrain import cli, zoo
from unrain.errors import UnrainError
from unrain.lab.bench import reproduce
from unrain.lab.bench.reproduce import digest
from unrain.lab.data.suites import open_suite


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a set of three pairs, below the current folder."""
    monkeypatch.chdir(tmp_path)
    toy_pairs(tmp_path, 3, 24, 20)
    return tmp_path / "data"


@pytest.fixture
def stated(data, tmp_path, monkeypatch, tiny_model):
    """The set takes the place of the README's, and a hand-made network that of both models."""
    weights = tmp_path / "weights"
    weights.mkdir()
    path = weights / f"{zoo.DEFAULT}.onnx"
    shutil.copy(tiny_model, path)
    shutil.copy(tiny_model.with_suffix(".json"), path.with_suffix(".json"))
    monkeypatch.setattr(zoo, "WEIGHTS", weights)
    monkeypatch.setattr(reproduce, "SUMMARY_SUITES", ("set",))
    monkeypatch.setattr(reproduce, "BASELINES", {})
    monkeypatch.setattr(reproduce, "_is_there", lambda root, suite: (root / suite).is_dir())
    return path.with_suffix(".json")


def test_a_digest_is_that_of_the_pixels(data):
    parts = []
    for i in range(3):
        part = hashlib.sha256()
        for side in ("rain", "clean"):
            pixels = np.asarray(Image.open(data / "set" / side / f"{i}.png"))
            part.update((24).to_bytes(4, "little") + (20).to_bytes(4, "little") + pixels.tobytes())
        parts.append(part.digest())
    expected = hashlib.sha256(b"".join(sorted(parts))).hexdigest()
    assert digest(open_suite(data, "set")) == expected
    # Other names, another format: the same set.
    for side in ("rain", "clean"):
        path = data / "set" / side / "0.png"
        Image.open(path).save(path.with_name("z.bmp"))
        path.unlink()
    assert digest(open_suite(data, "set")) == expected
    pixels = np.asarray(Image.open(data / "set" / "rain" / "1.png")).copy()
    pixels[5, 6, 1] ^= 1
    Image.fromarray(pixels).save(data / "set" / "rain" / "1.png")
    assert digest(open_suite(data, "set")) != expected


def test_scores_that_agree_and_one_that_does_not(stated, data, capsys):
    assert cli.main(["bench", "--data", "data", "--suite", "set", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = next(row for row in rows if row["model"] == zoo.DEFAULT)
    card = json.loads(stated.read_text())
    card["scores"] = {"set T2": {"psnr": found["psnr"], "ssim": found["ssim"], "pictures": 3}}
    stated.write_text(json.dumps(card))
    shown = f"{found['psnr']:.2f} / {found['ssim']:.4f}"
    assert cli.main(["reproduce", "scores", "--data", "data"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"  {zoo.DEFAULT}, set: stated {shown}, measured {shown}: agrees" in printed
    assert printed[-1] == "1 agree, 0 differ, 0 depend on the machine, 0 left out"
    card["scores"]["set T2"]["psnr"] += 0.02
    stated.write_text(json.dumps(card))
    assert cli.main(["reproduce", "scores", "--data", "data"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].endswith("DIFFERS")
    assert printed[-1] == "0 agree, 1 differ, 0 depend on the machine, 0 left out"


def test_what_is_not_there_is_left_out_and_no_success(stated, data, capsys):
    shutil.rmtree(data / "set")
    assert cli.main(["reproduce", "scores", "--data", "data"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert f"  {zoo.DEFAULT}, set: left out, set is not below data" in printed
    assert printed[-1] == "0 agree, 0 differ, 0 depend on the machine, 1 left out"
    assert cli.main(["reproduce", "sets", "--data", "data"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 left out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["all"], "all: no table of the README, choose sets, scores"), (["scores"], "scores: name the folder")],
)
def test_what_cannot_be_reproduced_is_said(capsys, arguments, words):
    assert cli.main(["reproduce", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_times_are_measured_and_not_judged(monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "SIZE", "32x24")
    # Two threads for so small a picture only wait for each other.
    monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 1)
    # What a process uses is another test's matter.
    monkeypatch.setattr(reproduce, "_resources", lambda *arguments: (2.345, 1.26))
    assert cli.main(["reproduce", "speed", "large"]) == 0
    printed = capsys.readouterr().out.splitlines()
    times = [line for line in printed if line.endswith("depends on the machine")]
    assert len(times) == 3 + 4
    pattern = r"rdmc-lite-xs, 32x24, \d threads?s: stated 0\.07 s, 42 times as fast as PReNet, measured "
    assert any(re.search(pattern, one) for one in times)
    # What all are compared with is not compared with itself.
    assert not [one for one in times if one.startswith("  PReNet") and "as fast" in one]
    assert (
        "  rdmc-lite, 12 megapixels, one thread: stated 2.2 s, measured 2.3 s: depends on the machine"
        in printed
    )
    assert printed[-1] == "0 agree, 0 differ, 7 depend on the machine, 0 left out"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell what a process has used")
def test_what_a_process_uses(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    seen = []
    what = ["rdmc-lite-xs"], "a small picture", 1, lambda *progress: seen.append(progress)
    seconds, gigabytes = reproduce._resources(tmp_path, (64, 48), *what)
    assert 0.05 < seconds < 600 and 0.03 < gigabytes < 2
    assert seen == [("a small picture", 1, 1)]
    with pytest.raises(UnrainError, match=r"ended with 2 on 64x48\.jpg"):
        reproduce._resources(tmp_path, (64, 48), ["no-such-model"], *what[1:])


def test_the_page_has_the_digests_that_are_compared():
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for one in reproduce.reference()["digests"].values():
        assert one in text


def test_figures_outside_the_tables_are_those_that_are_reproduced():
    stated = reproduce.reference()["full_size"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{stated['seconds']} s at full size alone" in text
    assert f"{stated['gigabytes']} GB at 64 megapixels" in text
