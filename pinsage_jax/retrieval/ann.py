"""Approximate nearest neighbors by inner product, with faiss (extra `ann`).

Two kinds of index, each named KINDsize:effort:

  hnsw32:64    a navigable small-world graph (Malkov and Yashunin 2018) over the float32
               vectors, with 32 links per node; a search keeps 64 candidates (efSearch)
  ivfpq64:16   an inverted file over k-means cells whose vectors are product-quantized to
               64 bytes each (Jegou et al. 2011); a search visits 16 cells (nprobe)

Candidates that an index returns are reranked by exact inner products with the float32
vectors (for product quantization, four times as many candidates as requested).  Scores
therefore equal those of exact search; the only remaining error is a missed neighbor.

  N vectors, Q queries, d dimensions, k neighbors
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError

# Quantized scores are approximate, so OVERFETCH * k candidates are reranked exactly.
_OVERFETCH = 4
# Product quantization learns 256 centroids per subvector and needs as many vectors.
MIN_VECTORS_FOR_PQ = 256
_HNSW_EF_CONSTRUCTION = 100
_TRAINING_VECTORS_PER_CELL = 64
# With more vectors than this the nearest cell is itself found by an inverted file: to compare each
# vector with all cells would take hours.
MOST_FLAT_VECTORS = 1 << 23
_LARGE_CELLS, _LARGE_TRAINING_VECTORS_PER_CELL, _LARGE_PROBES = 1 << 13, 32, 6
_ADD_BATCH = 1 << 16
# Queries whose candidates are compared with them at once.
_RERANKED_QUERIES = 1 << 10
_SETTING_PATTERN = re.compile(r"(hnsw|ivfpq)(\d+):(\d+)")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "Indexes need faiss; install it with pip install 'pinsage-jax[ann]', "
            "or leave --search=exact."
        ) from None
    return faiss


@dataclasses.dataclass(frozen=True)
class Setting:
    """How an index is built and how thoroughly it is searched."""

    kind: str  # hnsw or ivfpq
    size: int  # hnsw: links per node; ivfpq: bytes per vector
    effort: int  # hnsw: candidates kept in a search; ivfpq: cells visited

    @property
    def index_name(self) -> str:
        """Name of the index, e.g. hnsw32; settings that differ only in effort share it."""
        return f"{self.kind}{self.size}"

    @property
    def name(self) -> str:
        """The setting as it is written in flags, e.g. hnsw32:64."""
        return f"{self.index_name}:{self.effort}"

    @classmethod
    def parse(cls, text: str, flag: str) -> Setting:
        """Parses a setting such as 'hnsw32:64'.

        Raises:
          UserError: the text is no valid setting; the message names `flag`.
        """
        found = _SETTING_PATTERN.fullmatch(text.strip())
        if found:
            setting = cls(found[1], int(found[2]), int(found[3]))
            if setting.size >= (2 if setting.kind == "hnsw" else 1) and setting.effort >= 1:
                return setting
        raise UserError(
            f"--{flag}: '{text.strip()}' is no index; write hnswM:EF (hnsw32:64, M from 2) or "
            "ivfpqB:P (ivfpq64:16)."
        )


def fit_code_size(setting: Setting, dimension: int) -> Setting:
    """Lowers the bytes per vector of an ivfpq setting to the nearest divisor of `dimension`.

    faiss cuts a vector into as many equal subvectors as there are bytes in its code.
    """
    if setting.kind == "hnsw":
        return setting
    size = max(n for n in range(1, min(setting.size, dimension) + 1) if dimension % n == 0)
    return dataclasses.replace(setting, size=size)


def build(vectors: np.ndarray, setting: Setting, seed: int, threads: int) -> Any:
    """Builds a faiss index over vectors float32 [N, d].

    Raises:
      UserError: faiss is not installed.
      ValueError: there are fewer than MIN_VECTORS_FOR_PQ vectors for product quantization.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(threads)
    count, dimension = vectors.shape
    if setting.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, setting.size, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
    else:
        if count < MIN_VECTORS_FOR_PQ:
            raise ValueError(
                f"product quantization needs {MIN_VECTORS_FOR_PQ} vectors; there are {count}"
            )
        index, sample = _inverted_file(faiss, count, dimension, setting.size)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed % (1 << 31)
            # faiss warns when a small catalog has fewer points per centroid than this.
            clustering.min_points_per_centroid = 1
        rows = np.arange(sample) * count // sample
        index.train(np.ascontiguousarray(vectors[rows], np.float32))
        if count > MOST_FLAT_VECTORS:
            _find_cells_by_index(faiss, index, seed)
    for begin in range(0, count, _ADD_BATCH):
        index.add(np.ascontiguousarray(vectors[begin : begin + _ADD_BATCH], np.float32))
    return index


