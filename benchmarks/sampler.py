"""Neighborhood sampler: seeds/s and hops/s, compared with a pointer chase and with DGL.

The settings are those of DGL's PinSAGESampler: "T=50" is 100 walks of exactly 5
item-collection-item steps, "T=20" 100 walks of at most 4 with stop probability 0.3, and "T=10" 50
and "T=3" 10 walks of at most 2 with stop probability 0.5.
Our walks end where they would return to the start (restart_ends), as DGL's do, so both make the
same number of hops, such as 30 per seed on average in "T=3".  DGL's lists may contain the seed
itself, ours never do.

Other processes slow the two sides down differently, because DGL's threads wait for each other, so
the ratio of CPU times is reported beside that of wall-clock times.

The bound is a pointer chase over as many bytes as the walk's tables (row starts and
neighbors) with as many chains in flight as the sampler has walks in flight.  A hop reads
twice (the row, then the neighbor), so the bound on hops/s is half of the reads/s.  Walks may
exceed it, because popular nodes stay in the caches and the chase reads all addresses equally.
"""

from __future__ import annotations

import collections
import functools
import statistics
import time

import numpy as np

from benchmarks import dgl, graphs, machine
from benchmarks.chase import Chase
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.sampling.neighborhoods import WalkTables, starts_in_flight, visit_counts

# name: traversals, stop probability, walks, T, hops per seed, seeds of a timing.
SETTINGS = {
    "T=50": (5, 0.0, 100, 50, 1000, 16_384),
    "T=20": (4, 0.3, 100, 20, 506.6, 16_384),
    "T=10": (2, 0.5, 50, 10, 150, 65_536),
    "T=3": (2, 0.5, 10, 3, 30, 524_288),
}


def add_options(parser) -> None:
    """Flags of this benchmark: graphs, settings and the ways to call DGL."""
    parser.add_argument("--sampler_graphs", nargs="+", default=["small", "large"])
    parser.add_argument("--sampler_settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--dgl_batches", nargs="+", type=int, default=[512, 8192])
    parser.add_argument("--dgl_bits", nargs="+", type=int, default=[64, 32])


def run(options) -> list[dict]:
    """Rows of our sampler by threads, rows of DGL, and rows of their ratios."""
    rows, ratios = [], []
    worker = dgl.Worker(options.dgl_python, options.threads) if options.dgl_python else None
    for name in ["tiny"] if options.quick else options.sampler_graphs:
        graph, path = graphs.load(name, options.graphs)
        tables = WalkTables(graph)
        chase = Chase(tables.footprint)
        for setting in options.sampler_settings:
            found, bound = _measure(tables, setting, str(path), chase, worker, options)
            rows += [{"graph": name, "setting": setting} | row for row in found]
            ours = found[-1]
            bound_row = {
                "graph": name,
                "setting": setting,
                "threads": options.threads,
                "chains": ours_in_flight(setting),
                "chase Mreads/s": bound / 1e6,
                "share of the bound": 2 * ours["Mhops/s"] / (bound / 1e6),
            }
            theirs = [row for row in found if row["side"] != "ours"]
            if theirs:
                best = max(row["seeds/s"] for row in theirs)
                least = min(row["CPU us/seed"] for row in theirs)
                bound_row["over DGL's best"] = ours["seeds/s"] / best
                bound_row["by CPU time"] = least / ours["CPU us/seed"]
            ratios.append(bound_row)
    notes = [{"note": dgl.SKIPPED}]
    if worker is not None:
        with worker:
            versions = worker.versions
        notes = [{"note": f"DGL {versions['dgl']} with torch {versions['torch']}."}]
    return [*rows, *notes, *ratios]


def ours_in_flight(setting: str) -> int:
    """The number of walks that one thread of our sampler moves concurrently."""
    walks = SETTINGS[setting][2]
    return walks * starts_in_flight(walks)


def _measure(tables, setting, path, chase, worker, options) -> tuple[list[dict], float]:
    """Rows of both sides, ours with all threads last, and the chase's reads/s."""
    steps, stop, walks, top, kept_hops, seeds = SETTINGS[setting]
    seeds = 2_048 if options.quick else seeds
    sampling = SamplingConfig(
        num_neighbors=top,
        num_walks=walks,
        walk_length=steps,
        restart=float(stop),
    )
    starts = np.random.default_rng(1).integers(0, tables.graph.num_items, seeds, dtype=np.int32)
    chains, turns = ours_in_flight(setting), 2_000_000 // ours_in_flight(setting)
    works, cpu = {}, collections.defaultdict(list)
    if worker is not None:
        for bits in options.dgl_bits:
            for batch in options.dgl_batches:
                # DGL is many times slower: an eighth of the seeds takes about as long.
                count = max(seeds // 8, batch)

                side = "DGL", options.threads, f"{bits} bits, batch {batch}"

                def theirs(bits=bits, batch=batch, count=count, side=side):
                    worker.ask("graph", path=path, bits=bits)
                    spent = worker.ask(
                        "sample",
                        seeds=count,
                        batch=batch,
                        traversals=steps,
                        stop=stop,
                        walks=walks,
                        top=top,
                    )
                    cpu[side].append(spent["cpu"] / count)
                    return spent["seconds"] * (seeds / count)

                works[side] = theirs

    def ours(threads):
        before = time.process_time()
        spent = machine.seconds(
            lambda: visit_counts(
                tables, starts, sampling, seed=0, threads=threads, restart_ends=True
            )
        )
        cpu["ours", threads, ""].append((time.process_time() - before) / seeds)
        return spent

    for threads in sorted({1, options.threads}):
        works["ours", threads, ""] = functools.partial(ours, threads)
    works["chase"] = lambda: chase.seconds(chains, turns, options.threads)
    taken = machine.in_turn(works, options.repeat)
    bound = options.threads * chains * turns / taken.pop("chase")["seconds"]
    rows = []
    for (side, threads, how), spent in taken.items():
        rows.append(
            {
                "side": side,
                "threads": threads,
                "how": how,
                "T": top,
                "walks": walks,
                "seeds/s": seeds / spent["seconds"],
                "slowest": seeds / spent["slowest"],
                "fastest": seeds / spent["fastest"],
                "Mhops/s": kept_hops * seeds / spent["seconds"] / 1e6,
                "CPU us/seed": 1e6 * statistics.median(cpu[side, threads, how][1:]),
            }
        )
    return rows, bound
