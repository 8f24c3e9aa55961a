"""Names of areas of the map: the terms that titles there have and titles elsewhere have not.

n items on the map
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MAX_AREAS = 16
_ITEMS_PER_AREA = 60
_MAX_TERMS = 20_000
# A name must be in this share of the titles of its area.
_MIN_SHARE = 0.1
_TERMS_PER_NAME = 2
# Two words in a row say more than each of them.
_TWO_WORDS_FACTOR = 1.3


def named_areas(points: np.ndarray, titles: list[str | None], seed: int) -> list[dict[str, Any]]:
    """Splits the map into areas by k-means and names each by its titles.

    The terms of a name have the highest product of their share of the area's titles and the
    logarithm of how much more frequent they are there than in the whole catalog.

    Args:
      points: float [n, 2].
      titles: [n], None where there is none.
      seed: key of the clustering.

    Returns:
      For each area with a name, the largest first: name, items, and the place of its middle,
      point, float [2].
    """
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import CountVectorizer

    count = min(_MAX_AREAS, len(points) // _ITEMS_PER_AREA)
    if count < 2 or len(np.unique(points, axis=0)) < count:
        return []
    counter = CountVectorizer(
        binary=True, stop_words="english", token_pattern=r"(?u)\b[^\W\d_][\w'-]+\b",
        ngram_range=(1, 2),
        max_features=_MAX_TERMS, dtype=np.int64,
    )  # fmt: skip
    try:
        terms = counter.fit_transform([title or "" for title in titles])
    except ValueError:
        # No title has a word.
        return []
    area = KMeans(count, n_init=3, random_state=seed).fit_predict(points)
    names = counter.get_feature_names_out()
    column_of = {name: column for column, name in enumerate(names)}
    pairs = [column for column, name in enumerate(names) if " " in name]
    # The words of a pair may have fallen to the limit of terms.
    parts = np.array(
        [[column_of.get(word, column) for word in names[column].split()] for column in pairs],
        np.int64,
    ).reshape(-1, 2)
    everywhere = np.asarray(terms.sum(axis=0)).ravel() / len(points)
    found: list[dict[str, Any]] = []
    used: set[str] = set()
    for number in np.argsort(-np.bincount(area, minlength=count), kind="stable"):
        inside = area == number
        share = np.asarray(terms[inside].sum(axis=0)).ravel() / inside.sum()
        weight = np.where(share >= _MIN_SHARE, share * np.log(share / everywhere + 1e-12), 0.0)
        # A pair is as telling as the weaker of its words.
        weaker = np.minimum(weight[pairs], weight[parts].min(axis=1))
        weight[pairs] = _TWO_WORDS_FACTOR * weaker
        chosen: list[str] = []
        for term in np.argsort(-weight, kind="stable"):
            # A second term that is rare beside the first one says little.
            if len(chosen) == _TERMS_PER_NAME or weight[term] <= 0.4 * weight.max():
                break
            if not used & {names[term], *names[term].split()}:
                chosen.append(str(names[term]))
                used.update(chosen[-1].split())
        if not chosen:
            continue
        # The median lies where the items are, also in an area of an odd shape.
        middle = np.median(points[inside], axis=0)
        found.append({"name": ", ".join(chosen), "items": int(inside.sum()), "point": middle})
    return found
