"""Videos in the HTTP API: sent as a form, followed by an id, fetched once."""

import asyncio
import contextlib
import importlib.util
import json
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from unrain.video import beside
from unrain.web import form
from unrain.web.job import WebOptions, harmless
from unrain.web.queue import BusyError, JobQueue
from unrain.web.video_job import VideoJob, VideoRequest
from unrain.web.video_queue import Video, VideoQueue

_PIECE = 1 << 18
# Bytes a second at which a video has to arrive, after the time that a picture has.
_PACE = 100_000
_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".png": "image/png",
    ".apng": "image/png",
    ".webp": "image/webp",
}
_STATUS = (
    "id; name; state: waiting, working, done or failed; ahead: videos before it; done: frames done; total: "
    "frames expected, 0 before the first is done; left: seconds it may still take, or null; shown: number of "
    "the frame that /frame shows, 0 before the first; detail: why it failed. Once it is done: result: name "
    "of the result; bytes; frames; duration in seconds; problem: why the result is not the whole clip, empty "
    "if it is; notes: what was not kept; recursions; hardly_any_rain; seconds that it took, without waiting."
)
_GONE: dict[int | str, dict[str, Any]] = {
    404: form.refused("No video has this id: it was fetched, cancelled, or not asked about for too long.")
}
_Id = Annotated[
    str, PathParameter(alias="id", description="The id that the server gave when it took the video.")
]


def without_pyav() -> bool:
    """Whether the library that reads videos is missing."""
    return importlib.util.find_spec("av") is None


def add_routes(app: FastAPI, queue: JobQueue, videos: VideoQueue) -> None:
    """Add what concerns videos to an application."""
    limits = queue.limits

    @app.post(
        "/api/videos",
        status_code=202,
        summary="Take the rain out of a video, or of an animated GIF, WebP or PNG",
        response_description=f"The video is waiting. {_STATUS}",
        responses={
            400: form.refused("The form cannot be read."),
            403: form.refused("The request comes from another site's page."),
            408: form.refused("The video did not arrive in time."),
            413: form.refused("Too many bytes, or this server takes no videos."),
            415: form.refused("No multipart/form-data."),
            422: form.refused("An option is unknown or out of range."),
            429: form.refused(
                "Too many videos are waiting; Retry-After says in how many seconds to try again."
            ),
            503: form.refused("The disk is full, a library is missing, or the server is about to end."),
        },
        openapi_extra={"requestBody": form.request_body(VideoRequest, {"video": "A video's file."})},
    )
    async def send(request: Request) -> JSONResponse:
        """Return at once; ask /api/videos/ID how far it is.

        The video lies in a temporary file. It is deleted once its result was fetched or the video cancelled,
        or if nobody asks about it for a while, done or not.
        """
        if queue.closed:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise HTTPException(503, "this server is about to end, try again", headers)
        if not limits.video_size:
            raise HTTPException(413, "video: this server takes no videos")
        if without_pyav():
            raise HTTPException(503, "this server cannot read videos: pip install 'unrain[video]' there")
        try:
            video = videos.arriving()
        except BusyError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after)}) from error
        except OSError as error:
            raise _no_space() from error
        try:
            job = await _received(request, queue, video)
        except ClientDisconnect:
            # The client has gone: this is never read.
            videos.remove(video, "cancelled")
            return JSONResponse({}, 400)
        except BaseException:
            videos.remove(video, "failed")
            raise
        videos.enter(video, job)
        return JSONResponse(_told(videos, video), 202, {"Location": f"api/videos/{video.id}"})

    def found(identifier: str) -> Video:
        video = videos.find(identifier)
        if video is None or video.state == "arriving":
            raise HTTPException(404, "no video has this id, or it was deleted")
        return video

    @app.get("/api/videos/{id}", summary="Progress of a video", response_description=_STATUS, responses=_GONE)
    async def status(identifier: _Id) -> JSONResponse:
        """A video that nobody asks about for a while is deleted."""
        return JSONResponse(_told(videos, found(identifier)))

    @app.get(
        "/api/videos/{id}/frame",
        summary="One of the last frames, before and after",
        response_class=Response,
        response_description="before.jpg and after.jpg in a zip; a new pair about every two seconds.",
        responses=_GONE,
    )
    async def frame(identifier: _Id) -> Response:
        job = found(identifier).job
        if job is None or not job.shown:
            raise HTTPException(404, "no frame is done yet")
        return Response(job.frame, media_type="application/zip")

    @app.get(
        "/api/videos/{id}/result",
        summary="The derained video",
        response_class=Response,
        response_description="The video with its sound. Once it is sent everything of it is deleted here.",
        responses={**_GONE, 409: form.refused("It is not done, or has failed.")},
    )
    async def result(identifier: _Id) -> Response:
        video = found(identifier)
        if video.state != "done" or video.job is None:
            raise HTTPException(409, video.detail or f"{_name(video)}: not done yet")
        return _Result(videos, video, video.job.target, limits.transfer)

    @app.delete(
        "/api/videos/{id}",
        status_code=204,
        summary="Cancel a video, and delete everything of it",
        response_description="It is gone.",
        responses=_GONE,
    )
    async def cancel(identifier: _Id) -> None:
        videos.remove(found(identifier), "cancelled")


