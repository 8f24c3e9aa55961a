"""--mode=compare: compares two finished runs.

The comparison covers the settings that differ, the size of the data, the metrics on the
pairs that both runs have (with paired bootstrap intervals of the difference), the share of
nearest neighbors that changed, and the costs.  The catalogs may differ: items and pairs are
matched by their ids.  The result is printed and written to WORKDIR/compare.json.

  N items, P pairs, k neighbors
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config, plain_values
from pinsage_jax.core import files
from pinsage_jax.core.costs import COSTS_FILE
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.text_table import terminal_width
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.evaluate import MAIN
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.reporting.comparison_text import format_comparison
from pinsage_jax.reporting.sources import Source, read_source
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks, top_k

COMPARE_FILE = "compare.json"
# Settings that change no result of a run.
_NOT_COMPARED = ("mode", "workdir", "threads", "evaluate", "doctor", "compare")
# Items with the least overlap of neighbors that are named.
_NAMED_ITEMS = 5


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run, read from its workdir."""

    workdir: str
    prepared: Prepared
    embeddings: np.ndarray  # float32 [N, Z]
    source: Source

    @classmethod
    def of(cls, config: Config) -> Run:
        """Opens the run in config.workdir.

        Raises:
          UserError: the workdir has no prepared data or no embeddings.
        """
        prepared = open_prepared(config.workdir)
        vectors = load_embeddings(config.workdir, prepared)
        return cls(config.workdir, prepared, vectors, read_source(config, len(vectors)))


def compare(config: Config) -> dict[str, Any]:
    """Compares the runs in --workdir and --compare_with; prints tables and writes compare.json.

    Returns:
      The contents of compare.json.

    Raises:
      UserError: a run is missing or unfinished, or both are the same.
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
        "lists": [_lists(run) for run in (first, second)],
        "costs": [_costs(run) for run in (first, second)],
    }
    print(format_comparison(result, terminal_width()))
    files.write_json(pathlib.Path(config.workdir) / COMPARE_FILE, result)
    return result


def settings_difference(first: Source, second: Source) -> list[dict[str, Any]]:
    """Flag and both values of every setting that differs, in the order of --helpfull."""
    rows = []
    first_config, second_config = (
        plain_values(first.config),
        plain_values(second.config),
    )
    for section in first_config:
        if section in _NOT_COMPARED:
            continue
        first_values, second_values = first_config[section], second_config[section]
        if not isinstance(first_values, dict):
            first_values, second_values = {section: first_values}, {section: second_values}
        rows += [
            {"flag": flag, "values": [value, second_values[flag]]}
            for flag, value in first_values.items()
            if value != second_values[flag]
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


def _lists(run: Run) -> dict[str, Any] | None:
    """Statistics of the run's lists from its eval.json; None if it has none."""
    scores = run.source.scores
    return None if scores is None else scores["methods"].get(MAIN, {}).get("lists")


def _costs(run: Run) -> dict[str, Any] | None:
    path = pathlib.Path(run.workdir) / COSTS_FILE
    return files.read_json(path) if path.exists() else None


def matching_rows(first: Prepared, second: Prepared) -> np.ndarray:
    """Row in `second` of every item of `first`, int32 [N]; -1: `second` lacks the item."""
    return second.item_ids.lookup(first.item_ids.ids)


def shared_pairs(first: Run, second: Run) -> tuple[np.ndarray, np.ndarray]:
    """The distinct evaluation pairs that both runs have.

    Returns:
      int32 [P, 2] twice: the pairs as rows of `first` and as rows of `second`, in the order
      of `first`.
    """
    rows = matching_rows(first.prepared, second.prepared)
    pairs = np.asarray(first.prepared.eval_pairs).reshape(-1, 2)
    _, first_index = np.unique(pairs, axis=0, return_index=True)
    pairs = pairs[np.sort(first_index)]
    matched = rows[pairs].reshape(-1, 2)
    key = matched[:, 0].astype(np.int64) << 32 | matched[:, 1].astype(np.int64) & 0xFFFFFFFF
    second_pairs = np.asarray(second.prepared.eval_pairs, np.int64).reshape(-1, 2)
    second_key = second_pairs[:, 0] << 32 | second_pairs[:, 1]
    shared = (matched >= 0).all(axis=1) & np.isin(key, second_key)
    return pairs[shared], matched[shared]


