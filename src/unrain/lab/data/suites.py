"""The sets that are measured, as their downloads lay them out, and checked before anything is measured.

A suite is a folder below the data folder: pairs in two sub-folders (whatever the download calls them), pairs
in one folder told apart by their names, pairs side by side in one picture, photographs without rain (measured
against themselves: a network should leave a dry picture alone), or real rain, whose clean side nobody knows.
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

from unrain.errors import UnrainError
from unrain.lab.data.pairs import (
    CLEAN_FOLDERS,
    RAIN_FOLDERS,
    SUFFIXES,
    Pair,
    packed,
    pairs,
    pictures,
    read,
    size_of,
)

SUITES = ("rain100l/test", "rain100h/test", "rain800/test", "clean/kodak24")
REAL_FOLDER = "real"

Kind = Literal["pairs", "dry", "real"]


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
_PREFIX = re.compile(r"^(?:no)?rain-")
# Rain100L's "x2", SPA-Data's "gt", and what sets with both sides in one folder call them.
_SUFFIX = re.compile(r"(?:x2|gt|_(?:in|gt|rain|rainy|clean|norain|input|target))$", re.IGNORECASE)
_IS_CLEAN = re.compile(r"^norain-|(?:gt|_(?:clean|norain|target))$", re.IGNORECASE)
_VARIANT = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Suite:
    """A set, ready to be read picture by picture.

    Attributes:
        name: What it is called on the command line and in tables.
        kind: "pairs"; "dry", photographs paired with themselves; or "real", where the clean side of each pair
            is the rainy picture again and means nothing.
        names: The pictures' names, in order.
        load: Reads the pair of a name.
        print: A hash of the files' names, sizes and times.
        published: What is known of it; None for anybody's own pictures.
    """

    name: str
    kind: Kind
    names: tuple[str, ...]
    load: Callable[[str], Pair]
    print: str
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
        UnrainError: None of the usual suites is there.
    """
    if wanted:
        return wanted
    found = tuple(suite for suite in SUITES if (data / suite).is_dir() or packed(data, suite))
    if not found:
        raise UnrainError(f"{data}: holds none of {', '.join(SUITES)}; name a suite with --suite")
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
        return Suite(name, "pairs", tuple(found), found.__getitem__, _print(files, json.dumps(rows)), known)
    folder = root / name
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    if real or REAL_FOLDER in Path(name).parts:
        return _single(name, "real", pictures(folder), folder)
    if known:
        folder = _inner(folder)
    sides = _sides(folder)
    if sides is not None:
        return _paired(name, folder, *sides, known)
    found_files = pictures(folder)
    if any(path.parent != folder for path in found_files):
        raise UnrainError(
            f"{folder}: needs a sub-folder called one of {', '.join(RAIN_FOLDERS)} and one called one of "
            f"{', '.join(CLEAN_FOLDERS)}, or pictures and no sub-folders"
        )
    if known and known.rainy_half:
        return _side_by_side(name, found_files, known)
    if known:
        raise UnrainError(
            f"{folder}: {len(found_files)} pictures without partners; {known.title} has a rainy and a clean "
            "side, unpack both below this folder"
        )
    return _single(name, "dry", found_files, folder)


def _inner(folder: Path) -> Path:
    """Go down into the folders that a download puts around its test part."""
    while _sides(folder) is None:
        below = next((folder / inner for inner in _INNER if (folder / inner).is_dir()), None)
        if below is None:
            break
        folder = below
    return folder


def _sides(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """List the rainy and the clean files; None where there are no two sides."""
    here = {path.name: path for path in folder.iterdir() if path.is_dir()}
    rain = next((here[name] for name in RAIN_FOLDERS if name in here), None)
    clean = next((here[name] for name in (*CLEAN_FOLDERS, "groundtruth") if name in here), None)
    if rain is not None and (rain / "X2").is_dir():
        # The factor by which nothing was enlarged, in the authors' download of Rain100 and Rain200.
        rain = rain / "X2"
    if rain is not None and clean is not None:
        return pictures(rain), pictures(clean)
    loose = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if rain is not None:
        # PReNet's download keeps the clean side beside the folder of the rainy one.
        beside = [path for path in loose if path.stem.startswith("norain-")]
        return (pictures(rain), beside) if beside else None
    marked = [path for path in loose if _SUFFIX.search(path.stem)]
    if not marked or len(marked) != len(loose):
        return None
    dry = [path for path in marked if _IS_CLEAN.search(path.stem)]
    return [path for path in marked if path not in dry], dry


def key(stem: str) -> str:
    """Name a picture as its partner is named: without what tells the two sides apart."""
    return _SUFFIX.sub("", _PREFIX.sub("", stem))


def _paired(name: str, folder: Path, rain: list[Path], clean: list[Path], known: Published | None) -> Suite:
    """Match the two sides by name; one clean picture may stand for several rainy ones, called NAME_1..."""
    by_key: dict[str, Path] = {}
    for path in clean:
        if by_key.setdefault(key(path.stem), path) != path:
            raise UnrainError(f"{path}: two clean pictures are called {key(path.stem)}, remove one")
    partners: dict[str, tuple[Path, Path]] = {}
    for path in rain:
        own = key(path.stem)
        partner = by_key.get(own) or by_key.get(_VARIANT.sub("", own))
        if partner is None:
            lonely = [p for p in rain if not {key(p.stem), _VARIANT.sub("", key(p.stem))} & by_key.keys()]
            raise UnrainError(f"{path}: no clean partner of that name ({len(lonely)} without one)")
        if own in partners:
            raise UnrainError(f"{path}: two rainy pictures are called {own}, remove one")
        partners[own] = (path, partner)
    unused = sorted(set(clean) - {partner for _, partner in partners.values()})
    if unused:
        raise UnrainError(f"{unused[0]}: no rainy partner of that name ({len(unused)} without one)")
    _check_count(name, len(partners), known)
    for rainy, dry in partners.values():
        sizes = [size_of(rainy), size_of(dry)]
        if sizes[0] != sizes[1]:
            raise UnrainError(
                f"{rainy}: {sizes[0][0]}x{sizes[0][1]}, its clean partner {sizes[1][0]}x{sizes[1][1]}; "
                "partners must have one size"
            )

    def load(one: str) -> Pair:
        rainy, dry = partners[one]
        return Pair(one, read(rainy), read(dry))

    return Suite(name, "pairs", tuple(sorted(partners)), load, _print([*rain, *clean], str(folder)), known)


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

    return Suite(name, "pairs", tuple(sorted(by_name)), load, _print(files, known.title), known)


def _single(name: str, kind: Kind, files: list[Path], folder: Path) -> Suite:
    by_name = {str(path.relative_to(folder).with_suffix("")): path for path in files}
    if len(by_name) < len(files):
        twice = next(path for path in files if by_name[str(path.relative_to(folder).with_suffix(""))] != path)
        raise UnrainError(f"{twice}: another picture has that name with another extension, remove one")

    def load(one: str) -> Pair:
        picture = read(by_name[one])
        return Pair(one, picture, picture)

    return Suite(name, kind, tuple(sorted(by_name)), load, _print(files, kind))


def _check_count(name: str, count: int, known: Published | None) -> None:
    if known is None or count == known.count:
        return
    remark = next((f" ({words})" for other, words in known.others if other == count), "")
    raise UnrainError(
        f"{name}: {count} pairs, {known.title} has {known.count}{remark}; complete it, or call its folder "
        "something else to measure it all the same"
    )


def _print(files: list[Path], extra: str) -> str:
    lines = [extra]
    for path in sorted(set(files)):
        about = path.stat()
        lines.append(f"{path} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
