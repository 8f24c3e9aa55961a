"""--mode=compare: two finished runs beside each other.

Settings that differ, what the data of either is, metrics of both on the pairs that both
have (with paired bootstrap intervals of the difference, since the pairs are the same),
how many nearest neighbors changed, and costs.  The runs may have other catalogs:
items and pairs are matched by their ids.  WORKDIR/compare.json holds the same.

  N items, P pairs, k neighbors
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.costs import COSTS_FILE
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import metrics
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.reporting.comparison_text import comparison_text
from pinsage_jax.reporting.sources import Source, read_source
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks, top_k

COMPARE_FILE = "compare.json"
# What a run is told but what changes no number that it computes.
_NOT_COMPARED = ("mode", "workdir", "threads", "evaluate", "doctor", "compare")
_MOST_CHANGED = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as its workdir has it."""

    workdir: str
    prepared: Prepared
    embeddings: np.ndarray  # float32 [N, Z]
    source: Source

    @classmethod
    def of(cls, config: Config) -> Run:
        """Opens the run in config.workdir; UserError if it has no data or embeddings."""
        prepared = open_prepared(config.workdir)
        vectors = load_embeddings(config.workdir, prepared)
        return cls(config.workdir, prepared, vectors, read_source(config, len(vectors)))


def compare(config: Config) -> dict[str, Any]:
    """Compares the run in --workdir with that in --compare_with; prints tables, writes JSON.

    Returns:
      What compare.json holds.

    Raises:
      UserError: a run is not there or not finished, or both are the same.
    """
    other = config.compare.compare_with
    if pathlib.Path(other).resolve() == pathlib.Path(config.workdir).resolve():
        raise UserError(f"--compare_with={other} is --workdir itself; name another run.")
    first = Run.of(config)
    second = Run.of(dataclasses.replace(config, workdir=other))
    result = {
        "runs": [first.workdir, second.workdir],
        "settings": settings_difference(first.source, second.source),
        "settings_known": [first.source.trained, second.source.trained],
        "data": [_data(run) for run in (first, second)],
        "metrics": compare_metrics(first, second, config.evaluate.bootstrap, config.seed),
        "neighbors": neighbor_churn(
            first, second, config.evaluate.neighbors_listed, config.compare.compare_items
        ),
        "costs": [_costs(run) for run in (first, second)],
    }
    print(comparison_text(result))
    files.write_json(pathlib.Path(config.workdir) / COMPARE_FILE, result)
    return result


def settings_difference(first: Source, second: Source) -> list[dict[str, Any]]:
    """Flag and both values of every setting that differs, in the order of --helpfull."""
    rows = []
    ours, theirs = dataclasses.asdict(first.config), dataclasses.asdict(second.config)
    for name, value in ours.items():
        if name in _NOT_COMPARED:
            continue
        if not isinstance(value, dict):
            value, other = {name: value}, {name: theirs[name]}
        else:
            other = theirs[name]
        rows += [
            {"flag": flag, "values": [here, other[flag]]}
            for flag, here in value.items()
            if here != other[flag]
        ]
    return rows


def _data(run: Run) -> dict[str, Any]:
    graph = run.prepared.graph
    return {
        "items": graph.num_items,
        "collections": graph.num_collections,
        "edges": graph.num_edges,
        "eval_pairs": len(run.prepared.eval_pairs),
        "step": run.source.embeddings.get("step"),
        "dimension": int(run.embeddings.shape[1]),
    }


def _costs(run: Run) -> dict[str, Any] | None:
    path = pathlib.Path(run.workdir) / COSTS_FILE
    return files.read_json(path) if path.exists() else None


def rows_in(ours: Prepared, theirs: Prepared) -> np.ndarray:
    """For every item of `ours` its row in `theirs`, int32 [N], -1 where it has none."""
    return theirs.item_ids.lookup(ours.item_ids.ids)


