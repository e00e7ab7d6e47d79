"""Files of weights and parameters that the user brings, because nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from unrain.errors import UnrainError


def weights_file(variable: str, path: Path | None, hint: str) -> Path:
    """Find a file, or a folder of files, that the user brings.

    Args:
        variable: The environment variable that names it if `path` is None.
        path: Where it is.
        hint: What to do to get it, for the error.

    Raises:
        UnrainError: It is named nowhere, or does not exist.
    """
    if path is None:
        named = os.environ.get(variable)
        if not named:
            raise UnrainError(f"{variable}: not set; {hint}")
        path = Path(named)
    if not path.exists():
        raise UnrainError(f"{path}: no such file; {hint}")
    return path
