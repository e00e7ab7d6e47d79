"""The command line, as a person or a script meets it."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from cyclopts import App
from PIL import Image

import unrain
from toys import ROOT, add_loop, flat_picture, png_of, tiny_network
from unrain import cli, image, plan, zoo
from unrain.cli.output import escaped
from unrain.cli.signals import terminable
from unrain.cli.topics import TOPICS
from unrain.derainer import Derainer
from unrain.errors import UnrainError

SUMMARY = "For tests that need a summary of more words than fit beside the numbers."
SETTINGS = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_model):
    """A current folder with photo.jpg, and a zoo that holds the hand-made network as its default."""
    folder = tmp_path / "here"
    folder.mkdir()
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(tiny_model, weights / f"{zoo.DEFAULT}.onnx")
    card = {
        **json.loads(tiny_model.with_suffix(".json").read_text()),
        "summary": SUMMARY,
        "parameters": 1234,
        "scores": {
            "rain100l/test T1": {"pictures": 100, "psnr": 34, "ssim": 0.96, "seconds": 0.1},
            "rain100l/test T2": {"pictures": 100, "psnr": 35.1, "ssim": 0.97, "seconds": 0.123},
        },
        "scores_by": "unrain bench rdmc-lite",
        "scores_commit": "abc",
        "recipe": "long.toml",
        "steps": 1000,
        "wall_time": 120,
        "hardware": "2 cores, Z80",
        "precision": "bf16",
        "licence": "Apache-2.0",
    }
    (weights / f"{zoo.DEFAULT}.json").write_text(json.dumps(card))
    monkeypatch.setattr(zoo, "WEIGHTS", weights)
    monkeypatch.chdir(folder)
    picture("photo.jpg")
    return folder


class HalvesBright:
    """An engine that finds rain in bright pictures only."""

    multiple, halo, recursions, recursive = 1, 0, 1, False

    def step(self, rainy, estimate):
        return rainy * np.float32(0.5 if rainy.max() > 0.6 else 1)


def picture(name, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name)


def process(*arguments, **options):
    """Run the real thing."""
    return subprocess.run(
        [sys.executable, "-m", "unrain", *map(str, arguments)],
        env={**os.environ, **SETTINGS},
        capture_output="stdout" not in options,
        timeout=60,
        check=False,
        **options,
    )


# ------------------------------------------------------------------------------------------------ main job


def test_the_main_job(here, capsys):
    assert cli.main(["photo.jpg"]) == 0
    assert capsys.readouterr().err.startswith("photo.jpg -> photo_derained.jpg (")
    with Image.open("photo_derained.jpg") as result, Image.open("photo.jpg") as source:
        assert result.size == source.size
        assert result.quantization == source.quantization
    assert cli.main(["photo.jpg"]) == 0
    assert "photo.jpg: skipped, photo_derained.jpg exists, --overwrite replaces it" in capsys.readouterr().err
    assert cli.main(["photo.jpg", "--overwrite", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_all_the_options(here, capsys):
    arguments = "--model MODEL --recursions 1 --tile 128 --threads 1 --quality 50 --max-pixels 1000 -v"
    arguments = arguments.replace("MODEL", str(zoo.find(zoo.DEFAULT).path)).split()
    assert cli.main(["photo.jpg", "-o", "new/", "--rain-layer", "--compare", *arguments]) == 0
    assert sorted(path.name for path in Path("new").iterdir()) == [
        "photo_compare.jpg",
        "photo_derained.jpg",
        "photo_rain.png",
    ]
    assert "model rdmc-lite" in capsys.readouterr().err


def test_options_reach_the_network(here, monkeypatch):
    seen = {}

    def remember(self, model, **options):
        seen.update(options, model=model.name)
        raise UnrainError("enough")

    monkeypatch.setattr(Derainer, "__init__", remember)
    options = ["--recursions", "2", "--until", "0.5", "--levels", "3", "--tile", "256", "--threads", "3"]
    options += ["--device", "cuda:1", "--precision", "fp16"]
    assert cli.main(["photo.jpg", *options]) == 1
    numbers = {"recursions": 2, "until": 0.5, "levels": 3, "tile": 256, "threads": 3}
    assert seen == {"model": zoo.DEFAULT, "device": "cuda:1", "precision": "fp16", **numbers}


def test_verbose_says_at_which_size_a_large_picture_was_derained(here, capsys):
    picture("large.png")
    Image.open("large.png").resize((1700, 900)).save("large.png")
    assert cli.main(["large.png", "-v", "-o", "out.png"]) == 0
    assert "derained at 1/2 of its size" in capsys.readouterr().err


def test_verbose_says_how_many_recursions_were_run(here, capsys):
    for options, words in (
        (["--recursions", "3"], "3 recursions)"),
        (["--recursions", "3", "--until", "300"], "1 recursion)"),
    ):
        assert cli.main(["photo.jpg", "-v", "--overwrite", *options]) == 0
        assert words in capsys.readouterr().err
    assert cli.main(["photo.jpg", "--overwrite"]) == 0
    assert "recursion" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "L", "I;16", "16 bits"])
def test_strength_takes_a_share_of_the_rain_away(here, kind):
    pixels = np.random.default_rng(0).integers(0, 65536, (24, 40, 4), np.uint16)
    if kind == "16 bits":
        source = image.Picture(pixels[..., :3], pixels[..., 3])
        Path("a.png").write_bytes(image.encode(source, "PNG")[0])
    elif kind == "I;16":
        Image.fromarray(pixels[..., 0]).save("a.png")
    else:
        bands = len(Image.new(kind, (1, 1)).getbands())
        Image.fromarray((pixels[..., :bands] >> 8).astype(np.uint8).squeeze()).save("a.png")
    results = {}
    for strength in ("0", "0.5", "1", "1.5", None):
        options = ["--strength", strength] if strength else []
        assert cli.main(["a.png", "-o", f"{strength}.png", *options]) == 0
        results[strength] = image.read(Path(f"{strength}.png"))
    source = image.read(Path("a.png"))
    assert results["0"].pixels.tobytes() == source.pixels.tobytes()
    assert Path("1.png").read_bytes() == Path("None.png").read_bytes()
    most = np.iinfo(source.pixels.dtype).max
    before, after = (each.pixels.astype(float) for each in (source, results["1"]))
    assert (before != after).any()
    for strength in ("0.5", "1.5"):
        expected = np.rint(np.clip(before - float(strength) * (before - after), 0, most))
        np.testing.assert_allclose(results[strength].pixels, expected, atol=0.5)
    for result in results.values():
        assert result.pixels.dtype == source.pixels.dtype
        if source.alpha is not None:
            np.testing.assert_array_equal(result.alpha, source.alpha)


def test_strength_holds_for_a_folder_and_for_all_results(here):
    for name in ("in/a.png", "in/sub/b.png"):
        picture(name, seed=len(name))
    assert cli.main(["in", "-o", "out", "--strength", "0.4", "--rain-layer", "--compare"]) == 0
    for name in ("a", "sub/b"):
        before = image.read(Path(f"in/{name}.png")).pixels
        after = image.read(Path(f"out/{name}_derained.png")).pixels
        np.testing.assert_array_equal(after, unrain.derain(before, strength=0.4))
        assert (after != unrain.derain(before)).any()
        layer = image.read(Path(f"out/{name}_rain.png")).pixels
        np.testing.assert_array_equal(layer, np.maximum(before.astype(int) - after, 0))
        both = image.read(Path(f"out/{name}_compare.png")).pixels
        np.testing.assert_array_equal(both[:, :40], before)
        np.testing.assert_array_equal(both[:, -40:], after)


def test_hardly_any_rain_is_said(here, capsys, monkeypatch):
    monkeypatch.setattr("unrain.derainer.open_engine", lambda model, processor: HalvesBright())
    for name, value in (("in/dark.png", 100), ("in/bright.png", 200), ("in/black.png", 0)):
        flat_picture(Path(name), value)
    Path("in/bad.png").touch()
    said = "  hardly any rain found"
    for strength in ("1", "0"):
        assert cli.main(["in", "-o", "out", "--overwrite", "-v", "--strength", strength]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if said in line] == [said] * 2
        for name in ("dark", "black"):
            where = next(at for at, line in enumerate(lines) if line.startswith(f"in/{name}.png -> "))
            assert lines[where + 1] == said
        assert lines[-2:] == [
            "unrain: hardly any rain found in 2 of 3",
            "unrain: 3 derained, 0 skipped, 1 failed",
        ]
    assert cli.main(["in", "-o", "out", "--overwrite", "-q"]) == 1
    assert "hardly" not in capsys.readouterr().err
    for options in ([], ["-v"]):
        assert cli.main(["in/dark.png", "-o", "out", "--overwrite", *options]) == 0
        assert capsys.readouterr().err.splitlines()[-1] == said
    assert cli.main(["in/dark.png", "-o", "out", "--overwrite", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["in/bright.png", "-o", "out", "--overwrite", "-v"]) == 0
    assert said not in capsys.readouterr().err


def test_a_folder_is_summed_up(here, capsys):
    picture("in/a.png")
    picture("in/sub/b.png")
    Path("in/bad.png").write_bytes(b"")
    assert cli.main(["in", "-o", "out"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "unrain: error: in/bad.png: the file is empty, get it again from its source" in lines
    assert lines[-1] == "unrain: 2 derained, 0 skipped, 1 failed"
    assert Path("out/sub/b_derained.png").exists()
    Path("in/bad.png").unlink()
    assert cli.main(["in", "-o", "out"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "unrain: 0 derained, 2 skipped, 0 failed"


def test_a_folder_names_the_files_that_it_leaves_aside(here, capsys, monkeypatch):
    picture("in/a.png")
    left = [Path("in") / name for name in ("b.PSD", "c.psd", "d.exr")]
    for path in left:
        path.touch()
    count = "unrain: 3 files left aside (.psd 2, .exr 1): convert them to PNG, TIFF or MP4 first"
    for options in ([], ["--dry-run"]):
        assert cli.main(["in", "-o", "out", "--overwrite", *options]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert count in lines and "  in/d.exr" not in lines
        assert cli.main(["in", "-o", "out", "--overwrite", "-v", *options]) == 0
        lines = capsys.readouterr().err.splitlines()
        where = lines.index(count)
        assert sorted(lines[where + 1 : where + 4]) == [f"  {path}" for path in left]
    assert cli.main(["in", "-o", "out", "--overwrite", "-q"]) == 0
    assert capsys.readouterr().err == ""
    (line,) = cli.derain.left_aside((left[1],), verbose=False)
    assert line == "unrain: 1 file left aside (.psd 1): convert them to PNG, TIFF or MP4 first"


def test_a_failure_names_what_was_written_before_it(here, capsys):
    with cli.derain.Screen(1, quiet=False, verbose=False) as screen:
        screen.settle(
            plan.Outcome("a.webp", "failed", "a_compare.webp: too wide", (Path("a_derained.webp"),))
        )
    assert screen.summary() == 1
    assert capsys.readouterr().err.splitlines() == [
        "a.webp -> a_derained.webp (0.0 s)",
        "unrain: error: a_compare.webp: too wide",
    ]


def test_dry_run(here, capsys):
    picture("in/a.png")
    picture("in/b.png")
    picture("out/b_derained.png")
    assert cli.main(["in", "-o", "out", "--compare", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "in/a.png -> out/a_derained.png",
        "in/a.png -> out/a_compare.png",
        "in/b.png -> out/b_compare.png",
    ]
    assert not Path("out/a_derained.png").exists()
    assert cli.main(["in", "-o", "out", "--dry-run"]) == 0
    said = "unrain: in/b.png: skipped, out/b_derained.png exists, --overwrite replaces it\n"
    assert said in capsys.readouterr().err
    Path("empty").mkdir()
    assert cli.main(["empty", "--dry-run"]) == 1
    assert cli.main(["in", "--model", "nope", "--dry-run"]) == 2


def test_a_picture_called_like_a_command(here, capsys):
    shutil.copy("photo.jpg", "models")
    assert cli.main(["./models"]) == 0
    with Image.open("models_derained") as result:
        assert result.format == "JPEG"
    assert cli.main(["--", "photo.jpg"]) == 0


def test_a_picture_called_like_an_option(here):
    shutil.copy("photo.jpg", "-q.jpg")
    assert cli.main(["--", "-q.jpg"]) == 0
    assert Path("-q_derained.jpg").exists()


# ------------------------------------------------------------------------------------------------- streams


def test_standard_input_to_standard_output(here):
    for kind in ("PNG", "JPEG", "WEBP"):
        content = io.BytesIO()
        Image.open("photo.jpg").save(content, kind)
        done = process("-", "-q", "--model", zoo.find(zoo.DEFAULT).path, input=content.getvalue())
        assert (done.returncode, done.stderr) == (0, b"")
        with Image.open(io.BytesIO(done.stdout)) as result:
            assert (result.format, result.size) == (kind, (40, 24))


def test_a_file_to_standard_output_and_back(here):
    model = zoo.find(zoo.DEFAULT).path
    assert process("photo.jpg", "-o", "-", "--model", model).stdout[:2] == b"\xff\xd8"
    done = process(
        "-", "-o", "new.png", "--rain-layer", "--model", model, input=Path("photo.jpg").read_bytes()
    )
    assert done.returncode == 0
    assert Path("new.png").exists()
    assert Path("new_rain.png").exists()


def test_bad_standard_input(here):
    done = process("-", "--model", zoo.find(zoo.DEFAULT).path, input=b"")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "unrain: error: standard input: the file is empty, get it again from its source"
    ]
    assert done.stdout == b""


def test_no_picture_is_thrown_at_a_terminal(here, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["photo.jpg", "-o", "-"]) == 2
    assert "standard output is a terminal" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_a_reader_that_goes_away(here):
    model = zoo.find(zoo.DEFAULT).path
    # Nobody reads from the start: the first write already fails.
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (
        ["photo.jpg", "-o", "-", "-q", "--model", model],
        ["photo.jpg", "--dry-run", "--model", model],
    ):
        done = process(*arguments, stdout=writer, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, b"")
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output(here):
    with Path("/dev/full").open("wb") as full:
        for arguments in (["photo.jpg", "-o", "-", "-q"], ["photo.jpg", "--dry-run"]):
            arguments += ["--model", zoo.find(zoo.DEFAULT).path]
            done = process(*arguments, stdout=full, stderr=subprocess.PIPE)
            assert done.returncode == 1
            assert done.stderr.count(b"\n") == 1
            assert done.stderr.startswith(b"unrain: error: standard output: ")


# ----------------------------------------------------------------------------------------------- bad input


def bomb():
    Path("bomb.png").write_bytes(png_of(30_000, 20_000))


def truncated():
    Path("half.jpg").write_bytes(Path("photo.jpg").read_bytes()[:600])


BAD = {
    "missing file": (["gone.jpg"], None, 1, "gone.jpg: no such file, check the name"),
    "empty file": (["empty.jpg"], lambda: Path("empty.jpg").touch(), 1, "empty.jpg: the file is empty"),
    "truncated JPEG": (["half.jpg"], truncated, 1, "half.jpg: damaged"),
    "text named .png": (
        ["text.png"],
        lambda: Path("text.png").write_text("hello " * 99),
        1,
        "text.png: no picture in",
    ),
    "decompression bomb": (
        ["bomb.png"],
        bomb,
        1,
        "bomb.png: 30000 x 20000, more than the limit of 400,000,000",
    ),
    "folder without pictures": (
        ["none"],
        lambda: Path("none").mkdir(),
        1,
        "none: no picture or video in this folder",
    ),
    "output below a file": (["photo.jpg", "-o", "photo.jpg/x/"], None, 1, "photo.jpg/x: cannot be written"),
    "unknown model": (
        ["photo.jpg", "--model", "nope"],
        None,
        2,
        "nope: unknown model, known ones: rdmc-lite",
    ),
    "missing model": (["photo.jpg", "--model", "x.onnx"], None, 2, "x.onnx: no such model file"),
    "no ONNX model": (["photo.jpg", "--model", "photo.jpg"], None, 1, "photo.jpg: not a model"),
    "input as output": (
        ["photo.jpg", "-o", "photo.jpg", "--overwrite"],
        None,
        2,
        "photo.jpg: is the input photo.jpg",
    ),
    "no input": ([], None, 2, "no input"),
    "unknown option": (["photo.jpg", "--bogus"], None, 2, "Unknown option"),
    "misspelled option": (
        ["photo.jpg", "--strenght", "0.4"],
        None,
        2,
        "Unknown option: --strenght. Did you mean --strength? See unrain --help",
    ),
    "bad number": (
        ["photo.jpg", "--tile", "big"],
        None,
        2,
        'Invalid value for --tile: unable to convert "big"',
    ),
    "number out of range": (["photo.jpg", "--quality", "101"], None, 2, "Invalid value"),
    "option without value": (["photo.jpg", "-o"], None, 2, "Parameter -o requires an argument"),
    "unknown output format": (["photo.jpg", "-o", "x.gif"], None, 2, "x.gif: extension .gif"),
    "strength out of range": (
        ["photo.jpg", "--strength", "1.6"],
        None,
        2,
        "strength is 1.6: give 0 to 1.5",
    ),
    "strength below zero": (["photo.jpg", "--strength=-1", "--dry-run"], None, 2, "strength is -1: give 0"),
    "strength that is no number": (["photo.jpg", "--strength", "nan"], None, 2, "strength is nan: give 0"),
    "too small a tile": (["photo.jpg", "--tile", "9"], None, 2, "tile is 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(here, capsys, case):
    arguments, prepare, code, message = BAD[case]
    if prepare:
        prepare()
    before = {path: path.stat().st_size for path in Path().rglob("*")}
    assert cli.main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"unrain: error: {message}")
    assert printed.err.count("\n") == 1
    assert {path: path.stat().st_size for path in Path().rglob("*")} == before


def test_a_full_disk_ends_the_run_and_is_summed_up(here, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    picture("in/a.png")
    picture("in/b.png")
    assert cli.main(["in", "-o", "out"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "no space left on the disk" in lines[0]
    assert lines[-1] == "unrain: 0 derained, 0 skipped, 1 failed, 1 not started"
    assert list(Path("out").iterdir()) == []


def test_interrupted(here, capsys, monkeypatch):
    real = Derainer.derain
    calls = []

    def second_is_interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    for name in "abc":
        picture(f"in/{name}.png")
    monkeypatch.setattr(Derainer, "derain", second_is_interrupted)
    assert cli.main(["in"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "unrain: interrupted: 1 derained, 0 skipped, 0 failed, 2 not started"
    )
    assert sorted(path.name for path in Path("in").iterdir()) == ["a.png", "a_derained.png", "b.png", "c.png"]


def test_sigterm_ends_a_run_and_means_afterwards_what_it_meant_before(here, capsys, monkeypatch):
    def terminated(*_, **__):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Derainer, "derain", terminated)
    assert cli.main(["photo.jpg"]) == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_programs_plans_with_sigterm_are_left_alone():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable(lambda: pytest.fail("called")):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_the_main_thread_hears_signals():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: terminable(list).__enter__()).result()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_progress_on_a_terminal(here, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for quiet, drawn in ((["-q"], False), ([], True)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert cli.main(["photo.jpg", "--overwrite", *quiet]) == 0
        assert ("\x1b[" in sys.stderr.getvalue()) == drawn
        assert ("photo.jpg -> photo_derained.jpg" in sys.stderr.getvalue()) == drawn


# ---------------------------------------------------------------------------------------------- the others


def test_models_are_a_table(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(zoo.find(zoo.DEFAULT).path, zoo.WEIGHTS / "bare.onnx")
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "MB", "Rain100L", "Rain100H", "Rain800", "for"]
    # The scores are those of the recursions that the model makes by default.
    assert lines[1].split() == ["rdmc-lite", "*", "0.0", "35.10", "-", "-", *SUMMARY.split()[:7]]
    assert all(len(line) <= 80 for line in lines[:-2])
    bare = next(i for i, line in enumerate(lines) if line.startswith("bare "))
    assert " ".join(line.strip() for line in lines[2:bare]) == " ".join(SUMMARY.split()[7:])
    assert lines[bare].split() == ["bare", "0.0", "-", "-", "-"]
    assert lines[-1] == "unrain models NAME shows one; unrain IN --model NAME uses it."


def test_one_model_is_shown_by_its_card(here, capsys):
    assert cli.main(["models", zoo.DEFAULT]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["rdmc-lite (the default)", SUMMARY]
    assert "parameters 1,234" in lines and "licence Apache-2.0" in lines
    assert "recursions 2 unless --recursions says otherwise" in lines
    assert "rain100l/test 2 100 35.10 0.9700 0.12" in lines
    assert lines[-1] == "measured by: unrain bench rdmc-lite (commit abc)"
    assert not any("{" in line for line in lines)
    assert cli.main(["models", "nope"]) != 0
    assert "nope: unknown model" in capsys.readouterr().err


def test_models_as_json(here, capsys):
    shutil.copy(zoo.find(zoo.DEFAULT).path, zoo.WEIGHTS / "bare.onnx")
    assert cli.main(["models", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [Path(card["path"]).stem for card in both] == ["rdmc-lite", "bare"]
    assert cli.main(["models", "rdmc-lite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == both[:1]
    assert (both[0]["parameters"], both[0]["multiple"]) == (1234, 8)


def test_models_of_an_empty_zoo(here, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "none")
    assert cli.main(["models"]) == 1
    assert "install unrain again" in capsys.readouterr().err


@pytest.fixture
def own(here, monkeypatch, tiny_model):
    """The user's folder of models, which does not exist yet; good.onnx with its card lies here."""
    folder = here.parent / "user" / "models"
    monkeypatch.setenv("UNRAIN_MODELS", str(folder))
    for suffix in (".onnx", ".json"):
        shutil.copy(tiny_model.with_suffix(suffix), f"good{suffix}")
    return folder


