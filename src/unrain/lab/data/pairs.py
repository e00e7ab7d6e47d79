"""Pictures for training and measuring: reading them, and pairs of rainy and clean ones.

A set of pairs is two sub-folders, rainy and clean, under any of the names that downloads use; or one folder
whose file names say which side they are; or rows of a manifest, `pairs.jsonl`. Partners are matched by name,
never by sort order, and by the same `match` for training and for the benchmark.

Training holds everything in memory as uint8, so that a patch costs microseconds; photographs above
`MAX_PIXELS` are reduced.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from unrain import image
from unrain.errors import UnrainError
from unrain.image import size_of
from unrain.lab.data.rain import RGB8, Effect, add_layer

MAX_PIXELS = 1_500_000
SUFFIXES = frozenset(image.FORMATS)
RAIN_FOLDERS = ("rain", "rainy", "input", "rainy_image", "X2")
CLEAN_FOLDERS = ("clean", "norain", "target", "ground_truth", "gt", "GT", "groundtruth")
TWO_SIDES = (
    f"a sub-folder called one of {', '.join(RAIN_FOLDERS)} and one called one of {', '.join(CLEAN_FOLDERS)}"
)

_PREFIX = re.compile(r"^(?:no)?rain-")
# Rain100L's "x2", SPA-Data's "gt", our own results', and the endings of sets with both sides in one folder.
_SUFFIX = re.compile(r"(?:x2|gt|_(?:in|gt|rain|rainy|clean|norain|input|target|derained))$", re.IGNORECASE)
_IS_CLEAN = re.compile(r"^norain-|(?:gt|_(?:clean|norain|target))$", re.IGNORECASE)
_VARIANT = re.compile(r"_\d+$")
_in_use: WeakValueDictionary[tuple[str, int, int, bool], RGB8] = WeakValueDictionary()
_TURNS = {"id": 0, "rot90": 1, "rot180": 2, "rot270": 3}


@dataclass(frozen=True)
class Pair:
    """A rainy picture and its clean partner, H x W x 3 uint8 each."""

    name: str
    rainy: RGB8
    clean: RGB8

    @cached_property
    def effect(self) -> Effect:
        """What separates the two sides."""
        return Effect.of(self.rainy, self.clean)


def read(path: Path) -> RGB8:
    """Read a picture upright, as 8-bit RGB; transparency is dropped.

    Returns:
        H x W x 3 uint8: grey repeated, 16 bits rounded.

    Raises:
        UnrainError: The file is no readable picture.
    """
    pixels: RGB8 = image.eight_bit(image.read(path)).pixels
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)


def pictures(folder: Path) -> list[Path]:
    """List the picture files of a folder and its sub-folders, sorted.

    Raises:
        UnrainError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UnrainError(f"{folder}: no pictures in it")
    return found


def pairs(root: Path, name: str, *, without_twins_in: str | None = None) -> list[Pair]:
    """Read a set of pairs: a packed set listed in `root/pairs.jsonl`, or the folder `root/name`.

    See `match` for what a folder may look like.

    Args:
        root: The data folder.
        name: The set, for example "rain100l/train".
        without_twins_in: Leave out pairs whose background also occurs in the test part of that set, for
            example "Rain800" (packed sets only).

    Raises:
        UnrainError: A missing folder, a missing partner (named), or partners that differ in size.
    """
    rows = [row for row in packed(root, name) if without_twins_in not in row.get("twin_in", [])]
    if rows:
        return [_unpack(root, row) for row in rows]
    if without_twins_in is not None:
        raise UnrainError(
            f"{root / 'pairs.jsonl'}: needed to leave out pairs that occur in {without_twins_in}"
        )
    return paired_folder(root / name)


