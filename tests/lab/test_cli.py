"""The lab's commands as a person types them; what they call is replaced, so that none needs PyTorch."""

import io
import sys
from pathlib import Path

import pytest

from unrain import cli
from unrain.cli.progress import Bar


def lab_call(monkeypatch, module, function):
    """Put a recorder in place of a command of the lab."""
    calls = []
    fake = type(sys)(module)
    setattr(fake, function, lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


def test_train_and_export_call_the_lab(monkeypatch):
    calls = lab_call(monkeypatch, "unrain.lab.training.train", "train")
    assert cli.main(["train", "r.toml", "--data", "d"]) == 0
    assert (
        cli.main(
            ["train", "r.toml", "--data", "d", "--devices", "2", "--nodes", "3", "--out", "o", "--no-resume"]
        )
        == 0
    )
    assert calls == [
        ((Path("r.toml"), Path("d")), {"devices": 1, "nodes": 1, "out": None, "resume": True}),
        ((Path("r.toml"), Path("d")), {"devices": 2, "nodes": 3, "out": Path("o"), "resume": False}),
    ]
    calls = lab_call(monkeypatch, "unrain.lab.export", "export_checkpoint")
    assert cli.main(["export", "last.ckpt", "-o", "new.onnx"]) == 0
    assert cli.main(["export", "last.ckpt", "-o", "new.onnx", "--recursions", "2"]) == 0
    assert cli.main(["export", "last.ckpt", "-o", "new.onnx", "--default", "1"]) == 0
    assert cli.main(["export", "last.ckpt", "-o", "new.onnx", "--average", "a", "--average", "b"]) == 0
    mean = ["--average", "a", "--share", "0.7", "--share", "0.3", "--argument.threshold", "1.5"]
    mean += ["--argument.recursions", "3"]
    assert cli.main(["export", "last.ckpt", "-o", "new.onnx", *mean]) == 0
    none = {"recursions": None, "default": None, "others": (), "shares": (), "arguments": {}}
    changed = [
        {},
        {"recursions": 2},
        {"default": 1},
        {"others": (Path("a"), Path("b"))},
        {"others": (Path("a"),), "shares": (0.7, 0.3), "arguments": {"threshold": 1.5, "recursions": 3}},
    ]
    files = (Path("last.ckpt"), Path("new.onnx"))
    assert calls == [(files, none | change) for change in changed]
    assert isinstance(calls[-1][1]["arguments"]["recursions"], int)


def test_training_and_export_end_with_what_they_made_and_what_to_do_with_it(monkeypatch, capsys):
    lab_call(monkeypatch, "unrain.lab.training.train", "train")
    monkeypatch.setattr(
        sys.modules["unrain.lab.training.train"], "train", lambda *a, **k: Path("runs/r/weights.safetensors")
    )
    assert cli.main(["train", "r.toml", "--data", "d"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "r.toml -> runs/r/weights.safetensors",
        "measure it: unrain bench runs/r/weights.safetensors --data d",
    ]
    # Another process writes them.
    monkeypatch.setattr(sys.modules["unrain.lab.training.train"], "train", lambda *a, **k: None)
    assert cli.main(["train", "r.toml", "--data", "d"]) == 0
    assert capsys.readouterr().out == ""
    lab_call(monkeypatch, "unrain.lab.export", "export_checkpoint")
    monkeypatch.setattr(sys.modules["unrain.lab.export"], "export_checkpoint", lambda source, out, **k: out)
    assert cli.main(["export", "w.safetensors", "-o", "new.onnx"]) == 0
    said = ["w.safetensors -> new.onnx", "use it: unrain IN --model new.onnx"]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("arguments", [["train", "r.toml", "--data", "d"], ["export", "c", "-o", "o.onnx"]])
def test_without_the_lab_there_is_a_hint(capsys, monkeypatch, arguments):
    for name in list(sys.modules):
        if name.startswith("unrain.lab"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "pytorch_lightning", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"unrain: error: {arguments[0]}: needs ")
    assert "pip install 'unrain[lab]'" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["adapt"], "parameter MODEL requires an argument"),
        (["adapt", "x"], "parameter --real requires an argument"),
        (["train"], "parameter RECIPE requires an argument"),
        (["bench", "sheet"], "parameter --output requires an argument"),
        (["bench", "speed", "--rounds", "4"], "Must be >= 5"),
    ],
)
def test_a_wrong_command_exits_with_2_and_names_its_help(capsys, arguments, words):
    assert cli.main(arguments) == cli.EXIT_USAGE
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
    command = arguments[:2] if arguments[0] == "bench" else arguments[:1]
    assert printed.endswith(f", see unrain {' '.join(command)} --help\n")


class File(io.StringIO):
    encoding = "utf-8"


class Terminal(File):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_each_step_on_a_terminal_only(monkeypatch, terminal):
    err, out = Terminal() if terminal else File(), File()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    with Bar(animated=False) as bar:
        for done in (1, 2):
            bar.step("rdmc-lite T=1 on set", done, 2)
        bar.step("rdmc-lite T=2 on set", 1, 2)
        bar.print("a row of the table")
        bar.note("a remark")
    said = err.getvalue()
    for step in ("T=1 on set 1/2", "T=1 on set 2/2", "T=2 on set 1/2"):
        assert (step in said) == terminal
    assert "unrain: a remark\n" in said
    # The result must not go where the bar is drawn.
    assert out.getvalue() == "a row of the table\n"


def test_a_result_on_the_bars_own_terminal_is_a_line_of_its_own(monkeypatch):
    both = Terminal()
    monkeypatch.setattr(sys, "stderr", both)
    monkeypatch.setattr(sys, "stdout", both)
    with Bar(animated=False) as bar:
        bar.step("one", 1, 2)
        bar.print("a row of the table")
        bar.step("one", 2, 2)
        assert "one 2/2" in both.getvalue()
    before, _, _ = both.getvalue().partition("a row of the table\n")
    # The bar was erased before it.
    assert before.endswith("\x1b[2K") or before.endswith("\x1b[?25h")