async def _received(request: Request, queue: JobQueue, video: Video) -> VideoJob:
    """Receive a video into its folder."""
    limits = queue.limits
    fields = await form.received(
        request, name="video", limit=limits.video_size, files=1, seconds=limits.transfer, pace=_PACE
    )
    try:
        file = form.upload(fields, "video")
        options = form.options(fields, VideoRequest)
        check_model(options.model, queue)
        name = harmless(file.filename, "video")
        source = video.folder / name
        if (file.size or 0) > limits.video_size:
            raise form.too_large(limits.video_size, "video")
        await asyncio.to_thread(_keep, file, source)
    except OSError as error:
        raise _no_space() from error
    finally:
        await fields.close()
    target = beside(source)
    if options.format is not None:
        target = target.with_suffix(f".{options.format}")
    return VideoJob(
        b"",
        name,
        WebOptions(model=options.model, recursions=options.recursions, strength=options.strength),
        source=source,
        target=target,
        codec=options.codec,
        crf=options.crf,
        most_frames=limits.video_frames,
    )


def check_model(name: str | None, queue: JobQueue) -> None:
    """Refuse a model that is not offered.

    Raises:
        HTTPException: It is not.
    """
    known = queue.runner.models
    if name is not None and name not in known:
        raise HTTPException(422, f"model: unknown, known ones: {', '.join(known)}")


def _keep(file: UploadFile, path: Path) -> None:
    file.file.seek(0)
    with path.open("xb") as kept:
        shutil.copyfileobj(file.file, kept, _PIECE)


def _no_space() -> HTTPException:
    return HTTPException(503, "the server's disk has no room for the video, try again later")


def _name(video: Video) -> str:
    return "" if video.job is None else video.job.name


def _told(videos: VideoQueue, video: Video) -> dict[str, Any]:
    job, answer = video.job, video.answer
    assert job is not None
    left = videos.left(video)
    told: dict[str, Any] = {
        "id": video.id,
        "name": job.name,
        "state": video.state,
        "ahead": videos.ahead(video),
        "done": job.done,
        "total": job.total,
        "left": None if left is None else round(left, 1),
        "shown": job.shown,
        "detail": video.detail,
    }
    if video.state == "done" and answer is not None:
        told |= json.loads(answer.data)
        told |= {
            "result": answer.name,
            "bytes": job.target.stat().st_size,
            "notes": answer.notes,
            "recursions": answer.recursions,
            "hardly_any_rain": answer.hardly_any_rain,
            "seconds": round(answer.seconds, 3),
        }
    return told


class _Result(Response):
    """A result sent in pieces; once the last is handed over to a client that is there, it is deleted."""

    def __init__(self, videos: VideoQueue, video: Video, path: Path, seconds: float) -> None:
        super().__init__(media_type=_TYPES[path.suffix.lower()])
        self._videos, self._video, self._path, self._seconds = videos, video, path, seconds
        ascii_name = path.name.encode("ascii", "replace").decode().replace("?", "_")
        self.headers.update(
            {
                "Content-Length": str(path.stat().st_size),
                "Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''"
                + quote(path.name, safe=""),
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        self._video.sending = True
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in _pieces(self._path):
                # What is not received in time stays incomplete, so the server closes the connection.
                async with asyncio.timeout(self._seconds):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                if gone.done():
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            self._videos.remove(self._video, "fetched")
        except TimeoutError:
            return
        finally:
            self._video.sending = False
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


async def _gone(receive: Receive) -> None:
    """Return once the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
