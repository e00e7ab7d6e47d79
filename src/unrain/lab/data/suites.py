"""The sets that are measured, as their downloads lay them out, and checked before anything is measured.

A suite is a folder below the data folder: pairs in two sub-folders (whatever the download calls them), pairs
in one folder told apart by their names, pairs side by side in one picture, photographs without rain (measured
against themselves: a network should leave a clean picture alone), or real rain without ground truth.
Sets that `data.pairs` knows from a manifest come from there.

Partners are matched by name, never by sort order. Pictures are read one at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unrain.errors import UnrainError, UsageError
from unrain.image import size_of
from unrain.lab.data.pairs import (
    TWO_SIDES,
    Pair,
    match,
    packed,
    pairs,
    pictures,
    read,
)

SUITES = ("rain100l/test", "rain100h/test", "rain800/test", "clean/kodak24")
REAL_FOLDER = "real"

Kind = Literal["pairs", "clean", "real"]


@dataclass(frozen=True)
class Published:
    """What is known of a test set that others measure on.

    Attributes:
        title: What papers call it.
        count: How many rainy pictures it has.
        input_psnr: Y-channel PSNR of its rainy pictures in dB, where it was measured on the true files.
        rainy_half: Where the rainy picture is in files that hold both sides; None where files hold one.
        others: Other counts that go around, and what these are.
    """

    title: str
    count: int
    input_psnr: float | None = None
    rainy_half: Literal["left", "right"] | None = None
    others: tuple[tuple[int, str], ...] = ()


_NEWER = "the authors' newer version of the set has 200 and is called Rain200{0}; papers measure both"
_RAIN100L = Published(
    "Rain100L", 100, 26.90, others=((200, _NEWER.format("L")), (50, "half of it is missing"))
)
_RAIN100H = Published("Rain100H", 100, 13.56, others=((200, _NEWER.format("H")),))
_RAIN800 = Published(
    "Rain800",
    100,
    rainy_half="right",
    others=((98, "MPRNet's Test100 has 98: two of Rain800's are missing there"), (700, "its training part")),
)
_RAIN1400 = Published(
    "Rain1400",
    1400,
    others=(
        (2800, "MPRNet's Test2800, another split of the same 14,000"),
        (12600, "its training part"),
        (14000, "both parts together"),
    ),
)
_TEST1200 = Published("Test1200", 1200, rainy_half="left", others=((12000, "its training part"),))
_SPA = Published("SPA-Data", 1000)
# By the name of the folder, in small letters and without what is no letter or digit.
PUBLISHED = {
    "rain100l": _RAIN100L,
    "raindatatestlight": _RAIN100L,
    "rain100h": _RAIN100H,
    "raindatatestheavy": _RAIN100H,
    "rain12": Published("Rain12", 12),
    "test12": Published("Rain12", 12),
    "rain200l": Published("Rain200L", 200, others=((100, "the older version of the set, Rain100L"),)),
    "rain200h": Published("Rain200H", 200, others=((100, "the older version of the set, Rain100H"),)),
    "rain800": _RAIN800,
    "test100": _RAIN800,
    "rain1400": _RAIN1400,
    "rain14000": _RAIN1400,
    "rainyimagedataset": _RAIN1400,
    "rain1200": _TEST1200,
    "test1200": _TEST1200,
    "didmdntest": _TEST1200,
    "spa": _SPA,
    "spadata": _SPA,
    "realtest1000": _SPA,
}
# Folders that downloads put around their test part.
_INNER = (
    "test",
    "testing",
    "Testing",
    "test_syn",
    "real_test_1000",
    "DID-MDN-test",
    "rain_data_test_Light",
    "rain_data_test_Heavy",
)
_TRAINING = {"train", "training"}


@dataclass(frozen=True)
class Suite:
    """A set, ready to be read picture by picture.

    Attributes:
        name: What it is called on the command line and in tables.
        kind: "pairs"; "clean", photographs paired with themselves; or "real", where there is no ground truth
            and the clean picture of each pair is the rainy one again.
        names: The pictures' names, in order.
        load: Reads the pair of a name.
        fingerprint: A hash of the files' names, sizes and times.
        published: What is known of it; None for anybody's own pictures.
    """

    name: str
    kind: Kind
    names: tuple[str, ...]
    load: Callable[[str], Pair]
    fingerprint: str
    published: Published | None = None

    def __len__(self) -> int:
        """Return how many pictures it has."""
        return len(self.names)

    def __iter__(self) -> Iterator[Pair]:
        """Read them one after the other."""
        return (self.load(name) for name in self.names)

    def check_input(self, psnr: float) -> None:
        """Compare the rainy pictures' own score with that of the true set.

        Raises:
            UnrainError: It is another.
        """
        if self.published is None or self.published.input_psnr is None:
            return
        if abs(psnr - self.published.input_psnr) > 0.006:
            raise UnrainError(
                f"{self.name}: its rainy pictures have a PSNR of {psnr:.2f} dB, those of "
                f"{self.published.title} {self.published.input_psnr:.2f}: this is another version of the set "
                "(or was compressed again); call its folder something else to measure it all the same"
            )


def find_suites(data: Path, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wanted suites, or those of the usual ones that lie below the data folder.

    Raises:
        UsageError: None of the usual suites is there.
    """
    if wanted:
        return wanted
    found = tuple(suite for suite in SUITES if (data / suite).is_dir() or packed(data, suite))
    if not found:
        raise UsageError(f"{data}: holds none of {', '.join(SUITES)}; name a suite with --suite")
    return found


