"""Similarity of items for content links: cosines of feature vectors or of words.

If the items' only content is text, the features hold its singular vectors, which keep the
topic of a text but lose its rare words.  Rare words identify the most similar of thousands of
items, so in this case content links compare the words themselves.

Both spaces encode rows as queries or as candidates.  `cosines` compares every query with
every candidate, `paired_cosines` row i of one set of queries with row i of another.  The
score of two rows depends on these two rows alone.

Axis letters: N items, n and m rows, F features, K words per item.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.cpu.kernel_cache import njit


class LinkSpace(Protocol):
    """A space in which content_links compares items."""

    def encode_queries(self, rows: np.ndarray) -> Any:
        """Encodes rows (int [n]) that are compared with many candidates."""

    def encode_candidates(self, rows: np.ndarray) -> Any:
        """Encodes rows (int [m]) that many queries are compared with."""

    def cosines(self, queries: Any, candidates: Any) -> np.ndarray:
        """Cosines of all queries with all candidates, float32 [n, m]."""

    def paired_cosines(self, queries: Any, others: Any) -> np.ndarray:
        """Cosines of query i with query i of `others`, float32 [n]."""


def make_space(link_rows: np.ndarray) -> LinkSpace:
    """The space of features [N, F], or of words int32 [N, 2K] (data/text.py)."""
    return WordSpace(link_rows) if link_rows.dtype == np.int32 else VectorSpace(link_rows)


class VectorSpace:
    """Cosines of feature vectors."""

    def __init__(self, features: np.ndarray):
        """Takes features [N, F]; they may be memory-mapped."""
        self._features = features

    def encode_queries(self, rows: np.ndarray) -> np.ndarray:
        """Feature vectors of unit length, float32 [n, F]."""
        values = np.asarray(self._features[rows], np.float32)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.maximum(length, 1e-12)

    encode_candidates = encode_queries

    def cosines(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 [n, m]; see LinkSpace."""
        return queries @ candidates.T

    def paired_cosines(self, queries: np.ndarray, others: np.ndarray) -> np.ndarray:
        """float32 [n]; see LinkSpace."""
        return (queries * others).sum(axis=1)


class Words(NamedTuple):
    """The words of n items; an entry with weight 0 is padding."""

    terms: np.ndarray  # int32 [n, K]
    weights: np.ndarray  # float32 [n, K], rows of unit length


class _Postings(NamedTuple):
    """An inverted index of m rows: entries starts[w] to starts[w + 1] hold word w."""

    starts: np.ndarray  # int32 [words + 1]
    rows: np.ndarray  # int32 [entries]
    weights: np.ndarray  # float32 [entries]
    size: int  # m


class WordSpace:
    """Cosines of the items' TF-IDF words."""

    def __init__(self, words: np.ndarray):
        """Takes int32 [N, 2K], the output of text.top_words; may be memory-mapped."""
        self._words = words

    def encode_queries(self, rows: np.ndarray) -> Words:
        """The words of rows, scaled to unit length."""
        terms, weights = np.split(self._words[rows], 2, axis=1)
        weights = np.ascontiguousarray(weights).view(np.float32)
        length = np.sqrt(np.square(weights).sum(axis=1, keepdims=True))
        return Words(np.ascontiguousarray(terms), weights / np.maximum(length, 1e-12))

    def encode_candidates(self, rows: np.ndarray) -> _Postings:
        """The words of rows, scaled to unit length, as an inverted index."""
        terms, weights = self.encode_queries(rows)
        row, column = np.nonzero(weights)
        by_term = sparse.csc_matrix(
            (weights[row, column], (row, terms[row, column])),
            shape=(len(rows), int(terms.max(initial=0)) + 1),
        )
        return _Postings(by_term.indptr, by_term.indices, by_term.data, len(rows))

    def cosines(self, queries: Words, candidates: _Postings) -> np.ndarray:
        """float32 [n, m]; see LinkSpace."""
        scores = np.zeros((len(queries.terms), candidates.size), np.float32)
        _add_products(queries.terms, queries.weights, *candidates[:3], scores)
        return scores

    def paired_cosines(self, queries: Words, others: Words) -> np.ndarray:
        """float32 [n]; see LinkSpace."""
        out = np.zeros(len(queries.terms), np.float32)
        _paired_products(*queries, *others, out)
        return out


@njit(nogil=True, cache=True)
def _add_products(terms, weights, starts, rows, entry_weights, scores):
    """Adds weights[i, k] * entry_weights[e] to scores[i, rows[e]] for all entries e of a word.

    Args:
      terms: int32 [n, K], weights: float32 [n, K]; the words of the queries.
      starts, rows, entry_weights: the first three arrays of _Postings.
      scores: float32 [n, m] output.
    """
    for row in range(terms.shape[0]):
        total = scores[row]
        for column in range(terms.shape[1]):
            term, weight = terms[row, column], weights[row, column]
            if weight == 0.0 or term + 1 >= starts.shape[0]:
                continue
            for entry in range(starts[term], starts[term + 1]):
                total[rows[entry]] += weight * entry_weights[entry]


@njit(nogil=True, cache=True)
def _paired_products(terms, weights, other_terms, other_weights, out):
    """out[i] = sum of the products of the weights of words that both rows i hold.

    Args:
      terms, other_terms: int32 [n, K]; weights, other_weights: float32 [n, K].
      out: float32 [n] output, zeros.
    """
    for row in range(terms.shape[0]):
        for column in range(terms.shape[1]):
            if weights[row, column] == 0.0:
                continue
            for other in range(other_terms.shape[1]):
                if other_terms[row, other] == terms[row, column]:
                    out[row] += weights[row, column] * other_weights[row, other]
