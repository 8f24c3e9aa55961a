"""The stage that serves a finished run over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from threadpoolctl import threadpool_limits

from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import exchange, files, logging_setup, workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.ranking.saved_ranker import RANKER_FILE
from pinsage_jax.recommend.recommend import CHOICE_FILE
from pinsage_jax.retrieval import saved_index
from pinsage_jax.retrieval.online import weigh_popularity
from pinsage_jax.retrieval.saved_index import open_search
from pinsage_jax.serving import server
from pinsage_jax.stages.checkpoint import exported_source, open_new_items
from pinsage_jax.stages.runs import has_popularity, stop_requested
from pinsage_jax.stages.search import listed_by
from pinsage_jax.stages.update import FOLDER as UPDATED

if TYPE_CHECKING:
    from pinsage_jax.export.codec import VectorCodec
    from pinsage_jax.inference.new_item_model import NewItemModel
    from pinsage_jax.reporting.sources import Source
    from pinsage_jax.serving.prometheus import ServerMetrics
    from pinsage_jax.serving.service import Service

# When one of these is another file, there is another model, or more of the present one.
_FILES = (
    "prepared/manifest.json",
    f"{writer.FOLDER}/{writer.MANIFEST}",
    RANKER_FILE,
    CHOICE_FILE,
    f"{saved_index.FOLDER}/{saved_index.TABLE}",
)
_NUMBERS = "requests"


def serve(config: Config) -> None:
    """Serves neighbors and the explorer over HTTP until a signal stops it.

    With --serve_workers further processes answer on the same port.
    """
    server.require()
    from pinsage_jax.serving.workers import Workers

    count = config.serve.serve_workers
    # A port that is in use is reported before anything is loaded.
    listener = server.listen(config.serve.serve_host, config.serve.serve_port)
    with contextlib.closing(listener), tempfile.TemporaryDirectory(prefix="pinsage-jax-") as folder:
        arguments = (config, listener, folder, logging.get_verbosity())
        workers = Workers(_further_process, arguments, count - 1)

        def stopped() -> bool:
            workers.tend()
            return stop_requested()

        _answer(config, listener, folder, stopped, workers=workers)


def _further_process(
    number: int, config: Config, listener: socket.socket, folder: str, verbosity: int
) -> None:
    """A process of --serve_workers beside the first one."""
    from pinsage_jax.serving.workers import stop_signal

    # As in main.py: otherwise absl warns that flags were not parsed.
    flags: Any = vars(logging)["FLAGS"]
    flags.mark_as_parsed()
    flags["logtostderr"].value = True
    logging_setup.set_up(verbosity)
    stopped = stop_signal()
    try:
        _answer(config, listener, folder, stopped, number=number)
    except UserError as error:
        logging.error("Server process %d: %s", number, error)
        raise SystemExit(2) from None


def _answer(
    config: Config,
    listener: socket.socket,
    folder: str,
    stopped: Callable[[], bool],
    number: int = 0,
    workers: contextlib.AbstractContextManager | None = None,
) -> None:
    """Loads the workdir and answers until `stopped`; its changes are loaded meanwhile.

    Args:
      folder: a temporary one that all processes of the server share.
      number: number of this process, from 0.
      workers: further processes, which start when this one has loaded the workdir.
    """
    from pinsage_jax.serving.prometheus import ServerMetrics, shared_numbers

    count = config.serve.serve_workers
    shared = shared_numbers(pathlib.Path(folder) / _NUMBERS, count) if count > 1 else None
    metrics = ServerMetrics(shared, number)
    threads = max(config.host_threads // count, 1)
    answer(config, listener, stopped, lambda: load_service(config), metrics, threads, workers)


def answer(
    config: Config,
    listener: socket.socket,
    stopped: Callable[[], bool],
    load: Callable[[], Service],
    metrics: ServerMetrics,
    threads: int,
    beside: contextlib.AbstractContextManager | None = None,
) -> None:
    """Answers until `stopped`, and loads a new service when the files of the workdir change.

    Args:
      load: makes a service of the workdir as it is now.
      threads: that requests share, unless --threads is given.
      beside: is entered when the first service is there.
    """
    # The framework takes a while to load, and is an extra.
    from pinsage_jax.serving.app import make_app
    from pinsage_jax.serving.current import Current, Stamp, stamp_of

    root = pathlib.Path(config.workdir)
    paths = [root / exchange.REPLACING]
    paths += [base / name for base in (root, root / UPDATED) for name in _FILES]

    def stamp() -> Stamp:
        return stamp_of(paths)

    seen = stamp()
    current = Current(load(), load, stamp, seen, metrics.add_reload)
    threads = config.threads or threads
    # Requests run in parallel, so the matrix products of each use a single thread.
    with threadpool_limits(1, "blas"), beside or contextlib.nullcontext():
        watcher = current.watch()
        try:
            server.run(make_app(current, threads, metrics), listener, stopped, not metrics.process)
        finally:
            current.close(watcher)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What a workdir holds, for a server.

    Attributes:
      service: answers.
      config: the settings, with the workdir of the catalog that is served.
      source: the settings that the network was trained and embedded with.
      trained_on: the catalog that the network was trained on.
      prepared: the catalog that is served.
      exported: float32 [N, Z], the embeddings; the ranker reads this array.
      vectors: the same, weighted by --popularity_weight; the service reads this array.
      new_items: the network for new items, and the codec of the export; None without checkpoint.
    """

    service: Service
    config: Config
    source: Source
    trained_on: Prepared
    prepared: Prepared
    exported: np.ndarray
    vectors: np.ndarray
    new_items: tuple[NewItemModel, VectorCodec] | None


