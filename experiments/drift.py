"""What --half_life and validation by time give where tastes change, on a made-up shop.

    python experiments/drift.py [FOLDER] [--baskets=4000] [--half_lives=0,40,20,10,5,2]

Items belong to groups and move to another one on a day of their own; a basket holds items that
are in one group on its day.  Evaluation asks for items that are in one group after the last
day.  For each half-life the script prepares the catalog and prints the hit-rates of the plain
walk, which follows the weights of edges and needs no training: on evaluation pairs, on the
validation pairs of a run with --time_column, and on those that a run without times would
have drawn.  It takes some seconds.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pinsage_jax
from pinsage_jax.catalog.prepare import Prepared, prepare
from pinsage_jax.core.text_table import aligned
from pinsage_jax.evaluation.baselines import Walk, rank_pairs
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import validation_split

GROUPS, DAYS, SIZE = 20, 100, 4
HIT_AT = 10


class Shop:
    """Items that move from one group to another, and what is sold together."""

    def __init__(self, items: int, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        self._groups = self._rng.integers(0, GROUPS, (2, items))
        self._moves = self._rng.uniform(0, DAYS, items)

    def draw(self, day: float, size: int) -> list[str]:
        """Up to `size` items that are in one group on a day."""
        groups = np.where(self._moves < day, self._groups[1], self._groups[0])
        members = np.flatnonzero(groups == self._rng.choice(groups))
        chosen = self._rng.choice(members, min(size, len(members)), replace=False)
        return [f"item{number:04}" for number in chosen.tolist()]

    def write(self, folder: pathlib.Path, baskets: int) -> None:
        """Writes edges.parquet, and pairs.parquet about the day after the last."""
        edges = [
            (f"basket{number:05}", item, int(day))
            for number, day in enumerate(self._rng.uniform(0, DAYS, baskets))
            for item in self.draw(float(day), SIZE)
        ]
        drawn = (self.draw(DAYS, 2) for _ in range(baskets // 2))
        pairs = [pair for pair in drawn if len(pair) == 2]
        for name, rows, columns in (
            ("edges", edges, ("collection_id", "item_id", "day")),
            ("pairs", pairs, ("query_id", "target_id")),
        ):
            table = pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))
            pq.write_table(table, folder / f"{name}.parquet")


def hit_rates(folder: pathlib.Path, half_life: float) -> list[float]:
    """Hit-rates of the walk: evaluation pairs, validation by time, random validation."""
    config = pinsage_jax.settings(
        folder / f"half_life_{half_life:g}", edges=folder / "edges.parquet",
        eval_pairs=folder / "pairs.parquet", time_column="day", half_life=half_life,
    )  # fmt: skip
    prepared: Prepared = prepare(config)

    def rate(graph: Graph, pairs: np.ndarray) -> float:
        walk = Walk(graph, config.sampling, config.seed, config.host_threads)
        return float(np.mean(rank_pairs(walk, pairs, graph.num_items) <= HIT_AT))

    rates = [rate(prepared.graph, prepared.eval_pairs)]
    for times in (prepared.edge_times, None):
        split = validation_split(prepared.graph, config.split, config.seed, times=times)
        rates.append(rate(split.train_graph, split.pairs))
    return rates


def main(arguments: list[str] | None = None) -> dict[float, list[float]]:
    """Prints the table, and returns the hit-rates of each half-life."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--baskets", type=int, default=4000)
    parser.add_argument("--half_lives", default="0,40,20,10,5,2")
    given = parser.parse_args(arguments)
    folder = given.folder or pathlib.Path(tempfile.mkdtemp(prefix="drift-"))
    folder.mkdir(parents=True, exist_ok=True)
    Shop(given.items).write(folder, given.baskets)
    found = {days: hit_rates(folder, days) for days in map(float, given.half_lives.split(","))}
    heading = ["half-life, days", "evaluation", "validation by time", "random validation"]
    rows = [[f"{days:g}", *(f"{rate:.3f}" for rate in rates)] for days, rates in found.items()]
    print(f"hit@{HIT_AT} of the walk", *aligned([heading, *rows]), sep="\n")
    return found


if __name__ == "__main__":
    main()
