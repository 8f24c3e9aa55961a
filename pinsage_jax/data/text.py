"""Text to vectors: TF-IDF, then a truncated SVD (latent semantic analysis).

The fitted transform is kept as plain JSON and ``.npy`` files, never a pickle:

  text_terms.json      the terms in order of their index
  text_idf.npy         float32 [terms]
  text_components.npy  float32 [width, terms]
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from pinsage_jax.core import files

MAX_FITTED_ROWS = 200_000
FILE_NAMES = ("text_terms.json", "text_idf.npy", "text_components.npy")
_SEED = 0
_ROWS_AT_ONCE = 4096


class TextTransform:
    """A fitted transform from documents to unit vectors."""

    def __init__(self, terms: Sequence[str], idf: np.ndarray, components: np.ndarray):
        """Takes terms, idf float32 [terms] and components float32 [width, terms]."""
        self._terms = list(terms)
        self._idf = np.asarray(idf, np.float32)
        self._components = np.asarray(components, np.float32)
        self._projection = np.ascontiguousarray(self._components.T)
        self._vectorizer = None
        if self._terms:
            vocabulary = {term: index for index, term in enumerate(self._terms)}
            self._vectorizer = _vectorizer(vocabulary=vocabulary)
            self._vectorizer.idf_ = self._idf

    @property
    def width(self) -> int:
        """Numbers per document."""
        return self._components.shape[0]

    @property
    def terms(self) -> int:
        """Words that it knows."""
        return len(self._terms)

    def transform(self, documents: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [documents, width]; a document without a known term is zero."""
        out = np.zeros((len(documents), self.width), np.float32)
        if self.width == 0:
            return out
        assert self._vectorizer is not None, "there are terms where there is a width"
        for start in range(0, len(documents), _ROWS_AT_ONCE):
            block = documents[start : start + _ROWS_AT_ONCE]
            out[start : start + len(block)] = self._vectorizer.transform(block) @ self._projection
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        return np.divide(out, norms, out=out, where=norms > 0)

    def words(self, documents: Sequence[str], size: int) -> np.ndarray:
        """The `size` words of most weight of every document, as `heaviest_words`."""
        assert self._vectorizer is not None, "a transform without terms has no words"
        out = np.zeros((len(documents), 2 * size), np.int32)
        for start in range(0, len(documents), _ROWS_AT_ONCE):
            block = self._vectorizer.transform(documents[start : start + _ROWS_AT_ONCE])
            packed = heaviest_words(block.indptr, block.indices, block.data, size)
            out[start : start + len(packed)] = packed
        return out

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the three files of the module docstring."""
        folder = pathlib.Path(folder)
        files.write_json(folder / FILE_NAMES[0], self._terms)
        files.write_array(folder / FILE_NAMES[1], self._idf)
        files.write_array(folder / FILE_NAMES[2], self._components)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> TextTransform:
        """Opens a saved transform; UserError if a file is missing or damaged."""
        folder = pathlib.Path(folder)
        return cls(
            files.read_json(folder / FILE_NAMES[0]),
            files.read_array(folder / FILE_NAMES[1], mmap=False),
            files.read_array(folder / FILE_NAMES[2], mmap=False),
        )


def heaviest_words(
    indptr: np.ndarray, terms: np.ndarray, weights: np.ndarray, size: int
) -> np.ndarray:
    """The heaviest words of every row of a sparse matrix.

    Args:
      indptr, terms, weights: rows compressed as in scipy.sparse.csr_matrix.
      size: K words a row; of equal ones those of lower number.

    Returns:
      int32 [n, 2K]: K words by number, and the bits of their float32 weights; 0 for none.
    """
    counts = np.diff(indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((terms, -weights, row))
    place = np.arange(len(order)) - np.repeat(indptr[:-1], counts)
    kept = order[place < size]
    kept = kept[np.lexsort((terms[kept], row[kept]))]
    first = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(np.minimum(counts, size), out=first[1:])
    column = np.arange(len(kept)) - first[row[kept]]
    out = np.zeros((len(counts), 2 * size), np.int32)
    out[row[kept], column] = terms[kept]
    out[row[kept], size + column] = weights[kept].astype(np.float32).view(np.int32)
    return out


def fit_text(
    documents: Sequence[str], width: int, vocabulary: int, min_df: int, name: str
) -> TextTransform:
    """Fits the transform on documents; those that are empty are left out.

    A vocabulary or a set of documents too small for `width` gives fewer dimensions,
    which is logged.

    Args:
      documents: at most MAX_FITTED_ROWS of them.
      width: wanted dimensions.
      vocabulary: most frequent terms kept.
      min_df: a term must occur in this many documents.
      name: what the text is called in log lines.
    """
    documents = [document for document in documents if document.strip()]
    matrix = None
    for least in sorted({min(min_df, max(len(documents), 1)), 1}, reverse=True):
        vectorizer = _vectorizer(max_features=vocabulary, min_df=least)
        try:
            matrix = vectorizer.fit_transform(documents) if documents else None
            break
        except ValueError as error:
            # scikit-learn has no other way to say that no term is left.
            if "vocabulary" not in str(error) and "no terms remain" not in str(error):
                raise
    if matrix is None:
        logging.warning("%s holds no words; it gives no features.", name)
        return TextTransform([], np.empty(0, np.float32), np.empty((0, 0), np.float32))
    if least < min_df:
        logging.warning("%s: --text_min_df=%d leaves no term, so 1 is used.", name, min_df)
    terms = vectorizer.get_feature_names_out().tolist()
    fitted = len(terms) if len(terms) <= width else min(width, matrix.shape[0])
    if fitted < width:
        logging.warning(
            "%s has %d terms in %d items, so its vectors have %d dimensions instead of %d.",
            name, len(terms), matrix.shape[0], fitted, width,
        )  # fmt: skip
    if fitted == len(terms):
        # Nothing to reduce: rotating the terms would change no inner product.
        components = np.eye(len(terms), dtype=np.float32)
    else:
        svd = TruncatedSVD(fitted, random_state=_SEED).fit(matrix)
        components = svd.components_.astype(np.float32)
    return TextTransform(terms, vectorizer.idf_, components)


def _vectorizer(**settings) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **settings)
