"""Contact sheets: one row a picture, one column a candidate, to be looked at."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unrain import files
from unrain.devices import Processor
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench.candidates import Candidate, to_8_bit
from unrain.lab.bench.options import CPU, PICTURES, WIDTH
from unrain.lab.bench.run import restorers
from unrain.lab.data.rain import RGB8
from unrain.lab.data.suites import Suite

_GAP = 6
_LABEL = 22
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def draw_sheet(
    candidates: list[Candidate],
    suite: Suite,
    *,
    pictures: int = PICTURES,
    width: int = WIDTH,
    recursions: tuple[int, ...] = (),
    processor: Processor = CPU,
    progress: Callable[[str, int, int], None] | None = None,
) -> Image.Image:
    """Derain pictures of a suite by every candidate and draw them side by side.

    Args:
        candidates: The columns, after that of the input; for pairs the ground truth is the last one.
        suite: Where the pictures are from, evenly spread over it.
        pictures: How many rows, if there are that many.
        width: Of each picture on the sheet; none is enlarged.
        recursions: Numbers of recursions; each is a column. The model's own when empty.
        processor: What runs it, see `open_derainer`.
        progress: Called with (suite, pictures done, pictures in all).

    Raises:
        UnrainError: A candidate is broken, or has no picture of a name.
    """
    heads, runs = ["input"], []
    for candidate in candidates:
        for restore, count in restorers(candidate, suite.name, recursions, processor):
            several = f" T={count}" if len(recursions) > 1 and count else ""
            heads.append(candidate.name + several)
            runs.append(restore)
    if suite.kind == "pairs":
        heads.append("clean")
    names = spread(suite.names, pictures)
    rows = []
    for done, name in enumerate(names, 1):
        pair = suite.load(name)
        cells = [pair.rainy, *(to_8_bit(restore(pair)) for restore in runs)]
        if suite.kind == "pairs":
            cells.append(pair.clean)
        rows.append([_reduced(cell, width) for cell in cells])
        if progress:
            progress(f"sheet of {suite.name}", done, len(names))
    return _lay_out(rows, heads, list(names), width)


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet; the file's extension decides the format.

    Raises:
        UnrainError: The file cannot be written, or its format is unknown.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise UsageError(f"{path}: no format of pictures, give a name that ends in .png")
    encoded = io.BytesIO()
    try:
        sheet.save(encoded, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise UnrainError(f"{path}: cannot be written ({error}), give a name that ends in .png") from error
    except OSError as error:
        raise files.writing_error(error, path) from error
    files.write(encoded.getvalue(), path)


def spread(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Choose names evenly over a sorted list, the first and the last among them."""
    if len(names) <= count:
        return names
    places = np.linspace(0, len(names) - 1, count).round().astype(int)
    return tuple(names[place] for place in places)


def _reduced(picture: RGB8, width: int) -> Image.Image:
    image = Image.fromarray(picture)
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


def _lay_out(rows: list[list[Image.Image]], heads: list[str], names: list[str], width: int) -> Image.Image:
    font = ImageFont.load_default(14)
    column = min(width, max(cell.width for row in rows for cell in row)) + _GAP
    tall = [max(cell.height for cell in row) for row in rows]
    size = (_GAP + column * len(heads), _LABEL + sum(height + _LABEL + _GAP for height in tall))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, head in enumerate(heads):
        draw.text((_GAP + i * column, 3), _fitted(head, draw, font, column - _GAP), _INK, font)
    y = _LABEL
    for row, name, height in zip(rows, names, tall, strict=True):
        draw.text((_GAP, y), _fitted(name, draw, font, size[0] - 2 * _GAP), _INK, font)
        for i, cell in enumerate(row):
            sheet.paste(cell, (_GAP + i * column, y + _LABEL))
        y += height + _LABEL + _GAP
    return sheet


def _fitted(
    text: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """Shorten a text in its middle until it fits."""
    shown = text
    while len(shown) > 4 and draw.textlength(shown, font) > width:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
        shown = text[: len(text) // 2] + "..." + text[len(text) // 2 :]
    return shown
