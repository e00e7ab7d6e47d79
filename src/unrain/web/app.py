"""The page and the HTTP API, as an ASGI application.

No picture is written to disk: it is received into memory and dropped once the answer is sent. Videos lie in
temporary files (`video_queue.py`). Limits are checked as early as possible: bytes while they arrive, pixels
in the file's header, the length of the queue before anything is read.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from unrain import image, zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.version import __version__
from unrain.web import form, video_api
from unrain.web.guard import Guard
from unrain.web.job import (
    MAX_RECURSIONS,
    TYPES,
    AbandonedError,
    Answer,
    ResultOptions,
    ScoreJob,
    ScoreOptions,
    StrengthJob,
    WebJob,
    WebOptions,
    harmless,
)
from unrain.web.metrics import Counted, Metrics
from unrain.web.queue import BusyError, JobQueue, Limits, OverdueError
from unrain.web.runner import Bounds, InProcess, Isolated, Runner, WorkerDiedError
from unrain.web.video_queue import VideoQueue

STATIC = Path(__file__).parent / "static"
_PIECE = 65_536
# Bytes for each pixel of the largest picture.
_ANSWER_BYTES, _MEMORY = 64, 100
# The same for the frames that a pipeline and an encoder hold; bytes of what a worker says of a video.
_VIDEO_MEMORY, _VIDEO_ANSWER, _BEHIND = 400, 16_000_000, 5
# Libraries and models, and what each thread reserves: address space, of which only a part is ever used.
_BASE_MEMORY, _THREAD_MEMORY = 1_500_000_000, 128_000_000
_CARD = ("summary", "parameters", "licence", "scores", "training_data")
_PICTURE = {"picture": "A picture's file."}
_FILES = {**_PICTURE, "difference": "The difference.png that came with the picture's result."}
_DESCRIPTION = """Takes the rain out of pictures and videos.

    curl -F picture=@photo.jpg http://127.0.0.1:8000/api/derain -o derained.jpg

Pictures stay in this server's memory until they are answered; nothing is stored or passed on.
Videos are sent to /api/videos, followed by their id and fetched once; then nothing of them is left here.
An error is {"detail": "one line"}.
"""


def create(
    models: Sequence[zoo.Model] | None = None,
    *,
    limits: Limits | None = None,
    processor: Processor | None = None,
    loopback: bool = True,
    hosts: Collection[str] = (),
    isolate: bool = False,
) -> Guard:
    """Make the application.

    Args:
        models: The models to offer, the default first; None for all that come with the package.
        limits: What to accept.
        processor: What the models run on.
        loopback: Whether only this machine can reach the server.
        hosts: Further host names that the server answers to.
        isolate: Run jobs in a worker process with limits of memory and time.

    Raises:
        UnrainError: A model cannot be opened.
    """
    chosen = zoo.built_in() if models is None else models
    limits = limits or Limits()
    processor = processor or Processor()
    queue = JobQueue(limits, _runner(chosen, processor, limits, isolate=isolate))
    videos = VideoQueue(limits, lambda: _video_runner(chosen, processor, limits, isolate=isolate))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()
        await videos.close()

    app = FastAPI(
        title="unrain",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        responses={"default": form.refused("Any other error.")},
        # FastAPI's documentation pages load their scripts from another site.
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.queue, app.state.videos = queue, videos
    metrics = Metrics(queue, videos)
    app.add_middleware(Counted, metrics=metrics, queue=queue)
    app.add_exception_handler(Exception, _broken)
    _add_routes(app, queue, chosen, metrics)
    video_api.add_routes(app, queue, videos)
    app.mount("/", _Page(directory=STATIC, html=True))
    return Guard(app, loopback=loopback, hosts=hosts)


def _runner(models: Sequence[zoo.Model], processor: Processor, limits: Limits, *, isolate: bool) -> Runner:
    if not isolate:
        return InProcess(models, processor, limits.pixels)
    # With everything that can be asked for, an answer has about eight pictures of 16 bits in it.
    answer = _ANSWER_BYTES * limits.pixels + 4 * limits.upload
    memory = limits.memory or _memory(processor, _MEMORY * limits.pixels)
    return Isolated(models, processor, Bounds(limits.pixels, answer, memory, limits.decoding))


def _video_runner(
    models: Sequence[zoo.Model], processor: Processor, limits: Limits, *, isolate: bool
) -> Runner:
    """Videos have a worker of their own in any case: FFmpeg cannot be stopped, and pictures go first."""
    memory = _memory(processor, _VIDEO_MEMORY * limits.pixels) if isolate else None
    bounds = Bounds(limits.pixels, _VIDEO_ANSWER, memory, limits.decoding, _BEHIND)
    return Isolated(models, processor, bounds)


def _memory(processor: Processor, pictures: int) -> int:
    return _BASE_MEMORY + _THREAD_MEMORY * (processor.threads or os.cpu_count() or 1) + pictures


class _Page(StaticFiles):
    """The page's files, which browsers revalidate each time."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _broken(_: Request, __: Exception) -> JSONResponse:
    """Reveal nothing about the fault; the server's log has it."""
    return JSONResponse({"detail": "the server failed, its log says why"}, 500)


