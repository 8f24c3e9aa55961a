"""Where items are compared for content links: feature vectors, or words where items are text.

The singular vectors that stand for a text in the features keep its topic and lose its rare
words, and it is these that tell which few of thousands of items are nearest.  Where all
that is known of items is text, links therefore compare the words themselves.

Both spaces offer the same: `side` and `block` read rows, `cosines` compares every row of
one with every row of the other, `pairs` row by row.  The score of two rows depends on
nothing but the two.

Shapes: n and m rows, F features, K words an item.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.cpu.kernel_cache import njit


class Space(Protocol):
    """What content_links compares items in."""

    def side(self, rows: np.ndarray) -> Any:
        """Rows int [n] as one side of a comparison."""

    def block(self, rows: np.ndarray) -> Any:
        """Rows int [m] as the side that many others are compared with."""

    def cosines(self, side: Any, block: Any) -> np.ndarray:
        """float32 [n, m]."""

    def pairs(self, side: Any, other: Any) -> np.ndarray:
        """float32 [n], row i of one side with row i of the other."""


def space_of(link_rows: np.ndarray) -> Space:
    """The space of a matrix of features [N, F], or of words [N, 2K] (data/text.py)."""
    return WordSpace(link_rows) if link_rows.dtype == np.int32 else VectorSpace(link_rows)


class VectorSpace:
    """Cosines of feature vectors."""

    def __init__(self, features: np.ndarray):
        self._features = features

    def side(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, F] at unit length."""
        values = np.asarray(self._features[rows], np.float32)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.maximum(length, 1e-12)

    block = side

    def cosines(self, side: np.ndarray, block: np.ndarray) -> np.ndarray:
        """float32 [n, m]."""
        return side @ block.T

    def pairs(self, side: np.ndarray, other: np.ndarray) -> np.ndarray:
        """float32 [n]."""
        return (side * other).sum(axis=1)


class Words(NamedTuple):
    """Words of n items; a weight of 0 is no word."""

    terms: np.ndarray  # int32 [n, K]
    weights: np.ndarray  # float32 [n, K], unit rows


class _Postings(NamedTuple):
    """The same by word: entries starts[w] to starts[w + 1] are the rows that have word w."""

    starts: np.ndarray  # int32 [words + 1]
    rows: np.ndarray  # int32
    weights: np.ndarray  # float32
    size: int  # m


class WordSpace:
    """Cosines of the words of items."""

    def __init__(self, words: np.ndarray):
        """Takes int32 [N, 2K], of graph.text.top_words; may be memory-mapped."""
        self._words = words

    def side(self, rows: np.ndarray) -> Words:
        """Words at unit length."""
        terms, weights = np.split(self._words[rows], 2, axis=1)
        weights = np.ascontiguousarray(weights).view(np.float32)
        length = np.sqrt(np.square(weights).sum(axis=1, keepdims=True))
        return Words(np.ascontiguousarray(terms), weights / np.maximum(length, 1e-12))

    def block(self, rows: np.ndarray) -> _Postings:
        """The same by word."""
        terms, weights = self.side(rows)
        row, place = np.nonzero(weights)
        columns = sparse.csc_matrix(
            (weights[row, place], (row, terms[row, place])),
            shape=(len(rows), int(terms.max(initial=0)) + 1),
        )
        return _Postings(columns.indptr, columns.indices, columns.data, len(rows))

    def cosines(self, side: Words, block: _Postings) -> np.ndarray:
        """float32 [n, m]."""
        scores = np.zeros((len(side.terms), block.size), np.float32)
        _add_products(side.terms, side.weights, *block[:3], scores)
        return scores

    def pairs(self, side: Words, other: Words) -> np.ndarray:
        """float32 [n]."""
        out = np.zeros(len(side.terms), np.float32)
        _pair_products(*side, *other, out)
        return out


@njit(nogil=True, cache=True)
def _add_products(terms, weights, starts, rows, masses, scores):
    """scores[i, rows[e]] += weights[i, k] * masses[e] for every entry e of word terms[i, k]."""
    for row in range(terms.shape[0]):
        total = scores[row]
        for place in range(terms.shape[1]):
            term, weight = terms[row, place], weights[row, place]
            if weight == 0.0 or term + 1 >= starts.shape[0]:
                continue
            for entry in range(starts[term], starts[term + 1]):
                total[rows[entry]] += weight * masses[entry]


@njit(nogil=True, cache=True)
def _pair_products(terms, weights, other_terms, other_weights, out):
    """out[i]: the sum over words that row i of both sides has, of the weights' products."""
    for row in range(terms.shape[0]):
        for place in range(terms.shape[1]):
            if weights[row, place] == 0.0:
                continue
            for other in range(other_terms.shape[1]):
                if other_terms[row, other] == terms[row, place]:
                    out[row] += weights[row, place] * other_weights[row, other]
