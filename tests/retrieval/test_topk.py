"""topk.py against sorting everything, with ties, odd blocks and short catalogs."""

import jax
import numpy as np
import pytest

from pinsage_jax.core.errors import UserError
from pinsage_jax.retrieval import blocks, kernels, topk
from pinsage_jax.retrieval.ranks import ranks_from_scores


def naive_top_k(queries, catalog, k, own=None):
    """Sorts every row by (score down, id up)."""
    ids = np.full((len(queries), k), -1, np.int32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for row, query in enumerate(queries):
        exact = [float(np.dot(query.astype(np.float64), item)) for item in catalog]
        order = sorted(range(len(catalog)), key=lambda item: (-exact[item], item))
        kept = [item for item in order if own is None or item != own[row]][:k]
        ids[row, : len(kept)] = kept
        scores[row, : len(kept)] = [exact[item] for item in kept]
    return ids, scores


def whole_numbers(rng, rows, dims, low=-2, high=3):
    """Vectors whose products are exact, so that ties are real and frequent."""
    return rng.integers(low, high, (rows, dims)).astype(np.float32)


@pytest.fixture(params=["host", "device", "resident"])
def selection(request, monkeypatch):
    """All ways to select: Numba's on a CPU, XLA's elsewhere, over blocks or a placed catalog."""
    if request.param == "device":
        monkeypatch.setattr(topk, "_best_on_host", topk._best_on_device)
    monkeypatch.setattr(blocks, "is_accelerated", lambda: request.param == "resident")


@pytest.fixture(params=["blocks", "resident"])
def ranking(request, monkeypatch):
    """Both ways to rank targets; the second splits the catalog over four devices."""
    monkeypatch.setattr(blocks, "is_accelerated", lambda: request.param == "resident")


@pytest.mark.parametrize(
    "queries,rows,k,sizes",
    [
        (7, 50, 5, {}),
        (7, 50, 5, {"query_block": 3, "catalog_block": 13}),
        (1, 1, 1, {}),
        (5, 4, 9, {}),
        (5, 300, 300, {"catalog_block": 128}),
        (9, 700, 3, {"query_block": 4, "catalog_block": 256}),
        (9, 1000, 1, {}),
        (3, 897, 2, {}),
    ],
)
@pytest.mark.parametrize("exclude", [False, True])
def test_top_k_equals_sorting(small_rng, queries, rows, k, sizes, exclude, selection):
    catalog = whole_numbers(small_rng, rows, 4)
    own = small_rng.integers(0, rows, queries) if exclude else None
    asked = catalog[own] if exclude else whole_numbers(small_rng, queries, 4)
    ids, scores = topk.top_k(asked, catalog, k, own, **sizes)
    wanted_ids, wanted_scores = naive_top_k(asked, catalog, k, own)
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_runs_of_columns_are_used_and_exact(small_rng, selection):
    """2,000 columns with k=2 select by runs; the best scores lie at the edges of runs."""
    catalog = small_rng.uniform(-2, -1, (2000, 1)).astype(np.float32)
    catalog[[0, 31, 32, 1999]] = [[3], [5], [5], [4]]
    ids, _ = topk.top_k(np.ones((1, 1), np.float32), catalog, 4)
    assert ids.tolist() == [[31, 32, 1999, 0]]
    # All scores below zero: the zero rows of the padding must not win, nor make the
    # run that holds some of them look better than another.
    below = catalog[33:1998]
    ids, scores = topk.top_k(np.ones((1, 1), np.float32), below, 2)
    wanted_ids, wanted_scores = naive_top_k(np.ones((1, 1), np.float32), below, 2)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_all_equal_gives_the_lowest_ids(selection):
    ids, _ = topk.top_k(
        np.ones((2, 3), np.float32), np.ones((1500, 3), np.float32), 3, np.array([1, -1])
    )
    assert ids.tolist() == [[0, 2, 3], [0, 1, 2]]


def test_zero_and_minus_zero_are_equal(selection):
    catalog = np.array([[0.0], [-0.0], [0.0], [-0.0]], np.float32)
    for sign in (1, -1):
        ids, _ = topk.top_k(np.array([[sign]], np.float32), catalog, 4)
        assert ids.tolist() == [[0, 1, 2, 3]]


def test_fewer_candidates_than_k_are_padded(selection):
    ids, scores = topk.top_k(
        np.ones((1, 2), np.float32), np.ones((2, 2), np.float32), 3, np.array([0])
    )
    assert ids.tolist() == [[1, -1, -1]]
    assert scores.tolist() == [[2, -np.inf, -np.inf]]
    ids, _ = topk.top_k(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 1, np.array([0]))
    assert ids.tolist() == [[-1]]


def test_nothing_asked_or_offered():
    nothing = np.empty((0, 2), np.float32)
    assert topk.top_k(nothing, np.ones((3, 2), np.float32), 2)[0].shape == (0, 2)
    assert topk.top_k(np.ones((1, 2), np.float32), nothing, 2)[0].tolist() == [[-1, -1]]
    assert topk.target_ranks(nothing, np.ones((3, 2), np.float32), [], []).shape == (0,)


def test_a_placed_catalog_serves_several_calls_and_is_split_over_the_devices(small_rng):
    catalog = whole_numbers(small_rng, 1000, 4)
    placed = blocks.ResidentCatalog(catalog, block=100)
    assert [(first, len(part.devices())) for first, _, part in placed._parts] == [
        (0, 1), (300, 1), (600, 1), (900, 1),
    ]  # fmt: skip
    assert len({device for _, device, _ in placed._parts}) == 4
    for count in (3, 5000):
        own = small_rng.integers(0, 1000, count)
        found = topk.top_k(catalog[own], placed, 7, own)
        expected = topk.top_k(catalog[own], catalog, 7, own)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_scores_of_a_placed_catalog_are_those_of_the_host(small_rng):
    catalog = small_rng.normal(size=(900, 33)).astype(np.float32)
    ids, scores = topk.top_k(catalog[:50], blocks.ResidentCatalog(catalog), 9)
    wanted_ids, wanted_scores = topk.top_k(catalog[:50], catalog, 9)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=1e-5)