def _add_routes(app: FastAPI, queue: JobQueue, models: Sequence[zoo.Model], metrics: Metrics) -> None:
    described = [_described(model, queue) for model in models]

    @app.get(
        "/healthz",
        summary="Health of the server",
        response_description="status: ok; version; pictures: how many are waiting or being processed; busy: "
        "seconds for which the same picture has been in the network, 0 if there is none.",
        responses={503: {"description": "status: blocked, by a picture that was given up but does not end."}},
    )
    async def health() -> JSONResponse:
        blocked = queue.blocked
        report = {
            "status": "blocked" if blocked else "ok",
            "version": __version__,
            "pictures": len(queue.pending),
            "busy": round(queue.busy, 3),
        }
        return JSONResponse(report, 503 if blocked else 200)

    @app.get(
        "/readyz",
        summary="Whether the next picture should come here",
        response_description="status: ready.",
        responses={
            503: {"description": "status: draining before its end, blocked, or full: choose another server."}
        },
    )
    async def ready() -> JSONResponse:
        return JSONResponse({"status": queue.unready or "ready"}, 503 if queue.unready else 200)

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        response_class=Response,
        response_description="Requests, errors, seconds and the queue, in Prometheus's text format.",
    )
    async def counts() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/api/models",
        summary="List the models, the default first",
        response_description="For each: name; purpose: best, fast or null; bytes; recursions: its "
        "default number; recursive: whether another number can be chosen; and from its card "
        f"{', '.join(_CARD)}.",
    )
    async def list_models() -> list[dict[str, Any]]:
        return described

    @app.get(
        "/api/limits",
        summary="Limits of the server",
        response_description="bytes and pixels of a picture; queue: how many pictures may wait; timeout in "
        "seconds, including waiting; the most recursions; video_bytes, 0 if no videos are taken; "
        "video_frames; video_queue: how many videos may wait; video_keep: seconds after which a video that "
        "nobody asks about is deleted.",
    )
    async def list_limits() -> dict[str, int | float]:
        return {
            "bytes": queue.limits.upload,
            "pixels": queue.limits.pixels,
            "queue": queue.limits.queue,
            "timeout": queue.limits.timeout,
            "recursions": MAX_RECURSIONS,
            "video_bytes": 0 if video_api.without_pyav() else queue.limits.video_size,
            "video_frames": queue.limits.video_frames,
            "video_queue": queue.limits.video_queue,
            "video_keep": queue.limits.video_keep,
        }

    @app.get(
        "/api/progress/{ticket}",
        summary="Progress of a picture",
        response_description="ahead: pictures before it; done: parts done; total: parts in all, 0 before the "
        "first is done.",
        responses={404: form.refused("No picture with this ticket is being processed.")},
    )
    async def progress(
        ticket: Annotated[str, PathParameter(description="The ticket sent in the form.")],
    ) -> dict[str, int]:
        found = queue.find(ticket)
        if found is None:
            raise HTTPException(404, "no picture with this ticket is being processed")
        job, ahead = found
        return {"ahead": ahead, "done": job.done, "total": job.total}

    @app.post(
        "/api/derain",
        summary="Take the rain out of a picture",
        response_class=Response,
        responses=_ANSWERS,
        openapi_extra={"requestBody": form.request_body(WebOptions, _PICTURE)},
    )
    async def derain(request: Request) -> Response:
        """Return the picture in the same format, with alpha, 16 bits, EXIF and ICC profile kept."""
        return await _handled(request, queue, metrics, _derain_job)

    @app.post(
        "/api/strength",
        summary="Take more or less of the rain out of a picture that was derained before",
        response_class=Response,
        responses=_ANSWERS,
        openapi_extra={"requestBody": form.request_body(ResultOptions, _FILES)},
    )
    async def strengthen(request: Request) -> Response:
        """Return what /api/derain does for the same strength, without running the network again."""
        return await _handled(request, queue, metrics, _strength_job, files=2)

    @app.post(
        "/api/score",
        summary="Tell how likely it rains in a picture, how strongly, and from where",
        response_description="score: 0 to 100; verdict: clear, light or heavy; layer: light that rain adds, "
        "in 8-bit levels on average; direction: of the streaks, in degrees from upright, or null.",
        responses={code: answer for code, answer in _ANSWERS.items() if code != 200},
        openapi_extra={"requestBody": form.request_body(ScoreOptions, _PICTURE)},
    )
    async def score(request: Request) -> Response:
        """Return JSON; the picture is not derained."""
        return await _handled(request, queue, metrics, _score_job)

    for path in ("/api/derain", "/api/strength", "/api/score"):
        # Otherwise the page's files would be looked through for it.
        app.add_api_route(path, _post_only, methods=["GET"], include_in_schema=False)