def packed(root: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a set in `root/pairs.jsonl`; none where there is no such file or set."""
    manifest = root / "pairs.jsonl"
    if not manifest.is_file():
        return []
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [row for row in rows if row["set"] == name]


def _unpack(root: Path, row: dict[str, Any]) -> Pair:
    """Rebuild one packed pair: a clean photo and a rain layer, or both sides in one picture."""
    if row["kind"] == "side":
        both = read(root / row["rain"])
        half = both.shape[1] // 2
        return Pair(row["name"], both[:, half : 2 * half], both[:, :half])
    clean = read(root / row["clean"])
    turn = row["turn"]
    if turn in _TURNS:
        clean = np.rot90(clean, _TURNS[turn])
    else:
        clean = clean[:, ::-1] if turn == "fliplr" else clean[::-1]
    rain = read(root / row["rain"])
    if row["kind"] == "layer":
        rain = add_layer(clean, rain[..., 0])
    return Pair(row["name"], rain, np.ascontiguousarray(clean))


def paired_folder(folder: Path) -> list[Pair]:
    """Read all pairs of a folder; see `match`.

    Raises:
        UnrainError: There is no such folder, it has no two sides, a file has no partner or another size.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    partners = match(folder)
    if partners is None:
        raise UnrainError(f"{folder}: needs {TWO_SIDES}")
    return [Pair(name, read(rainy), read(clean)) for name, (rainy, clean) in partners.items()]


def match(folder: Path) -> dict[str, tuple[Path, Path]] | None:
    """Find the pairs of a folder.

    Sub-folders count: `rain/a/1.png` belongs to `clean/a/1.png`. One clean picture may stand for several
    rainy ones that are called NAME_1, NAME_2..., or lie in sub-folders of their own.

    Returns:
        The rainy and the clean file of each pair by name, sorted; None where the folder has no two sides.

    Raises:
        UnrainError: A file has no partner, or partners differ in size.
    """
    sides = _sides(folder)
    if sides is None:
        return None
    rainy, clean = sides
    found: dict[str, tuple[Path, Path]] = {}
    lonely = []
    for own, path in rainy.items():
        bare = own.rpartition("/")[2]
        names = (own, _VARIANT.sub("", own), bare, _VARIANT.sub("", bare))
        partner = next((clean[name] for name in names if name in clean), None)
        if partner is None:
            lonely.append(path)
        else:
            found[own] = (path, partner)
    unused = sorted(set(clean.values()) - {partner for _, partner in found.values()})
    for missing, side in ((lonely, "clean"), (unused, "rainy")):
        if missing:
            raise UnrainError(
                f"{missing[0]}: no {side} partner of that name ({len(missing)} without one); add or remove it"
            )
    for one, other in found.values():
        sizes = [size_of(one), size_of(other)]
        if sizes[0] != sizes[1]:
            raise UnrainError(
                f"{one}: {sizes[0][0]}x{sizes[0][1]}, its clean partner {sizes[1][0]}x{sizes[1][1]}; "
                "partners must have one size"
            )
    return dict(sorted(found.items()))


def _sides(folder: Path) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """Name the files of both sides.

    Raises:
        UnrainError: Two files of one side have the same name.
    """
    sides = _folders(folder)
    if sides is None:
        return None
    named: list[dict[str, Path]] = []
    for side, (root, files) in zip(("rainy", "clean"), sides, strict=True):
        by_name: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(root).with_name(key(path.stem)).as_posix()
            if by_name.setdefault(name, path) != path:
                raise UnrainError(f"{path}: two {side} pictures are called {name}, remove one")
        named.append(by_name)
    return named[0], named[1]


def _folders(folder: Path) -> tuple[tuple[Path, list[Path]], tuple[Path, list[Path]]] | None:
    """Return the rainy and the clean side: the folder of each, and its files."""
    here = {path.name: path for path in folder.iterdir() if path.is_dir()}
    rain = next((here[name] for name in RAIN_FOLDERS if name in here), None)
    clean = next((here[name] for name in CLEAN_FOLDERS if name in here), None)
    if rain is not None and (rain / "X2").is_dir():
        # The authors' downloads of Rain100 and Rain200 keep the rainy files one level down.
        rain = rain / "X2"
    if rain is not None and clean is not None:
        return (rain, pictures(rain)), (clean, pictures(clean))
    loose = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if rain is not None:
        # PReNet's download keeps the clean files beside the folder of the rainy ones.
        beside = [path for path in loose if path.stem.startswith("norain-")]
        return ((rain, pictures(rain)), (folder, beside)) if beside else None
    marked = [path for path in loose if _SUFFIX.search(path.stem)]
    if not marked or len(marked) != len(loose):
        return None
    ground_truth = [path for path in marked if _IS_CLEAN.search(path.stem)]
    return (folder, [path for path in marked if path not in ground_truth]), (folder, ground_truth)


def key(stem: str) -> str:
    """Return a file's name without what tells the two sides apart."""
    return _SUFFIX.sub("", _PREFIX.sub("", stem))


def photographs(root: Path, names: tuple[str, ...], *, native: bool = False) -> list[RGB8]:
    """Read photographs from folders below the root; those above MAX_PIXELS are reduced, unless native.

    Several sources share the pictures of a folder: they are read once, and not to be written to.
    """
    return [_shared(path, native) for name in names for path in pictures(root / name)]


def _shared(path: Path, native: bool) -> RGB8:
    state = path.stat()
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size, native)
    picture = _in_use.get(key)
    if picture is None:
        picture = _in_use[key] = read(path) if native else _reduced(path)
    return picture


def _reduced(path: Path) -> RGB8:
    picture = read(path)
    factor = int(np.ceil(np.sqrt(picture.shape[0] * picture.shape[1] / MAX_PIXELS)))
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def rain_layers(root: Path, names: tuple[str, ...]) -> list[RGB8]:
    """Read grey rain layers (H x W uint8) from folders below the root."""
    return [read(path)[..., 0] for name in names for path in pictures(root / name)]
