"""Walks over one graph in several layouts: order of nodes, bytes of an id, pages, sorted walks.

Each layout is measured in turn with the plain one, in one process, by a walker that does nothing
but hop from an item to a collection and back, with as many walks in flight as the sampler has.

  plain      int32 ids, nodes in the order of the generated catalog, pages of 4 KiB
  degree     nodes renumbered by descending degree, items and collections apart
  together   collections renumbered by their first items, items by their first collections
  3 bytes    ids packed into 3 bytes each, of up to 16 million nodes of a kind
  huge       pages of 2 MiB (madvise)
  sorted     walks sorted by the node on which they stand, before every hop
  chase      dependent random reads over as many bytes: what the memory allows

The table has the bytes of an id as a difference in groups of 7 bits, and a note has what a random
row of the same degree needs at least: a row with random access cannot be shorter.

  python -m benchmarks.run graph_layout --layout_graph=WORKDIR/prepared/graph
"""

from __future__ import annotations

import mmap

import numpy as np

from benchmarks import machine
from benchmarks.chase import Chase
from pinsage_jax.config.data import catalog_of_size
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch
from pinsage_jax.graph.csr import Graph
from pinsage_jax.synthetic import generator, latents

_WALKS = 1024
_HUGE_PAGES = 14  # MADV_HUGEPAGE


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--layout_graph", default="", help="folder of a graph; empty: generated")
    parser.add_argument("--layout_edges", type=int, default=20_000_000, help="of a generated one")
    parser.add_argument("--layout_hops", type=int, default=4_000_000, help="hops of a timing")


@njit(nogil=True, cache=True)
def _walk(indptr, indices, width, nodes, states, hops, order):
    """Moves all walks `hops` times; with an `order` int64 [W] they are sorted before each.

    indices: int32 [2E] for a width of 0, else uint8 [2E * width + 4].
    """
    edges = np.empty(nodes.shape[0], np.int64)
    for _ in range(hops):
        if order.shape[0]:
            order[:] = np.argsort(nodes)
        for place in range(nodes.shape[0]):
            walk = order[place] if order.shape[0] else place
            states[walk] = states[walk] * np.uint64(6364136223846793005) + np.uint64(1442695041)
            low, high = indptr[nodes[walk]], indptr[nodes[walk] + 1]
            part = (states[walk] >> np.uint64(32)) * np.uint64(high - low)
            edges[walk] = low + np.int64(part >> np.uint64(32))
            prefetch(indices, edges[walk] * max(width, 1))
        for place in range(nodes.shape[0]):
            walk = order[place] if order.shape[0] else place
            if width == 0:
                nodes[walk] = indices[edges[walk]]
            else:
                first, found = edges[walk] * width, np.int64(0)
                for byte in range(width):
                    found |= np.int64(indices[first + byte]) << (8 * byte)
                nodes[walk] = found
            prefetch(indptr, nodes[walk])


@njit(nogil=True, cache=True)
def _difference_bytes(indptr, indices):
    """Bytes of all rows as differences in groups of 7 bits."""
    total = 0
    for row in range(indptr.shape[0] - 1):
        before = 0
        for edge in range(indptr[row], indptr[row + 1]):
            value = indices[edge] - before
            before = indices[edge]
            total += 1
            while value >= 128:
                value >>= 7
                total += 1
    return total


def run(options) -> list[dict]:
    """A row for each layout, with its hops over those of the plain one."""
    graph = _graph(options)
    hops = max((20_000 if options.quick else options.layout_hops) // _WALKS, 1)
    plain = _Layout(graph.indptr, np.asarray(graph.indices))
    rows = []
    for name, make in (
        ("degree", lambda: _renumbered(graph, _by_degree(graph))),
        ("together", lambda: _renumbered(graph, _together(graph))),
        ("3 bytes", lambda: _three_bytes(graph)),
        ("huge", lambda: _Layout(_huge(graph.indptr), _huge(graph.indices))),
        ("sorted", lambda: _Layout(graph.indptr, plain.indices, is_sorted=True)),
    ):
        layout = make()
        pairs = [
            (plain.seconds(hops, repeat), layout.seconds(hops, repeat))
            for repeat in range(options.repeat)
        ]
        before, after = (float(np.median(times)) for times in zip(*pairs, strict=True))
        rows.append(
            {
                "layout": name,
                "plain_hops_per_s": round(hops * _WALKS / before),
                "hops_per_s": round(hops * _WALKS / after),
                "ratio": round(float(np.median([a / b for a, b in pairs])), 2),
                "bytes_per_id": layout.bytes_per_id,
                "differences_bytes_per_id": layout.difference_bytes,
            }
        )
        del layout
    size = graph.indptr.nbytes + graph.indices.nbytes
    seconds = Chase(size).seconds(_WALKS, 2 * hops, 1)
    entropy = _entropy_bytes(graph)
    return [
        *rows,
        {"note": f"chase over {size / 2**20:,.0f} MiB: {2 * hops * _WALKS / seconds:,.0f} reads/s"},
        {"note": f"a random row of these degrees holds {entropy:.2f} bytes an id"},
    ]


class _Layout:
    """One layout of the graph, and a walker over it."""

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, width=0, is_sorted=False):
        self.indptr, self.indices, self._width = np.asarray(indptr), indices, width
        self._order = np.empty(_WALKS if is_sorted else 0, np.int64)
        self.bytes_per_id = width or indices.itemsize
        self.difference_bytes = None
        if not width:
            found = _difference_bytes(self.indptr, indices)
            self.difference_bytes = round(found / len(indices), 2)

    def seconds(self, hops: int, seed: int) -> float:
        rng = np.random.default_rng(seed)
        linked = np.flatnonzero(np.diff(self.indptr) > 0)
        nodes = rng.choice(linked, _WALKS).astype(np.int64)
        states = rng.integers(0, 2**63, _WALKS).astype(np.uint64)
        arguments = self.indptr, self.indices, self._width
        _walk(*arguments, nodes, states, 2, self._order)
        return machine.seconds(lambda: _walk(*arguments, nodes, states, hops, self._order))