def _inverted_file(faiss: Any, count: int, dimension: int, size: int) -> tuple[Any, int]:
    """An empty index of product-quantized vectors, and the number of vectors to train it with."""
    cells = max(1, min(round(4 * math.sqrt(count)), count // 40))
    sample = min(count, max(_TRAINING_VECTORS_PER_CELL * cells, 1 << 16))
    if count > MOST_FLAT_VECTORS:
        cells, sample = _LARGE_CELLS, _LARGE_CELLS * _LARGE_TRAINING_VECTORS_PER_CELL
    coarse = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(coarse, dimension, cells, size, 8, faiss.METRIC_INNER_PRODUCT)
    return index, sample


def _find_cells_by_index(faiss: Any, index: Any, seed: int) -> None:
    """Replaces the comparison with all centroids of a trained index by an inverted file of them."""
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    top = faiss.IndexFlatIP(index.d)
    cells = round(math.sqrt(index.nlist))
    quantizer = faiss.IndexIVFFlat(top, index.d, cells, faiss.METRIC_INNER_PRODUCT)
    quantizer.cp.seed = seed % (1 << 31)
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(centroids)
    quantizer.add(centroids)
    # Residuals are to the centroids, which it gives by their numbers.
    quantizer.make_direct_map()
    quantizer.nprobe = _LARGE_PROBES
    index.own_fields = False
    index.quantizer = quantizer
    # The index does not own it, so that it must not be freed before.
    index.referenced_objects = [quantizer, top]


def save(index: Any, path: pathlib.Path) -> None:
    """Writes an index to one file; index.json in the same folder keeps its checksum."""
    _faiss().write_index(index, str(path))


def load(path: pathlib.Path, checksum: str, vectors: np.ndarray) -> Any:
    """Reads an index that `save` wrote, after verifying its checksum.

    Raises:
      UserError: the file is missing or damaged, or it indexes vectors of another shape.
    """
    faiss = _faiss()
    if not path.exists() or files.checksum(path) != checksum:
        raise UserError(f"{path} is missing or damaged; run --mode=index again.")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        raise UserError(f"{path} cannot be read; run --mode=index again.") from None
    if (index.ntotal, index.d) != vectors.shape:
        raise UserError(f"{path} indexes other vectors; run --mode=index again.")
    return index


class AnnSearch:
    """Approximate top-k: an index proposes candidates, exact inner products rerank them.

    Attributes:
      setting: how the index was built and how thoroughly it is searched.
    """

    def __init__(
        self,
        index: Any,
        setting: Setting,
        vectors: np.ndarray,
        threads: int,
        popularity_weight: float = 1.0,
    ):
        """Takes the indexed vectors float32 [N, d], weighted by weigh_popularity."""
        self.setting, self._index, self._vectors = setting, index, vectors
        self._popularity_weight = popularity_weight
        self._threads = threads
        self._changed = np.empty(0, np.int64)
        if setting.kind == "hnsw":
            index.hnsw.efSearch = setting.effort
        else:
            index.nprobe = min(setting.effort, index.nlist)

    def note_changed(self, rows: np.ndarray) -> None:
        """Notes rows (int [n]) whose vectors are other ones than those in the index.

        Each of them is a candidate of every query from now on.
        """
        self._changed = np.union1d(self._changed, rows)

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Rows of the k best by the index's own scores, then changed rows; int64, padded with -1.

        Without changed rows the shape is [Q, k].
        """
        _faiss().omp_set_num_threads(self._threads)
        changed = self._changed
        if len(changed):
            # The index may propose changed rows by their old vectors.
            k = min(k + min(len(changed), k), len(self._vectors))
        if self._popularity_weight != 1.0:
            # The index holds vectors with the full popularity, so its share of the weight must
            # come from the query as well.
            queries = np.array(queries, np.float32)
            queries[:, -1] *= np.float32(math.sqrt(self._popularity_weight))
        found = self._index.search(np.ascontiguousarray(queries, np.float32), k)[1]
        if not len(changed):
            return found
        found = np.where(np.isin(found, changed), -1, found)
        return np.concatenate([found, np.tile(changed, (len(found), 1))], axis=1)

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like topk.top_k over the vectors, but the index may miss some of the best rows."""
        count = len(self._vectors)
        depth = k + int(exclude_self is not None)
        if self.setting.kind == "ivfpq":
            depth *= _OVERFETCH
        ids = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        found = self.candidates(queries, min(depth, count))
        if exclude_self is not None:
            found = np.where(found == np.asarray(exclude_self)[:, None], -1, found)
        # Ascending rows and a stable sort: of equal scores the lower row comes first.
        found.sort(axis=1)
        for begin in range(0, len(queries), _RERANKED_QUERIES):
            span = slice(begin, begin + _RERANKED_QUERIES)
            rows, some = found[span], np.asarray(queries[span], np.float32)
            vectors = self._vectors[np.maximum(rows, 0).reshape(-1)]
            exact = np.matmul(vectors.reshape(*rows.shape, -1), some[:, :, None])[:, :, 0]
            exact[rows < 0] = -np.inf
            order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            scores[span, :width] = np.take_along_axis(exact, order, axis=1)
            ids[span, :width] = np.take_along_axis(rows, order, axis=1)
        return ids, scores