def published(name: str) -> Published | None:
    """Return what is known of a suite by the names of its folders; nothing of training parts."""
    parts = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in Path(name).parts]
    if _TRAINING.intersection(parts):
        return None
    return next((PUBLISHED[part] for part in reversed(parts) if part in PUBLISHED), None)


def open_suite(root: Path, name: str, *, real: bool = False) -> Suite:
    """Find the pictures of a suite and check them: their number, their partners and their sizes.

    Args:
        root: The data folder.
        name: The suite's folder below it, or the name of a packed set.
        real: Whether it is a folder of real rain; folders below `real/` are anyway.

    Raises:
        UnrainError: There is no such suite, a picture has no partner or another size, or it is a set that
            others measure on and has another number of pictures.
    """
    known = published(name)
    rows = [] if real else packed(root, name)
    if rows:
        files = [root / row[side] for row in rows for side in ("rain", "clean") if side in row]
        found = {pair.name: pair for pair in pairs(root, name)}
        _check_count(name, len(found), known)
        return Suite(
            name, "pairs", tuple(found), found.__getitem__, _fingerprint(files, json.dumps(rows)), known
        )
    folder = root / name
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    if real or REAL_FOLDER in Path(name).parts:
        return _single(name, "real", pictures(folder), folder)
    partners = match(folder)
    while known and partners is None:
        below = next((folder / inner for inner in _INNER if (folder / inner).is_dir()), None)
        if below is None:
            break
        folder, partners = below, match(below)
    if partners is not None:
        return _paired(name, folder, partners, known)
    found_files = pictures(folder)
    if any(path.parent != folder for path in found_files):
        raise UnrainError(f"{folder}: needs {TWO_SIDES}, or pictures and no sub-folders")
    if known and known.rainy_half:
        return _side_by_side(name, found_files, known)
    if known:
        raise UnrainError(
            f"{folder}: {len(found_files)} pictures without partners; {known.title} has a rainy and a clean "
            "side, unpack both below this folder"
        )
    return _single(name, "clean", found_files, folder)


def _paired(
    name: str, folder: Path, partners: dict[str, tuple[Path, Path]], known: Published | None
) -> Suite:
    _check_count(name, len(partners), known)

    def load(one: str) -> Pair:
        rainy, clean = partners[one]
        return Pair(one, read(rainy), read(clean))

    files = [path for both in partners.values() for path in both]
    return Suite(name, "pairs", tuple(partners), load, _fingerprint(files, str(folder)), known)


def _side_by_side(name: str, files: list[Path], known: Published) -> Suite:
    by_name = {path.stem: path for path in files}
    _check_count(name, len(by_name), known)
    for path in files:
        width, height = size_of(path)
        if width % 2 or width < height:
            raise UnrainError(
                f"{path}: {width}x{height} is no rainy and clean picture side by side; {known.title} has "
                "both in one file, or in two folders"
            )

    def load(one: str) -> Pair:
        both = read(by_name[one])
        half = both.shape[1] // 2
        left, right = (np.ascontiguousarray(side) for side in (both[:, :half], both[:, half:]))
        return Pair(one, left, right) if known.rainy_half == "left" else Pair(one, right, left)

    return Suite(name, "pairs", tuple(sorted(by_name)), load, _fingerprint(files, known.title), known)


def _single(name: str, kind: Kind, files: list[Path], folder: Path) -> Suite:
    by_name = {str(path.relative_to(folder).with_suffix("")): path for path in files}
    if len(by_name) < len(files):
        twice = next(path for path in files if by_name[str(path.relative_to(folder).with_suffix(""))] != path)
        raise UnrainError(f"{twice}: another picture has that name with another extension, remove one")

    def load(one: str) -> Pair:
        picture = read(by_name[one])
        return Pair(one, picture, picture)

    return Suite(name, kind, tuple(sorted(by_name)), load, _fingerprint(files, kind))


def _check_count(name: str, count: int, known: Published | None) -> None:
    if known is None or count == known.count:
        return
    remark = next((f" ({words})" for other, words in known.others if other == count), "")
    raise UnrainError(
        f"{name}: {count} pairs, {known.title} has {known.count}{remark}; complete it, or call its folder "
        "something else to measure it all the same"
    )


def _fingerprint(files: list[Path], extra: str) -> str:
    lines = [extra]
    for path in sorted(set(files)):
        about = path.stat()
        lines.append(f"{path} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
