"""One picture of a request: its options, and the way from the uploaded file to the answer."""

import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from unrain import batch, image, layer
from unrain.derainer import Derained, Derainer
from unrain.engine import Engine
from unrain.errors import UnrainError
from unrain.layer import MOST_STRENGTH

MAX_RECURSIONS = 16
MAX_TILE = 1152
TICKET = r"^[A-Za-z0-9_-]{16,64}$"
TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
    "JXL": "image/jxl",
}
_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "AVIF": ".avif",
    "JXL": ".jxl",
}


# Options of pictures and of videos.
ModelName = Annotated[str | None, Field(description="A name from /api/models.")]
Recursions = Annotated[
    int | None,
    Field(ge=1, le=MAX_RECURSIONS, description="Recursions; the model's own number if left out."),
]
Strength = Annotated[
    float,
    Field(
        ge=0,
        le=MOST_STRENGTH,
        allow_inf_nan=False,
        description="How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.",
    ),
]


class ScoreOptions(BaseModel):
    """The options of a request that derains nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ticket: Annotated[
        str | None,
        Field(pattern=TICKET, description="A random word, by which /api/progress/TICKET finds the picture."),
    ] = None


class ResultOptions(BaseModel):
    """What is wanted of a result, however it came about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strength: Strength = 1.0
    quality: Annotated[
        int | None,
        Field(ge=1, le=100, description="Quality of JPEG, WebP and AVIF; a JPEG keeps its own if left out."),
    ] = None
    format: Annotated[
        Literal["jpeg", "png", "webp", "tiff", "bmp", "avif", "jxl"] | None,
        Field(description="Format of the result; that of the picture if left out."),
    ] = None
    rain_layer: Annotated[
        bool, Field(description="Also return what was removed, as NAME_rain.png; the answer is a zip.")
    ] = False
    compare: Annotated[
        bool,
        Field(
            description="Also return before and after side by side, as NAME_compare.EXT; the answer is a zip."
        ),
    ] = False


class WebOptions(ResultOptions):
    """The options of a request: those of the command line, except the operator's."""

    model: ModelName = None
    recursions: Recursions = None
    until: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Stop early, after a recursion that changed the picture by less than this: the mean "
            "absolute change over all pixels and channels, in 8-bit levels.",
        ),
    ] = None
    tile: Annotated[
        int | None,
        Field(ge=1, le=MAX_TILE, description="Side of the tiles of a large picture, in pixels."),
    ] = None
    preview: Annotated[
        bool,
        Field(
            description="Also return before and after as JPEG, for browsers that cannot show the format, as "
            "preview_before.jpg and preview_after.jpg; the answer is a zip."
        ),
    ] = False
    difference: Annotated[
        bool,
        Field(
            description="Also return what /api/strength needs, as difference.png: picture minus result at "
            "strength 1, modulo 256, or 65536 with 16 bits; the answer is a zip."
        ),
    ] = False
    ticket: Annotated[
        str | None,
        Field(pattern=TICKET, description="A random word, by which /api/progress/TICKET finds the picture."),
    ] = None


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        data: A picture's file, or a zip of several.
        media_type: Its media type.
        name: The file name that browsers save it under.
        notes: What was not kept of the picture, one sentence each.
        recursions: Recursions made.
        seconds: How long it took, without waiting.
        hardly_any_rain: Whether next to no rain was found.
    """

    data: bytes
    media_type: str
    name: str
    notes: tuple[str, ...]
    recursions: int
    seconds: float
    hardly_any_rain: bool


class AbandonedError(Exception):
    """The client is no longer waiting for the result."""


@dataclass(frozen=True)
class Networks:
    """The networks that jobs run on.

    Attributes:
        engines: By the names of their models, the default first.
    """

    engines: Mapping[str, Engine]

    def engine(self, model: str | None) -> Engine:
        """Return a model's network; None is the default."""
        return self.engines[model or next(iter(self.engines))]