async def _post_only() -> None:
    message = "POST a picture here, as multipart/form-data: curl -F picture=@photo.jpg"
    raise HTTPException(405, message, {"Allow": "POST"})


async def _handled(
    request: Request,
    queue: JobQueue,
    metrics: Metrics,
    make: Callable[[FormData, JobQueue], Awaitable[WebJob]],
    *,
    files: int = 1,
) -> Response:
    """Receive a form with some files, run its job and send the answer."""
    if queue.closed:
        headers = {"Retry-After": "1", "Connection": "close"}
        raise HTTPException(503, "this server is about to end, try again", headers)
    with ExitStack() as stack:
        try:
            queue.check_room()
            memory = stack.enter_context(queue.reserve())
            limits = queue.limits
            received = await form.received(
                request,
                name="picture",
                limit=limits.upload,
                files=files,
                seconds=limits.transfer,
                grow=memory.grow,
            )
            job = await make(received, queue)
            memory.resize(job.size)
            answer = await _answered(queue, job, request)
        except BusyError as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise HTTPException(429, str(error), headers) from error
        except (ClientDisconnect, AbandonedError):
            # The client has gone: this is never read.
            return Response(status_code=400)
        memory.resize(len(answer.data))
        metrics.picture_seconds.observe(answer.seconds)
        return _Sent(answer, stack.pop_all(), queue.limits.transfer)


async def _derain_job(fields: FormData, queue: JobQueue) -> WebJob:
    upload = form.upload(fields, "picture")
    options = form.options(fields, WebOptions)
    video_api.check_model(options.model, queue)
    data = await form.data(upload, "picture", queue.limits.upload)
    return WebJob(data, harmless(upload.filename), options)


async def _strength_job(fields: FormData, queue: JobQueue) -> StrengthJob:
    upload, found = form.upload(fields, "picture"), form.upload(fields, "difference")
    options = WebOptions(**form.options(fields, ResultOptions).model_dump())
    data = await form.data(upload, "picture", queue.limits.upload)
    difference = await form.data(found, "difference", queue.limits.upload)
    return StrengthJob(data, harmless(upload.filename), options, difference=difference)


