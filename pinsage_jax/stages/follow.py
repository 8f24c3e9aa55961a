"""The stage that serves a finished run and follows edges as they arrive."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.following.event_log import STDIN, FolderLog, Names, RawEvents, StreamLog
from pinsage_jax.following.follower import Follower
from pinsage_jax.inference.current_catalog import CurrentCatalog
from pinsage_jax.retrieval.online import weigh_popularity
from pinsage_jax.serving import server
from pinsage_jax.stages.runs import has_popularity, stop_requested, validation_split_of
from pinsage_jax.stages.serve import Loaded, answer, load

if TYPE_CHECKING:
    from pinsage_jax.serving.service import Service

_POLL_SECONDS = 0.2
# One line of the log for the events of so many seconds.
_SAY_SECONDS = 10.0


def follow(config: Config) -> None:
    """Serves as --mode=serve does, over the edges of the workdir and those of --follow."""
    server.require()
    from pinsage_jax.serving.prometheus import ServerMetrics

    following = Following(config)
    listener = server.listen(config.serve.serve_host, config.serve.serve_port)
    with contextlib.closing(listener):
        answer(
            config, listener, stop_requested, following.load, ServerMetrics(),
            config.host_threads, following.running(),
        )  # fmt: skip


@dataclasses.dataclass
class Counts:
    """What has been followed since the last line of the log.

    Attributes:
      events, edges, embedded: events read, edges changed by them, items embedded again.
      oldest: seconds from the arrival of an event until answers had it, the longest.
    """

    events: int = 0
    edges: int = 0
    embedded: int = 0
    oldest: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.events:,} events changed {self.edges:,} edges; {self.embedded:,} items were "
            f"embedded again, at most {self.oldest:.2f} s after their events"
        )


class Following:
    """The service of a workdir, and the edges that it follows."""

    def __init__(self, config: Config):
        """Loads nothing yet.

        Raises:
          UserError: the folder of --follow is not there.
        """
        self._config = config
        self._log: FolderLog | StreamLog | None = None
        if config.serve.follow != STDIN:
            # Reported before anything is loaded.
            FolderLog(self._folder(), config.data, None)
        self._loaded: Loaded | None = None
        self._follower: Follower | None = None
        self._names: Names | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.total, self._unsaid, self._said = Counts(), Counts(), time.monotonic()

    def load(self) -> Service:
        """The service of the workdir as it is now, with all events so far.

        Raises:
          UserError: see stages.serve.load; or the workdir has no checkpoint.
        """
        loaded = load(self._config, writable=True)
        if loaded.new_items is None:
            raise UserError(
                f"--mode=follow embeds items again, but {self._config.workdir} has no checkpoint "
                "of its embeddings; --mode=serve serves it as it is."
            )
        model, _ = loaded.new_items
        config = dataclasses.replace(loaded.source.config, threads=self._config.threads)
        split = validation_split_of(config, loaded.trained_on)
        bases = spectral_bases(config, loaded.trained_on, split)
        catalog = CurrentCatalog(config, loaded.trained_on, loaded.prepared, bases)
        trained, tolerance = model.trained, self._config.serve.follow_tolerance
        follower = Follower(catalog, bases, trained.params, trained.cold_start_bias, tolerance)
        names = loaded.prepared.collection_ids.ids.to_pylist()
        with self._lock:
            self._loaded, self._follower = loaded, follower
            self._names = Names(loaded.service.row_of, names)
            if self._log is None:
                how = loaded.prepared.edge_weights(config.data)
                if self._config.serve.follow == STDIN:
                    # Letters that are not UTF-8 make a line that is left out, and not the last one.
                    lines = io.TextIOWrapper(sys.stdin.buffer, "utf-8", "replace")
                    self._log = StreamLog(lines, config.data, how)
                else:
                    self._log = FolderLog(self._folder(), config.data, how)
            else:
                self._log.rewind()
            self.total = Counts()
            self._fold_new()
            self._unsaid = Counts()
            # The log of before this service: its events are old, its answers are not.
            self.total.oldest = 0.0
            if self.total.events:
                logging.info("follow: %s events of the log so far are applied", self.total.events)
            self._publish()
        return loaded.service

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Folds events in a thread until it is left."""
        thread = threading.Thread(target=self._run, name="follow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def step(self) -> int:
        """Folds the events that are new; returns their number."""
        with self._lock:
            return self._fold_new()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                self.step()
            except Exception:
                # The server goes on with what it has.
                logging.exception("Following ended; start --mode=follow again.")
                return

    def _fold_new(self) -> int:
        assert self._log is not None, "the service is loaded"
        before = self.total.events
        if pending := list(self._log.read()):
            self._fold(pending)
        if self._unsaid.events and time.monotonic() - self._said > _SAY_SECONDS:
            logging.info("follow: %s", self._unsaid)
            self._unsaid, self._said = Counts(), time.monotonic()
        return self.total.events - before

    def _fold(self, pending: list[RawEvents]) -> None:
        """Applies events one batch after the other, then embeds again what is too old."""
        loaded, follower, names = self._loaded, self._follower, self._names
        assert loaded and follower and names and loaded.new_items, "the service is loaded"
        edges = sum(follower.apply(*names.resolve(raw)) for raw in pending)
        rows, vectors = follower.refreshed()
        if edges or len(rows):
            codec, weight = loaded.new_items[1], self._config.search.popularity_weight
            vectors = codec.project(vectors)
            loaded.exported[rows] = vectors
            vectors = weigh_popularity(vectors, weight, has_popularity(loaded.config))
            items = loaded.prepared.graph.num_items
            loaded.service.follow(rows, vectors, follower.overlay.degree[:items])
        age = time.time() - min(raw.arrived for raw in pending)
        for counts in (self.total, self._unsaid):
            counts.events += sum(len(raw.items) for raw in pending)
            counts.edges += edges
            counts.embedded += len(rows)
            counts.oldest = max(counts.oldest, age)
        self._publish()

    def _publish(self) -> None:
        """Shows the counts in /health."""
        assert self._loaded is not None, "the service is loaded"
        total = self.total
        self._loaded.service.followed = {
            "events": total.events, "edges": total.edges, "embedded": total.embedded,
        }  # fmt: skip

    def _folder(self) -> pathlib.Path:
        return pathlib.Path(self._config.data.path(self._config.serve.follow))