@dataclass(eq=False)
class WebJob:
    """A picture that waits for the network, or is in it.

    Attributes:
        data: The picture's file.
        name: The client's name for it, made harmless; used to name results and in messages only.
        options: The options of the request.
        done: Tiles done.
        total: Tiles in all, 0 before the first is done.
        abandoned: Whether to stop after the current tile.
        decoding: Whether a file is being decoded.
        watch: Called with the job whenever one of these numbers changes.
    """

    data: bytes
    name: str
    options: WebOptions
    done: int = 0
    total: int = 0
    abandoned: bool = False
    decoding: bool = False
    watch: Callable[["WebJob"], None] | None = None

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.data)

    def abandon(self) -> None:
        """Stop as soon as possible, and release the picture."""
        self.abandoned = True
        self.release()

    def release(self) -> None:
        """Drop the file once it is decoded, or in other hands."""
        self.data = b""

    def run(self, networks: Networks, max_pixels: int) -> Answer:
        """Derain the picture and encode what is asked for.

        Args:
            networks: One of them is used.
            max_pixels: Refuse pictures with more pixels, according to their header.

        Raises:
            AbandonedError: `abandon` was called.
            UnrainError: The picture or an option cannot be used.
        """
        start = time.monotonic()
        if self.abandoned:
            raise AbandonedError
        options = self.options
        before = self._decoded(self.data, self.name, max_pixels)
        self.data = b""
        result = self._derained(before, networks, max_pixels)
        after = replace(before, pixels=result.at(options.strength))
        kind = before.format if options.format is None else options.format.upper()
        data, lost = self._encoded(after, kind)
        notes = tuple(dict.fromkeys((*before.notes, *lost)))
        stem = PurePath(self.name).stem
        suffix = PurePath(self.name).suffix
        suffix = suffix if image.FORMATS.get(suffix.lower()) == kind else _SUFFIXES[kind]
        files = {f"{stem}_derained{suffix}": data}
        if options.rain_layer:
            rain = image.Picture(layer.taken(before.pixels, after.pixels), colour=before.colour)
            files[f"{stem}_rain.png"] = self._encoded(rain, "PNG")[0]
        if options.compare:
            files[f"{stem}_compare{suffix}"] = self._encoded(batch.side_by_side(before, after), kind)[0]
        if options.preview:
            files["preview_before.jpg"] = self._encoded(before, "JPEG")[0]
            files["preview_after.jpg"] = self._encoded(after, "JPEG")[0]
        if options.difference:
            whole = image.Picture(layer.difference(before.pixels, result.image), colour=before.colour)
            files["difference.png"] = self._encoded(whole, "PNG")[0]
        name, media_type = f"{stem}_derained{suffix}", TYPES[kind]
        if len(files) > 1:
            data, name, media_type = zipped(files), f"{stem}.zip", "application/zip"
        return Answer(
            data,
            media_type,
            name,
            notes,
            result.recursions,
            time.monotonic() - start,
            result.hardly_any_rain,
        )

    def _decoded(self, data: bytes, name: str, max_pixels: int) -> image.Picture:
        self.decoding = True
        self._changed()
        picture = image.decode(data, name, max_pixels=max_pixels)
        self.decoding = False
        self._changed()
        return picture

    def _derained(self, before: image.Picture, networks: Networks, max_pixels: int) -> Derained:
        """Take the rain out of the picture, all that is found."""
        options = self.options
        derainer = Derainer(
            networks.engine(options.model),
            recursions=options.recursions,
            until=options.until,
            tile=options.tile,
        )
        try:
            return derainer.derain(before.pixels, progress=self._step)
        except UnrainError as error:
            raise UnrainError(f"{self.name}: {error}") from error

    def _step(self, done: int, total: int) -> None:
        if self.abandoned:
            raise AbandonedError
        self.done, self.total = done, total
        self._changed()

    def _changed(self) -> None:
        if self.watch is not None:
            self.watch(self)

    def _encoded(self, picture: image.Picture, kind: str) -> tuple[bytes, tuple[str, ...]]:
        try:
            return image.encode(picture, kind, quality=self.options.quality)
        except UnrainError as error:
            raise UnrainError(f"{self.name}: {error}") from error


@dataclass(eq=False)
class StrengthJob(WebJob):
    """A picture whose rain was found before: nothing is kept here, so its client sends both.

    Attributes:
        difference: The file of the difference that came with its result.
    """

    difference: bytes = b""

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self.data) + len(self.difference)

    def release(self) -> None:
        """Drop both files."""
        super().release()
        self.difference = b""

    def _derained(self, before: image.Picture, networks: Networks, max_pixels: int) -> Derained:
        """Subtract the difference, without the network."""
        found = self._decoded(self.difference, "difference", max_pixels).pixels
        self.difference = b""
        # A difference that is the same in all colours is read as grey.
        found = found[..., None] if found.ndim < before.pixels.ndim else found
        same = found.shape[:2] == before.pixels.shape[:2] and found.ndim == before.pixels.ndim
        if not same or found.dtype != before.pixels.dtype:
            raise UnrainError(f"difference: not that of {self.name}, send the one that came with its result")
        return Derained(before.pixels - found, before.pixels, 0, ())


@dataclass(eq=False)
class ScoreJob(WebJob):
    """A picture of which is asked whether it rains in it."""

    def run(self, networks: Networks, max_pixels: int) -> Answer:
        """Score the picture; the answer is JSON."""
        start = time.monotonic()
        if self.abandoned:
            raise AbandonedError
        picture = self._decoded(self.data, self.name, max_pixels)
        self.data = b""
        found = Derainer(networks.engine(None)).scorer(picture.pixels)
        return Answer(
            json.dumps(found.as_dict()).encode(),
            "application/json",
            f"{PurePath(self.name).stem}.json",
            picture.notes,
            0,
            time.monotonic() - start,
            found.verdict == "clear",
        )


def zipped(files: dict[str, bytes]) -> bytes:
    """Return files, by their names, as a zip."""
    buffer = io.BytesIO()
    # Pictures are compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, time.localtime()[:6])
            # Unpacked, they are files like others: zipfile itself lets only their owner read them.
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def harmless(name: str | None, otherwise: str = "picture") -> str:
    """Reduce a file name from outside to its last part, printable and short; none is `otherwise`."""
    # Windows' rules take both kinds of slashes for separators.
    last = re.sub(r"[^\w .()+,;=@~-]", "_", PureWindowsPath(name or "").name).rstrip(" .")
    stem, suffix = PurePath(last).stem.strip(" ."), PurePath(last).suffix
    # On Windows these are devices, with any extension.
    device = "_" * bool(re.fullmatch(r"(con|prn|aux|nul|(com|lpt)\d)(\..*)?", stem, re.IGNORECASE))
    return f"{device}{stem[:100] or otherwise}{suffix[:8]}"
