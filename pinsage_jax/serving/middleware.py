"""ASGI middleware: limits on requests, names of the host, and metrics of all requests.

Each refusal is {"error": SENTENCE}, as all errors of the service are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

from pinsage_jax.serving.prometheus import OTHER, ServerMetrics


class HostNames:
    """Refuses requests to another name of this host with status 400.

    A web page that reaches a server of the loopback interface by DNS rebinding sends its own name.
    """

    def __init__(self, app: Any, names: Collection[str]):
        """Takes the inner application and the names that are answered, without ports."""
        self._app, self._names = app, names

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Handles one connection (ASGI)."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host[: host.rfind("]") + 1] if host.startswith("[") else host.split(":")[0]
            if name.strip("[]") not in self._names:
                message = (
                    "The server answers requests to this machine's own names alone; set "
                    "--serve_host to be reached by others."
                )
                await _respond(send, 400, {"error": message})
                return
        await self._app(scope, receive, send)


class RequestLimit:
    """Answers requests beyond a number that are in progress with status 503."""

    def __init__(self, app: Any, most: int):
        """Takes the inner application and how many requests may be in progress."""
        self._app, self._most, self._now = app, most, 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Handles one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._now >= self._most:
            message = f"{self._most} requests are in progress; try again in a moment."
            await _respond(send, 503, {"error": message})
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


class BodyLimit:
    """Answers a request whose body is too long with status 413, without reading all of it."""

    def __init__(self, app: Any, max_bytes: int):
        """Takes the inner application and the largest size of a body in bytes."""
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Handles one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The Content-Length header may be wrong or missing, so the bytes are counted.  A body
        # within the limit is small enough to be kept in memory.
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", not (declared.isdigit() and int(declared) > self._max_bytes)
        too_long = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                too_long, more = True, False
        if too_long:
            limit = f"{self._max_bytes >> 10} KiB"
            message = f"The body is longer than {limit}; send fewer items per request."
            await _respond(send, 413, {"error": message})
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


class RequestMetrics:
    """Counts and times every request by the path of its route."""

    def __init__(self, app: Any, metrics: ServerMetrics):
        """Takes the inner application and the metrics to update."""
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Handles one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def record_status(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, record_status)
        finally:
            path = getattr(scope.get("route"), "path", OTHER)
            self._metrics.add(path, status, time.perf_counter() - begin)


async def _respond(send: Any, status: int, content: dict) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of the body is not read, so the connection cannot be reused.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
