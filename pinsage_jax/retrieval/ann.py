"""Approximate nearest neighbors by inner product, with faiss (extra `ann`).

Two kinds of index, each named KINDsize:effort:

  hnsw32:64    a navigable graph (Malkov and Yashunin 2018) of 32 links a node over the
               vectors themselves; 64 candidates are held in a search
  ivfpq64:16   cells of k-means, in each 64 bytes a vector by product quantization
               (Jegou et al. 2011); 16 cells are searched

Whatever an index finds is ordered again by exact inner products with the vectors (of
product quantization four times as many as are wanted), so that scores are those of exact
search and only misses are left.

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

# Quantized scores are rough: so many times k are asked for, to be ordered exactly.
_OVERFETCH = 4
# Product quantization learns 256 centroids a part.
FEWEST_QUANTIZED = 256
_HNSW_CONSTRUCTION = 100
_TRAIN_PER_CELL = 64
_ADDED_ROWS = 1 << 16
_GRAMMAR = re.compile(r"(hnsw|ivfpq)(\d+):(\d+)")


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
    """One way to build and to search."""

    kind: str  # hnsw or ivfpq
    size: int  # links a node, or bytes a vector
    effort: int  # candidates held, or cells searched

    @property
    def built(self) -> str:
        """Name of what is built, which several efforts share."""
        return f"{self.kind}{self.size}"

    @property
    def name(self) -> str:
        """As it is written in flags."""
        return f"{self.built}:{self.effort}"

    @classmethod
    def parse(cls, text: str, flag: str) -> Setting:
        """Reads 'hnsw32:64'; UserError names the flag."""
        found = _GRAMMAR.fullmatch(text.strip())
        if found:
            setting = cls(found[1], int(found[2]), int(found[3]))
            if setting.size >= (2 if setting.kind == "hnsw" else 1) and setting.effort >= 1:
                return setting
        raise UserError(
            f"--{flag}: '{text.strip()}' is no index; write hnswM:EF (hnsw32:64, M from 2) or "
            "ivfpqB:P (ivfpq64:16)."
        )


def fitting(setting: Setting, dimension: int) -> Setting:
    """The setting with bytes a vector that divide the dimensions, as many as asked or fewer."""
    if setting.kind == "hnsw":
        return setting
    size = max(n for n in range(1, min(setting.size, dimension) + 1) if dimension % n == 0)
    return dataclasses.replace(setting, size=size)


def build(vectors: np.ndarray, setting: Setting, seed: int, threads: int) -> Any:
    """A faiss index over vectors float32 [N, d].

    Raises:
      ValueError: fewer than FEWEST_QUANTIZED vectors for product quantization.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(threads)
    count, dimension = vectors.shape
    if setting.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, setting.size, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_CONSTRUCTION
    else:
        if count < FEWEST_QUANTIZED:
            raise ValueError(f"{count} vectors")
        cells = max(1, min(round(4 * math.sqrt(count)), count // 40))
        coarse = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFPQ(
            coarse, dimension, cells, setting.size, 8, faiss.METRIC_INNER_PRODUCT
        )
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed % (1 << 31)
            # What a small catalog has must do; faiss would warn.
            clustering.min_points_per_centroid = 1
        most = max(_TRAIN_PER_CELL * cells, 1 << 16)
        rows = np.arange(min(count, most)) * count // min(count, most)
        index.train(np.ascontiguousarray(vectors[rows], np.float32))
    for begin in range(0, count, _ADDED_ROWS):
        index.add(np.ascontiguousarray(vectors[begin : begin + _ADDED_ROWS], np.float32))
    return index


def save(index: Any, path: pathlib.Path) -> None:
    """Writes an index; for a checksum see the folder's index.json."""
    _faiss().write_index(index, str(path))


def load(path: pathlib.Path, checksum: str, vectors: np.ndarray) -> Any:
    """Reads an index that `save` wrote, after comparing its checksum.

    Raises:
      UserError: it is missing, damaged or not of these vectors.
    """
    faiss = _faiss()
    if not path.exists() or files.checksum(path) != checksum:
        raise UserError(f"{path} is missing or damaged; run --mode=index again.")
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        raise UserError(f"{path} cannot be read; run --mode=index again.") from None
    if (index.ntotal, index.d) != vectors.shape:
        raise UserError(f"{path} is of other vectors; run --mode=index again.")
    return index


class AnnSearch:
    """Searches by an index and orders what it finds exactly.

    Attributes:
      setting: the one in use.
    """

    def __init__(self, index: Any, setting: Setting, vectors: np.ndarray, threads: int):
        """Takes the vectors float32 [N, d] that the index is of."""
        self.setting, self._index, self._vectors = setting, index, vectors
        self._threads = threads
        if setting.kind == "hnsw":
            index.hnsw.efSearch = setting.effort
        else:
            index.nprobe = min(setting.effort, index.nlist)

    def raw(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The index's own k best, int64 [Q, k], -1 padded."""
        _faiss().omp_set_num_threads(self._threads)
        return self._index.search(np.ascontiguousarray(queries, np.float32), k)[1]

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As topk.top_k over the vectors, but some of the best may be missed."""
        count = len(self._vectors)
        wanted = k + int(exclude_self is not None)
        if self.setting.kind == "ivfpq":
            wanted *= _OVERFETCH
        found = self.raw(queries, min(wanted, count))
        ids = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, near in enumerate(found):
            near = near[near >= 0]
            if exclude_self is not None:
                near = near[near != exclude_self[row]]
            # In order of rows, so that equal scores prefer the lower one.
            near = np.sort(near)
            exact = self._vectors[near] @ np.asarray(queries[row], np.float32)
            order = np.argsort(-exact, kind="stable")[:k]
            ids[row, : len(order)], scores[row, : len(order)] = near[order], exact[order]
        return ids, scores
