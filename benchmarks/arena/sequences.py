"""Peers that read sequences: item2vec by gensim and node2vec by PecanPy, which calls gensim.

PecanPy 2.0.9 imports nptyping, which does not go with NumPy 2, so it runs as its own command.

N items, C collections
"""

from __future__ import annotations

import pathlib
import subprocess
import tempfile

import numpy as np
from scipy import sparse

from benchmarks.arena.peers import Peer, Train

_DIM = 128
# A collection is a set: a window of twice its members takes every pair, up to so many.
_WINDOW = 50
_ITEM2VEC_EPOCHS = 30


def item2vec(train: Train, ns_exponent: float, sample: float) -> np.ndarray:
    """Item vectors float32 [N, 128] by skip-gram over collections (Barkan and Koenigstein 2016).

    Items of no collection of two have vectors of zeros.

    Args:
      ns_exponent: negatives are drawn by the degree to this power.
      sample: more frequent items are left out of sequences at random.
    """
    from gensim.models import Word2Vec

    collections = sparse.csr_matrix(train.edges.T)
    rng = np.random.default_rng(train.seed)
    # In a random order, since a sequence longer than the window is cut by its order.
    sentences = [
        [str(item) for item in rng.permutation(members)]
        for members in np.split(collections.indices, collections.indptr[1:-1])
        if len(members) > 1
    ]
    model = Word2Vec(
        sentences,
        sg=1,
        vector_size=_DIM,
        window=_WINDOW,
        min_count=1,
        negative=10,
        ns_exponent=ns_exponent,
        sample=sample,
        epochs=_ITEM2VEC_EPOCHS,
        workers=train.threads,
        seed=train.seed,
    )
    vectors = np.zeros((train.edges.shape[0], _DIM), np.float32)
    vectors[[int(word) for word in model.wv.index_to_key]] = model.wv.vectors
    return vectors


def node2vec(train: Train, p: float, q: float) -> np.ndarray:
    """Item vectors float32 [N, 128] of node2vec (Grover and Leskovec 2016) on the bipartite graph.

    Items without edges have vectors of zeros.

    Args:
      p, q: return and in-out parameters of the walks.
    """
    items = train.edges.shape[0]
    both = sparse.csr_matrix(sparse.bmat([[None, train.edges], [train.edges.T, None]]))
    linked = np.flatnonzero(np.diff(both.indptr))
    graph = sparse.csr_matrix(both[linked][:, linked])
    with tempfile.TemporaryDirectory() as folder:
        source, found = pathlib.Path(folder) / "graph.npz", pathlib.Path(folder) / "vectors.npz"
        arrays = {name: getattr(graph, name) for name in ("data", "indptr", "indices")}
        np.savez(source, IDs=linked.astype(str), **arrays)
        options = {"input": source, "output": found, "dimensions": _DIM, "p": p, "q": q}
        options |= {"num-walks": 10, "walk-length": 40, "window-size": 5, "epochs": 2}
        options |= {"workers": train.threads, "random_state": train.seed}
        command = [train.pythons["node2vec"], "-m", "pecanpy.cli", "--weighted"]
        command += [f"--{name}={value}" for name, value in options.items()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(found, allow_pickle=False) as saved:
            nodes, rows = saved["IDs"].astype(np.int64), saved["data"]
    vectors = np.zeros((items, _DIM), np.float32)
    is_item = nodes < items
    vectors[nodes[is_item]] = rows[is_item]
    return vectors


PEERS = (
    Peer(
        "item2vec",
        "gensim",
        "gensim",
        tuple(
            {"ns_exponent": power, "sample": sample}
            for power in (0.75, 0.25)
            for sample in (1e-3, 1e-5)
        ),
        item2vec,
    ),
    Peer(
        "node2vec",
        "pecanpy",
        "PecanPy",
        tuple({"p": p, "q": q} for p, q in ((1.0, 1.0), (4.0, 1.0), (1.0, 0.5))),
        node2vec,
        elsewhere=True,
    ),
)