async def _score_job(fields: FormData, queue: JobQueue) -> ScoreJob:
    upload = form.upload(fields, "picture")
    options = WebOptions(ticket=form.options(fields, ScoreOptions).ticket)
    data = await form.data(upload, "picture", queue.limits.upload)
    return ScoreJob(data, harmless(upload.filename), options)


async def _answered(queue: JobQueue, job: WebJob, request: Request) -> Answer:
    """Run a job for as long as its client is connected."""
    work = asyncio.create_task(queue.run(job))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    except image.TooManyPixelsError as error:
        message = f"{job.name}: more than {queue.limits.pixels / 1e6:g} megapixels, the limit of this server"
        raise HTTPException(413, message) from error
    except UnrainError as error:
        raise HTTPException(422, str(error)) from error
    except MemoryError as error:
        raise HTTPException(503, f"{job.name}: not enough memory, try a smaller tile") from error
    except WorkerDiedError as error:
        message = (
            f"{job.name}: broke off, it needs more memory than there is or is damaged, try a smaller one"
        )
        raise HTTPException(503, message) from error
    except OverdueError as error:
        message = f"{job.name}: took more than {queue.limits.timeout:g} seconds, including waiting"
        raise HTTPException(503, message) from error
    finally:
        for task in (work, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Return once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Sent(Response):
    """An answer sent in pieces, and abandoned if the client does not receive it in time."""

    def __init__(self, answer: Answer, held: ExitStack, seconds: float) -> None:
        super().__init__(media_type=answer.media_type)
        self._data = answer.data
        self._held = held
        self._seconds = seconds
        ascii_name = answer.name.encode("ascii", "replace").decode().replace("?", "_")
        self.headers.update(
            {
                "Content-Length": str(len(answer.data)),
                "Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''"
                + quote(answer.name, safe=""),
                "Unrain-Recursions": str(answer.recursions),
                "Unrain-Hardly-Any-Rain": str(answer.hardly_any_rain).lower(),
                "Unrain-Seconds": f"{answer.seconds:.3f}",
                "Unrain-Notes": json.dumps(answer.notes),
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An abandoned answer stays incomplete, so the server closes the connection.
        with self._held, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                for start in range(0, len(self._data), _PIECE):
                    piece = self._data[start : start + _PIECE]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def _described(model: zoo.Model, queue: JobQueue) -> dict[str, Any]:
    contract = queue.runner.models[model.name]
    return {
        "name": model.name,
        "purpose": zoo.PURPOSES.get(model.name) if model.path.parent == zoo.WEIGHTS else None,
        "bytes": model.path.stat().st_size,
        "recursions": contract.recursions if contract.recursive else 1,
        "recursive": contract.recursive,
        **{key: model.card[key] for key in _CARD if key in model.card},
    }


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, or a zip if more than the picture was asked for.",
        "content": dict.fromkeys([*TYPES.values(), "application/zip"], _BINARY),
        "headers": {
            "Unrain-Recursions": {"description": "Recursions made.", "schema": {"type": "integer"}},
            "Unrain-Hardly-Any-Rain": {
                "description": "Whether next to no rain was found: the mean absolute change at strength 1 is "
                "less than 0.3 8-bit levels.",
                "schema": {"type": "boolean"},
            },
            "Unrain-Seconds": {
                "description": "How long it took, without waiting.",
                "schema": {"type": "number"},
            },
            "Unrain-Notes": {
                "description": "What was not kept as it was: a JSON list of sentences.",
                "schema": {"type": "string"},
            },
        },
    },
    400: form.refused("The form cannot be read."),
    403: form.refused("The request comes from another site's page."),
    408: form.refused("The picture did not arrive in time."),
    413: form.refused("Too many bytes or pixels."),
    415: form.refused("No multipart/form-data."),
    421: form.refused("The server does not answer to the name in the Host header."),
    422: form.refused("The picture is damaged or of an unknown kind, or an option is out of range."),
    429: form.refused("The queue is full; Retry-After says in how many seconds to try again."),
    503: form.refused("It took too long, memory is too small, or the server is about to end."),
}
