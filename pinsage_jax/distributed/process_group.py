"""The processes of one run, usually one a host: who writes, and how they keep together.

Process 0 writes everything; the others compute with it and read.  Each of them holds one
line to process 0, over which all exchange small values (`exchange`) and say that they are
alive.  A line that breaks or falls silent ends every process with one sentence, wherever
it is, also inside a collective operation: the run is started again and resumes.

With one process everything here is for that one, and costs nothing.

  prepared = hosts.rank0_first(lambda: prepare(config))
  best = max(hosts.exchange(score))
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

# What the numbers depend on: processes with different ones would not compute the same.
_PACKAGES = ("pinsage-jax", "jax", "jaxlib", "numpy", "numba")
# Settings that may differ from process to process; inputs are read by process 0 alone.
_OWN_SECTIONS = ("distributed", "data")
_OWN_SETTINGS = ("threads", "producers", "prefetch")
# When a peer dies a collective operation may fail before its line is known to be broken.
_GRACE_SECONDS = 5.0
_HELLO_SECONDS = 10.0


def _end(sentence: str | None, code: int = 2) -> None:
    if sentence:
        print(f"error: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ProcessGroup:
    """The lines of one process to those that it talks to directly.

    Attributes:
      index, count: number of this process, and of all.
      service: host and port of JAX's own coordination service.
    """

    def __init__(self, hosts: DistributedConfig, on_lost: Callable[[str], None] | None = None):
        """Alone; `meet` and `join` connect it.

        Args:
          on_lost: called, once and from any thread, with the sentence about a peer that
            is gone; without it the sentence is printed and the process ends with 2.
        """
        self.index, self.count = hosts.process_id, hosts.num_processes
        self.service: tuple[str, int] = ("", 0)
        self._hosts = hosts
        self._lines: dict[int, channel.Channel] = {}
        self._inbox: dict[int, queue.Queue] = {}
        self._leaving = False
        self._ending = threading.Lock()
        self._on_lost = on_lost or _end

    def listen(self, about: dict[str, Any]) -> None:
        """Process 0: waits until all others have come.

        Args:
          about: what must be the same in all of them (`about_this_process`).

        Raises:
          UserError: the address cannot be listened at, a process does not come in time,
            or it differs.
        """
        host, port = self._hosts.address
        try:
            server = socket.create_server((host, port), family=channel.family_of(host))
        except OSError as error:
            raise UserError(
                f"--coordinator={self._hosts.coordinator} cannot be listened at "
                f"({error.strerror}); name an address of this host and a free port."
            ) from None
        self.service = (host, channel.free_port(host))
        deadline = time.monotonic() + self._hosts.join_seconds
        with server:
            while len(self._lines) < self.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = sorted({*range(1, self.count)} - {*self._lines})
                    named = ", ".join(map(str, missing))
                    raise UserError(
                        f"Of {self.count} processes {named} did not come to "
                        f"--coordinator={self._hosts.coordinator} within "
                        f"{self._hosts.join_seconds} s; start all of them."
                    ) from None
                self._accept(channel.Channel(connection, _HELLO_SECONDS), connection, about)
        for line in self._lines.values():
            line.send({"service": self.service, "holder": os.getpid()})
        self._listen()

    def _accept(
        self, line: channel.Channel, connection: socket.socket, about: dict[str, Any]
    ) -> None:
        try:
            # Where the other end is closed there is no number either.
            hello = line.read() or {}
            index, theirs = int(hello["process"]), hello["about"]
        except (OSError, ValueError, KeyError, TypeError):
            # Somebody else, not a process of ours.
            line.close()
            return
        differs = None
        if not 0 < index < self.count or index in self._lines:
            differs = f"there is another --process_id={index}"
        elif told := difference(about, theirs):
            differs = told
        if differs:
            sentence = f"Process {index} does not fit process 0: {differs}."
            with contextlib.suppress(OSError):
                line.send({"failed": sentence})
            raise UserError(sentence)
        connection.settimeout(self._hosts.lost_seconds)
        self._lines[index] = line

    def join(self, about: dict[str, Any], folder: str) -> None:
        """Any other process: connects to process 0 and waits until all have come.

        Raises:
          UserError: process 0 cannot be reached, refuses, or has another workdir.
        """
        deadline = time.monotonic() + self._hosts.join_seconds
        while True:
            try:
                connection = socket.create_connection(self._hosts.address, timeout=_HELLO_SECONDS)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Process 0 does not answer at --coordinator={self._hosts.coordinator} "
                        f"({error.strerror or error}) after {self._hosts.join_seconds} s; "
                        "see what it says, and start all processes."
                    ) from None
                time.sleep(0.2)
        # Others may come as late as they are allowed to.
        line = channel.Channel(connection, self._hosts.join_seconds + _HELLO_SECONDS)
        try:
            line.send({"process": self.index, "about": about})
            accept = line.read()
        except (OSError, ValueError):
            accept = None
        if accept is None:
            raise UserError("Process 0 ended while the processes met; see what it says.")
        if "failed" in accept:
            raise UserError(accept["failed"])
        workdir.check_shared(folder, accept["holder"])
        connection.settimeout(self._hosts.lost_seconds)
        self.service = tuple(accept["service"])
        self._lines[0] = line
        self._listen()

    def _listen(self) -> None:
        for index, line in self._lines.items():
            self._inbox[index] = queue.Queue()
            self._thread(self._read, index, line)
        if self._lines:
            self._thread(self._say_alive)

    @staticmethod
    def _thread(target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, name="hosts", daemon=True).start()

    def all_gather_object(self, value: T, last: bool = False) -> list[T]:
        """The values of all processes in their order; waits for all of them.

        Every process must call it as often and in the same order.

        Args:
          value: of JSON.
          last: nothing is said after it, and no line is missed any more.
        """
        if not self._lines:
            return [value]
        if self.index:
            self._send({"value": value, "last": last})
            return self._inbox[0].get()
        values = [value, *(self._inbox[index].get() for index in range(1, self.count))]
        self._send({"value": values, "last": last})
        return values

    def barrier_exit(self, code: int) -> int:
        """Waits until all have come to their end; the largest of their exit codes."""
        return max(self.all_gather_object(code, last=True))

    def fail(self, sentence: str) -> None:
        """Tells the others that this process ends, and why."""
        told = sentence.rstrip(".")
        self._tell(f"Process {self.index} of {self.count} ended: {told}.")

    def _tell(self, sentence: str) -> None:
        self._leaving = True
        self._send({"failed": sentence})

    def _send(self, message: dict[str, Any]) -> None:
        for line in self._lines.values():
            # Whether a peer is gone is for the thread to say that reads from it.
            with contextlib.suppress(OSError):
                line.send(message)

    def _read(self, index: int, line: channel.Channel) -> None:
        how = "has ended without a word"
        try:
            while (message := line.read()) is not None:
                if "failed" in message:
                    self._lost(index, message["failed"], whole=True)
                    return
                if "value" in message:
                    self._inbox[index].put(message["value"])
                    if message["last"]:
                        return
        except TimeoutError:
            how = f"was silent for {self._hosts.lost_seconds} seconds"
        except (OSError, ValueError):
            pass
        self._lost(index, how)

    def _say_alive(self) -> None:
        while not self._leaving:
            self._send({"alive": True})
            time.sleep(self._hosts.lost_seconds / 4)

    def _lost(self, index: int, how: str, whole: bool = False) -> None:
        # Held for good: one sentence a process.
        if self._leaving or not self._ending.acquire(blocking=False):
            return
        sentence = how if whole else f"Process {index} of {self.count} {how}."
        self._tell(sentence)
        again = f"start all {self.count} again to go on from the last checkpoint"
        self._on_lost(f"{sentence[:-1]}; {again}.")


_alone = ProcessGroup(DistributedConfig())
_together = _alone


def current() -> ProcessGroup:
    """The processes of this run; one process alone outside `joined`."""
    return _together


def is_rank0() -> bool:
    """Whether this process writes: process 0."""
    return _together.index == 0


def all_gather_object(value: T) -> list[T]:
    """See Together.exchange."""
    return _together.all_gather_object(value)


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """What `function` (a value of JSON) gives in process 0, in every process."""
    answers: list[Any] = all_gather_object(function() if is_rank0() else None)
    return answers[0]


def rank0_first(function: Callable[[], T]) -> T:
    """`function` in process 0 first, then in the others, which find what it wrote."""
    if is_rank0():
        result = function()
        all_gather_object(None)
        return result
    all_gather_object(None)
    return function()


def about_this_process(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes: settings (sections of a Config) and versions."""
    sections = {}
    for name, value in settings.items():
        if name in _OWN_SECTIONS or name in _OWN_SETTINGS:
            continue
        if isinstance(value, dict):
            value = {key: each for key, each in value.items() if key not in _OWN_SETTINGS}
        sections[name] = value
    return {"settings": sections, "versions": {name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """In words the first difference between two processes; None without one."""
    for package, version in ours["versions"].items():
        if (other := theirs["versions"].get(package)) != version:
            return f"it has {package} {other}, not {version}"
    for section, value in ours["settings"].items():
        other = theirs["settings"].get(section)
        if not isinstance(value, dict):
            value, other = {section: value}, {section: other}
        for name, setting in value.items():
            # The workdir may be mounted elsewhere; that it is the same one is checked.
            if name != "workdir" and other.get(name) != setting:
                return f"it has --{name}={other.get(name)}, not {setting}"
    return None


@contextlib.contextmanager
def joined(hosts: DistributedConfig, settings: dict[str, Any]) -> Iterator[ProcessGroup]:
    """Brings the processes of a run together for the block.

    Where there are several, an error ends this process within the block, after telling the
    others: an orderly end of the interpreter would wait for them.

    Args:
      settings: of the run, name to value; sections are dictionaries.

    Raises:
      UserError: the processes do not find each other or do not fit.
    """
    global _together
    if hosts.num_processes == 1:
        yield _alone
        return
    group = ProcessGroup(hosts)
    about = about_this_process(settings)
    if group.index:
        group.join(about, settings["workdir"])
    else:
        group.listen(about)
    logging.info("%d processes have met; this is number %d", group.count, group.index)
    _together = group
    try:
        yield group
    except UserError as error:
        group.fail(str(error))
        _end(str(error))
    except BaseException:
        # If a peer is gone the line's own thread says so, and the process ends here.
        time.sleep(_GRACE_SECONDS)
        group.fail("an error of the program; see what it printed")
        traceback.print_exc()
        _end(None, 1)
    finally:
        _together = _alone