def test_a_model_is_added_used_and_removed(own, capsys):
    digest = hashlib.sha256(Path("good.onnx").read_bytes()).hexdigest()
    assert cli.main(["models", "add", "good.onnx", "--sha256", digest.upper(), "--name", "mine"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"good.onnx -> {own / 'mine.onnx'} (SHA-256 {digest})",
        "use it: unrain IN --model mine",
    ]
    assert (own / "mine.onnx").read_bytes() == Path("good.onnx").read_bytes()
    assert json.loads((own / "mine.json").read_text()) == {
        **json.loads(Path("good.json").read_text()),
        "name": "mine",
    }
    assert cli.main(["photo.jpg", "--model", "mine", "-o", "by-name.png"]) == 0
    assert cli.main(["photo.jpg", "--model", "good.onnx", "-o", "by-file.png"]) == 0
    assert Path("by-name.png").read_bytes() == Path("by-file.png").read_bytes()
    capsys.readouterr()
    assert cli.main(["models"]) == 0
    assert f"yours: mine ({own})" in capsys.readouterr().out
    assert cli.main(["models", "mine"]) == 0
    assert "made by hand for tests" in capsys.readouterr().out
    assert cli.main(["models", "remove", "mine"]) == 0
    assert list(own.iterdir()) == []
    assert cli.main(["photo.jpg", "--model", "mine"]) == 2


def test_adding_again_needs_to_be_asked_for(own, capsys):
    assert cli.main(["models", "add", "good.onnx"]) == 0
    onnx.save(tiny_network(seed=1), "good.onnx")
    Path("good.json").unlink()
    assert cli.main(["models", "add", "good.onnx"]) == 1
    assert "good: you have a model of this name, --overwrite replaces it" in capsys.readouterr().err
    assert (own / "good.onnx").read_bytes() != Path("good.onnx").read_bytes()
    assert cli.main(["models", "add", "good.onnx", "--overwrite"]) == 0
    # The card of the model before would lie about this one.
    assert [path.name for path in own.iterdir()] == ["good.onnx"]
    assert (own / "good.onnx").read_bytes() == Path("good.onnx").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("good.onnx --sha256 abc", 1, "its SHA-256 is .*, not the one you gave"),
        ("good.onnx --name ../mine", 2, "no name for a model"),
        (f"good.onnx --name {zoo.DEFAULT}", 2, "the name of a model that came with unrain"),
        ("good.onnx --name remove", 2, "remove: the name of a command"),
        ("none.onnx", 1, "none.onnx: no such file"),
        ("photo.jpg --name photo", 1, "photo.jpg: not a model that ONNX Runtime can open"),
        ("bad.onnx", 1, "bad.onnx: its card and metadata do not give halo and multiple"),
        (".", 2, "no name for a model"),
    ],
)
def test_what_is_no_model_is_not_added(own, capsys, arguments, code, words):
    network = tiny_network()
    del network.metadata_props[:]
    onnx.save(network, "bad.onnx")
    assert cli.main(["models", "add", *arguments.split()]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.search(words, printed.err)
    assert not own.exists()


def test_a_card_as_a_markdown_page(own, capsys):
    assert cli.main(["models", zoo.DEFAULT, "--markdown"]) == 0
    page = capsys.readouterr().out
    _, front, text = page.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["license"], about["pipeline_tag"]) == ("apache-2.0", "image-to-image")
    # Only the scores at the model's own number of recursions.
    (result,) = about["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Rain100L"
    assert [metric["value"] for metric in result["metrics"]] == [35.1, 0.97]
    assert text.lstrip().startswith(f"# {zoo.DEFAULT}\n\n{SUMMARY}\n")
    assert f"unrain photo.jpg --model {zoo.DEFAULT}" in text
    assert "| Rain100L | 1 | 100 | 34.00 | 0.9600 | 0.1 |" in text
    assert "- `long.toml`: 1,000 steps, 2 minutes on 2 cores, Z80 in bf16\n" in text
    assert cli.main(["models", "--markdown"]) == 2
    assert cli.main(["models", "good.onnx", "--markdown"]) == 0
    assert "made by hand for tests" in capsys.readouterr().out


def test_every_shipped_card_is_a_markdown_page(monkeypatch, capsys):
    for model in zoo.built_in():
        assert cli.main(["models", model.name, "--markdown"]) == 0
        page = capsys.readouterr().out
        about = yaml.safe_load(page.split("---\n")[1])
        assert about["model-index"][0]["name"] == model.name
        for line in (model.card["summary"], *(f"- {one}" for one in model.card["training_data"])):
            assert line in page
        stages = page.partition("## How it was made")[2]
        assert f"- `{model.card['recipe']}`: {model.card['steps']:,} steps" in stages


@pytest.mark.parametrize(
    "entries",
    [{"scores": [1]}, {"scores": {"rain100l/test T2": "good"}}, {"parameters": {}, "training_data": 5}],
    ids=str,
)
def test_a_card_that_is_no_card_is_one_line(here, capsys, entries):
    card = zoo.WEIGHTS / f"{zoo.DEFAULT}.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **entries}))
    assert cli.main(["models", zoo.DEFAULT]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"unrain: error: {card}: not as unrain export writes it (")


FORGED = "a\nunrain: error: forged\x1b[2J\x9b31m\u202egpj.\u2028\u2066.png"
HARMLESS = "a\\nunrain: error: forged\\u001b[2J\\u009b31m\\u202egpj.\\u2028\\u2066.png"


@pytest.mark.skipif(os.name != "posix", reason="names of nearly any bytes")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([FORGED], 1),
        ([FORGED, "photo.jpg", "-o", "out"], 1),
        (["photo.jpg", "-o", f"out/{FORGED}", "-v"], 0),
        (["photo.jpg", "--model", FORGED], 1),
        (["photo.jpg", "-o", f"out/{FORGED}", "--dry-run"], 0),
    ],
    ids=["input", "folder run", "output", "model", "dry run"],
)
def test_names_cannot_forge_lines_or_steer_the_terminal(here, capsys, arguments, code):
    Path(FORGED).write_text("neither picture nor model")
    assert cli.main(arguments) == code
    printed = "".join(capsys.readouterr())
    assert HARMLESS in printed
    assert not [line for line in printed.splitlines() if line.startswith("unrain: error: forged")]
    assert not set(printed) & set("\x1b\x9b\u202e\u2028\u2066")


