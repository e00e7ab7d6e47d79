"""The checkpoints that an interrupted run resumes from: two are kept, and one of them is always whole."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from unrain import files
from unrain.cli.output import error_line
from unrain.errors import UnrainError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the last one and renames it, so that a kill at any moment loses neither.

    Lightning writes into the folder for temporary files and copies it from there if that is on another disk:
    a kill while it does so leaves half a checkpoint and nothing else.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,  # noqa: ANN401  (as Lightning has it)
    ) -> None:
        """Write a checkpoint, and keep the one before.

        Raises:
            UnrainError: The file cannot be written.
        """
        last = Path(path)
        last.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if last.exists():
            _keep(last, last.with_name(PREVIOUS))
        files.write(buffer.getvalue(), last)


def checkpoints(out: Path) -> list[Path]:
    """List the checkpoints of a run, the last one first."""
    return [path for path in (out / LAST, out / PREVIOUS) if path.exists()]


def last_whole(out: Path) -> Path | None:
    """Find the last checkpoint of a run that can be read; None if the run has none.

    A damaged one is named in a line, and the one before it is tried.

    Raises:
        UnrainError: There are checkpoints, but none can be read.
    """
    damaged: list[Path] = []
    for path in checkpoints(out):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        # The unpickler raises nearly anything on damaged files.
        except Exception:
            damaged.append(path)
            continue
        for other in damaged:
            _say(f"unrain: {other}: cut off or damaged, resuming from {path.name}")
        return path
    if damaged:
        names = " and ".join(str(path) for path in damaged)
        raise UnrainError(f"{names}: cut off or damaged, delete what is damaged to start the run anew")
    return None


_say = rank_zero_only(error_line)


def _keep(last: Path, previous: Path) -> None:
    """Give the last checkpoint its second name; at no moment is there none."""
    link = previous.with_name(f".unrain-{os.getpid()}.link")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(last)
        link.replace(previous)
    except OSError:
        # Not all disks have links: a kill before the next line of the caller leaves the previous name only.
        with contextlib.suppress(OSError):
            last.replace(previous)
