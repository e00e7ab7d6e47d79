"""Run a command under watch, and say what is wrong with how it went."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from toys import ROOT

# A machine under load is slow: what hangs is told by a patience of minutes, what is slow by processor time.
PATIENCE = 60.0
_ADDRESS_SPACE = 4 << 30
_TRACEBACK = "Traceback (most recent call last)"
_CODES = {0, 1, 2, 130, 143}
_OURS = re.compile(r"unrain: |  |.* -> .* \(\d+\.\d s")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_SETTINGS = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
    "OMP_NUM_THREADS": "1",
    "PYTHONUTF8": "1",
}


@dataclass(frozen=True)
class Ran:
    """How a command went.

    Attributes:
        code: Exit code, negative for a signal; None if it hung and was killed.
        out: Standard output.
        err: Standard error.
        megabytes: The most memory that it had.
        cpu: Seconds of processor time.
    """

    code: int | None
    out: str
    err: str
    megabytes: float
    cpu: float


def unrain(*arguments):
    """The command line of unrain."""
    return [sys.executable, "-m", "unrain", *map(str, arguments)]


def start(command, *, cwd=None, stdin=None, out, err, limited=True, file_size=None):
    """Start a command in a process group of its own, with a bound on its address space."""

    def limit():
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return subprocess.Popen(
        command,
        cwd=cwd,
        stdin=stdin or subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**os.environ, **_SETTINGS},
        start_new_session=True,
        preexec_fn=limit,
    )


def watched(command, *, patience=PATIENCE, meanwhile=None, **options):
    """Run a command to its end.

    Args:
        command: The words.
        patience: Seconds after which it is killed.
        meanwhile: Called again and again with the process while it runs.
        options: As `start` takes them.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(command, out=out, err=err, **options)
        end, state, peak = time.monotonic() + patience, None, 0.0
        while True:
            peak = max(peak, _peak(process))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if state is None and time.monotonic() > end:
                state = "hung"
                kill(process)
            if meanwhile is not None:
                meanwhile(process)
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(status)
        kill(process)  # what it started and left behind
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "backslashreplace"))
    code = None if state else process.returncode
    return Ran(code, *texts, peak, usage.ru_utime + usage.ru_stime)


def _peak(process):
    """The most memory that a process has had, in megabytes; 0 when it has ended.

    Not ru_maxrss: a child inherits the peak of the process that started it.
    """
    with contextlib.suppress(OSError):
        if told := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()):
            return int(told[1]) / 1024
    return 0.0


def kill(process):
    """Kill a process that `start` started, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def faults(ran, *, megabytes=800.0, cpu=30.0, codes=_CODES):
    """What is wrong with a run whatever it was given: kind and detail of each fault."""
    found = []
    tail = ran.err[-3000:]
    if ran.code is None:
        found.append(("hang", f"still running after its time\n{tail}"))
    elif ran.code < 0 and ran.code not in codes:
        found.append(("crash", f"{signal.Signals(-ran.code).name}\n{tail}"))
    elif ran.code not in codes and _TRACEBACK not in ran.err:
        found.append(("exit code", f"{tail}\nexit code {ran.code}"))
    if _TRACEBACK in ran.err:
        found.append(("traceback", tail))
    elif stray := [line for line in ran.err.splitlines() if line and not _OURS.match(line)]:
        found.append(("stray line", stray[0][:500]))
    if _UNPRINTABLE.search(ran.err):
        found.append(("control character", repr(_UNPRINTABLE.search(ran.err)[0])))
    if ran.megabytes > megabytes:
        found.append(("memory", f"took {ran.megabytes:.0f} MB, more than {megabytes:.0f}"))
    if ran.code is not None and ran.cpu > cpu:
        found.append(("slow", f"took {ran.cpu:.0f} s of processor time, more than {cpu:.0f}"))
    return found


def leftovers(*folders):
    """Temporary files below some folders."""
    return [str(path) for folder in folders for path in Path(folder).rglob(".*") if path.is_file()]