def test_an_approximate_maximum_is_chosen_on_tpus_only(small_rng):
    catalog = whole_numbers(small_rng, 1000, 4)
    exact, rough = (blocks.ResidentCatalog(catalog, recall=recall) for recall in (1.0, 0.9))
    for ours, theirs in zip(*(topk.top_k(catalog[:50], each, 7) for each in (exact, rough))):
        np.testing.assert_array_equal(ours, theirs)
    operands = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((8, 4), (3, 1280, 4))]
    operands += [jax.ShapeDtypeStruct((), np.int32)] * 2
    for recall, calls in ((1.0, 0), (0.9, 1)):
        traced = blocks.best_of.trace(*operands, depth=7, recall=recall)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("ApproxTopK") == calls


def test_a_catalog_is_placed_on_accelerators_that_have_room(small_rng, monkeypatch):
    catalog = whole_numbers(small_rng, 40, 4)
    assert blocks.resident(catalog) is catalog
    monkeypatch.setattr(blocks, "is_accelerated", lambda: True)
    monkeypatch.setattr(blocks, "max_table_bytes", lambda devices: 160)
    assert isinstance(blocks.resident(catalog), blocks.ResidentCatalog)
    monkeypatch.setattr(blocks, "max_table_bytes", lambda devices: 159)
    assert blocks.resident(catalog) is catalog
    assert topk.top_k(catalog[:1], catalog, 1)[0].shape == (1, 1)


