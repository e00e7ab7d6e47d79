"""Pictures for training and measuring: pairs, photographs and rain layers.

Everything is held in memory as uint8, so that a patch costs microseconds; a picture above `MAX_PIXELS` is
reduced.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unrain.errors import UnrainError
from unrain.lab.data.rain import Picture, add_layer

MAX_PIXELS = 1_500_000
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
RAIN_FOLDERS = ("rain", "rainy", "input", "rainy_image", "X2")
CLEAN_FOLDERS = ("clean", "norain", "target", "ground_truth", "gt", "GT")
_TURNS = {"id": 0, "rot90": 1, "rot180": 2, "rot270": 3}


@dataclass(frozen=True)
class Pair:
    """One rainy picture and its clean twin, H x W x 3 uint8 each."""

    name: str
    rainy: Picture
    clean: Picture


def read(path: Path) -> Picture:
    """Read a picture as H x W x 3 uint8 RGB.

    Raises:
        UnrainError: The file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UnrainError(f"{path}: not a readable picture ({error}); remove or replace it") from error


def size_of(path: Path) -> tuple[int, int]:
    """Return a picture's width and height without decoding it.

    Raises:
        UnrainError: The file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UnrainError(f"{path}: not a readable picture ({error}); remove or replace it") from error


def pictures(folder: Path) -> list[Path]:
    """List the picture files of a folder and its sub-folders, sorted.

    Raises:
        UnrainError: There is no such folder or it has no pictures.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UnrainError(f"{folder}: no pictures in it")
    return found


def pairs(root: Path, name: str, *, without_twins_in: str | None = None) -> list[Pair]:
    """Read a set of pairs: a packed set listed in `root/pairs.jsonl`, or the folder `root/name`.

    In a folder, the two sides are sub-folders (rain and clean, input and target, ...) and partners are
    matched by name, not by sort order; the prefixes "rain-" and "norain-" of the official Rain100L files
    are understood.

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
    """Read pairs from a folder with a rainy and a clean sub-folder, matched by name.

    Raises:
        UnrainError: See `pairs`.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    here = {p.name: p for p in folder.iterdir() if p.is_dir()}
    sides = []
    for names in (RAIN_FOLDERS, CLEAN_FOLDERS):
        side = next((here[n] for n in names if n in here), None)
        if side is None:
            raise UnrainError(f"{folder}: needs a sub-folder called one of {', '.join(names)}")
        sides.append({_key(p): p for p in pictures(side)})
    rain, clean = sides
    for mine, other, what in ((rain, clean, "clean"), (clean, rain, "rainy")):
        lonely = sorted(mine.keys() - other.keys())
        if lonely:
            raise UnrainError(
                f"{mine[lonely[0]]}: no {what} partner of that name ({len(lonely)} without one)"
            )
    found = []
    for key in sorted(rain):
        pair = Pair(key, read(rain[key]), read(clean[key]))
        if pair.rainy.shape != pair.clean.shape:
            raise UnrainError(
                f"{rain[key]}: {pair.rainy.shape[1]}x{pair.rainy.shape[0]}, its clean partner "
                f"{pair.clean.shape[1]}x{pair.clean.shape[0]}; partners must have one size"
            )
        found.append(pair)
    return found


def _key(path: Path) -> str:
    """Name a picture as its partner is named: without extension and Rain100L's prefixes."""
    return re.sub(r"^(no)?rain-", "", path.stem)


def photographs(root: Path, names: tuple[str, ...]) -> list[Picture]:
    """Read clean photographs from folders below the root; those above MAX_PIXELS are reduced."""
    return [_reduced(path) for name in names for path in pictures(root / name)]


def _reduced(path: Path) -> Picture:
    picture = read(path)
    factor = int(np.ceil(np.sqrt(picture.shape[0] * picture.shape[1] / MAX_PIXELS)))
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def rain_layers(root: Path, names: tuple[str, ...]) -> list[Picture]:
    """Read grey rain layers (H x W uint8) from folders below the root."""
    return [np.asarray(read(path)[..., 0]) for name in names for path in pictures(root / name)]
