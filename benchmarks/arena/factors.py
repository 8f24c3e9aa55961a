"""Peers of the library implicit: ALS, BPR and item-kNN, and LightFM with ids and content.

N items, Z dimensions
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from benchmarks.arena.peers import Peer, Similarities, Train, Unavailable

_DIM = 128
_EPOCHS = {"als": 15, "bpr": 100, "lightfm": 60}
_NEIGHBORS = 200


def als(train: Train, alpha: float, regularization: float) -> np.ndarray:
    """Item factors float32 [N, 128] of ALS for implicit feedback (Hu et al. 2008)."""
    from implicit.als import AlternatingLeastSquares

    # The library parallelizes over rows; threads of BLAS inside would oversubscribe the CPU.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=_DIM,
            alpha=alpha,
            regularization=regularization,
            iterations=_EPOCHS["als"],
            num_threads=train.threads,
            random_state=train.seed,
            use_gpu=False,
        )
        model.fit(sparse.csr_matrix(train.edges.T), show_progress=False)
    return np.array(model.item_factors, np.float32)


def bpr(train: Train, learning_rate: float, regularization: float) -> np.ndarray:
    """Item factors float32 [N, 129] of BPR (Rendle et al. 2009), the bias last."""
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(
        factors=_DIM,
        learning_rate=learning_rate,
        regularization=regularization,
        iterations=_EPOCHS["bpr"],
        num_threads=train.threads,
        random_state=train.seed,
        use_gpu=False,
    )
    model.fit(sparse.csr_matrix(train.edges.T), show_progress=False)
    return np.array(model.item_factors, np.float32)


def item_knn(train: Train, weights: str) -> Similarities:
    """Item-kNN: the 200 most similar items of each, by the cosine of weighted rows."""
    from implicit import nearest_neighbours

    kinds = {
        "cosine": nearest_neighbours.CosineRecommender,
        "tfidf": nearest_neighbours.TFIDFRecommender,
        "bm25": nearest_neighbours.BM25Recommender,
    }
    model = kinds[weights](K=_NEIGHBORS + 1, num_threads=train.threads)  # itself included
    model.fit(sparse.csr_matrix(train.edges.T), show_progress=False)
    return Similarities(sparse.csr_matrix(model.similarity))


def lightfm(train: Train, content_weight: float, item_alpha: float) -> np.ndarray:
    """Item vectors float32 [N, 128] of LightFM (Kula 2015) by WARP, of ids and of content.

    Args:
      content_weight: length of an item's row of content beside its id, which has 1.
      item_alpha: L2 penalty of the features.
    """
    from lightfm import LightFM
    from sklearn.preprocessing import normalize

    # Items without edges are no negatives, and have no id, which training would leave random.
    warm = np.asarray(train.edges.getnnz(axis=1) > 0).ravel()
    parts = [sparse.diags_array(warm.astype(np.float32), format="csr")]
    if content_weight:
        if train.content is None:
            raise Unavailable("the items have no features")
        parts.append(np.float32(content_weight) * normalize(train.content))
    features = sparse.csr_matrix(sparse.hstack(parts), dtype=np.float32)
    model = LightFM(_DIM, loss="warp", item_alpha=item_alpha, random_state=train.seed)
    model.fit(
        sparse.coo_matrix(train.edges[warm].T),
        item_features=features[warm],
        epochs=_EPOCHS["lightfm"],
        num_threads=train.threads,
    )
    return np.asarray(model.get_item_representations(features)[1], np.float32)


def _grid(first: str, firsts: tuple, second: str, seconds: tuple) -> tuple[dict, ...]:
    return tuple({first: one, second: other} for one in firsts for other in seconds)


PEERS = (
    Peer(
        "als",
        "implicit",
        "implicit",
        _grid("alpha", (1.0, 10.0, 40.0), "regularization", (1.0, 10.0)),
        als,
    ),
    Peer(
        "bpr",
        "implicit",
        "implicit",
        _grid("learning_rate", (0.01, 0.05), "regularization", (0.001, 0.01)),
        bpr,
    ),
    Peer(
        "item_knn",
        "implicit",
        "implicit",
        tuple({"weights": name} for name in ("cosine", "tfidf", "bm25")),
        item_knn,
    ),
    Peer(
        "lightfm",
        "lightfm",
        "LightFM (lightfm-next)",
        _grid("content_weight", (0.0, 0.5, 1.0), "item_alpha", (0.0, 3e-4)),
        lightfm,
    ),
)
