"""What surrounds every request: the limit on its body, and how it is measured (ASGI)."""

from __future__ import annotations

import json
import time
from typing import Any

from pinsage_jax.serving.measures import Measures


class BodyLimit:
    """Answers 413 instead of reading a body that is too long."""

    def __init__(self, app: Any, most: int):
        """Takes the most bytes of a body."""
        self._app, self._most = app, most

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What the header promises may be wrong or missing, so the bytes are counted; a body
        # within the limit is small enough to be held.
        promised = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", not (promised.isdigit() and int(promised) > self._most)
        too_long = not more
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                too_long, more = True, False
        if too_long:
            sentence = f"The body is longer than {self._most >> 10} KiB; send fewer items at once."
            await _answer(send, 413, {"error": sentence})
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)


class Measured:
    """Counts and times every answer by its route."""

    def __init__(self, app: Any, measures: Measures):
        self._app, self._measures = app, measures

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def noted(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # Only routes have names of their own: what people type would be without end.
            path = getattr(scope.get("route"), "path", "other")
            self._measures.add(path, status, time.perf_counter() - begin)


async def _answer(send: Any, status: int, content: dict) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of the body is not read, so the connection cannot go on.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
