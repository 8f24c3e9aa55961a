"""The first message of every process that connects to process 0.

Anything may connect to an open port: a port scanner, a health check, a process of another
program.  Whatever is not a hello of this program is closed with a warning, and a connection
that stays silent keeps no other one waiting.
"""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any, NamedTuple

from absl import logging

from pinsage_jax.distributed import channel

# Changes with the messages, so that versions that would misunderstand each other do not connect.
PROTOCOL = "pinsage-jax processes 2"
SECONDS = 10.0
# How often the accepting thread looks whether it is to end.
_POLL_SECONDS = 0.2


class Hello(NamedTuple):
    """What a process sends first, and the connection that it came by.

    Attributes:
      process: number of the process, as it says; it may be out of range or taken.
      identity: see identity.run_identity.
    """

    process: int
    identity: dict[str, Any]
    peer: channel.Channel


def message(process: int, identity: dict[str, Any]) -> dict[str, Any]:
    """The hello of a process."""
    return {"protocol": PROTOCOL, "process": process, "identity": identity}


def parsed(received: dict[str, Any] | None, peer: channel.Channel) -> Hello:
    """The hello that a message is.

    Raises:
      ValueError: it is none; the text says why.
    """
    if received is None:
        raise ValueError("it was closed without a message")
    if received.get("protocol") != PROTOCOL:
        raise ValueError("its first message is not one of this program")
    process, identity = received.get("process"), received.get("identity")
    if type(process) is not int or not isinstance(identity, dict):
        raise ValueError("its first message lacks a number or settings")
    if not all(isinstance(identity.get(part), dict) for part in ("settings", "versions")):
        raise ValueError("its first message has no settings or versions")
    return Hello(process, identity, peer)


class Reception:
    """Accepts connections until it is closed, and reads the hello of each in its own thread."""

    def __init__(self, server: socket.socket):
        """Starts to accept connections of a listening socket, which `close` closes."""
        self._server = server
        self._hellos: queue.Queue[Hello] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="hellos", daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Hello | None:
        """Waits for the next hello; None if there is none within `seconds`."""
        try:
            return self._hellos.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Accepts no more connections, and closes those whose hello nobody has taken."""
        self._closed.set()
        self._thread.join()
        self._server.close()
        while (hello := self.next(0.0)) is not None:
            hello.peer.close()

    def _accept(self) -> None:
        self._server.settimeout(_POLL_SECONDS)
        while not self._closed.is_set():
            try:
                connection, address = self._server.accept()
            except TimeoutError:
                continue
            except OSError as error:
                # Such as one that was reset before it was accepted, or too many open files.
                logging.warning("a connection could not be accepted (%s)", error.strerror)
                self._closed.wait(_POLL_SECONDS)
                continue
            threading.Thread(
                target=self._read, args=(connection, address), name="hello", daemon=True
            ).start()

    def _read(self, connection: socket.socket, address: tuple) -> None:
        peer = None
        try:
            peer = channel.Channel(connection, SECONDS)
            hello = parsed(peer.read(), peer)
        except (OSError, ValueError) as error:
            reason = "it sent nothing" if isinstance(error, TimeoutError) else error
            logging.warning("a connection from %s was closed: %s", address[0], reason)
            connection.close() if peer is None else peer.close()
            return
        if self._closed.is_set():
            peer.close()
        else:
            self._hellos.put(hello)