def _graph(options) -> Graph:
    if options.layout_graph:
        return Graph.load(options.layout_graph)
    edges = 20_000 if options.quick else options.layout_edges
    settings = catalog_of_size(f"{max(edges // 20, 20)}x{edges}")
    blocks = list(generator.edge_blocks(settings, latents.draw_items(settings)))
    boards, items = (np.concatenate(part).astype(np.int32) for part in zip(*blocks, strict=True))
    return Graph.from_edges(items, boards, settings.items, settings.collections)


def _by_degree(graph: Graph) -> np.ndarray:
    """The new number of every node, int32 [N]."""
    degree = graph.degree()
    parts = np.split(degree, [graph.num_items])
    return _numbers(graph, *(np.argsort(-part, kind="stable") for part in parts))


def _together(graph: Graph) -> np.ndarray:
    """Numbers by which nodes with a common neighbor lie closer together: two rounds of minima."""
    items = graph.num_items
    number = np.arange(graph.num_nodes, dtype=np.int64)
    starts = np.asarray(graph.indptr[:-1])
    linked = np.diff(graph.indptr) > 0
    for _ in range(2):
        for part in (slice(items, None), slice(0, items)):
            rows = np.flatnonzero(linked[part]) + (part.start or 0)
            row_starts = starts[rows]
            end = int(graph.indptr[graph.num_nodes if part.start else items])
            values = number[graph.indices[row_starts[0] : end]]
            number[rows] = np.minimum.reduceat(values, row_starts - row_starts[0])
            order = np.argsort(number[part], kind="stable")
            number[part][order] = np.arange(len(order)) + (part.start or 0)
    return number.astype(np.int32)


def _numbers(graph: Graph, items: np.ndarray, collections: np.ndarray) -> np.ndarray:
    found = np.empty(graph.num_nodes, np.int32)
    found[items] = np.arange(graph.num_items)
    found[graph.num_items + collections] = np.arange(graph.num_items, graph.num_nodes)
    return found


def _renumbered(graph: Graph, number: np.ndarray) -> _Layout:
    rows = np.arange(graph.num_items, dtype=np.int32)
    owner = number[np.repeat(rows, np.diff(graph.indptr[: graph.num_items + 1]))]
    other = number[graph.indices[: graph.num_edges]] - np.int32(graph.num_items)
    found = Graph.from_edges(owner, other, graph.num_items, graph.num_collections)
    return _Layout(found.indptr, found.indices)


def _three_bytes(graph: Graph) -> _Layout:
    packed = np.zeros(3 * len(graph.indices) + 8, np.uint8)
    for begin in range(0, len(graph.indices), 1 << 24):
        part = np.ascontiguousarray(graph.indices[begin : begin + (1 << 24)])
        if part.max() >= 1 << 24:
            raise SystemExit("3 bytes hold ids below 16,777,216; use a smaller graph")
        packed[3 * begin : 3 * (begin + len(part))] = (
            part.view(np.uint8).reshape(-1, 4)[:, :3].reshape(-1)
        )
    return _Layout(graph.indptr, packed, 3)


def _huge(array: np.ndarray) -> np.ndarray:
    """A copy in pages of 2 MiB, where the system has them."""
    memory = mmap.mmap(-1, array.nbytes + (1 << 21), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(_HUGE_PAGES)
    copy = np.frombuffer(memory, array.dtype, len(array))
    copy[:] = array
    return copy


def _entropy_bytes(graph: Graph) -> float:
    """Bytes an id of a random subset of the nodes of the other kind, for the degrees there are."""
    total = 0.0
    kinds = (0, graph.num_items, graph.num_collections), (graph.num_items, None, graph.num_items)
    for first, last, size in kinds:
        degree = np.diff(graph.indptr[first:][: None if last is None else last - first + 1])
        share = np.clip(degree / size, 1e-12, 1 - 1e-12)
        bits = size * (-share * np.log2(share) - (1 - share) * np.log2(1 - share))
        total += float(bits[degree > 0].sum())
    return total / 8 / len(graph.indices)
