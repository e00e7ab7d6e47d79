"""The server behind `unrain serve`: uvicorn, with timeouts for slow clients."""

import asyncio
import contextlib
import errno
import ipaddress
import math
import signal
import socket
import time
import webbrowser
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from unrain import zoo
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.web.app import create
from unrain.web.guard import Guard
from unrain.web.queue import JobQueue, Limits
from unrain.web.video_queue import VideoQueue

_CONNECTIONS = 512


class IdleTimeout(H11Protocol):
    """HTTP/1.1 that closes idle connections.

    Uvicorn waits forever for the header of a request, for a client to receive the end of an answer, and for
    the rest of a refused upload. Here a connection without a request in progress is closed after `idle` to
    twice `idle` seconds. Uvicorn's `loop`, `transport`, `cycle` and what is used of that are not public:
    pyproject.toml bounds its version, and tests use them.
    """

    idle = 15.0
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to watch the connection."""
        super().connection_made(transport)
        self._check(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; once an answer was sent, nothing can be said, and uvicorn would fail."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.abort()
        if self.cycle is not None:
            # What the application still says has nobody to say it to: uvicorn would fail on it.
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _check(self, before: object) -> None:
        """Close the connection if no request has been in progress since the last check."""
        over = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        if over and before == (self.cycle,):
            self.transport.abort()
            return
        state = (self.cycle,) if over else None
        self._watch = self.loop.call_later(self.idle, self._check, state)


class DrainingServer(uvicorn.Server):
    """A server that on SIGTERM ends what it has begun: it takes no more, and answers what it has.

    `/readyz` says so at once; for a while pictures are still taken, so that a proxy can notice. A second
    SIGTERM or Ctrl-C ends it at once. Uvicorn's `handle_exit` and `on_tick` are not public: pyproject.toml
    bounds its version, and a test drains a server.
    """

    def __init__(
        self, config: uvicorn.Config, queue: JobQueue, videos: VideoQueue, patience: float, notice: float
    ) -> None:
        """Make a server.

        Args:
            config: Uvicorn's settings.
            queue: What is to be empty.
            videos: What is to be finished and fetched.
            patience: Seconds after which it ends in any case, those of `notice` not counted.
            notice: Seconds in which it still takes pictures.
        """
        super().__init__(config)
        self._queue, self._videos, self._patience, self._notice = queue, videos, patience, notice
        self._until = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end at once."""
        if sig != signal.SIGTERM or self._queue.draining or not self._patience:
            super().handle_exit(sig, frame)
            return
        self._queue.takes_until = time.monotonic() + self._notice
        self._queue.draining = True
        self._until = self._queue.takes_until + self._patience

    async def on_tick(self, counter: int) -> bool:
        """Find out whether the server may end."""
        if self._queue.closed:
            busy = self._queue.requests or self._videos.unfinished
            self.should_exit = self.should_exit or not busy or time.monotonic() > self._until
        return await super().on_tick(counter)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    models: Sequence[zoo.Model] | None = None,
    processor: Processor | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] = (),
    say: Callable[[str], object],
    open_browser: bool = False,
    isolate: bool | None = None,
    drain: float = 30,
    notice: float = 0,
) -> None:
    """Serve the page and the API until interrupted.

    Args:
        host: Address to listen on.
        port: Port to listen on, 0 for any free one.
        models: The models to offer, the default first; None for all that come with the package.
        processor: What the models run on.
        limits: What to accept.
        hosts: Host names that the server answers to, besides addresses and localhost.
        say: Receives each line for the operator.
        open_browser: Open the page in the browser.
        isolate: Run pictures in a worker process; None to do so where others can reach the server.
        drain: Seconds after SIGTERM in which the pictures that are there may be finished.
        notice: Seconds after SIGTERM in which pictures are still taken, while `/readyz` says that it ends.

    Raises:
        UnrainError: The address cannot be used or a model cannot be opened.
    """
    with _listen(host, port) as listener:
        address = ipaddress.ip_address(listener.getsockname()[0])
        app = create(
            models,
            limits=limits,
            processor=processor,
            loopback=address.is_loopback,
            hosts=hosts,
            isolate=not address.is_loopback if isolate is None else isolate,
        )
        shown = f"[{address}]" if address.version == 6 else str(address)
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        say(f"unrain: serving at {url} (Ctrl-C to stop)")
        if not address.is_loopback:
            say("unrain: anyone who can reach this port can use it: there is no password and no encryption")
        if open_browser:
            webbrowser.open(url)
        # Uvicorn raises Ctrl-C again after its shutdown.
        with contextlib.suppress(KeyboardInterrupt):
            configured(app, drain, notice).run(sockets=[listener])
        say("unrain: stopped")


def configured(app: Guard, drain: float = 30, notice: float = 0) -> uvicorn.Server:
    """Make the uvicorn server for an application.

    Args:
        app: The application.
        drain: Seconds after SIGTERM in which the pictures that are there may be finished.
        notice: Seconds after SIGTERM in which pictures are still taken, while `/readyz` says that it ends.
    """
    settings: dict[str, Any] = {
        "http": IdleTimeout,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "log_level": "error",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "limit_concurrency": _CONNECTIONS,
        "timeout_keep_alive": 5,
        "timeout_graceful_shutdown": 3,
    }
    assert isinstance(app.app, FastAPI)
    state = app.app.state
    return DrainingServer(uvicorn.Config(app, **settings), state.queue, state.videos, drain, notice)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is in use, choose another with --port"
        elif isinstance(error, socket.gaierror):
            message = f"{host}: not an address of this machine, try 127.0.0.1"
        else:
            message = f"{host}, port {port}: cannot listen there ({error.strerror}), choose others"
        raise UnrainError(message) from error
