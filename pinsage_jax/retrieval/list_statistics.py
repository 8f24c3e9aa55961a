"""Statistics of lists of related items: coverage, concentration, popularity and novelty.

Lists with a high hit-rate may still show the same few popular items everywhere.  The statistics
are those of the first ten neighbors of items evenly spaced over the catalog, the same items for
every method.

  Q queries, N items, C collections, k places in a list
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.retrieval.export_quality import evenly_spaced_rows

PLACES = 10
# An item in more than this share of all lists is named in a warning.
_MOST_OF_THE_LISTS = 0.5
_MAX_QUERIES = 10_000
_MAX_SCORES = 1 << 31


def sampled_queries(num_items: int) -> np.ndarray:
    """The items whose lists are examined, int64: all of a small catalog, at most 10,000."""
    return evenly_spaced_rows(num_items, min(_MAX_QUERIES, _MAX_SCORES // max(num_items, 1)))


def list_statistics(ids: np.ndarray, degree: np.ndarray, num_collections: int) -> dict[str, Any]:
    """Statistics of lists.

    Args:
      ids: int [Q, k], the items listed for each query, padded with -1.
      degree: int [N], number of edges of each item.
      num_collections: C.

    Returns:
      queries          Q
      coverage         share of the catalog's items that are in a list
      gini             Gini coefficient of the number of lists that contain an item: 0 if it is
                       the same for every item, near 1 if few items fill all lists
      top_1_percent    share of all places that the 1% most listed items hold
      most_listed      share of the lists that contain the most listed item
      most_listed_row  its row; None without any list
      mean_degree      mean degree of the item in a place
      novelty          mean of -log2((degree + 1) / (C + 1)) over places: bits of surprise at
                       meeting the item in a collection
    """
    places = ids[ids >= 0]
    listed = np.bincount(places, minlength=len(degree))
    result: dict[str, Any] = {"queries": len(ids), "most_listed_row": None}
    names = ("coverage", "gini", "top_1_percent", "most_listed", "mean_degree", "novelty")
    if len(places) == 0:
        return result | dict.fromkeys(names, 0.0)
    ascending = np.sort(listed)
    # Gini from the ranks: sum((2 i - N - 1) x_i) / (N sum(x)), i counting from 1.
    ranks = 2.0 * np.arange(1, len(degree) + 1) - len(degree) - 1
    top = max(round(len(degree) / 100), 1)
    share = (degree[places] + 1.0) / (num_collections + 1.0)
    values = (
        np.count_nonzero(listed) / len(degree),
        float(ranks @ ascending) / (len(degree) * len(places)),
        ascending[-top:].sum() / len(places),
        ascending[-1] / len(ids),
        degree[places].mean(),
        -np.log2(share).mean(),
    )
    return result | dict(zip(names, map(float, values))) | {"most_listed_row": int(listed.argmax())}


def warn_if_lists_share_an_item(statistics: dict[str, Any], name: str, whose: str) -> bool:
    """Logs a warning if one item, of id `name`, is in most lists; returns whether it did.

    Args:
      whose: which lists they are, for the message.
    """
    if statistics["queries"] < 2 * PLACES or statistics["most_listed"] <= _MOST_OF_THE_LISTS:
        return False
    logging.warning(
        "evaluate: %s stands in %.0f%% of %s of %d, and 1%% of the items fill %.0f%% of the "
        "places; a lower --popularity_weight shows fewer popular items.",
        name, 100 * statistics["most_listed"], whose, PLACES, 100 * statistics["top_1_percent"],
    )  # fmt: skip
    return True
