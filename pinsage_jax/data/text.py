"""Converts text to vectors by TF-IDF and a truncated SVD (latent semantic analysis).

The terms are words, and pairs or triples of characters in scripts that do not separate words
(`terms_of`).

The fitted transform is saved as JSON and ``.npy`` files, never as a pickle:

  text_terms.json      the terms in order of their index
  text_idf.npy         float32 [terms]
  text_components.npy  float32 [width, terms]
"""

from __future__ import annotations

import functools
import html
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from pinsage_jax.core import files

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_FITTED_ROWS = 200_000
FILE_NAMES = ("text_terms.json", "text_idf.npy", "text_components.npy")
_SEED = 0
_BLOCK_ROWS = 4096
_WORD = re.compile(r"\w\w+")
# Names such as C++ and F#, of which no word is left.
_SYMBOL_NAME = re.compile(r"(?<!\w)\w(?:\+\+|#)")
# Scripts without blanks between words: Han and Kana, whose words have about two
# characters, and Thai, Lao, Tibetan, Burmese and Khmer, whose words have more.
_HAN_KANA = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
_HAN_KANA += "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_SOUTHEAST = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
_HANGUL = re.compile("[\uac00-\ud7a3]{3,}")
_RUN = re.compile(f"([{_HAN_KANA}]+)|([{_SOUTHEAST}]+)|([^{_HAN_KANA}{_SOUTHEAST}]+)")


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
        """Number of dimensions of a vector."""
        return self._components.shape[0]

    @property
    def terms(self) -> int:
        """Number of terms in the vocabulary."""
        return len(self._terms)

    def transform(self, documents: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [documents, width]; zeros for a document without a known term."""
        return self.vectors_and_words(documents, 0)[0]

    def vectors_and_words(
        self, documents: Sequence[str], size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of `transform`, and the words of largest weight, from one TF-IDF matrix.

        Args:
          documents: n texts.
          size: K, the number of words of each.

        Returns:
          float32 [n, width], and int32 [n, 2K] as of `top_words`.
        """
        vectors = np.zeros((len(documents), self.width), np.float32)
        words = np.zeros((len(documents), 2 * size), np.int32)
        if self._vectorizer is None:
            return vectors, words
        for start in range(0, len(documents), _BLOCK_ROWS):
            block = self._vectorizer.transform(documents[start : start + _BLOCK_ROWS])
            part = slice(start, start + block.shape[0])
            vectors[part] = block @ self._projection
            if size:
                words[part] = top_words(block.indptr, block.indices, block.data, size)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=vectors, where=norms > 0), words

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the three files that the module docstring lists."""
        folder = pathlib.Path(folder)
        files.write_json(folder / FILE_NAMES[0], self._terms)
        files.write_array(folder / FILE_NAMES[1], self._idf)
        files.write_array(folder / FILE_NAMES[2], self._components)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> TextTransform:
        """Opens a saved transform.

        Raises:
          UserError: a file is missing or damaged.
        """
        folder = pathlib.Path(folder)
        return cls(
            files.read_json(folder / FILE_NAMES[0]),
            files.read_array(folder / FILE_NAMES[1], mmap=False),
            files.read_array(folder / FILE_NAMES[2], mmap=False),
        )


def terms_of(document: str) -> list[str]:
    """The terms of a document, in order and lower case.

    These are words of two characters or more.  A run of characters of a script that does
    not separate words becomes its pairs (Han, Kana) or triples (Thai and others) of
    characters, a Korean word also its pairs, since endings are written with it.  HTML
    entities are decoded, and characters composed (NFC).  A document of one capital letter,
    or of symbols, has these as terms.
    """
    if "&" in document:
        document = html.unescape(document)
    text = document.lower()
    if text.isascii():
        terms = _WORD.findall(text)
    else:
        text = unicodedata.normalize("NFC", text)
        terms = [term for run in _word_pattern().findall(text) for term in _terms_of_run(run)]
    if "#" in text or "++" in text:
        terms += _SYMBOL_NAME.findall(text)
    name = document.strip()
    if not terms and len(name.split()) == 1 and not (name.isascii() and name.islower()):
        terms = [mark for mark in text if mark.isalnum() or unicodedata.category(mark) == "So"]
    return terms


def _terms_of_run(run: str) -> list[str]:
    """The terms of characters without a blank or punctuation between them."""
    terms: list[str] = []
    for han, southeast, other in _RUN.findall(run):
        if other and len(other) > 1:
            terms.append(other)
            for word in _HANGUL.findall(other):
                terms += _grams(word, 2)
        elif han or southeast:
            terms += _grams(han, 2) if han else _grams(southeast, 3)
    return terms


def _grams(text: str, size: int) -> list[str]:
    """All runs of so many characters; the text itself if it has fewer."""
    return [text[i : i + size] for i in range(max(len(text) - size + 1, 1))]


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """Runs of letters, digits and the marks that are written with them."""
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x10000))
        if unicodedata.category(character).startswith("M")
    )
    # The last two join letters and do not separate words.
    return re.compile(f"[\\w{marks}\u200c\u200d]+")


def top_words(indptr: np.ndarray, terms: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """The words of largest weight in each row of a sparse matrix.

    Args:
      indptr, terms, weights: the matrix as in scipy.sparse.csr_matrix; a column is a term.
      size: K, the number of words per row; of words with equal weights those with a lower
        index are preferred.

    Returns:
      int32 [n, 2K]: the indices of K words in ascending order, then the bits of their
      float32 weights.  Rows with fewer words are padded with weight 0.
    """
    counts = np.diff(indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((terms, -weights, row))
    rank = np.arange(len(order)) - np.repeat(indptr[:-1], counts)
    top = order[rank < size]
    top = top[np.lexsort((terms[top], row[top]))]
    first = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(np.minimum(counts, size), out=first[1:])
    column = np.arange(len(top)) - first[row[top]]
    out = np.zeros((len(counts), 2 * size), np.int32)
    out[row[top], column] = terms[top]
    out[row[top], size + column] = weights[top].astype(np.float32).view(np.int32)
    return out


def fit_text(
    documents: Sequence[str], width: int, vocabulary: int, min_df: int, name: str
) -> TextTransform:
    """Fits the transform to documents without the empty ones.

    If the vocabulary or the number of documents is too small for `width`, the transform has
    fewer dimensions and a warning is logged.

    Args:
      documents: at most MAX_FITTED_ROWS documents.
      width: requested number of dimensions.
      vocabulary: maximum number of terms; the most frequent ones are used.
      min_df: minimum number of documents that a term must occur in.
      name: name of the text in log messages.
    """
    documents = [document for document in documents if document.strip()]
    matrix = None
    for threshold in sorted({min(min_df, max(len(documents), 1)), 1}, reverse=True):
        vectorizer = _vectorizer(max_features=vocabulary, min_df=threshold)
        try:
            matrix = vectorizer.fit_transform(documents) if documents else None
            break
        except ValueError as error:
            # scikit-learn reports an empty vocabulary only by the text of its ValueError.
            if "vocabulary" not in str(error) and "no terms remain" not in str(error):
                raise
    if matrix is None:
        logging.warning("%s holds no words, so it is no feature.", name)
        return TextTransform([], np.empty(0, np.float32), np.empty((0, 0), np.float32))
    if threshold < min_df:
        logging.warning("%s: no term occurs in %d items, so those of one item count.", name, min_df)
    terms = vectorizer.get_feature_names_out().tolist()
    fitted = len(terms) if len(terms) <= width else min(width, matrix.shape[0])
    if fitted < width:
        logging.warning(
            "%s has %d terms in %d items, so its vectors have %d dimensions instead of %d.",
            name, len(terms), matrix.shape[0], fitted, width,
        )  # fmt: skip
    if fitted == len(terms):
        # Without a reduction the SVD is a rotation, which changes no inner product.
        components = np.eye(len(terms), dtype=np.float32)
    else:
        from sklearn.decomposition import TruncatedSVD

        svd = TruncatedSVD(fitted, random_state=_SEED).fit(matrix)
        components = svd.components_.astype(np.float32)
    return TextTransform(terms, vectorizer.idf_, components)


def _vectorizer(**settings) -> TfidfVectorizer:
    # Here and not above: scikit-learn takes a second to load, and few stages read text.
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True, dtype=np.float32, lowercase=False, analyzer=terms_of, **settings
    )
