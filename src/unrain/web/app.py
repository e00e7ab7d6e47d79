"""The page and the HTTP API, as an ASGI application.

Nothing is written to disk: a picture is received into memory and dropped once the answer is sent. Limits are
checked as early as possible: bytes while they arrive, pixels in the file's header, the length of the queue
before anything is read.
"""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sequence,
)
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from unrain import image, zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.version import __version__
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
from unrain.web.queue import BusyError, JobQueue, Limits, MemoryReservation, OverdueError
from unrain.web.runner import Bounds, InProcess, Isolated, Runner, WorkerDiedError, open_engines

Options = TypeVar("Options", bound=BaseModel)

STATIC = Path(__file__).parent / "static"
_FORM = 65_536  # room for a form's other fields and its boundaries
_PIECE = 65_536
# Bytes for each pixel of the largest picture.
_ANSWER_BYTES, _MEMORY = 64, 100
# Libraries and models, and what each thread reserves: address space, of which only a part is ever used.
_BASE_MEMORY, _THREAD_MEMORY = 1_500_000_000, 128_000_000
_CARD = ("summary", "parameters", "licence", "scores", "training_data")
_FILES = {
    "picture": "A picture's file.",
    "difference": "The difference.png that came with the picture's result.",
}
_DESCRIPTION = """Takes the rain out of pictures.

    curl -F picture=@photo.jpg http://127.0.0.1:8000/api/derain -o derained.jpg

Pictures stay in this server's memory until they are answered; nothing is stored or passed on.
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
    queue = JobQueue(limits, _runner(chosen, processor or Processor(), limits, isolate=isolate))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title="unrain",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        responses={"default": _refused("Any other error.")},
        # FastAPI's documentation pages load their scripts from another site.
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.queue = queue
    metrics = Metrics(queue)
    app.add_middleware(Counted, metrics=metrics, queue=queue)
    app.add_exception_handler(Exception, _broken)
    _add_routes(app, queue, chosen, metrics)
    app.mount("/", _Page(directory=STATIC, html=True))
    return Guard(app, loopback=loopback, hosts=hosts)


def _runner(models: Sequence[zoo.Model], processor: Processor, limits: Limits, *, isolate: bool) -> Runner:
    if not isolate:
        return InProcess(open_engines(models, processor), limits.pixels)
    # With everything that can be asked for, an answer has about eight pictures of 16 bits in it.
    answer = _ANSWER_BYTES * limits.pixels + 4 * limits.upload
    memory = (
        _BASE_MEMORY + _THREAD_MEMORY * (processor.threads or os.cpu_count() or 1) + _MEMORY * limits.pixels
    )
    return Isolated(
        models, processor, Bounds(limits.pixels, answer, limits.memory or memory, limits.decoding)
    )


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
        response_description="For each: name; bytes; recursions: its default number; recursive: "
        f"whether another number can be chosen; and from its card {', '.join(_CARD)}.",
    )
    async def list_models() -> list[dict[str, Any]]:
        return described

    @app.get(
        "/api/limits",
        summary="Limits of the server",
        response_description="bytes and pixels of a picture; queue: how many pictures may wait; timeout in "
        "seconds, including waiting; the most recursions.",
    )
    async def list_limits() -> dict[str, float]:
        return {
            "bytes": queue.limits.upload,
            "pixels": queue.limits.pixels,
            "queue": queue.limits.queue,
            "timeout": queue.limits.timeout,
            "recursions": MAX_RECURSIONS,
        }

    @app.get(
        "/api/progress/{ticket}",
        summary="Progress of a picture",
        response_description="ahead: pictures before it; done: parts done; total: parts in all, 0 before the "
        "first is done.",
        responses={404: _refused("No picture with this ticket is being processed.")},
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
        openapi_extra={"requestBody": _request_body(WebOptions, "picture")},
    )
    async def derain(request: Request) -> Response:
        """Return the picture in the same format, with alpha, 16 bits, EXIF and ICC profile kept."""
        return await _handled(request, queue, metrics, _derain_job)

    @app.post(
        "/api/strength",
        summary="Take more or less of the rain out of a picture that was derained before",
        response_class=Response,
        responses=_ANSWERS,
        openapi_extra={"requestBody": _request_body(ResultOptions, "picture", "difference")},
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
        openapi_extra={"requestBody": _request_body(ScoreOptions, "picture")},
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
            job = await make(await _received(request, queue, memory, files), queue)
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


async def _received(request: Request, queue: JobQueue, memory: MemoryReservation, files: int) -> FormData:
    """Receive a form with at most so many files into memory."""
    limits = queue.limits
    most = files * limits.upload + _FORM
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send multipart/form-data, with the picture in a part called picture")
    # Refused by its header, the picture need not be sent at all.
    stated = request.headers.get("content-length", "0")
    if re.fullmatch("[0-9]{1,18}", stated) is None:
        raise HTTPException(400, "the Content-Length header is no number of bytes")
    if int(stated) > most:
        raise _too_large(limits)

    async def pieces() -> AsyncGenerator[bytes, None]:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise _too_large(limits)
            memory.grow(len(piece))
            yield piece

    parser = MultiPartParser(request.headers, pieces(), max_files=files, max_fields=16, max_part_size=4096)
    # Above this size the parser would write to a file.
    parser.spool_max_size = most
    try:
        async with asyncio.timeout(limits.transfer):
            return await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from error
    except UnicodeError as error:
        # A charset that decodes nothing, such as Python's "undefined".
        raise HTTPException(400, "the form cannot be read in its charset, send UTF-8") from error
    except FormParserError as error:  # as an older Starlette hands it on
        raise HTTPException(400, f"the form cannot be read: {one_line(error)}") from error
    except TimeoutError as error:
        message = f"the picture did not arrive within {limits.transfer:g} seconds"
        raise HTTPException(408, message, {"Connection": "close"}) from error


async def _derain_job(form: FormData, queue: JobQueue) -> WebJob:
    upload = _upload(form, "picture")
    options = _options(form, WebOptions)
    known = queue.runner.models
    if options.model is not None and options.model not in known:
        raise HTTPException(422, f"model: unknown, known ones: {', '.join(known)}")
    return WebJob(await _data(upload, "picture", queue.limits), harmless(upload.filename), options)


async def _strength_job(form: FormData, queue: JobQueue) -> StrengthJob:
    upload, found = _upload(form, "picture"), _upload(form, "difference")
    options = WebOptions(**_options(form, ResultOptions).model_dump())
    data = await _data(upload, "picture", queue.limits)
    difference = await _data(found, "difference", queue.limits)
    return StrengthJob(data, harmless(upload.filename), options, difference=difference)


async def _score_job(form: FormData, queue: JobQueue) -> ScoreJob:
    upload = _upload(form, "picture")
    options = WebOptions(ticket=_options(form, ScoreOptions).ticket)
    return ScoreJob(await _data(upload, "picture", queue.limits), harmless(upload.filename), options)


def _upload(form: FormData, name: str) -> UploadFile:
    upload = form.get(name)
    if not isinstance(upload, UploadFile):
        raise HTTPException(422, f"{name}: attach a file in a part of this name")
    return upload


async def _data(upload: UploadFile, name: str, limits: Limits) -> bytes:
    data = await upload.read()
    await upload.close()
    if len(data) > limits.upload:
        raise _too_large(limits, name)
    return data


def _options(form: FormData, kind: type[Options]) -> Options:
    # An empty field counts as left out.
    fields = {key: value for key, value in form.items() if isinstance(value, str) and value}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise HTTPException(422, "; ".join(_complaints(error))) from error


def _complaints(error: ValidationError) -> Iterable[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(map(str, problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        yield f"{name}: {'unknown, leave it out' if unknown else problem['msg'].lower()}"


def _too_large(limits: Limits, name: str = "picture") -> HTTPException:
    return HTTPException(413, f"{name}: more than {limits.upload / 1e6:g} MB, the limit of this server")


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
        "bytes": model.path.stat().st_size,
        "recursions": contract.recursions if contract.recursive else 1,
        "recursive": contract.recursive,
        **{key: model.card[key] for key in _CARD if key in model.card},
    }


def _request_body(options: type[BaseModel], *files: str) -> dict[str, Any]:
    schema = options.model_json_schema()
    described = {name: {"type": "string", "format": "binary", "description": _FILES[name]} for name in files}
    schema["properties"] = {**described, **schema["properties"]}
    schema["required"] = list(files)
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _refused(description: str) -> dict[str, Any]:
    detail = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {"description": description, "content": {"application/json": {"schema": detail}}}


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
    400: _refused("The form cannot be read."),
    403: _refused("The request comes from another site's page."),
    408: _refused("The picture did not arrive in time."),
    413: _refused("Too many bytes or pixels."),
    415: _refused("No multipart/form-data."),
    421: _refused("The server does not answer to the name in the Host header."),
    422: _refused("The picture is damaged or of an unknown kind, or an option is out of range."),
    429: _refused("The queue is full; Retry-After says in how many seconds to try again."),
    503: _refused("It took too long, memory is too small, or the server is about to end."),
}
