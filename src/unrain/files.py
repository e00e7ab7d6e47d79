"""Writing files so that they are whole or not there, and what a disk's errors are called."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unrain.errors import UnrainError

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class DiskFullError(UnrainError):
    """No space is left for the result: no other picture can be written either."""


def write(data: bytes, path: Path) -> None:
    """Put bytes into a file so that it is either whole or not there.

    A hidden file `.unrain-*.tmp` in the same folder takes the bytes and is renamed when they are on the disk.
    A link is followed; a device or pipe is written to directly.

    Args:
        data: The content.
        path: The file; its folder exists.

    Raises:
        DiskFullError: There is no space for it.
        UnrainError: It cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as device:
                device.write(data)
            return
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise writing_error(error, path) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give an open file that takes the place of `path` once it is whole, and vanishes after an exception.

    Args:
        path: The file; its folder exists. A link is followed.

    Raises:
        DiskFullError: There is no space for it.
        UnrainError: It cannot be written.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f".unrain-{secrets.token_hex(4)}.tmp")
    try:
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise writing_error(error, path) from error


def writing_error(error: OSError, path: Path) -> UnrainError:
    """The message for a result that could not be written."""
    if error.errno in _FULL_DISK:
        return DiskFullError(f"{path}: no space left on the disk, free some or choose another with -o")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UnrainError(f"{path}: may not be written here, choose another folder with -o")
    return UnrainError(
        f"{path}: cannot be written ({one_line(error.strerror or error)}), choose another with -o"
    )


def reading_problem(error: OSError) -> str:
    """Say why a file could not be read, and what to do."""
    if isinstance(error, FileNotFoundError):
        return "no such file, check the name"
    if isinstance(error, PermissionError):
        return "may not be read, check its permissions"
    return f"cannot be read ({one_line(error.strerror or error)}), check the file"


def one_line(problem: object) -> str:
    """Say what a problem is in one line."""
    return " ".join(str(problem).split()) or type(problem).__name__
