"""Answers questions about DGL's speed, JSON lines in and out; run by an environment with DGL.

DGL 2.1 needs no GraphBolt for its classic samplers, and its GraphBolt fits old versions
of PyTorch only: an empty module stands in for it.
"""

import json
import os
import sys
import time
import types

HELD = {}


class _Nothing(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def start(threads):
    """Imports DGL; its versions."""
    sys.modules.setdefault("dgl.graphbolt", _Nothing("dgl.graphbolt"))
    import dgl
    import torch

    torch.set_num_threads(threads)
    dgl.utils.set_num_threads(threads)
    torch.manual_seed(0)
    dgl.seed(0)
    HELD.update(dgl=dgl, torch=torch)
    return {"dgl": dgl.__version__, "torch": torch.__version__}


def graph(path, bits):
    """Loads a file of benchmarks/graphs.py with ids of 32 or 64 bits; number of edges."""
    import numpy as np

    dgl, torch = HELD["dgl"], HELD["torch"]
    if (path, bits) in HELD:
        HELD["graph"] = HELD[path, bits]
        return HELD["graph"].num_edges("in")
    dtype = {32: torch.int32, 64: torch.int64}[bits]
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.as_tensor(file[name]).to(dtype) for name in file.files}
    none = torch.empty(0, dtype=dtype)
    there, back = (
        ("csr", (arrays[f"{way}_indptr"], arrays[f"{way}_indices"], none)) for way in ("pb", "bp")
    )
    HELD["graph"] = HELD[path, bits] = dgl.heterograph(
        {("item", "in", "collection"): there, ("collection", "of", "item"): back},
        num_nodes_dict={
            "item": len(arrays["pb_indptr"]) - 1,
            "collection": len(arrays["bp_indptr"]) - 1,
        },
        idtype=dtype,
    )
    return HELD["graph"].num_edges("in")


def sample(seeds, batch, traversals, stop, walks, top):
    """Seconds of PinSAGESampler over `seeds` random items, `batch` at a time."""
    dgl, torch, graph = HELD["dgl"], HELD["torch"], HELD["graph"]
    sampler = dgl.sampling.PinSAGESampler(graph, "item", "collection", traversals, stop, walks, top)
    chosen = torch.randint(0, graph.num_nodes("item"), (seeds,)).to(graph.idtype).split(batch)
    begin = time.perf_counter()
    for part in chosen:
        sampler(part)
    return time.perf_counter() - begin


ANSWERS = {"start": start, "graph": graph, "sample": sample}


def main():
    # What libraries print goes to the error stream: only answers may enter the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"answer": ANSWERS[question.pop("what")](**question)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
