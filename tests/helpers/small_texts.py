"""Texts of items, their transform, and the words of a packed matrix as plain vectors."""

from __future__ import annotations

import numpy as np

from pinsage_jax.data.feature_blocks import TextBlock
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.text import TextTransform

TERMS = [f"word{number:02d}" for number in range(24)]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 12 words of TERMS, some of them twice; text 3 has no known word."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(TERMS, rng.integers(1, 13))) for _ in range(count)]
    texts[3] = "nothing known"
    return texts


def text_transform(width: int, link_words: int) -> FeatureTransform:
    """A transform of the column `look`: TERMS with random idf and components."""
    rng = np.random.default_rng(1)
    idf = rng.uniform(1.0, 4.0, len(TERMS))
    components = np.linalg.qr(rng.normal(size=(len(TERMS), width)))[0].T
    fitted = TextTransform(TERMS, idf, components)
    return FeatureTransform([TextBlock(("look",), fitted)], link_words)


def dense_words(words: np.ndarray, terms: int = len(TERMS)) -> np.ndarray:
    """Packed words int32 [n, 2K] as dense vectors, float32 [n, terms]."""
    size = words.shape[1] // 2
    out = np.zeros((len(words), terms), np.float32)
    for row, packed in enumerate(np.asarray(words)):
        for term, weight in zip(packed[:size], packed[size:].view(np.float32), strict=True):
            assert weight == 0 or out[row, term] == 0
            out[row, term] += weight
    return out


def link_vectors(prepared) -> np.ndarray:
    """The vectors that content links compare, float32 [n, F], of a catalog or of additions."""
    if prepared.words is not None:
        return dense_words(prepared.words)
    return prepared.features.astype(np.float32)
