"""A new model takes the place of the present one in a workdir: all its files, in one step.

WORKDIR/next is a workdir of its own, in which the new model is made.  When it is whole,
`replace_by_next` renames it to WORKDIR/replacing: with this one step the exchange is decided.
What follows only moves names, and `complete` goes on with it after a kill; every command
calls it before it opens the workdir.  What was there before is a workdir again, in
WORKDIR/previous, with the caches left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable

from pinsage_jax.core.errors import UserError

NEXT, REPLACING, PREVIOUS = "next", "replacing", "previous"
_LIST = "exchange.json"
# Made from a model: they leave with it, also where the new one has not made them.
_OF_A_MODEL = (
    "prepared", "inputs", "run.flags", "checkpoints", "metrics.jsonl", "tensorboard", "costs.json",
    "run.json", "report_figures", "tracking.json", "mlflow.db", "wandb",
    "embeddings", "new_embeddings", "updated", "index", "stores", "encoder", "ranker.json",
    "eval.json",
    "eval_ranks.parquet", "tables", "report.html", "explorer.html", "explain", "compare.json",
    "related_items.parquet", "neighbors.parquet", "new_neighbors.parquet",
    "recommendations.parquet", "recommend.json", "recommend_choice.json", "layers", "neighborhoods",
    "spectral",
)  # fmt: skip
_CACHES = ("layers", "neighborhoods", "spectral")


def clear_next(workdir: str | os.PathLike, keep: Iterable[str] = ()) -> None:
    """Deletes what WORKDIR/next holds, except the names in `keep`."""
    folder = pathlib.Path(workdir) / NEXT
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def replace_by_next(workdir: str | os.PathLike) -> None:
    """Exchanges the model of a workdir for that in WORKDIR/next.

    Only the process that holds the locks of both folders may call it.
    """
    folder = pathlib.Path(workdir)
    complete(folder)
    new = folder / NEXT
    names = sorted(path.name for path in new.iterdir() if path.name in _OF_A_MODEL)
    (new / _LIST).write_text(json.dumps(names), encoding="utf-8")
    for path in (new / _LIST, new):
        _sync(path)
    if (folder / PREVIOUS).exists():
        shutil.rmtree(folder / PREVIOUS)
    os.rename(new, folder / REPLACING)
    _sync(folder)
    complete(folder)


def complete(workdir: str | os.PathLike) -> None:
    """Completes an exchange that was interrupted; does nothing if there is none.

    Only the process that holds the workdir's lock may call it.

    Raises:
      UserError: a file cannot be moved.
    """
    folder = pathlib.Path(workdir)
    new, old = folder / REPLACING, folder / PREVIOUS
    if not new.is_dir():
        return
    if not (new / _LIST).exists():
        # The list is the last to go: every name has been moved.
        new.rmdir()
        return
    try:
        names = json.loads((new / _LIST).read_text(encoding="utf-8"))
        old.mkdir(exist_ok=True)
        for name in _OF_A_MODEL:
            here = folder / name
            # A name that is no longer in the new folder has been moved before a kill.
            moved = name in names and not os.path.lexists(new / name)
            if os.path.lexists(here) and not moved:
                os.rename(here, old / name)
        for name in names:
            if os.path.lexists(new / name):
                os.rename(new / name, folder / name)
        _sync(folder)
        for name in _CACHES:
            shutil.rmtree(old / name, ignore_errors=True)
        # The list goes last: without it an exchange could not be completed.
        for path in new.iterdir():
            if path.name != _LIST:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (new / _LIST).unlink()
        new.rmdir()
        # A first model has nothing before it.
        with contextlib.suppress(OSError):
            old.rmdir()
    except OSError as error:
        raise UserError(
            f"The new model in {new} cannot take its place ({error.strerror}: {error.filename}); "
            "make the folder writable and run again."
        ) from None


def _sync(path: pathlib.Path) -> None:
    """Flushes a file's content, or a folder's entries, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
