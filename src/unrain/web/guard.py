"""Checks every request's host and origin, and adds security headers to every answer."""

import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page loads nothing from other sites and sends nothing to them, and no other page may embed or read it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), browsing-topics=()",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?")


class Guard:
    """Refuses unknown host names and requests from other sites' pages; adds security headers.

    Another site can make its own host name resolve to this machine (DNS rebinding), but then the browser
    sends that name as `Host`. Numeric addresses cannot be faked in this way.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool, hosts: Collection[str] = ()) -> None:
        """Guard an application.

        Args:
            app: The application.
            loopback: Whether only this machine can reach the server; then other addresses are refused too.
            hosts: Further host names that the server answers to.
        """
        self.app = app
        self._loopback = loopback
        self._names = {"localhost", *(name.lower() for name in hosts)}
        if not loopback:
            own = socket.gethostname().lower()
            self._names |= {own, f"{own}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        app = self.app
        if not self.knows(headers.get("host", "")):
            app = _refusal(
                421, "this server does not answer to that name; the operator can allow it (--allow-host)"
            )
        elif scope["method"] not in ("GET", "HEAD"):
            try:
                if _foreign(headers):
                    app = _refusal(403, "requests from other sites' pages are refused")
            except ValueError:
                app = _refusal(400, "the Origin header is no address")
        await app(scope, receive, send_guarded)

    def knows(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].strip("[]").removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return name in self._names or address.is_loopback or not self._loopback


def _refusal(status: int, detail: str) -> ASGIApp:
    return JSONResponse({"detail": detail}, status)


def _foreign(headers: Headers) -> bool:
    """Whether a browser says that the request comes from another site's page; other clients say nothing.

    Raises:
        ValueError: `Origin` is no address.
    """
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