def test_cards_cannot_steer_the_terminal(here, capsys):
    card = zoo.WEIGHTS / f"{zoo.DEFAULT}.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "licence": FORGED, "summary": FORGED}))
    for arguments in (["models"], ["models", zoo.DEFAULT], ["models", "--json"]):
        assert cli.main(arguments) == 0
        assert not set(capsys.readouterr().out) & set("\x1b\x9b\u202e\u2028\u2066")
    assert cli.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["licence"] == FORGED


def test_what_is_shown_of_other_alphabets():
    for name in ("naïve 雨.png", "дождь", "مطر", "👩\u200d🚀", "a\\b"):
        assert escaped(name) == name


def test_a_model_with_loops_is_told(here, capsys):
    network = tiny_network()
    add_loop(network, 3)
    onnx.save(network, "loops.onnx")
    assert cli.main(["photo.jpg", "--model", "loops.onnx"]) == 0
    assert "unrain: loops.onnx has loops, which may never end" in capsys.readouterr().err


def test_version(here, capsys):
    assert cli.main(["--version"]) == 0
    printed = capsys.readouterr().out
    for wanted in (
        f"unrain {unrain.__version__}",
        "Python 3",
        "numpy 2",
        "pillow 1",
        "onnxruntime 1",
        "CPUs",
        zoo.DEFAULT,
    ):
        assert wanted in printed


