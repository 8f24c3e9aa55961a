"""The processes of one run, usually one per host: collective operations and failure handling.

Process 0 writes all files; the other processes compute with it and read.  Each of them
has one channel to process 0, which carries small values (`all_gather_object`) and
heartbeats.  If a channel breaks or stays silent, every process ends with one sentence,
even inside a collective operation of JAX; a run that is started again resumes from its
last checkpoint.

In a run of a single process every function here returns at once.

  prepared = process_group.rank0_first(lambda: prepare(config), "prepared data")
  best = max(process_group.all_gather_object(score, "scores"))
"""

from __future__ import annotations

import contextlib
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
from pinsage_jax.core import signals, workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import channel, hellos
from pinsage_jax.distributed.identity import difference, run_identity

T = TypeVar("T")

# When a peer dies, a collective operation may fail before its channel is seen to be broken.
_GRACE_SECONDS = 5.0
# Name of the last operation, in which the processes end.
_EXIT = "exit"
# How often a process that waits looks for a stop.
_POLL_SECONDS = 0.1


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
      own_devices: numbers of this host's accelerators that are this process's; None: all.
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
        self.own_devices = config.own_devices
        self._config = config
        self._channels: dict[int, channel.Channel] = {}
        self._inbox: dict[int, queue.Queue] = {}
        self._closing = self._at_exit = False
        self._stop_code, self._stop_lock = 0, threading.Lock()
        self._lost_lock = threading.Lock()
        self._on_lost = on_lost or _exit_process

    def listen(self, identity: dict[str, Any], folder: str) -> None:
        """Process 0: waits until all other processes have connected.

        Args:
          identity: what must be the same in all processes (`run_identity`).
          folder: the workdir, which this process has locked.

        Raises:
          UserError: the address cannot be used, a process does not connect in time, or its
            identity differs.
        """
        host, port = self._config.address
        try:
            server = socket.create_server((host, port), family=channel.family_of(host))
            # Held until the process ends: JAX's service starts minutes later.
            self._reserved = channel.reserve_port(host)
        except OSError as error:
            raise UserError(
                f"Process 0 cannot listen on --coordinator={self._config.coordinator} "
                f"({error.strerror}); name an address of this host and a free port."
            ) from None
        self.service = (host, self._reserved.getsockname()[1])
        deadline = time.monotonic() + self._config.join_seconds
        with contextlib.closing(hellos.Reception(server)) as reception:
            while len(self._channels) < self.count - 1:
                hello = reception.next(deadline - time.monotonic())
                if hello is None:
                    missing = sorted({*range(1, self.count)} - {*self._channels})
                    raise UserError(
                        f"Of {self.count} processes {', '.join(map(str, missing))} did not "
                        f"connect to --coordinator={self._config.coordinator} within "
                        f"{self._config.join_seconds} s; start all of them."
                    )
                self._admit(hello, identity)
        self._send({"service": self.service, "mark": workdir.mark_shared(folder)})
        self._start_threads()

    def _admit(self, hello: hellos.Hello, identity: dict[str, Any]) -> None:
        index, peer = hello.process, hello.peer
        taken = not 0 < index < self.count or index in self._channels
        same = f"there is another --process_id={index}" if taken else None
        if mismatch := same or difference(identity, hello.identity):
            message = f"Process {index} does not match process 0: {mismatch}."
            with contextlib.suppress(OSError):
                peer.send({"error": message})
            if not taken:
                raise UserError(message)
            # The process that has the number already is not to blame.
            logging.warning("%s It was turned away.", message)
        else:
            peer.set_timeout(self._config.lost_seconds)
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
        try:
            connection = channel.connect(self._config.address, self._config.join_seconds)
        except OSError as error:
            raise UserError(
                f"Process 0 does not answer at --coordinator={self._config.coordinator} "
                f"({error.strerror or error}) after {self._config.join_seconds} s; "
                "read its output, and start all processes."
            ) from None
        # Process 0 answers when the last process has connected.
        peer = channel.Channel(connection, self._config.join_seconds + hellos.SECONDS)
        reply = None
        with contextlib.suppress(OSError, ValueError):
            peer.send(hellos.message(self.index, identity))
            reply = peer.read()
        if reply is None:
            raise UserError("Process 0 ended while the processes connected; read its output.")
        if "error" in reply:
            raise UserError(reply["error"])
        workdir.check_shared(folder, reply["mark"])
        peer.set_timeout(self._config.lost_seconds)
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

    def all_gather_object(self, value: T, operation: str, interruptible: bool = True) -> list[T]:
        """The values of all processes, in order of process; waits for all of them.

        Every process must call it equally often and in the same order.

        Args:
          value: a JSON value.
          operation: name of this call, the same in all processes, for the error message.
          interruptible: whether a signal to this process ends the wait.  In the step loop it
            does not: there all processes agree on the step after which they stop.

        Raises:
          Stopped: a process has stopped and will not take part.
          UserError: another process is at another operation.
        """
        if not self._channels:
            return [value]
        if self.index:
            self._send({"operation": operation, "value": value})
            return self._receive(0, operation, interruptible)
        others = range(1, self.count)
        values = [value, *(self._receive(index, operation, interruptible) for index in others)]
        self._send({"operation": operation, "value": values})
        return values

    def _receive(self, index: int, operation: str, interruptible: bool) -> Any:
        """The value that process `index` sends for an operation."""
        while True:
            try:
                message = self._inbox[index].get(timeout=_POLL_SECONDS)
            except queue.Empty:
                stop = signals.exit_code() if interruptible else 0
                if operation == _EXIT and stop:
                    self.stop(stop)
                elif operation != _EXIT and (self._stop_code or stop):
                    raise signals.Stopped from None
                continue
            if message["operation"] == operation:
                return message["value"]
            # A stop leaves messages behind that nobody has read.
            if not self._stop_code:
                raise UserError(
                    f"Process {index} is at '{message['operation']}', process {self.index} at "
                    f"'{operation}'; start all {self.count} again with the same command."
                )

    @contextlib.contextmanager
    def stopping_together(self) -> Iterator[None]:
        """Ends the block when a signal stops this process, and tells the others to stop too."""
        try:
            yield
        except signals.Stopped:
            self.stop(signals.exit_code())

    def stop(self, code: int) -> None:
        """Tells the other processes that this one stops and will exit with `code`.

        They stop at their next `raise_if_stopped` or where they wait for this process.  One
        that does neither within --lost_seconds, because it waits in a collective operation of
        JAX, ends at once.
        """
        with self._stop_lock:
            if self._stop_code or not self._channels:
                return
            self._stop_code = code
        self._send({"stop": code})
        self._start_thread(self._end_overdue)

    def _end_overdue(self) -> None:
        time.sleep(self._config.lost_seconds)
        if self._closing or self._at_exit:
            return
        text = "process %d could not stop within %d s; it ends now"
        logging.warning(text, self.index, self._config.lost_seconds)
        code = self._stop_code
        value = code if self.index else [code] * self.count
        self._send({"operation": _EXIT, "value": value})
        _exit_process(None, code)

    def barrier_exit(self, code: int) -> int:
        """Waits until all processes have called it; returns the largest of their exit codes.

        After `stop` it ends this process instead: JAX's exit would wait for the others.
        """
        self._at_exit = True
        code = max(self.all_gather_object(code, _EXIT, interruptible=code == 0))
        if self._stop_code:
            _exit_process(None, max(code, self._stop_code))
        return code

    def fail(self, reason: str) -> None:
        """Sends the others the reason why this process ends; they end too."""
        self._send_error(f"Process {self.index} of {self.count} ended: {reason.rstrip('.')}.")

    def _send_error(self, message: str) -> None:
        self._closing = True
        self._send({"error": message})

    def _send(self, message: dict[str, Any]) -> None:
        for peer in self._channels.values():
            # The thread that reads from the peer reports a broken channel.
            with contextlib.suppress(OSError):
                peer.send(message)

    def _read(self, index: int, peer: channel.Channel) -> None:
        reason, last = "has ended without an error message", False
        try:
            while (message := peer.read()) is not None:
                if "error" in message:
                    self._report_lost(message["error"])
                    return
                if "stop" in message:
                    signals.request_stop(message["stop"])
                    # Process 0 passes it on.
                    self.stop(message["stop"])
                if "operation" in message:
                    self._inbox[index].put(message)
                    last = message["operation"] == _EXIT
        except TimeoutError:
            reason = f"was silent for {self._config.lost_seconds} seconds"
        except (OSError, ValueError, KeyError):
            pass
        if not last:
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


def all_gather_object(value: T, operation: str, interruptible: bool = True) -> list[T]:
    """See ProcessGroup.all_gather_object."""
    return _current.all_gather_object(value, operation, interruptible)


def broadcast_from_rank0(function: Callable[[], T], operation: str) -> T:
    """Calls `function` in process 0 only; every process returns its result, a JSON value."""
    values: list[Any] = all_gather_object(function() if is_rank0() else None, operation)
    return values[0]


def rank0_first(function: Callable[[], T], operation: str) -> T:
    """Calls `function` in process 0 and then in the others, which find the files it wrote."""
    if is_rank0():
        result = function()
        all_gather_object(None, operation)
        return result
    all_gather_object(None, operation)
    return function()


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
        group.listen(identity, settings["workdir"])
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
        if not group.index:
            workdir.remove_marks(settings["workdir"])
