"""The item that is shown first."""

import types

import numpy as np
import pyarrow as pa
import pytest

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.reporting.first_query import first_query
from pinsage_jax.stages import runs


def catalog(degree, titles) -> types.SimpleNamespace:
    graph = types.SimpleNamespace(degree=lambda: np.array(degree, np.int32))
    return types.SimpleNamespace(
        graph=graph, titles=None if titles is None else pa.array(titles, pa.large_string())
    )


def clusters(*sizes: int) -> tuple[np.ndarray, list[int]]:
    """Vectors of clusters, each of a direction of its own, and their first rows."""
    vectors = np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, axis=0)
    return vectors, np.cumsum([0, *sizes[:-1]]).tolist()


def test_the_list_of_the_first_query_has_the_most_different_titles():
    vectors, (_, second, third) = clusters(12, 12, 12)
    # Numbers do not make titles different.
    titles = [f"loaf {number}" for number in range(12)]
    titles += [f"{letter} loaf" for letter in "abcdefghijkl"] + ["tea", "tea 2"] * 6
    row = first_query(catalog([3] * 36, titles), vectors)
    assert second <= row < third
    # An item that nobody has a title for, or that few collections hold, is not shown.
    for degree, named in (([3] * 12 + [1] * 12 + [3] * 12, titles), ([3] * 36, None)):
        assert not second <= first_query(catalog(degree, named), vectors) < third
    without = [*titles[:12], *[""] * 12, *titles[24:]]
    assert not second <= first_query(catalog([3] * 36, without), vectors) < third


def test_of_equal_lists_the_closest_is_shown():
    vectors, (first, second, third) = clusters(11, 11, 1)
    vectors[first:second, 2] = np.linspace(0, 2, 11)
    assert second <= first_query(catalog([1] * 23, None), vectors) < third


@pytest.mark.parametrize("items", [1, 2])
def test_a_catalog_without_edges_or_neighbors_has_a_first_item(items):
    assert first_query(catalog([0] * items, None), np.eye(items, dtype=np.float32)) == 0


def test_the_pipeline_names_an_item_to_look_at(trained):
    prepared = open_prepared(trained.workdir)
    row = first_query(prepared, load_embeddings(trained.workdir, prepared))
    assert runs.first_item_id(trained.workdir) == prepared.item_ids.ids[row].as_py()
