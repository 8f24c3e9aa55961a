"""Runs the HTTP server (uvicorn) until a stop is requested.

fastapi and uvicorn are optional dependencies, so they are imported when a server starts.
"""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable
from typing import Any

from absl import logging

from pinsage_jax.core.errors import UserError

# Further connections are answered by uvicorn with status 503; app.py limits requests.
_MAX_CONNECTIONS = 1024
_BACKLOG = 256
PACKAGES = ("fastapi", "uvicorn", "fastapi_offline")
_SHUTDOWN_SECONDS = 10
_POLL_SECONDS = 0.2


def require() -> None:
    """Checks that the server's optional dependencies are installed.

    Raises:
      UserError: one is missing; the message says how to install it.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--mode=serve needs {name}: pip install 'pinsage-jax[serve]'.")


def listen(host: str, port: int) -> socket.socket:
    """Opens a socket that listens on an address.

    Raises:
      UserError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(
            f"The server cannot listen on --serve_host={host} --serve_port={port} "
            f"({error.strerror}); choose others, or --serve_port=0 for any free port."
        ) from None


def run(
    app: Any, listener: socket.socket, stopped: Callable[[], bool], announce: bool = True
) -> None:
    """Serves an ASGI application until `stopped` returns true, then finishes open requests.

    Args:
      app: the application.
      listener: a listening socket, which is closed at the end.
      stopped: polled several times a second.
      announce: whether to log the address.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        # The program installs its own signal handlers and logging.
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)
    worker = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True
    )
    worker.start()
    host, port = listener.getsockname()[:2]
    url_host = f"[{host}]" if ":" in host else host
    if announce:
        logging.info(
            "serving at http://%s:%d/ (the explorer; the endpoints are at /docs; Ctrl-C stops)",
            url_host, port,
        )  # fmt: skip
    while worker.is_alive():
        worker.join(_POLL_SECONDS)
        if stopped():
            server.should_exit = True
    listener.close()
