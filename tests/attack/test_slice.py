"""A slice of the campaign with fixed chances: a fixed number of cases, the same in each run."""

import random
import sys
import time
from pathlib import Path

import pytest

from attack import campaign, process
from attack.mutate import culprit, minimised, mutant
from attack.seeds import pictures

_NEEDS = {"video": "av", "server": "fastapi", "parsers": "hypothesis"}
# How many cases of each part.
_SLICE = {"files": 110, "video": 17, "models": 50, "parsers": 280, "disk": 7, "kills": 3, "server": 60}

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's limits")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("part", campaign.PARTS)
def test_a_slice_of_the_campaign_finds_no_fault(part, tmp_path):
    if part in _NEEDS:
        pytest.importorskip(_NEEDS[part])
    said = []
    done = campaign.run(part, tmp_path, seed=1, seconds=600, cases=_SLICE[part], say=said.append)
    assert done.cases >= _SLICE[part] and not done.faults, "\n".join(said)


def _told(code):
    return process.faults(process.watched([sys.executable, "-c", code], patience=20, limited=False))


@linux
@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("", []),
        ("import sys; sys.stderr.write('unrain: error: a: b\\n'); sys.exit(1)", []),
        ("raise KeyError", ["traceback"]),
        ("import os; os.abort()", ["crash"]),
        ("raise SystemExit(3)", ["exit code"]),
        ("import sys; sys.stderr.write('libtiff: no\\n')", ["stray line"]),
        ("import sys; sys.stderr.write('unrain: a\\x1b[31m\\n')", ["control character"]),
        ("x = b'1' * 10**9", ["memory"]),
    ],
)
def test_the_watcher_sees_what_is_wrong(code, kinds):
    assert [kind for kind, _ in _told(code)] == kinds


@linux
def test_the_watcher_ends_what_hangs():
    ran = process.watched([sys.executable, "-c", "import time; time.sleep(600)"], patience=0.5)
    assert [kind for kind, _ in process.faults(ran)] == ["hang"]


@linux
def test_what_a_command_left_running_is_ended():
    code = "import subprocess as s, sys; print(s.Popen([sys.executable, '-c', 'input()'], stdin=s.PIPE).pid)"
    ran = process.watched([sys.executable, "-c", code])
    state = Path(f"/proc/{ran.out.strip()}/stat")
    for _ in range(1000):  # killing takes a moment
        if not state.exists() or state.read_text().split()[2] in "ZX":
            return
        time.sleep(0.01)
    pytest.fail("still there")


def test_a_fault_is_kept_once_and_minimised(tmp_path):
    found = campaign.Campaign("files", tmp_path, tmp_path / "keep")

    def same(files):
        return any(b"bad" in data for data in files.values())

    files = {"a.png": b"good" * 20, "b.png": b"so" * 50 + b"bad" + b"so" * 50, "c.png": b"good"}
    found.fault("traceback", "in line 7\nKeyError: 12", files, same)
    found.fault("traceback", "in line 8\nKeyError: 13", files, same)
    assert found.faults == {"traceback": 2}
    (kept,) = (tmp_path / "keep" / "files").iterdir()
    assert (kept / "b.png").read_bytes() == files["b.png"] and not (kept / "a.png").exists()
    assert b"bad" in (kept / "minimal-b.png").read_bytes()
    assert len((kept / "minimal-b.png").read_bytes()) < 20


def test_the_same_seed_damages_in_the_same_way():
    sound = list(pictures().values())
    first, second = (random.Random(5) for _ in range(2))
    for data in sound:
        assert mutant(first, data, sound) == mutant(second, data, sound)


def test_a_fault_of_all_together_keeps_all():
    cases = {"a": b"1", "b": b"2"}
    assert culprit(cases, lambda some: len(some) == 2) == cases
    assert minimised(b"abcabc", lambda data: data.count(b"a") == 2) == b"aa"
