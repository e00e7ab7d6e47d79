"""What is kept between runs: results of self-tests and compiled networks, in the user's cache folder."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from platformdirs import user_cache_path

from unrain import files
from unrain.errors import UnrainError

_LARGEST = 1 << 20
_LARGEST_NETWORK = 1 << 30
_DIGEST = hashlib.sha256().digest_size
# All compiled networks together: the least recently used ones go.
_MOST_BYTES = 256 << 20


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


def forget() -> None:
    """Remove all results of self-tests, as far as that is possible."""
    if (there := folder("devices")) is not None:
        for path in there.glob("*.json"):
            with contextlib.suppress(OSError):
                path.unlink()


def is_kept(name: str, key: str) -> bool:
    """Whether a compiled network was kept for a key, where nobody else may write; it may still be damaged."""
    return _kept(name, key) is not None


def recall_network(name: str, key: str) -> bytes | None:
    """Return a compiled network; None if none was kept, it is damaged, or others may write there.

    Args:
        name: The library's folder.
        key: What the network was kept for.
    """
    if (path := _kept(name, key)) is None:
        return None
    try:
        data = files.read(path, _LARGEST_NETWORK, "remove it")
    except UnrainError:
        return None
    if hashlib.sha256(memoryview(data)[_DIGEST:]).digest() != data[:_DIGEST]:
        return None
    # It was used just now.
    with contextlib.suppress(OSError):
        os.utime(path)
    return data[_DIGEST:]


def keep_network(name: str, key: str, data: bytes) -> None:
    """Keep a compiled network, if the cache can be written; the least recently used ones go in exchange."""
    if (there := folder(name)) is None or not _is_ours(there):
        return
    with contextlib.suppress(UnrainError):
        files.write(hashlib.sha256(data).digest() + data, there / f"{key}.blob")
    # Other runs may do the same at the same time.
    with contextlib.suppress(OSError):
        kept = [(path.stat(), path) for path in there.glob("*.blob")]
        total = 0
        for found, path in sorted(kept, key=lambda one: one[0].st_mtime, reverse=True):
            total += found.st_size
            if total > _MOST_BYTES:
                path.unlink(missing_ok=True)


def _kept(name: str, key: str) -> Path | None:
    if (there := folder(name)) is None or not _is_ours(there):
        return None
    path = there / f"{key}.blob"
    return path if path.exists() else None


def _is_ours(path: Path) -> bool:
    """Whether nobody else may write into a folder: what is in it is run."""
    if os.name != "posix":
        return True
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022
