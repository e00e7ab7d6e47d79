"""Files of this machine and objects in object storage, under one set of names.

A name is a path, or an address such as s3://bucket/folder/photo.jpg. Addresses go through fsspec. Credentials
come from the environment and from nowhere else, and no message shows any.
"""

import errno
import functools
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from unrain import files
from unrain.errors import UnrainError, UsageError
from unrain.files import one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Of each scheme: the package behind it, and where its credentials are looked for.
_SCHEMES = {
    "s3": ("s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"),
    "gs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS, or the machine's account"),
    "gcs": ("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS, or the machine's account"),
    "az": ("adlfs", "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"),
    "abfs": ("adlfs", "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"),
}
# One of the letters before :// is never enough: C:// is a disk.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What may stand in an address within an error: a user's name and password, and a signature.
_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|\?[^\s'\")]*")
# What botocore calls its limits; without them an address that does not answer takes minutes to say so.
_S3_SETTINGS = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"max_attempts": 4, "mode": "standard"},
}


def is_address(name: str) -> bool:
    """Whether a name is an address in object storage rather than a path."""
    found = _ADDRESS.match(name)
    return found is not None and found[1].lower() != "file"


def checked(name: str) -> str:
    """Check an address that a user gave, and turn file:// into a path.

    Raises:
        UsageError: Its scheme is unknown, or it has a password in it.
    """
    found = _ADDRESS.match(name)
    if found is None:
        return name
    scheme = found[1].lower()
    if scheme == "file":
        path = unquote(urlsplit(name).path)
        # file:///C:/photos is C:/photos.
        return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path
    if scheme not in _SCHEMES:
        known = " ".join(f"{known}://" for known in _SCHEMES)
        raise UsageError(f"{found[0]}: no known storage, use a path or one of {known} file://")
    if "@" in name.removeprefix(found[0]).partition("/")[0] and scheme in ("s3", "gs", "gcs"):
        raise UsageError(
            f"{found[0]}...: a name or password does not belong in an address, put it in the environment"
        )
    return f"{scheme}://{name.removeprefix(found[0])}".rstrip("/")


def join(folder: str, relative: str) -> str:
    """Name something in a folder; `relative` has slashes."""
    return f"{folder}/{relative}" if is_address(folder) else str(Path(folder, relative))


def below(folder: str, name: str) -> str:
    """Name something relative to the folder that it is in, with slashes: what `join` made it of."""
    if is_address(folder):
        return name.removeprefix(f"{folder}/")
    return Path(name).relative_to(folder).as_posix()


def find(folder: str) -> dict[str, int]:
    """Find everything below a folder or address.

    Returns:
        The bytes of each by its name relative to the folder, with slashes; nothing if the folder is not
        there.

    Raises:
        UnrainError: It cannot be listed.
    """
    if is_address(folder):
        with _translated(folder):
            system, path = _opened(folder)
            try:
                entries = system.find(path, detail=True)
            except FileNotFoundError:
                return {}
            return {
                name.removeprefix(path).lstrip("/"): int(entry["size"] or 0)
                for name, entry in entries.items()
                if name != path
            }
    found: dict[str, int] = {}

    def broken(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UnrainError(f"{error.filename}: {files.reading_problem(error)}") from error

    for place, _, names in os.walk(folder, onerror=broken):
        for name in names:
            file = Path(place, name)
            try:
                found[file.relative_to(folder).as_posix()] = file.lstat().st_size
            except FileNotFoundError:
                continue
    return found


def look_up(address: str) -> dict[str, int] | None:
    """Find what an address stands for: an object, a pattern such as s3://bucket/*.jpg, or neither.

    Returns:
        The bytes of each object by its address; None for a folder.

    Raises:
        UnrainError: There is nothing, or it cannot be reached.
    """
    with _translated(address):
        system, path = _opened(address)
        if glob.has_magic(path) and not system.exists(path):
            entries = system.glob(path, detail=True)
            scheme = address.partition("://")[0]
            return {
                f"{scheme}://{name}": int(entry["size"] or 0)
                for name, entry in sorted(entries.items())
                if entry["type"] == "file"
            }
        entry = system.info(path)
        return None if entry["type"] == "directory" else {address: int(entry["size"] or 0)}


def fetch(address: str, path: Path) -> None:
    """Copy an object into a file.

    Raises:
        UnrainError: It cannot be read, or the file cannot be written.
    """
    with _translated(address):
        system, place = _opened(address)
        system.get_file(place, str(path))


def put(path: Path, address: str, *, overwrite: bool) -> None:
    """Copy a file into an object, which is there whole or not at all.

    Raises:
        UnrainError: It cannot be written, or without `overwrite` is there already.
    """
    with _translated(address):
        system, place = _opened(address)
        system.put_file(str(path), place, mode="overwrite" if overwrite else "create")


def exists(name: str) -> bool:
    """Whether something is there.

    Raises:
        UnrainError: Its storage does not answer.
    """
    if not is_address(name):
        return os.path.lexists(name)
    with _translated(name):
        system, place = _opened(name)
        return bool(system.exists(place))


def read(name: str) -> bytes:
    """Read a whole file or object.

    Raises:
        UnrainError: It cannot be read.
    """
    if is_address(name):
        with _translated(name):
            system, place = _opened(name)
            return bytes(system.cat_file(place))
    with files.opened(Path(name)) as file:
        return file.read()


def write(data: bytes, name: str) -> None:
    """Put bytes into a file or object, which is there whole or not at all.

    Raises:
        UnrainError: It cannot be written.
    """
    if is_address(name):
        with _translated(name):
            system, place = _opened(name)
            system.pipe_file(place, data)
        return
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.writing_error(error, path.parent) from error
    files.write(data, path)


def remove(name: str) -> None:
    """Remove a file or object that may be gone already.

    Raises:
        UnrainError: It cannot be removed.
    """
    with _translated(name):
        if is_address(name):
            system, place = _opened(name)
            system.rm_file(place)
        else:
            Path(name).unlink(missing_ok=True)


def _opened(address: str) -> "tuple[AbstractFileSystem, str]":
    scheme, _, path = address.partition("://")
    return _system(scheme), path


@functools.cache
def _system(scheme: str) -> "AbstractFileSystem":
    import fsspec

    package, _ = _SCHEMES[scheme]
    settings: dict[str, Any] = {"use_listings_cache": False}
    if package == "s3fs":
        settings["config_kwargs"] = _S3_SETTINGS
    return fsspec.filesystem(scheme, **settings)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what goes wrong with a file or an object into one line."""
    try:
        yield
    except UnrainError:
        raise
    except FileExistsError as error:
        message = f"{name}: appeared while this run was busy and is kept, --overwrite replaces it"
        raise UnrainError(message) from error
    except Exception as error:  # botocore, aiohttp and their like have no common base
        raise UnrainError(f"{name}: {_problem(name, error)}") from error


def _problem(name: str, error: Exception) -> str:
    scheme = name.partition("://")[0]
    package, credentials = _SCHEMES.get(scheme, ("", ""))
    if isinstance(error, ImportError):
        return f"needs {package}, which is not installed: pip install fsspec {package}"
    if isinstance(error, FileNotFoundError):
        return "no such object or bucket, check the name"
    if isinstance(error, PermissionError) or type(error).__name__ in ("NoCredentialsError", "Forbidden"):
        return f"access denied, check the rights and the credentials in the environment ({credentials})"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left for a copy of it, free some or set TMPDIR to a larger folder"
    reason = _SECRETS.sub("", one_line(error))[:300]
    return f"cannot be reached ({reason}), check the network and the address"