HEAVY = "'numpy', 'PIL', 'onnxruntime', 'torch', 'unrain.image', 'unrain.derainer'"


@pytest.mark.parametrize(
    "code",
    [
        "from unrain.cli import main; assert main(['--help']) == 0; import sys; "
        "assert 'unrain.lab' not in sys.modules",
        "from unrain.cli import main; assert main(['help', 'bench']) == 0",
        "from unrain.cli import main; assert main(['help', 'serve']) == 0",
        "from unrain.cli import main; assert main(['--version']) == 0",
        "from unrain.cli import main; main(['models'])",
        "import unrain; unrain.models",
    ],
)
def test_what_must_be_quick_imports_nothing_heavy(code):
    code += f"; import sys; assert not {{{HEAVY}}} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **SETTINGS}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_picture_does_not_wait_for_what_videos_need(here):
    code = (
        "from unrain.cli import main; assert main(['photo.jpg']) == 0; import sys; "
        "assert 'unrain.video.pipeline' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **SETTINGS}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_shows_first_what_people_do(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    options = (
        "output overwrite strength rain-layer compare quality model recursions tile threads max-pixels "
        "dry-run quiet"
    )
    for word in [*(f"--{name}" for name in options.split()), "-o", "-q", "-v", "--version"]:
        assert word in printed
    groups = [
        printed.index(word)
        for word in ("unrain photo.jpg", " Commands ", " Results ", " Commands for research ")
    ]
    assert groups == sorted(groups)
    people, research = printed[groups[1] : groups[2]], printed[groups[3] :]
    assert "models" in people and "serve" in people and "train" not in people
    for command in ("train", "adapt", "export", "bench", "search", "ablate"):
        assert f"│ {command} " in research
    assert "pip install 'unrain[lab]'" in research
    # A default is shown where there is one.
    flat = " ".join(printed.replace("│", "").split())
    # The lines of the docstring are not those of the help.
    assert "For one input also a file name, whose extension decides the format" in flat
    assert "[default: rdmc-lite]" in flat and "[default: yes]" in flat and "[default: 0]" in flat
    assert "None" not in printed and "False" not in printed
    assert "--output -o PATH" in flat and "STR|PATH" not in printed
    # Every option that takes a value says what it is without.
    for option in re.findall(r"--([a-z-]+) (?:-o )?(?:STR|PATH|INT|FLOAT)", flat):
        assert option == "output" or re.search(rf"--{option} (?:(?! --).)*\[default: ", flat), option


