"""Curves of training: what they are read from, and how far they are drawn."""

import json
import subprocess

import numpy as np
import pytest

from unrain.errors import UnrainError
from unrain.lab import curves


def commit(repository, *arguments):
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *who, *arguments], cwd=repository, check=True, capture_output=True)


@pytest.fixture
def history(tmp_path):
    """A repository in which a card got new weights, new scores, and new weights that are not measured yet."""
    commit(tmp_path, "init", "-q")
    card = tmp_path / "src/unrain/weights/tiny.json"
    card.parent.mkdir(parents=True)
    first = {"recipe": "a.toml", "steps": 100, "wall_time": 3600}
    then = {"recipe": "b.toml", "steps": 50, "wall_time": 1800, "went_on_from": first}
    old, new = ({f"{suite} T1": {"psnr": psnr} for suite in curves.SUITES} for psnr in (30.0, 31.0))
    for text in ({**first, "scores": old}, {**then, "scores": old}, {**then, "scores": new}, {}):
        card.write_text(json.dumps({"name": "tiny", **text}))
        commit(tmp_path, "add", ".")
        commit(tmp_path, "commit", "-q", "-m", "a version")
    return tmp_path


def test_versions_are_those_that_were_measured(history):
    found = curves.versions(history, "src/unrain/weights/tiny.json")
    assert [(one.steps, one.hours, one.psnr["Rain100H"]) for one in found] == [(100, 1, 30), (150, 1.5, 31)]
    with pytest.raises(UnrainError, match=r"none\.json: no version with scores"):
        curves.versions(history, "src/unrain/weights/none.json")
    with pytest.raises(UnrainError, match="git cannot run there"):
        curves.versions(history / "nowhere", "card.json")


def test_a_doubling_gains_what_doublings_gained():
    hours = [1.0, 2.0, 4.0, 8.0]
    assert curves.gain(hours, 30 + 0.5 * np.log2(hours), 24) == pytest.approx(1.0)
    assert curves.gain([2.0, 3.9], [30, 31], 10) is None
    assert curves.gain([2.0], [30], 10) is None


def test_the_loss_of_a_run_that_went_on_is_that_of_all_its_logs(tmp_path):
    for number, steps in ((2, range(500, 900)), (10, range(900, 1700))):
        (tmp_path / f"csv/version_{number}").mkdir(parents=True)
        lines = ["loss,psnr,step", *(f"{2 * step},,{step}" for step in steps), ",30.5,0"]
        (tmp_path / f"csv/version_{number}/metrics.csv").write_text("\n".join(lines))
    steps, loss = curves.losses(tmp_path)
    assert len(steps) == curves.PARTS
    assert steps == sorted(steps)
    assert loss == pytest.approx([2000 * step for step in steps])
    with pytest.raises(UnrainError, match="train --out"):
        curves.losses(tmp_path / "csv")


def test_the_picture_has_every_model_and_run(history, tmp_path, capsys):
    run = tmp_path / "runs/tiny-2"
    (run / "csv/version_0").mkdir(parents=True)
    (run / "csv/version_0/metrics.csv").write_text("loss,step\n0.5,49\n0.25,99\n")
    curves.draw(out=tmp_path / "curves.svg", run=(run,), repository=history)
    first = (tmp_path / "curves.svg").read_bytes()
    assert b"<svg" in first
    assert "| `tiny` | 150 | 1.5 | 31.00 | 31.00 | 31.00 |" in capsys.readouterr().out
    curves.draw(out=tmp_path / "curves.svg", run=(run,), repository=history)
    assert (tmp_path / "curves.svg").read_bytes() == first
