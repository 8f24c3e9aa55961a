"""ASGI middleware: a limit on the size of request bodies, and metrics of all requests."""

from __future__ import annotations

import json
import time
from typing import Any

from pinsage_jax.serving.prometheus import ServerMetrics


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
            # Unknown paths share one label, because their number is unbounded.
            path = getattr(scope.get("route"), "path", "other")
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