def test_help_is_a_command_too(capsys):
    assert cli.main(["--help"]) == 0
    whole = capsys.readouterr().out
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == whole
    for command in (["models"], ["serve"], ["bench"], ["bench", "speed"]):
        assert cli.main([*command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert cli.main(["help", *command]) == 0
        assert capsys.readouterr().out == printed
        assert printed.startswith(f"Usage: unrain {' '.join(command)} ")
    assert cli.main(["help", "nosuch"]) == 2
    assert "nosuch: no such command or topic; the topics are formats, " in capsys.readouterr().err
    for topic in TOPICS:
        assert cli.main(["help", topic]) == 0
        assert capsys.readouterr().out == TOPICS[topic] + "\n"
        assert all(len(line) < 120 for line in TOPICS[topic].splitlines())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_options_and_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["--install-completion", "bash"]) == 0
    path = Path(capsys.readouterr().out.partition(" written")[0])
    assert path.is_file() and tmp_path in path.parents
    (tmp_path / "photo.jpg").touch()
    for words, wanted in ((["mod"], "models"), (["--stren"], "--strength"), (["pho"], "photo.jpg")):
        line = " ".join(words)
        script = f"source {path}; COMP_WORDS=(unrain {line}); COMP_CWORD={len(words)}; _unrain; "
        script += "echo ${COMPREPLY[@]}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [wanted]
    assert cli.main(["--install-completion", "tcsh"]) == 2
    assert "Choose from: " in capsys.readouterr().err


@pytest.mark.parametrize("name", cli._LAZY)
def test_the_help_of_a_command_starts_as_its_docstring(name):
    path, text, _ = cli._LAZY[name]
    module, _, attribute = path.partition(":")
    found = getattr(import_module(module), attribute)
    function = found.default_command if isinstance(found, App) else found
    assert text.splitlines()[0] == function.__doc__.splitlines()[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["bench", "--speed", "x", "--rounds", "7"], "unrain bench --speed is now unrain bench speed"),
        (["bench", "x", "--sheet=a.png"], "unrain bench --sheet is now unrain bench sheet -o FILE"),
        (["help", "bench-tasks"], "unrain bench-tasks is now unrain bench tasks"),
        (["bench-tasks", "--data", "d"], "unrain bench-tasks is now unrain bench tasks"),
        (["bench", "--csv", "a.csv"], "unrain bench: --csv a.csv is now --csv > a.csv"),
        (
            ["bench", "sizes", "x", "--csv=a.csv"],
            "unrain bench: --csv a.csv is now --csv > a.csv",
        ),
    ],
)
def test_an_old_spelling_is_answered_with_the_new_one(capsys, old, new):
    assert cli.main(old) == 2
    assert capsys.readouterr().err == f"unrain: error: {new}\n"


