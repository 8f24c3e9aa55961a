"""LightGCN by PyTorch Geometric, in an environment of its own (PyTorch).

N items, Z dimensions
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np

from benchmarks.arena.peers import Peer, Train

WORKER = pathlib.Path(__file__).with_name("lightgcn_worker.py")
_DIM, _LAYERS, _EPOCHS, _BATCH = 64, 3, 200, 8192


def lightgcn(train: Train, learning_rate: float, penalty: float) -> np.ndarray:
    """Item vectors float32 [N, 64] of LightGCN (He et al. 2020), after its three layers.

    Args:
      learning_rate: of Adam.
      penalty: L2 penalty of the initial vectors of a batch.
    """
    edges = train.edges.tocoo()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "edges.npz", items=edges.row, collections=edges.col)
        plan = {
            "edges": str(folder / "edges.npz"),
            "out": str(folder / "vectors.npy"),
            "items": edges.shape[0],
            "collections": edges.shape[1],
            "dim": _DIM,
            "layers": _LAYERS,
            "epochs": _EPOCHS,
            "batch": _BATCH,
            "learning_rate": learning_rate,
            "penalty": penalty,
            "seed": train.seed,
            "threads": train.threads,
        }
        settings = {"OMP_NUM_THREADS": str(train.threads)}
        subprocess.run(
            [train.pythons["lightgcn"], "-I", str(WORKER), json.dumps(plan)],
            check=True,
            env=os.environ | settings,
        )
        return np.load(folder / "vectors.npy", allow_pickle=False)


PEERS = (
    Peer(
        "lightgcn",
        "torch_geometric",
        "PyTorch Geometric",
        tuple({"learning_rate": 5e-3, "penalty": penalty} for penalty in (1e-4, 1e-3)),
        lightgcn,
        elsewhere=True,
    ),
)