def compare_metrics(first: Run, second: Run, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics of both runs on the pairs that both have, and their paired difference.

    Every pair is ranked in the whole catalog of its run.

    Args:
      first, second: the runs.
      resamples: bootstrap resamples; 0: no intervals.
      seed: key of the resamples.

    Returns:
      {pairs, pairs_of_each, same_pairs, same_catalog, tie_rule, interval, kinds: {kind:
      {pairs, metrics: {metric: {values, intervals, difference, low, high}}}}}.
    """
    first_pairs, second_pairs = shared_pairs(first, second)
    pairs_of_each = [
        len(np.unique(np.asarray(run.prepared.eval_pairs).reshape(-1, 2), axis=0))
        for run in (first, second)
    ]
    same_items = first.prepared.item_ids.digest() == second.prepared.item_ids.digest()
    result: dict[str, Any] = {
        "pairs": len(first_pairs),
        "pairs_of_each": pairs_of_each,
        "same_pairs": len(first_pairs) == max(pairs_of_each),
        "same_catalog": same_items,
        "tie_rule": TIE_RULE,
        "interval": f"95%, {resamples} bootstrap resamples of queries",
        "kinds": {},
    }
    if not len(first_pairs):
        return result
    ranks = [
        target_ranks(run.embeddings[pairs[:, 0]], run.embeddings, *pairs.T)
        for run, pairs in ((first, first_pairs), (second, second_pairs))
    ]
    kinds = _kinds_of(first.prepared, first_pairs)
    masks = {"all": np.ones(len(first_pairs), np.bool_)}
    masks |= {str(kind): kinds == kind for kind in np.unique(kinds)}
    for kind, mask in masks.items():
        tables = [metrics.query_table(rank[mask], first_pairs[mask, 0]) for rank in ranks]
        generator = metrics.keyed_generator(seed, f"compare {kind}")
        samples = metrics.bootstrap_means(tables, resamples, generator) if resamples else None
        result["kinds"][kind] = {
            "pairs": int(mask.sum()), "metrics": _compare_tables(tables, samples)
        }  # fmt: skip
    return result


def _kinds_of(prepared: Prepared, pairs: np.ndarray) -> np.ndarray:
    """The kind of each of `pairs`, all of which are evaluation pairs."""
    kinds = {
        (int(query), int(target)): str(kind)
        for (query, target), kind in zip(prepared.eval_pairs, prepared.eval_kinds)
    }
    return np.array([kinds[int(query), int(target)] for query, target in pairs])


def _compare_tables(tables: list[metrics.QueryTable], samples: np.ndarray | None) -> dict[str, Any]:
    """Values, difference and, from samples [2, resamples, M], intervals by metric."""
    means = [table.means() for table in tables]
    result: dict[str, Any] = {
        name: {
            "values": [mean[name] for mean in means],
            "difference": means[1][name] - means[0][name],
        }
        for name in metrics.METRICS
    }
    if samples is None:
        return result
    bounds = [metrics.interval(draws) for draws in (*samples, samples[1] - samples[0])]
    for column, name in enumerate(metrics.METRICS):
        intervals = [[float(low[column]), float(high[column])] for low, high in bounds]
        result[name]["intervals"] = intervals[:2]
        result[name]["low"], result[name]["high"] = intervals[2]
    return result


def neighbor_churn(first: Run, second: Run, k: int, limit: int) -> dict[str, Any]:
    """Measures how much of the k nearest neighbors changed, over items that both runs have.

    An item's overlap is the share of its neighbors in the first run that are among its
    neighbors in the second; a neighbor that the second catalog lacks counts as changed.

    Args:
      first, second: the runs.
      k: number of neighbors.
      limit: number of items to compare, evenly spaced.

    Returns:
      {k, items, common_items, mean_overlap, same_first, unchanged, all_new,
      most_changed: [ids]}; zeros and an empty list where there is nothing to compare.
    """
    rows = matching_rows(first.prepared, second.prepared)
    common = np.flatnonzero(rows >= 0)
    count = min(limit, len(common))
    queries = common[np.arange(count) * len(common) // max(count, 1)]
    result: dict[str, Any] = {
        "k": k, "items": len(queries), "common_items": len(common), "mean_overlap": 0.0,
        "same_first": 0.0, "unchanged": 0.0, "all_new": 0.0, "most_changed": [],
    }  # fmt: skip
    if not len(queries):
        return result
    second_queries = rows[queries]
    neighbors, _ = top_k(first.embeddings[queries], first.embeddings, k, queries)
    second_neighbors, _ = top_k(
        second.embeddings[second_queries], second.embeddings, k, second_queries
    )
    # As rows of the second run; -2, which equals no row and no padding, for a missing item.
    mapped = np.where(neighbors >= 0, np.where(rows[neighbors] >= 0, rows[neighbors], -2), -2)
    sizes = np.maximum((neighbors >= 0).sum(axis=1), 1)
    shared = np.array([len(np.intersect1d(a, b)) for a, b in zip(mapped, second_neighbors)])
    overlap = shared / sizes
    most_changed = queries[np.argsort(overlap, kind="stable")[:_NAMED_ITEMS]]
    return result | {
        "mean_overlap": float(overlap.mean()),
        "same_first": float((mapped[:, 0] == second_neighbors[:, 0]).mean()),
        "unchanged": float((overlap == 1.0).mean()),
        "all_new": float((overlap == 0.0).mean()),
        "most_changed": first.prepared.item_ids.names(most_changed).to_pylist(),
    }