@pytest.mark.parametrize("word, meant", [("serv", "serve"), ("scor", "score"), ("benhc", "bench")])
def test_a_misspelled_command_is_answered_with_the_one_that_is_meant(here, capsys, word, meant):
    assert cli.main([word, "x"]) == 2
    said = f"unrain: error: {word}: no such file, and no command; did you mean unrain {meant}?\n"
    assert capsys.readouterr().err == said
    # A file or folder of that name is what it says.
    Path(word).mkdir()
    picture(f"{word}/a.png")
    assert cli.main([word, "--dry-run"]) == 0
    assert cli.main(["holliday"]) == 1
    assert "no such file, check the name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["train", "r.toml", "--data", "d"], ["help", "bench"], ["adapt", "--help"]]
)
def test_an_application_without_the_lab_says_so(capsys, monkeypatch, words):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(words) == 1
    name = words[1] if words[0] == "help" else words[0]
    said = f"unrain: error: {name}: not part of this application, install Python and then: "
    assert capsys.readouterr().err == said + "pip install 'unrain[lab]'\n"
    assert cli.main(["models"]) == 0


# ------------------------------------------------------------------------------------------------- library


def test_derain_from_python(here):
    from_file = unrain.derain("photo.jpg")
    with Image.open("photo.jpg") as photo:
        from_pillow = unrain.derain(photo)
        from_array = unrain.derain(np.asarray(photo))
    assert isinstance(from_file, Image.Image)
    assert isinstance(from_array, np.ndarray)
    np.testing.assert_array_equal(np.asarray(from_file), from_array)
    np.testing.assert_array_equal(np.asarray(from_pillow), from_array)
    np.testing.assert_array_equal(np.asarray(unrain.derain(Path("photo.jpg"), model=zoo.DEFAULT)), from_array)
    assert not np.array_equal(
        unrain.derain(from_array, recursions=1), unrain.derain(from_array, recursions=2)
    )


def test_the_names_of_the_package(here):
    assert unrain.Derainer is Derainer
    assert [model.name for model in unrain.models()] == [zoo.DEFAULT]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        unrain.nope  # noqa: B018
    with pytest.raises(unrain.UnrainError, match=r"gone\.jpg: no such file"):
        unrain.derain("gone.jpg")


def test_serve_without_its_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    # Another test may have imported the server already, which then is an attribute, too.
    monkeypatch.delitem(sys.modules, "unrain.web.server", raising=False)
    monkeypatch.delattr("unrain.web.server", raising=False)
    assert cli.main(["serve"]) == 1
    err = capsys.readouterr().err
    assert err == "unrain: error: serve: needs uvicorn, which is not installed: pip install 'unrain[web]'\n"
