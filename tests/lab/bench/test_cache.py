"""Stored scores: what is kept of a killed run, and what makes them stale."""

import errno
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("skimage")

from unrain.errors import UnrainError
from unrain.files import DiskFullError
from unrain.lab.bench import cache
from unrain.lab.bench.cache import open_results, sources

ABOUT = {"candidate": "one", "suite": "set/test", "recursions": 2}
HEADER = json.dumps(ABOUT)


@pytest.mark.parametrize(
    "left",
    [
        "",  # killed while it wrote the first line
        HEADER[:10],
        HEADER,
        HEADER + "\n",
        HEADER + '\n{"name": "1", "ps',
        '{"name": "1", "psnr": 1.0}\n',  # what such a file became before this was mended
    ],
)
def test_a_file_of_a_killed_run_loses_no_row(tmp_path, left):
    (path,) = {open_results(tmp_path, ABOUT).path}
    path.write_text(left)
    results = open_results(tmp_path, ABOUT)
    assert (results.rows, results.reused) == ({}, 0)
    for name in ("1", "2", "3"):
        results.add(name, {"psnr": float(name)})
    again = open_results(tmp_path, ABOUT)
    assert again.rows == {name: {"psnr": float(name)} for name in ("1", "2", "3")}
    assert again.reused == 3


@pytest.mark.parametrize(
    "row",
    [b"{", b"no json", b'{"psnr": 1.0}', b"[1]", b"7", b'{"name": {}}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_damaged_row_is_one_line_that_names_the_file(tmp_path, row):
    path = open_results(tmp_path, ABOUT).path
    good = b'\n{"name": "1", "psnr": 1.0}\n'
    path.write_bytes(HEADER.encode() + good + row + good)
    with pytest.raises(UnrainError) as caught:
        open_results(tmp_path, ABOUT)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("is damaged, delete the file to measure its pictures again")
    assert path.exists()
    assert open_results(tmp_path, ABOUT, fresh=True).rows == {}


def names(files: list[Path]) -> set[str]:
    return {file.relative_to(Path(cache.__file__).parents[3]).as_posix() for file in files}


def test_scores_depend_on_everything_that_is_imported_below():
    found = names(sources({"unrain.lab.bench.run"}))
    # The network is run by the Derainer, which the benchmark reaches through the candidates only.
    assert {"unrain/engine/network.py", "unrain/derainer.py", "unrain/lab/metrics/psnr_ssim.py"} <= found
    assert "unrain/lab/nets/prenet.py" in names(sources({"unrain.lab.nets.*"}))
    # Speed is no score.
    assert "unrain/lab/bench/speed.py" not in found


@pytest.mark.parametrize("name", ["unrain.lab.bench.moved", "unrain.lab.moved.*"])
def test_a_name_that_matches_no_file_is_an_error(name):
    with pytest.raises(RuntimeError, match="no such module, though stored scores depend on it"):
        sources({"unrain.lab.bench.run", name})


def test_a_change_deep_in_the_imports_makes_scores_stale(tmp_path, monkeypatch):
    package = tmp_path / "unrain"
    for name, text in {
        "lab/bench/run.py": "from unrain.lab import middle\n",
        "lab/bench/cache.py": "",
        "lab/middle.py": "def f():\n    import unrain.deep\n",
        "lab/nets/one.py": "",
        "deep.py": "x = 1\n",
        "other.py": "x = 1\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(cache, "__file__", str(package / "lab/bench/cache.py"))

    def now():
        cache.fingerprint.cache_clear()
        return cache.fingerprint()

    try:
        before = now()
        (package / "other.py").write_text("x = 2\n")
        assert now() == before
        (package / "deep.py").write_text("x = 2\n")
        assert now() != before
    finally:
        cache.fingerprint.cache_clear()


def test_a_row_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "no space")

    results = open_results(tmp_path, {"suite": "set"})
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFullError, match=r"jsonl: no space left on the disk"):
        results.add("a", {"psnr": 30.0})
