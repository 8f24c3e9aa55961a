"""Channels between processes: JSON messages over TCP, and a relay for JAX's own connection.

Nothing is pickled, and a message is only trusted to be JSON.  There is no authentication:
like JAX's coordination service, channels are for a trusted network.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

_MAX_MESSAGE_BYTES = 1 << 24
_CONNECT_SECONDS = 10.0


class Channel:
    """One TCP connection that carries JSON objects, one per line."""

    def __init__(self, connection: socket.socket, timeout: float):
        """Wraps a connected socket; a peer that sends nothing for `timeout` seconds is lost."""
        connection.settimeout(timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._send_lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; may be called from several threads.

        Raises:
          OSError: the connection is broken.
        """
        data = json.dumps(message).encode() + b"\n"
        with self._send_lock:
            self._connection.sendall(data)

    def read(self) -> dict[str, Any] | None:
        """Waits for the next message; None if the peer has closed the connection.

        Raises:
          TimeoutError: the peer sent nothing for the timeout.
          OSError: the connection is broken.
          ValueError: the received line is not a JSON object.
        """
        data = self._reader.readline(_MAX_MESSAGE_BYTES)
        if not data.endswith(b"\n"):
            return None
        try:
            message = json.loads(data)
        except RecursionError:
            raise ValueError("not a message: nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError(f"not a message: {message!r:.80}")
        return message

    def set_timeout(self, seconds: float) -> None:
        """From now on a peer that sends nothing for so long is lost."""
        self._connection.settimeout(seconds)

    def close(self) -> None:
        """Closes the connection in both directions; may be called repeatedly."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def connect(address: tuple[str, int], seconds: float) -> socket.socket:
    """Connects to a server that may start up to so many seconds later.

    Raises:
      OSError: it does not answer in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=_CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def reserve_port(host: str) -> socket.socket:
    """A socket that holds a free TCP port of `host`, an address of this machine, while it is open.

    It does not listen.  A server of this user that sets SO_REUSEPORT, as gRPC's do, can bind
    the port beside it; anything else finds it taken.
    """
    held = socket.socket(family_of(host), socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, 0))
    return held


def family_of(host: str) -> socket.AddressFamily:
    """The address family (IPv4 or IPv6) of the first address that `host` resolves to."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def relay(host: str, port: int) -> int:
    """Forwards local connections to HOST:PORT; returns the local port to connect to.

    The local end of a connection stays open when the remote end breaks.  JAX's
    coordination client aborts the process with a stack dump as soon as its connection to
    process 0 breaks.  Behind the relay it notices nothing, so that the process group can
    end the process with one sentence instead.
    """
    server = socket.create_server(("127.0.0.1", 0))
    # A socket without a reference is closed by the garbage collector.
    connections = []

    def serve() -> None:
        while True:
            local, _ = server.accept()
            try:
                remote = socket.create_connection((host, port))
            except OSError:
                local.close()
                continue
            connections.append((local, remote))
            for source, target in ((local, remote), (remote, local)):
                threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return server.getsockname()[1]


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
