"""Reading files that cannot hang, writing files whole or not at all, and what a disk's errors are called."""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unrain.errors import UnrainError

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where nobody else can remove a file that is open
    fcntl = None  # type: ignore[assignment]

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_CHUNK = 1 << 20
_LOCK = "lock"


class DiskFullError(UnrainError):
    """No space is left for the result: no other picture can be written either."""


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading, and nothing that waits or never ends.

    Raises:
        UnrainError: It is missing, may not be read, or is a folder, a pipe, a socket or a device.
    """
    # Non-blocking, so that a pipe without a writer does not wait here; a regular file is read as ever.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        descriptor = os.open(path, flags)
        # What was opened is looked at, not the name: that may lead elsewhere a moment later.
        mode = os.fstat(descriptor).st_mode
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _irregular(path) from error
        raise UnrainError(f"{path}: {reading_problem(error)}") from error
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise UnrainError(f"{path}: a folder, name a file")
        raise _irregular(path)
    return os.fdopen(descriptor, "rb")


def _irregular(path: Path) -> UnrainError:
    return UnrainError(f"{path}: a pipe or a device, not a file: save it to a file first")


def read(path: Path, most: int, remedy: str) -> bytes:
    """Read a whole regular file.

    Args:
        path: The file.
        most: Refuse files with more bytes than this.
        remedy: What to do about one that is larger.

    Raises:
        UnrainError: It cannot be read, is no regular file, is larger, or grows meanwhile.
    """
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise UnrainError(f"{path}: larger than {most:,} bytes, {remedy}")
            data = file.read(size + 1)
        except OSError as error:
            raise UnrainError(f"{path}: {reading_problem(error)}") from error
    if len(data) > size:
        raise UnrainError(f"{path}: grows while it is read, try again when it is whole")
    return data


def drain(stream: BinaryIO, name: str, most: int, remedy: str) -> bytes:
    """Read a stream such as standard input to its end.

    Args:
        stream: Where the bytes come from.
        name: How messages call it.
        most: Refuse more bytes than this.
        remedy: What to do about more.

    Raises:
        UnrainError: It cannot be read, or holds more.
    """
    parts = []
    room = most
    try:
        while part := stream.read(_CHUNK):
            parts.append(part)
            room -= len(part)
            if room < 0:
                raise UnrainError(f"{name}: larger than {most:,} bytes, {remedy}")
    except OSError as error:
        raise UnrainError(f"{name}: {reading_problem(error)}") from error
    return b"".join(parts)


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe or a device such as /dev/null, which is written to and not replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def write(data: bytes, path: Path, *, overwrite: bool = True) -> None:
    """Put bytes into a file so that it is either whole or not there.

    Args:
        data: The content.
        path: The file, see `replacing`. With `overwrite` a device or pipe is written to directly.
        overwrite: Replace what is there.

    Raises:
        DiskFullError: There is no space for it.
        UnrainError: It cannot be written, or something is there already.
    """
    try:
        if overwrite and is_stream(path):
            # A pipe that nobody reads from is an error, not a wait without end.
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
            with os.fdopen(descriptor, "wb") as stream:
                if hasattr(os, "set_blocking"):
                    os.set_blocking(descriptor, True)
                stream.write(data)
            return
        with replacing(path, overwrite=overwrite) as file:
            file.write(data)
    except OSError as error:
        raise writing_error(error, path) from error


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Give an open file that gets the name `path` once it is on the disk, and vanishes after an exception.

    Until then it is a hidden file `.unrain-*.tmp` in the same folder. A run that was killed leaves it behind,
    and the next one that writes there removes it.

    Args:
        path: The file; its folder exists.
        overwrite: Replace what is there; a link is followed. Without it nothing is replaced, even if it
            appears after the call, and no link is followed.

    Raises:
        DiskFullError: There is no space for it.
        UnrainError: It cannot be written, or something is there already.
    """
    path = Path(os.path.realpath(path)) if overwrite else path
    sweep(path.parent)
    try:
        part, file = _draft(path.parent)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                # Published before it is closed: the lock goes with the descriptor.
                if os.name == "posix":
                    _publish(part, path, overwrite=overwrite)
            if os.name != "posix":
                _publish(part, path, overwrite=overwrite)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
    except OSError as error:
        raise writing_error(error, path) from error


