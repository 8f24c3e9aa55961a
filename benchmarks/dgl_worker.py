"""Measures DGL on request: JSON lines in and out, run by a Python environment with DGL.

Times are {"seconds": wall-clock time, "cpu": CPU time of all threads and ended processes}.

The classic samplers of DGL 2.1 do not need GraphBolt, and its GraphBolt only works with old
versions of PyTorch, so an empty module replaces it.
"""

import contextlib
import json
import os
import resource
import sys
import time
import types

STATE = {}


class _Nothing(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _timed():
    """Yields a dict that has the times after the block."""
    spent, begin, before = {}, time.perf_counter(), _cpu_seconds()
    yield spent
    spent.update(seconds=time.perf_counter() - begin, cpu=_cpu_seconds() - before)


def _cpu_seconds():
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def start(threads):
    """Imports DGL; returns the versions."""
    sys.modules.setdefault("dgl.graphbolt", _Nothing("dgl.graphbolt"))
    import dgl
    import torch

    torch.set_num_threads(threads)
    dgl.utils.set_num_threads(threads)
    torch.manual_seed(0)
    dgl.seed(0)
    STATE.update(dgl=dgl, torch=torch)
    return {"dgl": dgl.__version__, "torch": torch.__version__}


def graph(path, bits):
    """Loads a file of benchmarks/graphs.py with ids of 32 or 64 bits; returns the edge count."""
    import numpy as np

    dgl, torch = STATE["dgl"], STATE["torch"]
    if (path, bits) in STATE:
        STATE["graph"] = STATE[path, bits]
        return STATE["graph"].num_edges("in")
    dtype = {32: torch.int32, 64: torch.int64}[bits]
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.as_tensor(file[name]).to(dtype) for name in file.files}
    none = torch.empty(0, dtype=dtype)
    forward, backward = (
        ("csr", (arrays[f"{way}_indptr"], arrays[f"{way}_indices"], none)) for way in ("pb", "bp")
    )
    STATE["graph"] = STATE[path, bits] = dgl.heterograph(
        {("item", "in", "collection"): forward, ("collection", "of", "item"): backward},
        num_nodes_dict={
            "item": len(arrays["pb_indptr"]) - 1,
            "collection": len(arrays["bp_indptr"]) - 1,
        },
        idtype=dtype,
    )
    return STATE["graph"].num_edges("in")


def sample(seeds, batch, traversals, stop, walks, top):
    """Times PinSAGESampler over `seeds` random items, `batch` at a time."""
    dgl, torch, graph = STATE["dgl"], STATE["torch"], STATE["graph"]
    sampler = dgl.sampling.PinSAGESampler(graph, "item", "collection", traversals, stop, walks, top)
    chosen = torch.randint(0, graph.num_nodes("item"), (seeds,)).to(graph.idtype).split(batch)
    with _timed() as spent:
        for part in chosen:
            sampler(part)
    return spent


def _network(inputs, width):
    """Two convolutions with importance pooling, then two dense layers (PinSage, Alg. 1)."""
    of_messages, torch = STATE["dgl"].function, STATE["torch"]

    class Convolution(torch.nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.neighbor = torch.nn.Linear(inputs, width)
            self.join = torch.nn.Linear(inputs + width, width)

        def forward(self, block, h):
            with block.local_scope():
                block.srcdata["message"] = torch.relu(self.neighbor(h))
                block.update_all(
                    of_messages.u_mul_e("message", "weight", "m"), of_messages.sum("m", "pooled")
                )
                block.update_all(of_messages.copy_e("weight", "m"), of_messages.sum("m", "total"))
                total = block.dstdata["total"].clamp(min=1).unsqueeze(1)
                pooled = block.dstdata["pooled"] / total
            h_self = h[: block.num_dst_nodes()]
            joined = torch.relu(self.join(torch.cat([h_self, pooled], 1)))
            return torch.nn.functional.normalize(joined)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Convolution(inputs), Convolution(width)])
            self.head = torch.nn.Sequential(
                torch.nn.Linear(width, width),
                torch.nn.ReLU(),
                torch.nn.Linear(width, width, bias=False),
            )

        def forward(self, blocks, h):
            for layer, block in zip(self.layers, blocks):
                h = layer(block, h)
            return self.head(h)

    return Network()


def _blocks(graph, sampler, nodes):
    """The blocks of two convolutions that end at `nodes`, their edges weighted by visits."""
    dgl, blocks = STATE["dgl"], []
    for _ in range(2):
        frontier = sampler(nodes)
        block = dgl.to_block(frontier, nodes)
        weights = frontier.edata["weights"][block.edata[dgl.EID].long()]
        block.edata["weight"] = weights.float()
        nodes = block.srcdata[dgl.NID]
        blocks.insert(0, block)
    return blocks


