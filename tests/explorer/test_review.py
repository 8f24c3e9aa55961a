"""Lists for review and search, against plain loops."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hostile_catalog import ITEMS, small_embeddings, small_prepared

from pinsage_jax.explorer.catalog_search import CatalogSearch, fold
from pinsage_jax.explorer.review import review_lists
from pinsage_jax.retrieval.topk import top_k


def lists_by_key(prepared):
    vectors = small_embeddings()
    near, scores = top_k(vectors, vectors, 3, np.arange(ITEMS))
    return {found["key"]: found for found in review_lists(prepared, vectors, near, scores)}


def test_the_worst_pairs_are_those_of_the_lowest_ranks():
    prepared, vectors = small_prepared(), small_embeddings()
    found = lists_by_key(prepared)["worst"]
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    worst: dict[int, int] = {}
    for query, target in prepared.eval_pairs.tolist():
        rank = 1 + int((scores[query] > scores[query, target]).sum())
        worst[query] = max(worst.get(query, 0), rank)
    assert set(found["rows"].tolist()) == set(worst)
    ranks = [int(value.split()[2]) for value in found["values"]]
    assert ranks == sorted(worst.values(), reverse=True)
    for query, target, rank in zip(found["rows"], found["targets"], ranks):
        assert rank == worst[query] == 1 + (scores[query] > scores[query, target]).sum()


def test_items_far_from_all_new_ones_and_those_most_listed():
    prepared, vectors = small_prepared(), small_embeddings()
    found = lists_by_key(prepared)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    rows = found["alone"]["rows"]
    assert sorted(rows.tolist()) == list(range(ITEMS))
    assert (np.diff(cosines.max(axis=1)[rows]) > -1e-6).all()
    assert found["new"]["rows"].tolist() == [3, 2, 1, 0]
    near = np.argsort(-cosines, axis=1)[:, :3]
    counts = [int((near == row).sum()) for row in range(ITEMS)]
    listed = found["listed"]
    assert [counts[row] for row in listed["rows"]] == sorted(filter(None, counts), reverse=True)
    assert listed["values"][0] == f"in {max(counts)} of {ITEMS} lists"


def test_without_pairs_and_new_items_their_lists_are_left_out():
    prepared = small_prepared()
    prepared = dataclasses.replace(prepared, eval_pairs=np.empty((0, 2), np.int32))
    assert set(lists_by_key(prepared)) == {"alone", "new", "listed"}


def searched(*titles):
    prepared = small_prepared()
    padded = [*titles, *["nothing"] * (ITEMS - len(titles))]
    return CatalogSearch(dataclasses.replace(prepared, titles=pa.array(padded, pa.large_string())))


@pytest.mark.parametrize("query", ["cafe creme", "CAFÉ crème", "Cafe\u0301"])
def test_accents_and_case_do_not_count(query):
    count, rows, similar = searched("Café Crème", "Cafeteria").find(query, 5)
    assert rows[0] in (0, 1) and 0 in rows and count >= 1 and not similar


def test_letters_that_do_not_decompose_have_plain_forms():
    texts = pa.array(["Łódź Straße Ærø", "plain", "हिन्दी"], pa.large_string())
    assert fold(texts).to_pylist()[:2] == ["lodz strasse aero", "plain"]
    # Signs of other scripts are no accents.
    assert len(fold(texts).to_pylist()[2]) == len("हिन्दी")


@pytest.mark.parametrize("typo", ["nueral", "neurl", "neurral", "neuxal", "Néurxl", "xeural"])
def test_one_typo_is_forgiven_where_nothing_matches(typo):
    search = searched("neural network", "Deep Neural", "natural")
    count, rows, similar = search.find(typo, 5)
    assert (count, sorted(rows.tolist()), similar) == (2, [0, 1], True)
    assert search.find("neural", 5)[2] is False


@pytest.mark.parametrize("query", ["nxuxal", "zzzz", "nat", "(((((", "[a-z]+"])
def test_two_typos_and_signs_find_nothing_and_raise_nothing(query):
    assert searched("neural network").find(query, 5)[0] == 0
