"""Runs the service until it is told to stop (uvicorn).

fastapi and uvicorn are an extra, so they are imported when a server is started.
"""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable
from typing import Any

from absl import logging

from pinsage_jax.core.errors import UserError

# Connections beyond these are answered 503 at once instead of waiting.
_MOST_CONNECTIONS = 256
_SECONDS_TO_FINISH = 10
_SECONDS_BETWEEN_LOOKS = 0.2


def require() -> None:
    """Raises UserError saying how to install what a server needs, where it is missing."""
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--mode=serve needs {name}: pip install 'pinsage-jax[serve]'.")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the address.

    Raises:
      UserError: the port is taken or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_MOST_CONNECTIONS)
    except OSError as error:
        raise UserError(
            f"--serve_host={host} --serve_port={port} cannot be listened at ({error.strerror}); "
            "choose others, or --serve_port=0 for any free port."
        ) from None


def run(app: Any, listener: socket.socket, stopped: Callable[[], bool]) -> None:
    """Serves an ASGI application until `stopped` says so; then finishes open requests."""
    import uvicorn

    config = uvicorn.Config(
        app,
        # Signals and logging are the program's own.
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_SECONDS_TO_FINISH,
    )
    server = uvicorn.Server(config)
    worker = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True
    )
    worker.start()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logging.info("serving at http://%s:%d/ (the explorer; Ctrl-C stops)", shown, port)
    while worker.is_alive():
        worker.join(_SECONDS_BETWEEN_LOOKS)
        if stopped():
            server.should_exit = True
    listener.close()
