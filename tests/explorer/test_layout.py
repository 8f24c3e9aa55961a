"""The map: what it keeps of neighbors against a plain count, UMAP's input, names of areas."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from pinsage_jax.explorer import areas, layout


def grouped(count: int, groups: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 [count, 16] around `groups` centers, and their groups."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, groups, count)
    vectors = rng.normal(size=(groups, 16))[group] + 0.4 * rng.normal(size=(count, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), group


def test_the_kept_share_is_that_of_a_plain_count():
    vectors, _ = grouped(60)
    points = np.random.default_rng(1).normal(size=(60, 2))
    cosines = vectors @ vectors.T
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(cosines, -np.inf)
    np.fill_diagonal(distances, np.inf)
    near, flat = np.argsort(-cosines, axis=1)[:, :10], np.argsort(distances, axis=1)[:, :10]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, flat)])
    assert layout.kept_neighbors(vectors, points, 0) == pytest.approx(wanted)
    # A map that is the space itself keeps all.
    plane = np.random.default_rng(2).normal(size=(60, 2))
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)
    assert layout.kept_neighbors(plane.astype(np.float32), plane, 0) > 0.95


def test_umap_gets_exact_neighbors_and_the_projection(monkeypatch):
    vectors, _ = grouped(80)
    seen = {}

    class Umap:
        def __init__(self, **settings):
            seen.update(settings)

        def fit_transform(self, sample):
            return np.stack([np.arange(len(sample)), np.zeros(len(sample))], axis=1)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    found = layout.lay_out(3 * vectors, 5, "umap")
    assert "UMAP" in found.description and found.points[:, 0].tolist() == list(range(80))
    ids, distances, _ = seen["precomputed_knn"]
    exact = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert ids[:, 0].tolist() == list(range(80))
    assert distances == pytest.approx(np.sort(exact, axis=1)[:, :15], abs=2e-3)
    assert (seen["random_state"], seen["n_jobs"]) == (5, 1)
    assert seen["init"].shape == (80, 2) and np.abs(seen["init"]).max() == pytest.approx(10)


def test_a_layout_that_is_not_finite_falls_back(monkeypatch):
    vectors, _ = grouped(80)

    class Umap:
        def __init__(self, **_):
            pass

        def fit_transform(self, sample):
            return np.full((len(sample), 2), np.nan)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    found = layout.lay_out(vectors, 5, "umap")
    assert "principal components" in found.description and np.isfinite(found.points).all()


@pytest.mark.parametrize(
    "choice, count, installed, wanted",
    [("auto", 999, True, False), ("auto", 1000, True, True), ("auto", 1000, False, False),
     ("umap", 31, True, True), ("umap", 30, True, False), ("pca", 5000, True, False)],
)  # fmt: skip
def test_when_umap_lays_out_the_map(monkeypatch, choice, count, installed, wanted):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    assert layout._wants_umap(choice, count) == wanted


@pytest.mark.long
def test_umap_keeps_more_neighbors_than_two_components_and_is_repeatable():
    pytest.importorskip("umap")
    vectors, _ = grouped(400, 30)
    first, again = (layout.lay_out(vectors, 0, "umap") for _ in range(2))
    assert np.array_equal(first.points, again.points)
    assert first.kept > 2 * layout.lay_out(vectors, 0, "pca").kept


def test_areas_are_named_by_what_their_titles_have_more_often():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 60)
    points = np.array([[0, 0], [10, 0], [0, 10]])[group] + rng.normal(size=(180, 2))
    things = ["garden fork", "tea rose", "rain barrel"]
    titles: list = [f"the new {things[g]} {n}" for n, g in enumerate(group)]
    titles[0] = None
    found = areas.named_areas(points, titles, 0)
    assert sorted(area["name"] for area in found) == sorted(things)
    assert [area["items"] for area in found] == [60, 60, 60]
    for area in found:
        middle = points[group == things.index(area["name"])].mean(axis=0)
        assert area["point"] == pytest.approx(middle, abs=0.5)


def test_a_small_map_or_one_without_words_has_no_areas():
    points = np.random.default_rng(0).normal(size=(200, 2))
    assert areas.named_areas(points[:100], ["a word"] * 100, 0) == []
    assert areas.named_areas(points, [None] * 200, 0) == []
    assert areas.named_areas(points, ["12 34"] * 200, 0) == []
    assert areas.named_areas(np.zeros((200, 2)), ["a word"] * 200, 0) == []