def _draft(folder: Path) -> tuple[Path, BinaryIO]:
    """Create the hidden file for a result, locked so that no other run takes it for abandoned."""
    while True:
        part = folder / f".unrain-{'-'.join(_here())}-{secrets.token_hex(4)}.tmp"
        file = part.open("xb")
        # Between the two steps another run may have taken it for abandoned.
        if locked(file) is not False and os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()


def _publish(part: Path, path: Path, *, overwrite: bool) -> None:
    """Give a whole file its name."""
    if overwrite:
        part.replace(path)
        return
    try:
        # Unlike a rename, a link never replaces anything.
        os.link(part, path)
    except FileExistsError as error:
        raise _appeared(path) from error
    except (OSError, NotImplementedError):
        # Not every file system has links: there an empty file of our own keeps the place.
        try:
            path.open("xb").close()
        except FileExistsError as error:
            raise _appeared(path) from error
        try:
            part.replace(path)
        except OSError:
            path.unlink()
            raise


def _appeared(path: Path) -> UnrainError:
    return UnrainError(f"{path}: appeared while this run was busy and is kept, --overwrite replaces it")


def sweep(folder: Path) -> None:
    """Remove, once in each process, the hidden files that killed runs on this computer left in a folder.

    Those of a live process are locked, and those of other computers on a shared disk are left alone.
    """
    _sweep(os.path.abspath(folder))  # noqa: PTH100  (keeps the links of the folder's own path)


@functools.lru_cache(maxsize=4096)
def _sweep(folder: str) -> None:
    boot, host = _here()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            parts = entry.name.split("-")
            if len(parts) != 4 or parts[0] != ".unrain" or not entry.name.endswith(".tmp"):
                continue
            if parts[1] != boot and parts[2] != host:
                continue
            with contextlib.suppress(OSError, UnrainError):
                if fcntl is None:
                    Path(entry).unlink()
                    continue
                with opened(Path(entry)) as file:
                    if locked(file):
                        Path(entry).unlink()


def locked(file: BinaryIO) -> bool | None:
    """Lock a file until it is closed; False if somebody else has done so, None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def scratch(prefix: str) -> tuple[Path, BinaryIO]:
    """Make a folder for temporary files, and remove those of this user's processes that were killed.

    Args:
        prefix: What the names of such folders begin with.

    Returns:
        The folder, and an open file in it that tells others that it is used; `discard` takes both.

    Raises:
        OSError: It cannot be made.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{_LOCK}"):
        with contextlib.suppress(OSError, UnrainError):
            _remove_if_left(lock)
    # Others look at its final name only, and find it locked.
    made = Path(tempfile.mkdtemp(prefix=prefix if fcntl is None else "unrain-new-"))
    held = (made / _LOCK).open("xb")
    if fcntl is None:
        # Windows renames no folder with an open file in it.
        return made, held
    locked(held)
    return made.rename(made.with_name(made.name.replace("unrain-new-", prefix, 1))), held


def discard(folder: Path, held: BinaryIO) -> None:
    """Remove a folder that `scratch` made."""
    # Windows removes no file that is open.
    held.close()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(lock: Path) -> None:
    """Remove a folder of temporary files whose process is gone, by its file `lock`."""
    if fcntl is None:
        # Fails while its process has it open.
        lock.unlink()
        shutil.rmtree(lock.parent, ignore_errors=True)
        return
    state = lock.parent.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        return
    with opened(lock) as file:
        if locked(file):
            shutil.rmtree(lock.parent, ignore_errors=True)


@functools.cache
def _here() -> tuple[str, str]:
    """Name this boot and this computer: containers share the first, reboots the second."""

    def content(file: str) -> str:
        try:
            return Path(file).read_text(encoding="ascii")
        except OSError:
            return ""

    node = platform.node()
    names = (content("/proc/sys/kernel/random/boot_id") or node, node + content("/etc/machine-id"))
    boot, host = (hashlib.sha256(name.encode()).hexdigest()[:8] for name in names)
    return boot, host


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
