"""The processes of one run, usually one per host: collective operations and failure handling.

Process 0 writes all files; the other processes compute with it and read.  Each of them
has one channel to process 0, which carries small values (`all_gather_object`) and
heartbeats.  If a channel breaks or stays silent, every process ends with one sentence,
even inside a collective operation of JAX; a run that is started again resumes from its
last checkpoint.

In a run of a single process every function here returns at once.

  prepared = process_group.rank0_first(lambda: prepare(config))
  best = max(process_group.all_gather_object(score))
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging

from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.core import workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import channel

T = TypeVar("T")

# Packages whose versions must be the same in all processes: they affect the computed values.
_PACKAGES = ("pinsage-jax", "jax", "jaxlib", "numpy", "numba")
# Settings that may differ between processes; only process 0 reads the input tables.
_LOCAL_SECTIONS = ("distributed", "data")
_LOCAL_SETTINGS = ("threads", "producers", "prefetch")
# When a peer dies, a collective operation may fail before its channel is seen to be broken.
_GRACE_SECONDS = 5.0
_HANDSHAKE_SECONDS = 10.0


def _exit_process(message: str | None, code: int = 2) -> None:
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ProcessGroup:
    """The processes of a run, as seen by one of them.

    Process 0 has a channel to every other process; the others have one to process 0.

    Attributes:
      index: number of this process, from 0.
      count: number of processes.
      service: host and port of JAX's coordination service.
    """

    def __init__(self, config: DistributedConfig, on_lost: Callable[[str], None] | None = None):
        """A group that is not connected yet; see `listen` and `join`.

        Args:
          config: settings of the process group.
          on_lost: called at most once, from any thread, with a sentence about a peer that
            is lost.  The default prints the sentence and ends the process with code 2.
        """
        self.index, self.count = config.process_id, config.num_processes
        self.service: tuple[str, int] = ("", 0)
        self._config = config
        self._channels: dict[int, channel.Channel] = {}
        self._inbox: dict[int, queue.Queue] = {}
        self._closing = False
        self._lost_lock = threading.Lock()
        self._on_lost = on_lost or _exit_process

    def listen(self, identity: dict[str, Any]) -> None:
        """Process 0: waits until all other processes have connected.

        Args:
          identity: what must be the same in all processes (`run_identity`).

        Raises:
          UserError: the address cannot be used, a process does not connect in time, or its
            identity differs.
        """
        host, port = self._config.address
        try:
            server = socket.create_server((host, port), family=channel.family_of(host))
        except OSError as error:
            raise UserError(
                f"Process 0 cannot listen on --coordinator={self._config.coordinator} "
                f"({error.strerror}); name an address of this host and a free port."
            ) from None
        self.service = (host, channel.free_port(host))
        deadline = time.monotonic() + self._config.join_seconds
        with server:
            while len(self._channels) < self.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = sorted({*range(1, self.count)} - {*self._channels})
                    raise UserError(
                        f"Of {self.count} processes {', '.join(map(str, missing))} did not "
                        f"connect to --coordinator={self._config.coordinator} within "
                        f"{self._config.join_seconds} s; start all of them."
                    ) from None
                self._accept(channel.Channel(connection, _HANDSHAKE_SECONDS), connection, identity)
        for peer in self._channels.values():
            peer.send({"service": self.service, "lock_owner": os.getpid()})
        self._start_threads()

    def _accept(
        self, peer: channel.Channel, connection: socket.socket, identity: dict[str, Any]
    ) -> None:
        try:
            # A peer that has closed the connection sends no handshake.
            handshake = peer.read() or {}
            index, theirs = int(handshake["process"]), handshake["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            # The peer is not a process of this program.
            peer.close()
            return
        mismatch: str | None
        if not 0 < index < self.count or index in self._channels:
            mismatch = f"there is another --process_id={index}"
        else:
            mismatch = difference(identity, theirs)
        if mismatch:
            message = f"Process {index} does not match process 0: {mismatch}."
            with contextlib.suppress(OSError):
                peer.send({"error": message})
            raise UserError(message)
        connection.settimeout(self._config.lost_seconds)
        self._channels[index] = peer

    def join(self, identity: dict[str, Any], folder: str) -> None:
        """Any other process: connects to process 0 and waits until all have connected.

        Args:
          identity: what must be the same in all processes (`run_identity`).
          folder: the workdir, which must be the one that process 0 has locked.

        Raises:
          UserError: process 0 cannot be reached, rejects this process, or has another
            workdir.
        """
        deadline = time.monotonic() + self._config.join_seconds
        while True:
            try:
                connection = socket.create_connection(
                    self._config.address, timeout=_HANDSHAKE_SECONDS
                )
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Process 0 does not answer at --coordinator={self._config.coordinator} "
                        f"({error.strerror or error}) after {self._config.join_seconds} s; "
                        "read its output, and start all processes."
                    ) from None
                time.sleep(0.2)
        # Process 0 answers when the last process has connected.
        peer = channel.Channel(connection, self._config.join_seconds + _HANDSHAKE_SECONDS)
        try:
            peer.send({"process": self.index, "identity": identity})
            reply = peer.read()
        except (OSError, ValueError):
            reply = None
        if reply is None:
            raise UserError("Process 0 ended while the processes connected; read its output.")
        if "error" in reply:
            raise UserError(reply["error"])
        workdir.check_shared(folder, reply["lock_owner"])
        connection.settimeout(self._config.lost_seconds)
        self.service = tuple(reply["service"])
        self._channels[0] = peer
        self._start_threads()

    def _start_threads(self) -> None:
        for index, peer in self._channels.items():
            self._inbox[index] = queue.Queue()
            self._start_thread(self._read, index, peer)
        if self._channels:
            self._start_thread(self._send_heartbeats)

    @staticmethod
    def _start_thread(target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, name="process_group", daemon=True).start()

    def all_gather_object(self, value: T, last: bool = False) -> list[T]:
        """The values of all processes, in order of process; waits for all of them.

        Every process must call it equally often and in the same order.

        Args:
          value: a JSON value.
          last: this is the last message; from now on a closed channel is no failure.
        """
        if not self._channels:
            return [value]
        if self.index:
            self._send({"value": value, "last": last})
            return self._inbox[0].get()
        values = [value, *(self._inbox[index].get() for index in range(1, self.count))]
        self._send({"value": values, "last": last})
        return values

    def barrier_exit(self, code: int) -> int:
        """Waits until all processes have called it; returns the largest of their exit codes."""
        return max(self.all_gather_object(code, last=True))

    def fail(self, reason: str) -> None:
        """Sends the others the reason why this process ends; they end too."""
        reason = reason.rstrip(".")
        self._send_error(f"Process {self.index} of {self.count} ended: {reason}.")

    def _send_error(self, message: str) -> None:
        self._closing = True
        self._send({"error": message})

    def _send(self, message: dict[str, Any]) -> None:
        for peer in self._channels.values():
            # The thread that reads from the peer reports a broken channel.
            with contextlib.suppress(OSError):
                peer.send(message)

    def _read(self, index: int, peer: channel.Channel) -> None:
        reason = "has ended without an error message"
        try:
            while (message := peer.read()) is not None:
                if "error" in message:
                    self._report_lost(message["error"])
                    return
                if "value" in message:
                    self._inbox[index].put(message["value"])
                    if message["last"]:
                        return
        except TimeoutError:
            reason = f"was silent for {self._config.lost_seconds} seconds"
        except (OSError, ValueError):
            pass
        self._report_lost(f"Process {index} of {self.count} {reason}.")

    def _send_heartbeats(self) -> None:
        while not self._closing:
            self._send({"heartbeat": True})
            time.sleep(self._config.lost_seconds / 4)

    def _report_lost(self, message: str) -> None:
        # The lock is never released, so that each process reports one lost peer only.
        if self._closing or not self._lost_lock.acquire(blocking=False):
            return
        self._send_error(message)
        self._on_lost(
            f"{message[:-1]}; start all {self.count} again to go on from the last checkpoint."
        )


_single = ProcessGroup(DistributedConfig())
_current = _single


def current() -> ProcessGroup:
    """The group of this run; outside `joined` a group of this process alone."""
    return _current


def is_rank0() -> bool:
    """Whether this is process 0, the only one that writes files."""
    return _current.index == 0


def all_gather_object(value: T) -> list[T]:
    """See ProcessGroup.all_gather_object."""
    return _current.all_gather_object(value)


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """Calls `function` in process 0 only; every process returns its result, a JSON value."""
    values: list[Any] = all_gather_object(function() if is_rank0() else None)
    return values[0]


def rank0_first(function: Callable[[], T]) -> T:
    """Calls `function` in process 0 and then in the others, which find the files it wrote."""
    if is_rank0():
        result = function()
        all_gather_object(None)
        return result
    all_gather_object(None)
    return function()


def run_identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes: settings and package versions.

    Args:
      settings: the fields of a Config by name; a section is a dictionary.
    """
    sections = {}
    for name, value in settings.items():
        if name in _LOCAL_SECTIONS or name in _LOCAL_SETTINGS:
            continue
        if isinstance(value, dict):
            value = {key: each for key, each in value.items() if key not in _LOCAL_SETTINGS}
        sections[name] = value
    return {"settings": sections, "versions": {name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Describes the first difference between two run identities; None if they are equal."""
    for package, version in ours["versions"].items():
        if (other := theirs["versions"].get(package)) != version:
            return f"it has {package} {other}, not {version}"
    for section, value in ours["settings"].items():
        other = theirs["settings"].get(section)
        if not isinstance(value, dict):
            value, other = {section: value}, {section: other}
        for name, setting in value.items():
            # Hosts may mount the workdir at different paths; `join` checks that it is shared.
            if name != "workdir" and other.get(name) != setting:
                return f"it has --{name}={other.get(name)}, not {setting}"
    return None


@contextlib.contextmanager
def joined(config: DistributedConfig, settings: dict[str, Any]) -> Iterator[ProcessGroup]:
    """Connects the processes of a run for the duration of the block.

    In a run of several processes an exception in the block ends this process at once, after
    it has notified the others: a normal exit of the interpreter would wait for them.

    Args:
      config: settings of the process group.
      settings: the fields of the run's Config by name; a section is a dictionary.

    Raises:
      UserError: the processes cannot connect or do not match.
    """
    global _current
    if config.num_processes == 1:
        yield _single
        return
    group = ProcessGroup(config)
    identity = run_identity(settings)
    if group.index:
        group.join(identity, settings["workdir"])
    else:
        group.listen(identity)
    logging.info("connected %d processes; this is process %d", group.count, group.index)
    _current = group
    try:
        yield group
    except UserError as error:
        group.fail(str(error))
        _exit_process(str(error))
    except BaseException:
        # If the cause is a lost peer, the thread of its channel ends the process meanwhile.
        time.sleep(_GRACE_SECONDS)
        group.fail("an error of the program; see what it printed")
        traceback.print_exc()
        _exit_process(None, 1)
    finally:
        _current = _single
