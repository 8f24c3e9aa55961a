"""PinSAGE by DGL 2.1: its sampler and its message passing, in an environment of its own.

The network and the training step are those of benchmarks/dgl_worker.py: two convolutions with
importance pooling over 10 neighbors, pairs of one walk, one random negative a pair, margin loss.

N items, Z dimensions
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from scipy import sparse

from benchmarks import dgl
from benchmarks.arena.peers import Peer, Train, Unavailable

_DIM, _PAIRS = 128, 256
# Traversals, stop probability, walks and neighbors.
_SAMPLER = (2, 0.5, 50, 10)


def pinsage(train: Train, steps: int, learning_rate: float) -> np.ndarray:
    """Item vectors float32 [N, 128].

    Raises:
      Unavailable: the items have no features.
    """
    if train.features.shape[1] == 0:
        raise Unavailable("the items have no features, which its network reads")
    back = sparse.csr_matrix(train.edges.T)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(
            folder / "graph.npz",
            pb_indptr=train.edges.indptr,
            pb_indices=train.edges.indices,
            bp_indptr=back.indptr,
            bp_indices=back.indices,
        )
        np.save(folder / "features.npy", np.asarray(train.features, np.float32))
        with dgl.Worker(pathlib.Path(train.pythons["dgl_pinsage"]), train.threads) as worker:
            worker.ask("graph", path=str(folder / "graph.npz"), bits=64)
            worker.ask(
                "vectors",
                features=str(folder / "features.npy"),
                out=str(folder / "vectors.npy"),
                steps=steps,
                learning_rate=learning_rate,
                sampler=_SAMPLER,
                pairs=_PAIRS,
                width=_DIM,
            )
        return np.load(folder / "vectors.npy", allow_pickle=False)


PEERS = (
    Peer(
        "dgl_pinsage",
        "dgl",
        "DGL 2.1",
        tuple({"steps": steps, "learning_rate": rate} for steps in (500, 3000) for rate in (1e-3,)),
        pinsage,
        elsewhere=True,
    ),
)
