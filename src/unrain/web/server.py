"""The server that `unrain serve` runs: uvicorn, with patience for no one."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import webbrowser
from collections.abc import Callable, Collection, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unrain import zoo
from unrain.errors import UnrainError
from unrain.web.app import create
from unrain.web.guard import Guard
from unrain.web.queue import Limits

_CONNECTIONS = 512


class Brisk(H11Protocol):
    """HTTP for clients that get to the point.

    Uvicorn waits forever for a request's header, and for a client to take the last of an answer or to finish
    an upload that was refused. Here a connection without a request in work is cut after a while.
    """

    idle = 15.0
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to look at the connection."""
        super().connection_made(transport)
        self._look(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to look."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self, before: object) -> None:
        """Cut the connection if the same request is over that was over when it was last looked at."""
        over = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        if over and before == (self.cycle,):
            self.transport.abort()
            return
        state = (self.cycle,) if over else None
        self._watch = self.loop.call_later(self.idle, self._look, state)


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    models: Sequence[zoo.Model] | None = None,
    threads: int = 0,
    limits: Limits | None = None,
    hosts: Collection[str] = (),
    say: Callable[[str], object],
    open_browser: bool = False,
) -> None:
    """Serve the page and the API until interrupted.

    Args:
        host: Address to listen at.
        port: Port to listen at, 0 for any free one.
        models: What to offer, the default first; all that came with the package if None.
        threads: Processor threads, 0 for all.
        limits: What to take on.
        hosts: Names, besides addresses and localhost, by which the server may be called.
        say: Takes the lines that the operator is to read.
        open_browser: Show the page.

    Raises:
        UnrainError: The address cannot be used or a model cannot be opened.
    """
    with _listen(host, port) as listener:
        address = ipaddress.ip_address(listener.getsockname()[0])
        app = create(models, limits=limits, threads=threads, loopback=address.is_loopback, hosts=hosts)
        shown = f"[{address}]" if address.version == 6 else str(address)
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        say(f"unrain: the page is at {url}, Ctrl-C ends it")
        if not address.is_loopback:
            say("unrain: everyone who reaches this port can use it; there is no password and no encryption")
        if open_browser:
            webbrowser.open(url)
        # Where Ctrl-C was ignored from the start, as in a shell's background, uvicorn just returns.
        with contextlib.suppress(KeyboardInterrupt):
            configured(app).run(sockets=[listener])
        say("unrain: ended")


def configured(app: Guard) -> uvicorn.Server:
    """Make the server that an application is run by."""
    settings: dict[str, Any] = {
        "http": Brisk,
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
    return uvicorn.Server(uvicorn.Config(app, **settings))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is in use, give another with --port"
        elif isinstance(error, socket.gaierror):
            message = f"{host}: no address of this machine, try 127.0.0.1"
        else:
            message = f"{host}, port {port}: cannot be listened at ({error.strerror}), give others"
        raise UnrainError(message) from error
