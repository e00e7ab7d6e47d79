"""What the server and its worker process say to each other.

A message is a byte that says its kind, the length of its body in eight bytes, and the body. Nothing is ever
pickled: a worker that a picture has taken over can send wrong pixels or wrong words, but it cannot make the
server run anything, or read more than a limit.
"""

import json
import math
import re
import struct
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from unrain import image
from unrain.errors import UnrainError
from unrain.web.job import TYPES, AbandonedError, Answer, ScoreJob, StrengthJob, WebJob, WebOptions
from unrain.web.video_job import VideoJob

_HEAD = struct.Struct(">cQ")
_LENGTH = struct.Struct(">Q")
PROGRESS = struct.Struct(">II")
"""Tiles done, tiles in all."""

_ANSWER = TypeAdapter(Answer)
# Bytes of messages without files.
_SMALL = 1_000_000
_NAME = re.compile(r"[\w .()+,;=@~-]{1,200}")
_MEDIA_TYPES = {*TYPES.values(), "application/zip", "application/json"}
_JOBS: dict[str, type[WebJob]] = {
    "derain": WebJob,
    "strength": StrengthJob,
    "score": ScoreJob,
    "video": VideoJob,
}
_FRAME = struct.Struct(">I")

# The special before the general.
REFUSALS = (image.TooManyPixelsError, UnrainError, MemoryError, AbandonedError, Exception)
"""What a worker may say instead of an answer; of other faults the client learns nothing."""


class Kind(Enum):
    """What a message is.

    To the worker: its settings, a job, that the job is given up. From it: that it has opened the models,
    whether it is decoding, progress, a frame of a video, an answer, a refusal.
    """

    SETTINGS, JOB, GIVE_UP = b"s", b"j", b"g"
    READY, DECODING, PROGRESS, FRAME, ANSWER, REFUSAL = b"r", b"d", b"p", b"f", b"a", b"e"


class MessageError(Exception):
    """The other side does not say what it should, or is gone."""


def send(stream: IO[bytes], kind: Kind, *parts: bytes) -> None:
    """Write a message, its body in parts."""
    stream.write(_HEAD.pack(kind.value, sum(map(len, parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes], most: int = _SMALL) -> tuple[Kind, bytes]:
    """Read a message.

    Args:
        stream: Where from.
        most: Refuse a longer body.

    Raises:
        MessageError: It is cut off, of an unknown kind or too long.
    """
    kind, size = _HEAD.unpack(_exactly(stream, _HEAD.size))
    try:
        known = Kind(kind)
    except ValueError as error:
        raise MessageError(f"unknown message {kind!r}") from error
    if size > most:
        raise MessageError(f"a message of {size} bytes")
    return known, _exactly(stream, size)


def packed(header: dict[str, Any], *files: bytes) -> list[bytes]:
    """Put a JSON header and files into a body, each after its length."""
    return [
        part for item in (json.dumps(header).encode(), *files) for part in (_LENGTH.pack(len(item)), item)
    ]


def unpacked(body: bytes, files: int) -> tuple[dict[str, Any], list[bytes]]:
    """Take a JSON header and so many files out of a body.

    Raises:
        MessageError: It holds something else.
    """
    items, at = [], 0
    try:
        for _ in range(files + 1):
            (size,) = _LENGTH.unpack_from(body, at)
            at += _LENGTH.size
            items.append(body[at : at + size])
            at += size
        header = json.loads(items[0])
    except (struct.error, ValueError, RecursionError) as error:
        raise MessageError("a body that cannot be read") from error
    if at != len(body) or not isinstance(header, dict):
        raise MessageError("a body that cannot be read")
    return header, items[1:]


def job_parts(job: WebJob) -> list[bytes]:
    """Return the body that `job_of` makes the same job of."""
    kind = next(kind for kind, made in _JOBS.items() if type(job) is made)
    header = {"name": job.name, "options": job.options.model_dump(), "kind": kind}
    if isinstance(job, VideoJob):
        # Videos are too large for messages: their files are named.
        paths = {"source": str(job.source), "target": str(job.target)}
        header |= {"video": {**paths, "codec": job.codec, "crf": job.crf, "most_frames": job.most_frames}}
    return packed(header, job.data, job.difference if isinstance(job, StrengthJob) else b"")


def job_of(body: bytes) -> WebJob:
    """Make a job of a message's body.

    Raises:
        MessageError: It holds something else.
    """
    header, (data, difference) = unpacked(body, 2)
    options = WebOptions(**header["options"])
    if header["kind"] == "strength":
        return StrengthJob(data, header["name"], options, difference=difference)
    if header["kind"] == "video":
        more = dict(header["video"])
        source, target = Path(more.pop("source")), Path(more.pop("target"))
        return VideoJob(data, header["name"], options, source=source, target=target, **more)
    return _JOBS[header["kind"]](data, header["name"], options)


def frame_parts(job: VideoJob) -> list[bytes]:
    """Return the body that `frame_of` takes the shown frame of."""
    return [_FRAME.pack(job.shown), job.frame]


def frame_of(body: bytes) -> tuple[int, bytes]:
    """Take a frame's number and its zip out of a message's body.

    Raises:
        MessageError: It holds something else.
    """
    number, data = body[: _FRAME.size], body[_FRAME.size :]
    if len(number) != _FRAME.size or not data.startswith(b"PK"):
        raise MessageError("a frame that is none")
    return _FRAME.unpack(number)[0], data


def answer_parts(answer: Answer) -> list[bytes]:
    """Return the body that `answer_of` makes the same answer of."""
    header = asdict(answer)
    return packed(header, header.pop("data"))


def answer_of(body: bytes) -> Answer:
    """Make an answer of a message's body, and check all of it.

    Raises:
        MessageError: It holds something else.
    """
    header, (data,) = unpacked(body, 1)
    try:
        answer = _ANSWER.validate_python({**header, "data": data})
    except ValidationError as error:
        raise MessageError("an answer that is none") from error
    fine = (
        answer.media_type in _MEDIA_TYPES
        and _NAME.fullmatch(answer.name)
        and answer.recursions >= 0
        and answer.seconds >= 0
        and math.isfinite(answer.seconds)
    )
    if not fine:
        raise MessageError("an answer that is none")
    return answer


def refusal_parts(error: Exception) -> list[bytes]:
    """Return the body that `refusal_of` makes the same refusal of."""
    kind = next(kind for kind in REFUSALS if isinstance(error, kind))
    return packed({"kind": kind.__name__, "message": "" if kind is Exception else str(error)[:10_000]})


def refusal_of(body: bytes) -> Exception:
    """Make a refusal of a message's body.

    Raises:
        MessageError: It holds something else.
    """
    header, _ = unpacked(body, 0)
    kind = next((kind for kind in REFUSALS if kind.__name__ == header.get("kind")), None)
    message = header.get("message")
    if kind is None or not isinstance(message, str):
        raise MessageError("a refusal that is none")
    return kind(" ".join(message.split()))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise MessageError("the other side has ended")
    return data
