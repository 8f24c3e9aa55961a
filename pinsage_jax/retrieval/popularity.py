"""Weights the popularity of items in lists (--popularity_weight).

With --popularity_bias the last coordinate of an embedding, 1 + b, does not depend on the
query: it holds the popularity of an item, and the cold-start bias of an isolated one.  A
weight w below 1 scales its share in every inner product, so that lists show fewer popular
items, without training again.

N items, Z embedding dimensions
"""

from __future__ import annotations

import math

import numpy as np

from pinsage_jax.core.errors import UserError


def weigh_popularity(vectors: np.ndarray, weight: float, has_popularity: bool) -> np.ndarray:
    """Scales the last coordinate, so that its product counts `weight` times in a score.

    Args:
      vectors: float32 [N, Z].
      weight: from 0 to 1.
      has_popularity: whether the last coordinate is the popularity.

    Returns:
      `vectors` themselves for weight 1, else a copy whose last coordinate is scaled by the
      square root of the weight: a product has the coordinates of two items.

    Raises:
      UserError: the weight is not 1 and there is no such coordinate.
    """
    if weight == 1.0:
        return vectors
    if not has_popularity:
        raise UserError(
            f"--popularity_weight={weight}: these embeddings have no popularity coordinate (they "
            "were trained with --popularity_bias=false); leave the flag out."
        )
    weighted = np.array(vectors, np.float32)
    weighted[:, -1] *= np.float32(math.sqrt(weight))
    return weighted
