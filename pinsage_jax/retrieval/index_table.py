"""Builds approximate indexes and measures the recall and latency of each setting.

WORKDIR/index/
  hnsw32.faiss ...  one file per index; settings that differ only in effort share it
  item_ids.parquet  position int64, item_id: the labels that faiss returns are positions
  index.json        recall, latency and size of each setting; a checksum per file

The queries are up to a thousand items, evenly spaced over the catalog.  Measured are
recall@10 against exact search, the latency of a single query on one thread (median and
99th percentile, in milliseconds), the build time in seconds and the file size in bytes.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.core.text_table import aligned, terminal_width
from pinsage_jax.export import writer
from pinsage_jax.export.reader import open_export
from pinsage_jax.retrieval import ann
from pinsage_jax.retrieval.ann import AnnSearch, Setting
from pinsage_jax.retrieval.export_quality import (
    NEIGHBORS,
    evenly_spaced_rows,
    recall_per_query,
)
from pinsage_jax.retrieval.saved_index import EXACT, FOLDER, IDS, TABLE, embeddings_key
from pinsage_jax.retrieval.topk import top_k

# A single query by exact search may take seconds, so timing stops after this long.
_MAX_TIMING_SECONDS = 10.0
_MIN_TIMED_QUERIES = 5


def build_indexes(config: Config, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    """Builds the indexes of --index_settings over vectors float32 [N, d] into WORKDIR/index.

    Returns:
      The contents of index.json.

    Raises:
      UserError: faiss is not installed or a setting cannot be parsed.
    """
    dimension = vectors.shape[1]
    texts = [text for text in config.search.index_settings.split(",") if text.strip()]
    settings = [
        ann.fit_code_size(Setting.parse(text, "index_settings"), dimension) for text in texts
    ]
    settings = list(dict.fromkeys(settings))
    if len(vectors) < ann.MIN_VECTORS_FOR_PQ:
        if skipped := [setting.name for setting in settings if setting.kind == "ivfpq"]:
            logging.warning(
                "index: %s skipped: product quantization needs at least %d items.",
                ", ".join(skipped), ann.MIN_VECTORS_FOR_PQ,
            )  # fmt: skip
        settings = [setting for setting in settings if setting.kind != "ivfpq"]
    rows = evenly_spaced_rows(len(vectors))
    expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]

    def exact_search(row: np.ndarray) -> None:
        top_k(vectors[row], vectors, NEIGHBORS, row)

    table = [{"setting": EXACT, "recall@10": 1.0, **_latency(exact_search, rows)}]
    folder = pathlib.Path(config.workdir) / FOLDER
    with files.atomic_folder(folder) as temporary:
        names = []
        for index_name in dict.fromkeys(setting.index_name for setting in settings):
            of_index = [setting for setting in settings if setting.index_name == index_name]
            raise_if_stopped()
            start = time.perf_counter()
            index = ann.build(vectors, of_index[0], config.seed, threads)
            seconds = time.perf_counter() - start
            names.append(f"{index_name}.faiss")
            ann.save(index, temporary / names[-1])
            for setting in of_index:
                search = AnnSearch(index, setting, vectors, threads)
                table.append(
                    {
                        "setting": setting.name,
                        **_recall(search, vectors, rows, expected),
                        **_latency(_single_query_search(index, setting, vectors), rows),
                        "build_seconds": seconds,
                        "bytes": (temporary / names[-1]).stat().st_size,
                    }
                )
                logging.info("index: %s measured", setting.name)
        ids = open_export(pathlib.Path(config.workdir) / writer.FOLDER).ids().ids
        positions = pa.array(np.arange(len(vectors)), pa.int64())
        pq.write_table(pa.table({"position": positions, "item_id": ids}), temporary / IDS)
        result = {
            "format": 1,
            "embeddings": embeddings_key(config.workdir),
            "items": len(vectors),
            "dimension": dimension,
            "queries": len(rows),
            "threads": {"build": threads, "latency": 1},
            "settings": table,
            "files": files.checksums(temporary, names),
            "ids": files.checksums(temporary, [IDS]),
        }
        files.write_json(temporary / TABLE, result)
    print(format_table(table, terminal_width()))
    return result


def format_table(table: list[dict[str, Any]], width: int | None = None) -> str:
    """The measured settings as an aligned text table, one line per setting.

    Args:
      width: most characters of a line; None: no limit.
    """
    rows = [
        ["search", "recall@10", "unreranked", "p50 ms", "p99 ms", "build s", "MiB"],
    ]
    for line in table:
        rows.append(
            [
                line["setting"],
                f"{line['recall@10']:.4f}",
                f"{line['recall@10_unreranked']:.4f}" if "recall@10_unreranked" in line else "",
                f"{line['p50_ms']:.3f}",
                f"{line['p99_ms']:.3f}",
                f"{line['build_seconds']:.1f}" if "build_seconds" in line else "",
                f"{line['bytes'] / 2**20:.1f}" if "bytes" in line else "",
            ]
        )
    return "\n".join(aligned(rows, width))


def _recall(search: AnnSearch, vectors, rows, expected) -> dict[str, float]:
    """recall@10 after exact reranking, and in the order of the index's own scores."""
    reranked = search.top_k(vectors[rows], NEIGHBORS, rows)[0]
    unreranked = search.candidates(vectors[rows], min(NEIGHBORS + 1, len(vectors)))
    # The query itself moves to the end; then the first NEIGHBORS are kept.
    order = (unreranked == rows[:, None]).argsort(axis=1, kind="stable")[:, :NEIGHBORS]
    unreranked = np.take_along_axis(unreranked, order, axis=1)
    return {
        "recall@10": float(recall_per_query(reranked, expected).mean()),
        "recall@10_unreranked": float(recall_per_query(unreranked, expected).mean()),
    }


def _single_query_search(index: Any, setting: Setting, vectors: np.ndarray) -> Callable:
    search = AnnSearch(index, setting, vectors, threads=1)
    return lambda row: search.top_k(vectors[row], NEIGHBORS, row)


def _latency(search: Callable[[np.ndarray], Any], rows: np.ndarray) -> dict[str, Any]:
    """Median and 99th percentile of the latency of single queries, in milliseconds."""
    search(rows[:1])
    latencies, begin = list[float](), time.perf_counter()
    for row in rows:
        elapsed = time.perf_counter() - begin
        if len(latencies) >= _MIN_TIMED_QUERIES and elapsed > _MAX_TIMING_SECONDS:
            break
        start = time.perf_counter()
        search(np.array([row]))
        latencies.append(1000.0 * (time.perf_counter() - start))
    latencies = latencies or [0.0]
    return {
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "timed_queries": len(latencies),
    }
