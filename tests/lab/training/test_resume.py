"""A run that is killed while it writes a checkpoint, or whose checkpoint is damaged, still resumes."""

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors.torch import load_file  # noqa: E402

from unrain import files  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.training import train as trainer  # noqa: E402
from unrain.lab.training.module import Deraining  # noqa: E402
from unrain.lab.training.resume import CheckpointFiles, checkpoints, last_whole  # noqa: E402


def save(folder, step):
    CheckpointFiles().save_checkpoint({"step": step}, folder / "last.ckpt")


def step_of(path):
    return torch.load(path, weights_only=True)["step"]


def test_two_checkpoints_are_kept_and_no_other_file(tmp_path):
    assert last_whole(tmp_path) is None
    for step in range(4):
        save(tmp_path, step)
    assert checkpoints(tmp_path) == [tmp_path / "last.ckpt", tmp_path / "previous.ckpt"]
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 2]
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]  # noqa: PTH208
    assert last_whole(tmp_path) == tmp_path / "last.ckpt"


def test_disks_without_links_keep_two_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.hardlink_to", lambda *_: (_ for _ in ()).throw(OSError()))
    for step in range(4):
        save(tmp_path, step)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 2]


def test_a_checkpoint_never_goes_through_the_folder_for_temporary_files(tmp_path, monkeypatch):
    # On another disk it would be copied from there, and a kill would leave half of it.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    save(tmp_path, 1)
    assert step_of(tmp_path / "last.ckpt") == 1


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    steps = ("os.link", "os.replace", "unrain.files.write", "pathlib.Path.replace", "os.fsync")
    for name in steps:
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 3)
        assert step_of(last_whole(tmp_path)) == 2, name
    assert files.write  # the patches are undone
    save(tmp_path, 3)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [3, 2]


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cut_off_checkpoint_is_named_and_the_one_before_is_tried(tmp_path, capsys, cut):
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.ckpt"
    whole = last.read_bytes()
    last.unlink()
    last.write_bytes(whole[:cut])
    assert last_whole(tmp_path) == tmp_path / "previous.ckpt"
    said = capsys.readouterr().err
    assert said == f"unrain: {last}: cut off or damaged, resuming from previous.ckpt\n"
    (tmp_path / "previous.ckpt").unlink()
    with pytest.raises(UnrainError, match=r"last\.ckpt: cut off or damaged, delete") as caught:
        last_whole(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_whose_last_checkpoint_is_cut_off_resumes_with_the_same_result(toy, dies_at, capsys):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "whole")
    with dies_at(Deraining, 5):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    last = toy / "parts" / "last.ckpt"
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[: len(data) // 2])
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    assert f"{last}: cut off or damaged, resuming from previous.ckpt" in capsys.readouterr().err
    whole, parts = (load_file(toy / run / "weights.safetensors") for run in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-6), name
