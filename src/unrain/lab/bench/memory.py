"""The memory that one model needs, measured in a fresh process which runs that model and nothing else.

This file run as a program is that process. It imports what the model needs and no more, so that an ONNX
file is not charged with PyTorch, and what the caller holds does not count. The peak is that of resident
memory from the start of the process, Python and libraries included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unrain.devices import Processor
from unrain.errors import UnrainError

Kind = Literal["model", "network", "peer"]
_CPU = Processor("cpu")


def peak_memory(
    text: str,
    kind: Kind,
    picture: NDArray[np.uint8],
    *,
    recursions: int,
    processor: Processor = _CPU,
    levels: int | None = 1,
    halo: int | None = None,
) -> float | None:
    """Run a model once in a fresh process and return the most memory that it held.

    Args:
        text: What names the model on the command line, see `unrain.lab.bench.candidates`.
        kind: An exported model, a checkpoint, or a peer's weights.
        picture: What it is run on, H x W x 3.
        recursions: How many.
        processor: What it runs on, see `open_derainer`.
        levels: At how many sizes the picture is looked at, see `Derainer`.
        halo: Context at the edges of a network's tiles, see `open_derainer`.

    Returns:
        Megabytes of 10^6 bytes; None where the system does not tell (Windows).

    Raises:
        UnrainError: The model does not run.
    """
    wanted = {
        "text": text,
        "kind": kind,
        "shape": picture.shape,
        "recursions": recursions,
        "processor": [processor.device, processor.precision, processor.threads],
        "levels": levels,
        "halo": halo,
    }
    here = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    # -P: a file in the working folder must not stand in for a library.
    command = [sys.executable, "-P", "-m", "unrain.lab.bench.memory", json.dumps(wanted)]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, input=picture.tobytes(), capture_output=True, env=environment)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = (said or [f"exit code {done.returncode}"])[-1]
        raise UnrainError(f"{text}: its memory cannot be measured ({reason}); try a smaller --size")
    found: int | None = json.loads(done.stdout.strip().splitlines()[-1])
    return None if found is None else round(found / 1e6, 1)


def _run(
    text: str,
    kind: Kind,
    shape: list[int],
    recursions: int,
    processor: list[Any],
    levels: int | None,
    halo: int | None,
) -> None:
    on = Processor(*processor)
    picture = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(shape)
    if kind == "model":
        from unrain.derainer import Derainer

        derainer = Derainer(text, recursions=recursions, levels=levels, **asdict(on))
    else:
        from unrain.lab.bench import candidates

        found = candidates.find_peer(text) if kind == "peer" else candidates.find(text)
        source: Any = found.source
        derainer, _ = candidates.open_derainer(source, recursions, on, levels=levels, halo=halo)
    derainer(picture)


def _peak() -> int | None:
    """Return the most resident memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: Linux hands a parent's peak down to the child there.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024 if "VmHWM" in lines else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
    sys.stdout.write(f"{json.dumps(_peak())}\n")
