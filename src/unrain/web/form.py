"""Receives the forms of requests, limited while they arrive, and reads their options."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from unrain.files import one_line

Options = TypeVar("Options", bound=BaseModel)

_FIELDS = 65_536  # room for a form's other fields and its boundaries


async def received(
    request: Request,
    *,
    name: str,
    limit: int,
    files: int,
    seconds: float,
    pace: float | None = None,
    grow: Callable[[int], None] | None = None,
) -> FormData:
    """Receive a form with at most so many files.

    Args:
        request: Whose body it is.
        name: What its first file is called, in the form and in messages.
        limit: Bytes of each file.
        files: How many there may be.
        seconds: Time for it to arrive.
        pace: None to keep the files in memory. Else they go to temporary files without a name, and the time
            is longer by a second for so many bytes.
        grow: Called with the size of each piece that arrives.

    Raises:
        HTTPException: It is no form, too large or too slow.
    """
    most = files * limit + _FIELDS
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"send multipart/form-data, with the {name} in a part called {name}")
    # Refused by its header, the file need not be sent at all.
    stated = request.headers.get("content-length", "0")
    if re.fullmatch("[0-9]{1,18}", stated) is None:
        raise HTTPException(400, "the Content-Length header is no number of bytes")
    if int(stated) > most:
        raise too_large(limit, name)
    begun, size = asyncio.get_running_loop().time(), 0

    async def pieces() -> AsyncGenerator[bytes, None]:
        nonlocal size
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise too_large(limit, name)
            if grow is not None:
                grow(len(piece))
            if pace is not None:
                patience.reschedule(begun + seconds + size / pace)
            yield piece

    parser = MultiPartParser(request.headers, pieces(), max_files=files, max_fields=16, max_part_size=4096)
    # Above this size the parser writes to a file.
    parser.spool_max_size = most if pace is None else 1 << 20
    try:
        async with asyncio.timeout(seconds) as patience:
            return await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from error
    except UnicodeError as error:
        # A charset that decodes nothing, such as Python's "undefined".
        raise HTTPException(400, "the form cannot be read in its charset, send UTF-8") from error
    except FormParserError as error:  # as an older Starlette hands it on
        raise HTTPException(400, f"the form cannot be read: {one_line(error)}") from error
    except TimeoutError as error:
        waited = asyncio.get_running_loop().time() - begun
        message = f"the {name} did not arrive within {seconds if pace is None else round(waited):g} seconds"
        raise HTTPException(408, message, {"Connection": "close"}) from error


def upload(form: FormData, name: str) -> UploadFile:
    """Return the file of a part.

    Raises:
        HTTPException: There is none.
    """
    found = form.get(name)
    if not isinstance(found, UploadFile):
        raise HTTPException(422, f"{name}: attach a file in a part of this name")
    return found


async def data(file: UploadFile, name: str, limit: int) -> bytes:
    """Return the bytes of a part's file.

    Raises:
        HTTPException: There are more than the limit.
    """
    content = await file.read()
    await file.close()
    if len(content) > limit:
        raise too_large(limit, name)
    return content


def options(form: FormData, kind: type[Options]) -> Options:
    """Return the options in a form.

    Raises:
        HTTPException: One is unknown or out of range.
    """
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


def too_large(limit: int, name: str = "picture") -> HTTPException:
    """Make the refusal of a file with too many bytes."""
    return HTTPException(413, f"{name}: more than {limit / 1e6:g} MB, the limit of this server")


def refused(description: str) -> dict[str, Any]:
    """Describe a refusal for the OpenAPI document."""
    detail = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {"description": description, "content": {"application/json": {"schema": detail}}}


def request_body(kind: type[BaseModel], files: dict[str, str]) -> dict[str, Any]:
    """Describe a form for the OpenAPI document: its files, with what each is, and its options."""
    schema = kind.model_json_schema()
    described = {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    schema["properties"] = {**described, **schema["properties"]}
    schema["required"] = list(files)
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