def shared_pairs(first: Run, second: Run) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation pairs of both, each once: int32 [P, 2] as rows of either, in order of `first`."""
    rows = rows_in(first.prepared, second.prepared)
    ours = np.asarray(first.prepared.eval_pairs).reshape(-1, 2)
    _, places = np.unique(ours, axis=0, return_index=True)
    ours = ours[np.sort(places)]
    mapped = rows[ours].reshape(-1, 2)
    key = mapped[:, 0].astype(np.int64) << 32 | mapped[:, 1].astype(np.int64) & 0xFFFFFFFF
    given = np.asarray(second.prepared.eval_pairs, np.int64).reshape(-1, 2)
    both = (mapped >= 0).all(axis=1) & np.isin(key, given[:, 0] << 32 | given[:, 1])
    return ours[both], mapped[both]


def compare_metrics(first: Run, second: Run, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics of both runs on the pairs that both have, and their paired difference.

    Every pair is ranked in the whole catalog of its run.

    Returns:
      {pairs, of: [pairs of either], same_pairs, same_catalog, kinds: {kind: {pairs,
      metrics: {metric: {values, intervals, difference, low, high}}}}}.  Without bootstrap
      there are no intervals.
    """
    ours, theirs = shared_pairs(first, second)
    offered = [
        len(np.unique(np.asarray(run.prepared.eval_pairs).reshape(-1, 2), axis=0))
        for run in (first, second)
    ]
    same_items = first.prepared.item_ids.digest() == second.prepared.item_ids.digest()
    found: dict[str, Any] = {
        "pairs": len(ours),
        "of": offered,
        "same_pairs": len(ours) == max(offered),
        "same_catalog": same_items,
        "tie_rule": TIE_RULE,
        "interval": f"95%, {resamples} bootstrap resamples of queries",
        "kinds": {},
    }
    if not len(ours):
        return found
    ranks = [
        target_ranks(run.embeddings[pairs[:, 0]], run.embeddings, *pairs.T)
        for run, pairs in ((first, ours), (second, theirs))
    ]
    kinds = _kinds_of(first.prepared, ours)
    chosen = {"all": np.ones(len(ours), np.bool_)}
    chosen |= {str(kind): kinds == kind for kind in np.unique(kinds)}
    for kind, mask in chosen.items():
        tables = [metrics.query_table(rank[mask], ours[mask, 0]) for rank in ranks]
        generator = metrics.keyed_generator(seed, f"compare {kind}")
        samples = metrics.bootstrap_means(tables, resamples, generator) if resamples else None
        found["kinds"][kind] = {
            "pairs": int(mask.sum()), "metrics": _side_by_side(tables, samples)
        }  # fmt: skip
    return found


def _kinds_of(prepared: Prepared, pairs: np.ndarray) -> np.ndarray:
    """Kind of each of `pairs`, all of which are among the evaluation pairs."""
    kinds = {
        (int(query), int(target)): str(kind)
        for (query, target), kind in zip(prepared.eval_pairs, prepared.eval_kinds)
    }
    return np.array([kinds[int(query), int(target)] for query, target in pairs])


def _side_by_side(tables: list[metrics.QueryTable], samples: np.ndarray | None) -> dict[str, Any]:
    means = [table.means() for table in tables]
    described: dict[str, Any] = {
        name: {
            "values": [mean[name] for mean in means],
            "difference": means[1][name] - means[0][name],
        }
        for name in metrics.METRICS
    }
    if samples is None:
        return described
    bounds = [metrics.interval(some) for some in (*samples, samples[1] - samples[0])]
    for place, name in enumerate(metrics.METRICS):
        pairs = [[float(low[place]), float(high[place])] for low, high in bounds]
        described[name]["intervals"] = pairs[:2]
        described[name]["low"], described[name]["high"] = pairs[2]
    return described


def neighbor_churn(first: Run, second: Run, k: int, most: int) -> dict[str, Any]:
    """How much of the k nearest neighbors changed, over items that both runs have.

    An item's overlap is the share of its list in the first run that its list in the
    second holds too; an item that the other catalog lacks counts as changed.

    Args:
      most: items looked at, evenly spaced.

    Returns:
      {k, items, common_items, mean_overlap, same_first, unchanged, all_new,
      most_changed: [ids]}; empty lists and zeros where there is nothing to compare.
    """
    rows = rows_in(first.prepared, second.prepared)
    common = np.flatnonzero(rows >= 0)
    count = min(most, len(common))
    looked_at = common[np.arange(count) * len(common) // max(count, 1)]
    found: dict[str, Any] = {
        "k": k, "items": len(looked_at), "common_items": len(common), "mean_overlap": 0.0,
        "same_first": 0.0, "unchanged": 0.0, "all_new": 0.0, "most_changed": [],
    }  # fmt: skip
    if not len(looked_at):
        return found
    there = rows[looked_at]
    ours, _ = top_k(first.embeddings[looked_at], first.embeddings, k, looked_at)
    theirs, _ = top_k(second.embeddings[there], second.embeddings, k, there)
    # In rows of the second run; -2 for an item that it lacks, so that it meets nothing.
    mapped = np.where(ours >= 0, np.where(rows[ours] >= 0, rows[ours], -2), -2)
    listed = np.maximum((ours >= 0).sum(axis=1), 1)
    shared = np.array([len(np.intersect1d(a, b)) for a, b in zip(mapped, theirs)])
    overlap = shared / listed
    worst = looked_at[np.argsort(overlap, kind="stable")[:_MOST_CHANGED]]
    return found | {
        "mean_overlap": float(overlap.mean()),
        "same_first": float((mapped[:, 0] == theirs[:, 0]).mean()),
        "unchanged": float((overlap == 1.0).mean()),
        "all_new": float((overlap == 0.0).mean()),
        "most_changed": first.prepared.item_ids.names(worst).to_pylist(),
    }