def load_service(config: Config) -> Service:
    """Loads what the workdir holds now: the catalog with its changes, if there are any.

    Raises:
      UserError: something is missing, damaged, or does not fit together.
    """
    return load(config).service


def load(config: Config, writable: bool = False) -> Loaded:
    """As load_service, with all that the service was made of.

    Args:
      writable: whether the vectors are copied into memory, to be changed.

    Raises:
      UserError: see load_service.
    """
    from pinsage_jax.serving.service import Service

    with workdir.opened(config.workdir):
        trained_on = open_prepared(config.workdir)
        source = exported_source(config, trained_on.graph.num_items)
        here, prepared = _with_changes(config, trained_on)
        exported = load_embeddings(here.workdir, prepared)
        if writable:
            exported = np.array(exported, np.float32)
        vectors = weigh_popularity(exported, here.search.popularity_weight, has_popularity(here))
        index = open_search(here, vectors, threads=1)
        ranker = listed_by(here, prepared, 1, exported)
        new_items = open_new_items(source.config, trained_on) if source.trained else None
    if new_items is not None:
        for sentence in new_items[0].transform.needs:
            logging.warning("Requests for such new items will be refused: %s", sentence)
        new_items[0].warm_up()
    trained = source
    if here is not config:
        manifest = files.read_json(pathlib.Path(here.workdir) / writer.FOLDER / writer.MANIFEST)
        of_changes = dataclasses.replace(source.config, workdir=here.workdir)
        source = dataclasses.replace(source, config=of_changes, embeddings=manifest)
    service = Service(source, prepared, vectors, index, new_items, ranker)
    return Loaded(service, here, trained, trained_on, prepared, exported, vectors, new_items)


def _with_changes(config: Config, trained_on: Prepared) -> tuple[Config, Prepared]:
    """The settings and the catalog of WORKDIR/updated, or those of the workdir without changes."""
    updated = pathlib.Path(config.workdir) / UPDATED
    if not (updated / writer.FOLDER / writer.MANIFEST).exists():
        return config, trained_on
    prepared = open_prepared(updated)
    fingerprint = trained_on.manifest["fingerprint"]
    if prepared.manifest.get("base", fingerprint) != fingerprint:
        logging.warning(
            "%s is of another catalog than the workdir's, and is not served; delete it.", updated
        )
        return config, trained_on
    logging.info("serving the catalog with its changes, from %s", updated)
    return dataclasses.replace(config, workdir=str(updated)), prepared