@pytest.mark.kernels
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rows", [15, 79, 80, 200])
@pytest.mark.parametrize("kind", ["ties", "zeros", "tiny", "below", "odd", "nothing"])
def test_the_first_limit_leaves_out_nothing(small_rng, k, rows, kind):
    """Scores of which many equal the k-th best, in blocks with runs and without."""
    shape = (6, rows)
    scores = {
        "ties": small_rng.integers(-1, 2, shape),
        "zeros": small_rng.choice(np.array([0.0, -0.0]), shape),
        "tiny": small_rng.integers(-3, 4, shape) * 1e-45,
        "below": small_rng.integers(-3, 0, shape) * 1e-38,
        "odd": small_rng.choice(np.array([np.nan, -np.inf, np.inf, 2.0, 1.0]), shape),
        "nothing": np.full(shape, -np.inf),
    }[kind].astype(np.float32)
    cut = rows // 2
    keys = np.empty((6, kernels.key_capacity(k)), np.uint64)
    state = keys, np.zeros(6, np.int64), np.full(6, -np.inf, np.float32)
    # Padding columns hold higher scores than all real ones and must be ignored.
    padded = np.concatenate([scores[:, :cut], np.full((6, 40), 9, np.float32)], axis=1)
    kernels.keep_best(padded, cut, 100, k, *state)
    kernels.keep_best(scores[:, cut:], rows - cut, 100 + cut, k, *state)
    best, ids = np.empty((6, k), np.float32), np.empty((6, k), np.int32)
    kernels.sort_best(*state[:2], k, best, ids)
    for row, line in enumerate(scores):
        enter = [column for column in range(rows) if line[column] > -np.inf]
        wanted = sorted(enter, key=lambda column: (-line[column], column))[:k]
        padding = [-1] * (k - len(wanted))
        assert ids[row].tolist() == [100 + column for column in wanted] + padding
        assert best[row, : len(wanted)].tolist() == line[wanted].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad, ranking):
    good, broken = np.ones((300, 2), np.float32), np.ones((300, 2), np.float32)
    broken[257, 1] = bad
    pair = (np.array([0]), np.array([1]))
    with pytest.raises(UserError, match="catalog row 257"):
        topk.top_k(good, broken, 2, catalog_block=128)
    with pytest.raises(UserError, match="query row 257"):
        topk.top_k(broken, good, 2, query_block=128)
    with pytest.raises(UserError, match="catalog row 257"):
        topk.target_ranks(good[:1], broken, *pair)
    with pytest.raises(UserError, match="query row 0"):
        topk.target_ranks(broken[257:258], good, *pair)


@pytest.mark.parametrize(
    "rows,sizes",
    [
        (40, {}),
        (40, {"query_block": 7, "catalog_block": 11}),
        (41, {"query_block": 64, "catalog_block": 1}),
        (1300, {}),
        (1024, {"catalog_block": 256}),
    ],
)
def test_target_ranks_equal_the_ranks_of_scores(small_rng, rows, sizes, ranking):
    catalog = whole_numbers(small_rng, rows, 3)
    pairs = np.array([(q, t) for q, t in small_rng.integers(0, rows, (130, 2)) if q != t])
    query, target = pairs.T
    known = np.where(np.arange(len(pairs)) % 5 == 0, -1, query)
    scores = catalog[query] @ catalog.T
    wanted = ranks_from_scores(scores, np.arange(len(pairs)), known, target)
    found = topk.target_ranks(catalog[query], catalog, known, target, **sizes)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, wanted)


def test_copies_of_the_target_tie_with_it_wherever_they_are(small_rng, ranking):
    """Real-valued vectors: the score of a copy must equal the target's to the bit."""
    base = small_rng.normal(size=(1, 37)).astype(np.float32)
    catalog = small_rng.normal(size=(1500, 37)).astype(np.float32)
    copies = small_rng.choice(np.arange(1, 1500), 301, replace=False)
    catalog[copies] = base
    queries = np.repeat(base, 301, axis=0) + small_rng.normal(size=(301, 37)).astype(np.float32)
    ranks = topk.target_ranks(queries, catalog, np.full(301, -1), copies)
    others = np.delete(catalog, copies, axis=0).astype(np.float64)
    best = queries.astype(np.float64) @ base[0].astype(np.float64)
    greater = (queries.astype(np.float64) @ others.T > best[:, None]).sum(axis=1)
    np.testing.assert_array_equal(ranks, 1 + greater + 150)


def test_float16_and_memory_maps_are_taken(tmp_path, small_rng):
    catalog = whole_numbers(small_rng, 60, 4).astype(np.float16)
    np.save(tmp_path / "c.npy", catalog)
    mapped = np.load(tmp_path / "c.npy", mmap_mode="r")
    ids, _ = topk.top_k(mapped[:5], mapped, 6)
    np.testing.assert_array_equal(ids, naive_top_k(catalog[:5], catalog, 6)[0])


def test_bad_pairs_are_refused():
    catalog = np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="own query"):
        topk.target_ranks(catalog[:1], catalog, np.array([2]), np.array([2]))
    with pytest.raises(ValueError, match="must lie in"):
        topk.target_ranks(catalog[:1], catalog, np.array([2]), np.array([4]))
