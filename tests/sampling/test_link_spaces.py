"""Words of items and their cosines equal slow, readable versions."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from scipy import sparse
from small_texts import TERMS, dense_words, random_texts, text_transform

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core import files
from pinsage_jax.data import features as item_features
from pinsage_jax.data import text as text_vectors
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.tables import open_table
from pinsage_jax.data.text import top_words
from pinsage_jax.sampling import content_links as content
from pinsage_jax.sampling.link_spaces import VectorSpace, WordSpace, make_space

pytestmark = pytest.mark.kernels


def random_rows(rng, count=40, terms=17, ties=False):
    """Rows of a scipy CSR matrix with no word, one word and many; terms in any order."""
    lengths = rng.integers(0, terms + 1, count)
    lengths[:3] = 0, 1, terms
    names = [rng.permutation(terms)[:length] for length in lengths]
    weights = [rng.integers(1, 3, n) if ties else rng.uniform(0.1, 2.0, n) for n in lengths]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return indptr, np.concatenate(names), np.concatenate(weights).astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [1, 4, 17, 30])
def test_top_words_equal_a_sort_of_each_row(size, ties, small_rng):
    indptr, terms, weights = random_rows(small_rng, ties=ties)
    packed = top_words(indptr, terms, weights, size)
    assert packed.shape == (40, 2 * size) and packed.dtype == np.int32
    for row in range(40):
        span = slice(indptr[row], indptr[row + 1])
        ranked = sorted(zip(-weights[span], terms[span]))[:size]
        expected = sorted((int(term), float(-weight)) for weight, term in ranked)
        found = packed[row, : len(expected)], packed[row, size : size + len(expected)]
        assert list(zip(found[0].tolist(), found[1].view(np.float32).tolist())) == expected
        assert not packed[row, len(expected) : size].any()
        assert not packed[row, size + len(expected) :].any()


def test_cosines_of_words_equal_those_of_dense_vectors(small_rng):
    words = top_words(*random_rows(small_rng), 6)
    dense, space = VectorSpace(dense_words(words, 17)), WordSpace(words)
    rows, others = np.arange(40), np.array([0, 1, 2, 7, 8, 30])
    found = space.cosines(space.encode_queries(rows), space.encode_candidates(others))
    expected = dense.cosines(dense.encode_queries(rows), dense.encode_candidates(others))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32 and not found[0].any()
    pairs = space.paired_cosines(space.encode_queries(rows), space.encode_queries(rows[::-1]))
    np.testing.assert_allclose(
        pairs,
        dense.paired_cosines(dense.encode_queries(rows), dense.encode_queries(rows[::-1])),
        atol=1e-6,
    )
    # Words that no candidate has, and a candidate without words.
    empty = space.encode_candidates(np.array([0]))
    assert not space.cosines(space.encode_queries(rows), empty).any()
    assert space.cosines(space.encode_queries(rows[:0]), empty).shape == (0, 1)


def test_links_do_not_depend_on_block_sizes_threads_and_cache(monkeypatch, small_rng):
    words = top_words(*random_rows(small_rng, 90, 40), 12)
    candidates = np.flatnonzero(small_rng.random(90) < 0.7)
    whole = content.content_links(words, np.arange(90), candidates, 5)
    for rows, columns, threads in ((7, 11, 1), (64, 5, 3), (1, 1000, 2)):
        monkeypatch.setattr(content, "_QUERY_ROWS", rows)
        monkeypatch.setattr(content, "_CANDIDATE_ROWS", columns)
        monkeypatch.setattr(content, "_CACHE_BYTES", 0 if threads == 2 else 1 << 29)
        in_blocks = content.content_links(words, np.arange(90), candidates, 5, threads)
        for one, other in zip(whole, in_blocks, strict=True):
            np.testing.assert_array_equal(one, other)
    assert isinstance(make_space(words), WordSpace)
    assert isinstance(make_space(words.view(np.float32)), VectorSpace)


def test_words_of_a_text_are_the_top_words_of_its_tfidf():
    texts = random_texts(30)
    transform = text_transform(6, 5)
    rows = pa.record_batch({"look": texts})
    words = transform.words(rows)
    counts = np.array([[text.split().count(term) for term in TERMS] for text in texts])
    idf = transform._blocks[0].fitted._idf
    tfidf = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    tfidf /= np.maximum(np.linalg.norm(tfidf, axis=1, keepdims=True), 1e-12)
    expected = top_words(*csr(tfidf), 5)
    np.testing.assert_array_equal(words[:, :5], expected[:, :5])
    np.testing.assert_allclose(
        words[:, 5:].view(np.float32), expected[:, 5:].view(np.float32), rtol=1e-5
    )
    assert not words[3].any() and words.any(axis=1).sum() == 29


def csr(matrix):
    rows = sparse.csr_matrix(matrix.astype(np.float32))
    return rows.indptr, rows.indices, rows.data


@pytest.mark.parametrize(
    "settings,columns,kept",
    [
        ({}, ["text"], 64),
        ({"link_words": 7}, ["text"], 7),
        ({"link_words": 0}, ["text"], 0),
        # The features have one dimension per word, so they hold the same information.
        ({"text_dim": 100}, ["text"], 0),
        # Items have other content than text, and links compare all features.
        ({"numeric_columns": "year"}, ["text", "year"], 0),
    ],
)
def test_words_are_written_if_text_is_the_only_content(settings, columns, kept, tmp_path):
    texts = random_texts(50)
    values = {"item_id": [f"i{i}" for i in range(50)], "text": texts, "year": list(range(50))}
    path = tmp_path / "items.parquet"
    pa.parquet.write_table(pa.table({n: values[n] for n in ["item_id", *columns]}), path)
    config = DataConfig(**{"text_dim": 4, "text_min_df": 1} | settings)
    table = open_table(path, "items")
    item_features.write_features(table, config, 50, 53, tmp_path)
    transform = FeatureTransform.load(tmp_path)
    assert transform.link_words == kept
    words = tmp_path / item_features.WORDS_FILE
    assert words.exists() == bool(kept)
    assert transform.words(pa.record_batch(values)).shape == (50, 2 * kept)
    if kept:
        stored = files.read_array(words)
        assert stored.shape == (53, 2 * kept) and not stored[50:].any()
        np.testing.assert_array_equal(stored[:50], transform.words(pa.record_batch(values)))


def test_the_tfidf_of_a_text_is_made_once(tmp_path, monkeypatch):
    texts = random_texts(50)
    path = tmp_path / "items.parquet"
    pa.parquet.write_table(pa.table({"item_id": [f"i{i}" for i in range(50)], "text": texts}), path)
    table, config = open_table(path, "items"), DataConfig(text_dim=4, text_min_df=1)
    tokenized, terms_of = [], text_vectors.terms_of

    def counted(text):
        tokenized.append(text)
        return terms_of(text)

    monkeypatch.setattr(text_vectors, "terms_of", counted)
    item_features.write_features(table, config, 50, 50, tmp_path)
    # Once to fit the vocabulary, and once for the features and the words.
    assert sorted(tokenized) == sorted(2 * [text or "" for text in texts if text])
    transform = FeatureTransform.load(tmp_path)
    rows = pa.record_batch({"text": texts})
    del tokenized[:]
    features, words = transform.with_words(rows)
    assert len(tokenized) == 50
    np.testing.assert_array_equal(features, transform.transform(rows))
    np.testing.assert_array_equal(words, transform.words(rows))
