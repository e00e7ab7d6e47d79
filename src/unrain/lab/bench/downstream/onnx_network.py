"""ONNX files that the user brings, opened and run with errors that a user can act on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrain.engine.network import first_line
from unrain.engine.onnx_runtime import open_session, session_options
from unrain.errors import UnrainError

_TYPES: dict[str, type] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Network:
    """A network of one input; of its outputs the first one counts.

    Attributes:
        path: Its file.
        shape: Of its input; sides that are free are no numbers.
        dtype: Of its input: float32 or uint8, and None for anything else.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open a file.

        Args:
            path: The ONNX file.
            threads: CPU threads, 0 for all.

        Raises:
            UnrainError: It is no ONNX file, or has more than one input.
        """
        try:
            self._session = open_session(path, session_options(threads))
        except UnrainError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise UnrainError(
                f"{path}: not a model that ONNX Runtime can open ({first_line(error)}); export it anew"
            ) from error
        ports = self._session.get_inputs()
        if len(ports) != 1:
            names = ", ".join(port.name for port in ports)
            raise UnrainError(f"{path}: has the inputs {names} instead of one picture; give another file")
        self.path, self.shape = path, list(ports[0].shape)
        self.dtype = _TYPES.get(ports[0].type)
        self._input = ports[0].name

    def __call__(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Run it.

        Raises:
            UnrainError: It fails.
        """
        try:
            return np.asarray(self._session.run(None, {self._input: planes})[0])
        except Exception as error:  # as above: no common base
            raise UnrainError(f"{self.path}: failed ({first_line(error)}); give another file") from error


def identity(paths: Sequence[Path]) -> str:
    """Return a hash of what is in files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def shown(shape: Sequence[object]) -> str:
    """Return a shape as errors show it."""
    return " x ".join(map(str, shape))
