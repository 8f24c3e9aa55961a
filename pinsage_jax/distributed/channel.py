"""Lines between processes: JSON messages over TCP, and a relay that hides a broken one.

Never pickles, and nothing here is trusted beyond a message's being JSON.  There is no
secret either: like JAX's own service these are for a network that one trusts.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

_LONGEST_MESSAGE = 1 << 24


class Channel:
    """One connection: messages, each a JSON object on a line of its own."""

    def __init__(self, connection: socket.socket, silence: float):
        """A peer that says nothing for `silence` seconds counts as gone."""
        connection.settimeout(silence)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message.

        Raises:
          OSError: the peer is gone.
        """
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._connection.sendall(data)

    def read(self) -> dict[str, Any] | None:
        """The next message; None where the peer has closed its end.

        Raises:
          TimeoutError: the peer was silent for too long.
          OSError: the connection broke.
          ValueError: what came is no message.
        """
        data = self._reader.readline(_LONGEST_MESSAGE)
        if not data.endswith(b"\n"):
            return None
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError(f"not a message: {message!r}")
        return message

    def close(self) -> None:
        """Closes both directions; may be repeated."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def free_port(host: str) -> int:
    """A port of `host` (an address of this machine) that nobody listens at now."""
    with socket.create_server((host, 0), family=family_of(host)) as server:
        return server.getsockname()[1]


def family_of(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6, as the host's name or address resolves first."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def relay(host: str, port: int) -> int:
    """Passes one connection on to HOST:PORT; returns the local port to connect to.

    Our end stays open when the other breaks.  JAX's coordination client aborts the
    process, with a page of text, the moment its connection to process 0 breaks; behind
    this relay it notices nothing, and we end the process with a sentence.
    """
    server = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port))
            except OSError:
                near.close()
                continue
            # A socket that nothing refers to is closed.
            kept.append((near, far))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return server.getsockname()[1]


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
