"""Builds indexes and measures them, so that one is chosen by numbers.

WORKDIR/index/
  hnsw32.faiss ...  indexes, each for several efforts of search
  index.json        what each setting finds and costs; a checksum per file

Measured for a thousand queries that are items, evenly spaced: recall@10 against exact
search; the time of one query alone on one thread, its median and 99th percentile; how
long building took and the bytes of the file.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.core.text_table import aligned
from pinsage_jax.export import writer
from pinsage_jax.retrieval import ann
from pinsage_jax.retrieval.ann import AnnSearch, Setting
from pinsage_jax.retrieval.export_quality import NEIGHBORS, shared_share, spread_rows
from pinsage_jax.retrieval.topk import top_k

FOLDER, TABLE = "index", "index.json"
EXACT = "exact"
# Single queries by exact search may take seconds each.
_MOST_SECONDS = 10.0
_FEWEST_TIMED = 5


def build_indexes(config: Config, vectors: np.ndarray, threads: int) -> dict[str, Any]:
    """Builds what --index_settings names over vectors float32 [N, d] into WORKDIR/index.

    Returns:
      What index.json holds.

    Raises:
      UserError: faiss is not installed or a setting cannot be read.
    """
    dimension = vectors.shape[1]
    texts = [text for text in config.search.index_settings.split(",") if text.strip()]
    wanted = [ann.fitting(Setting.parse(text, "index_settings"), dimension) for text in texts]
    wanted = list(dict.fromkeys(wanted))
    if len(vectors) < ann.FEWEST_QUANTIZED:
        if left_out := [setting.name for setting in wanted if setting.kind == "ivfpq"]:
            logging.warning(
                "index: %s left out: product quantization needs %d items.",
                ", ".join(left_out), ann.FEWEST_QUANTIZED,
            )  # fmt: skip
        wanted = [setting for setting in wanted if setting.kind != "ivfpq"]
    rows = spread_rows(len(vectors))
    expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]

    def exactly(row: np.ndarray) -> None:
        top_k(vectors[row], vectors, NEIGHBORS, row)

    table = [{"setting": EXACT, "recall@10": 1.0, **_latency(exactly, rows)}]
    folder = pathlib.Path(config.workdir) / FOLDER
    with files.atomic_folder(folder) as temporary:
        names = []
        for built in dict.fromkeys(setting.built for setting in wanted):
            alike = [setting for setting in wanted if setting.built == built]
            raise_if_stopped()
            start = time.perf_counter()
            index = ann.build(vectors, alike[0], config.seed, threads)
            seconds = time.perf_counter() - start
            names.append(f"{built}.faiss")
            ann.save(index, temporary / names[-1])
            for setting in alike:
                search = AnnSearch(index, setting, vectors, threads)
                table.append(
                    {
                        "setting": setting.name,
                        **_recall(search, vectors, rows, expected),
                        **_latency(_one_by_one(index, setting, vectors), rows),
                        "build_seconds": seconds,
                        "bytes": (temporary / names[-1]).stat().st_size,
                    }
                )
                logging.info("index: %s measured", setting.name)
        result = {
            "format": 1,
            "embeddings": _embeddings_key(config.workdir),
            "items": len(vectors),
            "dimension": dimension,
            "queries": len(rows),
            "threads": {"build": threads, "latency": 1},
            "settings": table,
            "files": files.checksums(temporary, names),
        }
        files.write_json(temporary / TABLE, result)
    print(shown(table))
    return result


def open_search(config: Config, vectors: np.ndarray, threads: int) -> AnnSearch | None:
    """The index that --search names, checked; None for exact search.

    Raises:
      UserError: there is no such index, or it is damaged or of other embeddings.
    """
    name = config.search.search
    if name == EXACT:
        return None
    setting = ann.fitting(Setting.parse(name, "search"), vectors.shape[1])
    folder = pathlib.Path(config.workdir) / FOLDER
    if not (folder / TABLE).exists():
        raise UserError(f"--search={name}: {folder} holds no index; run --mode=index first.")
    about = files.read_json(folder / TABLE)
    if about.get("embeddings") != _embeddings_key(config.workdir):
        raise UserError(f"{folder} is of other embeddings; run --mode=index again.")
    file = f"{setting.built}.faiss"
    if file not in about["files"]:
        there = ", ".join(sorted(pathlib.Path(name).stem for name in about["files"])) or "none"
        raise UserError(
            f"--search={name}: {folder} has no such index (built: {there}); "
            "run --mode=index with it among --index_settings."
        )
    index = ann.load(folder / file, about["files"][file], vectors)
    return AnnSearch(index, setting, vectors, threads)


def shown(table: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    rows = [
        ["search", "recall@10", "index alone", "p50 ms", "p99 ms", "build s", "MiB"],
    ]
    for line in table:
        rows.append(
            [
                line["setting"],
                f"{line['recall@10']:.4f}",
                f"{line['recall@10_alone']:.4f}" if "recall@10_alone" in line else "",
                f"{line['p50_ms']:.3f}",
                f"{line['p99_ms']:.3f}",
                f"{line['build_seconds']:.1f}" if "build_seconds" in line else "",
                f"{line['bytes'] / 2**20:.1f}" if "bytes" in line else "",
            ]
        )
    return "\n".join(aligned(rows))


def _recall(search: AnnSearch, vectors, rows, expected) -> dict[str, float]:
    """With the exact order of what was found, and by the index's own order alone."""
    ordered = search.top_k(vectors[rows], NEIGHBORS, rows)[0]
    alone = search.raw(vectors[rows], min(NEIGHBORS + 1, len(vectors)))
    # The query itself is taken out, then the last one too many.
    last = (alone == rows[:, None]).argsort(axis=1, kind="stable")[:, :NEIGHBORS]
    alone = np.take_along_axis(alone, last, axis=1)
    return {
        "recall@10": float(shared_share(ordered, expected).mean()),
        "recall@10_alone": float(shared_share(alone, expected).mean()),
    }


def _one_by_one(index: Any, setting: Setting, vectors: np.ndarray) -> Callable:
    search = AnnSearch(index, setting, vectors, threads=1)
    return lambda row: search.top_k(vectors[row], NEIGHBORS, row)


def _latency(ask: Callable[[np.ndarray], Any], rows: np.ndarray) -> dict[str, Any]:
    """Milliseconds of single queries."""
    ask(rows[:1])
    taken, begin = list[float](), time.perf_counter()
    for row in rows:
        if len(taken) >= _FEWEST_TIMED and time.perf_counter() - begin > _MOST_SECONDS:
            break
        start = time.perf_counter()
        ask(np.array([row]))
        taken.append(1000.0 * (time.perf_counter() - start))
    taken = taken or [0.0]
    return {
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "timed": len(taken),
    }


def _embeddings_key(workdir: str) -> str:
    manifest = files.read_json(pathlib.Path(workdir) / writer.FOLDER / writer.MANIFEST)
    return files.fingerprint(manifest["files"])
