"""Writes the export of one store as a folder, whole, and checks what a store holds.

WORKDIR/stores/STORE, or --export_folder:
  the files of the store     see lance_table.py, pgvector_copy.py, qdrant_points.py,
                             opensearch_bulk.py, milvus_import.py, redis_commands.py, and
                             hub/repository.py
  canary.json                see canary.py
  export.json                the program, the run, the columns and checksums
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import STORES
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.version import __version__
from pinsage_jax.export import writer as embeddings
from pinsage_jax.retrieval.saved_index import embeddings_key
from pinsage_jax.stores import (
    dumps,
    lance_table,
    milvus_import,
    opensearch_bulk,
    pgvector_copy,
    qdrant_points,
    redis_commands,
)
from pinsage_jax.stores.canary import (
    FILE,
    NEIGHBORS,
    QUERIES,
    canary,
    canary_rows,
    compare,
    neighbors_of,
)
from pinsage_jax.stores.hub import repository
from pinsage_jax.stores.hub.card import FILE as CARD
from pinsage_jax.stores.hub.card import Facts, card
from pinsage_jax.stores.hub.repository import ENCODER
from pinsage_jax.stores.rows import StoreRows

FOLDER = "stores"
_FORMAT = 1
# By --to: functions of the rows, the name of the table and the folder, which return how to go on.
WRITERS: dict[str, Callable[[StoreRows, str, pathlib.Path], str]] = {
    "lancedb": lance_table.write,
    "pgvector": pgvector_copy.write,
    "qdrant": qdrant_points.write,
    "milvus": milvus_import.write,
    "opensearch": opensearch_bulk.write_opensearch,
    "elasticsearch": opensearch_bulk.write_elasticsearch,
    "redis": redis_commands.write,
    "huggingface": repository.write,
}
assert tuple(WRITERS) == STORES


def version_of(workdir: str, popularity_weight: float = 1.0) -> str:
    """Names the vectors of a workdir: PARAMETERS-EXPORT.

    The first part is the checksum of the parameters, the second that of the exported vectors,
    which differs too where the same parameters were exported in another way.
    """
    manifest = files.read_json(pathlib.Path(workdir) / embeddings.FOLDER / embeddings.MANIFEST)
    version = f"{manifest.get('parameters') or 'unknown'}-{embeddings_key(workdir)}"
    return version if popularity_weight == 1.0 else f"{version}-popularity{popularity_weight:g}"


def folder_of(config: Config) -> pathlib.Path:
    """The folder that --to writes."""
    settings = config.vector_store
    if settings.export_folder:
        return pathlib.Path(settings.export_folder).expanduser()
    return pathlib.Path(config.workdir) / FOLDER / settings.to


def write_store(
    config: Config, items: ItemColumns, vectors: np.ndarray, facts: Facts | None = None
) -> dict[str, Any]:
    """Writes the export for --to.

    Args:
      items: ids and columns of the catalog.
      vectors: embeddings float32 [N, Z], weighted by --popularity_weight.
      facts: what the card of a model says; None: there is none.

    Returns:
      The contents of export.json.

    Raises:
      UserError: the folder holds what this program did not write, or the store cannot hold
        these vectors or columns.
    """
    settings = config.vector_store
    folder = folder_of(config)
    _refuse_strangers(folder)
    version = version_of(config.workdir, config.search.popularity_weight)
    rows = StoreRows.of(items, vectors, settings.export_columns, version, settings.unit_length)
    with files.atomic_folder(folder) as temporary:
        how = WRITERS[settings.to](rows, settings.export_table, temporary)
        files.write_json(temporary / FILE, canary(rows))
        result: dict[str, Any] = {
            "format": _FORMAT,
            "program": f"pinsage_jax {__version__}",
            "store": settings.to,
            "table": settings.export_table,
            "model_version": version,
            "items": len(rows),
            "dimension": rows.dimension,
            "metric": "cosine" if rows.by_cosine else "inner product",
            "radius": rows.radius,
            "columns": list(rows.columns),
        }
        if facts is not None:
            (temporary / CARD).write_text(card(facts, result), encoding="utf-8")
            if facts.has_encoder:
                shutil.copytree(pathlib.Path(config.workdir) / ENCODER, temporary / ENCODER)
        names = sorted(
            str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()
        )
        result["files"] = files.checksums(temporary, names)
        files.write_json(temporary / dumps.MANIFEST, result)
    logging.info(
        "export: %d items of version %s in %s; load them: %s",
        len(rows), version, folder, how.replace("{}", str(folder)),
    )  # fmt: skip
    return result


def _refuse_strangers(folder: pathlib.Path) -> None:
    """Raises UserError if a folder holds what this program did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --export_folder.")
    about = dumps.export_at(folder)
    own = {pathlib.Path(name).parts[0] for name in about["files"]} if about else set()
    for path in sorted(folder.iterdir()):
        if path.name not in own | ({dumps.MANIFEST} if about else set()):
            raise UserError(
                f"{folder} holds {path.name}, which --mode=export did not write, and would be "
                "replaced as a whole; name another folder with --export_folder."
            )


def check_store(config: Config, items: ItemColumns, vectors: np.ndarray) -> str:
    """Compares what --check names with this model; arguments as of write_store.

    Returns:
      A sentence that says what agrees, which is printed too.

    Raises:
      UserError: something differs, or nothing can be read.
    """
    settings = config.vector_store
    path = pathlib.Path(settings.check).expanduser()
    held = dumps.read(path, settings.export_table)
    version = version_of(config.workdir, config.search.popularity_weight)
    unit = settings.unit_length or held.vectors.shape[1] == vectors.shape[1] + 1
    rows = StoreRows.of(items, vectors, "", version, unit)
    sentence = compare(rows, held)
    if (lance := dumps.lance_at(path, settings.export_table)) is not None:
        sentence += f" {_search_lance(rows, *lance)}"
    print(sentence)
    return sentence


def _search_lance(rows: StoreRows, folder: pathlib.Path, table: str) -> str:
    """Asks a table of LanceDB the queries of the canary."""
    asked = canary_rows(len(rows), QUERIES)
    expected = neighbors_of(rows, asked)
    found = lance_table.search(
        folder, table, rows.queries(asked), min(NEIGHBORS, len(rows)), rows.by_cosine
    )
    shares = []
    for nearest, wanted in zip(found, expected, strict=True):
        names = {rows.ids[int(item)].as_py() for item in wanted}
        shares.append(len(names & set(nearest)) / len(names))
    return f"Its search finds {np.mean(shares):.1%} of the {NEIGHBORS} nearest items."
