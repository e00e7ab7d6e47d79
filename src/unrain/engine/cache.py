"""What is kept between runs: results of self-tests and compiled networks, in the user's cache folder."""

import contextlib
import json
from pathlib import Path

from platformdirs import user_cache_path

from unrain import files
from unrain.errors import UnrainError

_LARGEST = 1 << 20


def folder(name: str) -> Path | None:
    """Return a folder of the user's cache, made if need be; None where it cannot be written."""
    path = user_cache_path("unrain") / name
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return path


def recall(key: str) -> dict[str, object] | None:
    """Return what was kept for a key; None if nothing was, or it cannot be read."""
    if (there := folder("devices")) is None:
        return None
    try:
        kept = json.loads(files.read(there / f"{key}.json", _LARGEST, "remove it"))
    except (UnrainError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def keep(key: str, value: dict[str, object]) -> None:
    """Keep something for a key, if the cache can be written."""
    if (there := folder("devices")) is not None:
        with contextlib.suppress(UnrainError):
            files.write(json.dumps(value).encode(), there / f"{key}.json")