class _Batches:
    """Yields `count` batches: positions of heads, tails and negatives among the seeds, and blocks.

    A tail is the end of one item-collection-item step from a random head that has an edge.  There
    is one random negative for each pair.
    """

    def __init__(self, graph, sampler, pairs, count):
        self.graph, self.sampler, self.pairs, self.count = graph, sampler, pairs, count
        self.linked = STATE["torch"].nonzero(graph.out_degrees(etype="in"))[:, 0]

    def __iter__(self):
        dgl, torch = STATE["dgl"], STATE["torch"]
        worker = torch.utils.data.get_worker_info()
        for _ in range(*((worker.id, self.count, worker.num_workers) if worker else (self.count,))):
            heads = self.linked[torch.randint(0, len(self.linked), (self.pairs,))]
            heads = heads.to(self.graph.idtype)
            negatives = torch.randint(0, self.graph.num_nodes("item"), (self.pairs,))
            negatives = negatives.to(self.graph.idtype)
            tails = dgl.sampling.random_walk(self.graph, heads, metapath=["in", "of"])[0][:, 2]
            nodes, where = torch.unique(torch.cat([heads, tails, negatives]), return_inverse=True)
            yield where.view(3, -1), _blocks(self.graph, self.sampler, nodes)


def _loss(network, features, where, blocks):
    """The max-margin loss of one batch."""
    items = blocks[0].srcdata[STATE["dgl"].NID].long()
    head, tail, negative = network(blocks, features[items])[where]
    return ((head * negative).sum(1) - (head * tail).sum(1) + 0.1).clamp(min=0).mean()


def train(steps, workers, traversals, stop, walks, top, pairs, features, width):
    """Times training steps, with batches made here (workers=0) or ahead by other processes.

    The wall-clock time excludes the first step, which starts the workers.  "cpu" includes it,
    because the CPU time of workers is only known after they have ended.
    """
    dgl, torch, graph = STATE["dgl"], STATE["torch"], STATE["graph"]
    sampler = dgl.sampling.PinSAGESampler(graph, "item", "collection", traversals, stop, walks, top)
    loader = torch.utils.data.DataLoader(
        type("Stream", (_Batches, torch.utils.data.IterableDataset), {})(
            graph, sampler, pairs, steps + 1
        ),
        batch_size=None,
        num_workers=workers,
    )
    if "network" not in STATE:
        STATE["network"] = network = _network(features, width)
        STATE["optimizer"] = torch.optim.Adam(network.parameters(), lr=1e-3)
        STATE["features"] = torch.randn(graph.num_nodes("item"), features)
    network, optimizer = STATE["network"], STATE["optimizer"]

    def step(where, blocks):
        loss = _loss(network, STATE["features"], where, blocks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    before = _cpu_seconds()
    batches = iter(loader)
    step(*next(batches))
    with _timed() as spent:
        for _ in range(steps):
            step(*next(batches))
    del batches
    return spent | {"cpu": _cpu_seconds() - before}


def vectors(features, out, steps, learning_rate, sampler, pairs, width):
    """Trains a network from scratch and writes the vectors of all items, float32 [N, width].

    Args:
      features: a .npy file, float32 [N, D].
      out: the .npy file to write.
      steps, pairs: number of training steps and of pairs in each.
      sampler: traversals, stop probability, walks and neighbors, as of PinSAGESampler.
    """
    import numpy as np

    dgl, torch, graph = STATE["dgl"], STATE["torch"], STATE["graph"]
    sampler = dgl.sampling.PinSAGESampler(graph, "item", "collection", *sampler)
    rows = torch.as_tensor(np.load(features, allow_pickle=False))
    network = _network(rows.shape[1], width)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for where, blocks in _Batches(graph, sampler, pairs, steps):
        optimizer.zero_grad()
        _loss(network, rows, where, blocks).backward()
        optimizer.step()
    found = []
    with torch.no_grad():
        for nodes in torch.arange(graph.num_nodes("item")).to(graph.idtype).split(1024):
            blocks = _blocks(graph, sampler, nodes)
            found.append(network(blocks, rows[blocks[0].srcdata[dgl.NID].long()]).numpy())
    np.save(out, np.concatenate(found))


ANSWERS = {"start": start, "graph": graph, "sample": sample, "train": train, "vectors": vectors}


def main():
    # Output of libraries goes to stderr, because only answers may enter the pipe.
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
