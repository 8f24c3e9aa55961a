"""Writes and reads WORKDIR/ranker.json, and opens the order of lists that --related_by names.

The walk kernels are imported only where a list needs them, so that a query by vectors alone
starts quickly.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.retrieval.saved_index import EXACT, embeddings_key

if TYPE_CHECKING:
    from pinsage_jax.ranking.ranker import Ranker
    from pinsage_jax.ranking.ranker_model import RankerModel

RANKER_FILE = "ranker.json"
_FORMAT = 3
_RANKER, _VECTORS = "ranker", "vectors"


def write_ranker(config: Config, model: RankerModel, report: dict[str, Any]) -> pathlib.Path:
    """Writes WORKDIR/ranker.json for the export that the workdir holds."""
    path = pathlib.Path(config.workdir) / RANKER_FILE
    contents = {
        "format": _FORMAT,
        "embeddings": embeddings_key(config.workdir),
        "model": model.as_json(),
        **report,
    }
    files.write_checked_json(path, contents)
    return path


def read_ranker(config: Config) -> dict[str, Any]:
    """The contents of WORKDIR/ranker.json.

    Raises:
      UserError: it is missing or damaged, or was fitted for other embeddings.
    """
    path = pathlib.Path(config.workdir) / RANKER_FILE
    if not path.exists():
        raise UserError(
            f"--related_by={config.search.related_by}: {config.workdir} holds no {RANKER_FILE}; "
            "run --mode=rank first."
        )
    saved = files.read_checked_json(path)
    if saved.get("format") != _FORMAT or saved.get("embeddings") != embeddings_key(config.workdir):
        raise UserError(
            f"{path} was fitted for other embeddings than the workdir holds, or by another version "
            "of the program; run --mode=rank again."
        )
    return saved


def ranker_is_current(config: Config) -> bool:
    """Whether WORKDIR/ranker.json is intact and of the export that the workdir holds."""
    if not (pathlib.Path(config.workdir) / RANKER_FILE).exists():
        return False
    try:
        read_ranker(config)
    except UserError:
        return False
    return True


def carry_ranker(config: Config, folder: str | pathlib.Path) -> bool:
    """Copies the ranker of config.workdir to another workdir, whose export it will order.

    Its features must mean the same there: the network is the same one, or was trained with the
    same settings.

    Returns:
      Whether config.workdir has a ranker of the export that it holds.
    """
    if not ranker_is_current(config):
        return False
    saved = read_ranker(config) | {"embeddings": embeddings_key(str(folder))}
    files.write_checked_json(pathlib.Path(folder) / RANKER_FILE, saved)
    return True


def open_ranker(
    config: Config,
    prepared: Prepared,
    vectors: np.ndarray,
    has_popularity: bool,
    threads: int,
) -> Ranker | None:
    """Opens the ranker, or the method, that --related_by names; None for a search of the vectors.

    Args:
      vectors: float32 [N, Z], the exported embeddings without --popularity_weight.
      has_popularity: whether their last coordinate is the popularity.
      threads: host threads.

    Raises:
      UserError: there is no ranker for this export, or the method cannot be combined with an
        index.
    """
    by, search = config.search.related_by, config.search
    if by == _VECTORS:
        return None
    index = f"--search={search.search}" if search.search != EXACT else ""
    if by == "auto":
        if not (pathlib.Path(config.workdir) / RANKER_FILE).exists():
            return None
        if index:
            logging.info("lists are ordered by the vectors, which %s searches", index)
            return None
        by = _RANKER
    elif index:
        raise UserError(f"--related_by={by} does not go with {index}; leave one of them out.")
    from pinsage_jax.ranking.candidates import CandidateSource
    from pinsage_jax.ranking.levels import level_at, price_table
    from pinsage_jax.ranking.ranker import Ranker
    from pinsage_jax.ranking.ranker_model import RankerModel

    model, prices = None, list[dict[str, Any]]()
    if by == _RANKER:
        try:
            saved = read_ranker(config)
        except UserError as error:
            if config.search.related_by != "auto":
                raise
            logging.warning("%s Lists are ordered by the vectors.", error)
            return None
        try:
            model = RankerModel.from_json(saved["model"])
            levels = {
                kind: level_at(found, search.new_item_price)
                for kind, found in saved["measured"].items()
            }
            if "warm" in saved["measured"]:
                prices = price_table(saved["measured"]["warm"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{config.workdir}/{RANKER_FILE} is of another version of the program; "
                "run --mode=rank again."
            ) from None
        model = dataclasses.replace(model, levels={**model.levels, **levels})
    source = CandidateSource(
        prepared.graph, prepared.link_rows, np.asarray(vectors, np.float32), config.sampling,
        threads, has_popularity,
    )  # fmt: skip
    return Ranker(source, model, by, search.popularity_weight, prices)
