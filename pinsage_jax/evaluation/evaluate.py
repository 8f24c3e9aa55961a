"""--mode=evaluate: ranks the pairs' targets in the whole catalog, by PinSage and the baselines.

Every method ranks all items for the same pairs under one tie rule (metrics.py).  Results
are reported overall, by kind of pair and by degree of the target, each metric with its
(sum, count) and a 95% bootstrap interval over queries; for each baseline also the paired
difference to PinSage.

  N items, P pairs, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.baseline_choice import Baselines, ItemContent, parse_baselines
from pinsage_jax.evaluation.baselines import rank_pairs, top_items
from pinsage_jax.evaluation.pair_ranks import ScoredPairs, pairs_to_score, write_pair_ranks
from pinsage_jax.evaluation.table_files import write_tables
from pinsage_jax.evaluation.tables import printed_tables, table_files
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.export_quality import evenly_spaced_rows
from pinsage_jax.retrieval.list_statistics import (
    PLACES,
    list_statistics,
    sampled_queries,
    warn_if_lists_share_an_item,
)
from pinsage_jax.retrieval.online import weigh_popularity
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks, top_k

EVAL_FILE = "eval.json"
MAIN = "pinsage"
DIFFERENCE = f"{MAIN}_minus_baseline"
# What orders related items beside the embeddings: the ranker or another method.
RANKED = "ranker"
RANKED_DIFFERENCE = f"{RANKED}_minus_baseline"
# Name and lowest degree of each bucket of targets.
DEGREE_BUCKETS = (("0", 0), ("1-2", 1), ("3-10", 3), ("11+", 11))
# Values of --popularity_weight whose lists and hit-rates the report compares.
POPULARITY_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MAX_WEIGHTED_PAIRS = 10_000
# Values of k in the hit-rate curve.
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class OrderedLists(Protocol):
    """Orders the whole catalog for items of it; ranking/ranker.py does."""

    by: str  # ranker, or the name of a method
    prices: list[dict[str, Any]]  # what new items cost in the lists

    def at_weights(
        self, pairs: np.ndarray, queries: np.ndarray, k: int, weights: Sequence[float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each weight, ranks int64 [P] of pairs int [P, 2] and ids int32 [Q, k] of lists."""

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [Q, k] and scores float32 [Q, k] for the items `exclude_self`."""


def evaluate(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    validation: ValidationSplit | None = None,
    graph: Graph | None = None,
    fingerprint: str = "",
    has_popularity: bool = False,
    ranker: OrderedLists | None = None,
) -> dict[str, Any]:
    """Scores the embeddings and --baselines; prints tables and writes WORKDIR/eval.json.

    The rank of every pair goes to WORKDIR/eval_ranks.parquet, and tables to files (--tables).
    If there are no evaluation pairs, the validation pairs are scored, and the tables and
    eval.json say so in a note.  `graph` should be that of `validation` then.

    Args:
      config: settings of the run.
      prepared: the catalog.
      embeddings: float32 [N, Z]; the score of two items is their inner product, in which
        the last coordinate counts as --popularity_weight asks.
      validation: pairs on which the baselines' hyperparameters are chosen.
      graph: the graph over which the embeddings were computed; the baselines use the same.
        Default: prepared.graph.
      fingerprint: written to eval.json, to tell later whether it belongs to the same run.
      has_popularity: whether the last coordinate is the popularity of an item; the lists are
        then measured for several weights of it.
      ranker: what orders related items, if it is not the embeddings; scored beside them.

    Returns:
      The contents of eval.json without its checksum; {} if there is no pair at all.

    Raises:
      UserError: a baseline is unknown, or an embedding is not finite.
    """
    names = parse_baselines(config.evaluate.baselines)
    graph = prepared.graph if graph is None else graph
    fitted = ranker is not None and ranker.by == RANKED
    scored = pairs_to_score(prepared, validation, graph, fitted)
    if scored is None:
        print("There are no evaluation pairs (--eval_pairs) and no validation pairs.")
        return {}
    pairs = scored.pairs
    query, target = pairs.T
    unweighted, weight = embeddings, config.search.popularity_weight
    embeddings = weigh_popularity(unweighted, weight, has_popularity)

    ranks = {MAIN: target_ranks(embeddings[query], embeddings, query, target)}
    settings: dict[str, Any] = {MAIN: {"dimensions": int(embeddings.shape[1])}}
    queries = sampled_queries(graph.num_items)
    lists = {MAIN: _neighbors(embeddings, queries)}
    content, scored_queries = ItemContent.of(prepared), len(queries) + len(np.unique(query))
    baselines = Baselines(config, graph, content, validation, config.host_threads, scored_queries)
    for baseline in baselines.build(names):
        ranks[baseline.name] = rank_pairs(baseline, pairs, graph.num_items)
        settings[baseline.name] = baseline.settings
        lists[baseline.name] = top_items(baseline, queries, PLACES, graph.num_items)

    ranked: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    if ranker is not None:
        weights = sorted({weight, *POPULARITY_WEIGHTS}) if has_popularity else [weight]
        ranked = dict(zip(weights, ranker.at_weights(pairs, queries, PLACES, weights)))
        ranks[RANKED], lists[RANKED] = ranked[weight]
        settings[RANKED] = {"related_by": ranker.by}

    methods: dict[str, dict[str, Any]] = {
        name: {"settings": settings[name], "hit_curve": _curve(ranks[name])} for name in ranks
    }
    degree = graph.degree()[: graph.num_items]
    for name, ids in lists.items():
        methods[name]["lists"] = list_statistics(ids, degree, graph.num_collections)
    for name in (MAIN, RANKED):
        if name in lists:
            _report_lists(name, methods[name]["lists"], prepared)
    for (group, name), mask in _slices(scored.kinds, degree[target]).items():
        label = f"bootstrap {group} {name}"
        found = _score(ranks, query, mask, config.evaluate.bootstrap, config.seed, label)
        for method, values in found.items():
            methods[method].setdefault(group, {})[name] = values
    _warn_if_below_an_input(methods)

    result = {
        **_protocol(config, prepared, scored, graph),
        "popularity_weights": _vectors_by_weight(unweighted, scored, graph)
        if has_popularity
        else [],
        "ranker_popularity_weights": [
            _at_weight(each, *ranked[each], scored, graph)
            for each in POPULARITY_WEIGHTS
            if has_popularity and ranked
        ],
        "new_item_prices": [] if ranker is None else ranker.prices,
        "fingerprint": fingerprint,
        "methods": methods,
        "skipped_baselines": baselines.skipped,
    }
    print(printed_tables(result, config.workdir))
    _write(config, prepared, scored, ranks, result)
    return result


def _protocol(
    config: Config, prepared: Prepared, scored: ScoredPairs, graph: Graph
) -> dict[str, Any]:
    """Entries of eval.json that say what was scored, and how."""
    return {
        "pairs_from": scored.source,
        "pairs": len(scored.pairs),
        "queries": len(np.unique(scored.pairs[:, 0])),
        "dropped_pairs": _dropped_pairs(prepared, scored),
        "catalog_items": graph.num_items,
        "sampled_candidates": False,
        "tie_rule": TIE_RULE,
        "score": "inner product of embeddings",
        "interval": f"95%, {config.evaluate.bootstrap} bootstrap resamples of queries",
        "seed": config.seed,
        "popularity_weight": config.search.popularity_weight,
        "notes": scored.notes,
    }


def _write(
    config: Config,
    prepared: Prepared,
    scored: ScoredPairs,
    ranks: dict[str, np.ndarray],
    result: dict[str, Any],
) -> None:
    """Writes the ranks of the pairs, eval.json and the tables of --tables."""
    about = {name: result[name] for name in ("pairs_from", "tie_rule", "fingerprint")}
    # Before eval.json, which says that the evaluation is done.
    write_pair_ranks(config.workdir, scored.pairs, scored.kinds, ranks, prepared.item_ids, about)
    path = pathlib.Path(config.workdir) / EVAL_FILE
    files.write_checked_json(path, result)
    logging.info("evaluation written to %s", path)
    write_tables(config.workdir, config.evaluate.table_formats, table_files(result))


def read_evaluation(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Reads and verifies WORKDIR/eval.json; returns its contents without the checksum.

    Raises:
      UserError: the file is missing or damaged, or was written by an earlier version, which
        wrote no checksum.
    """
    path = pathlib.Path(workdir) / EVAL_FILE
    found = files.read_json(path)
    if isinstance(found, dict) and "checksum" not in found:
        raise UserError(
            f"{path} has no checksum: it is damaged or was written by an earlier version of the "
            "program; run --mode=evaluate again."
        )
    return files.read_checked_json(path)


def _dropped_pairs(prepared: Prepared, scored: ScoredPairs) -> dict[str, int]:
    """How many rows of the table of pairs are not scored, by reason."""
    report = prepared.manifest.get("pairs", {}).get("eval_pairs", {})
    names = ("unknown_query", "unknown_target", "self_pairs")
    return {name: int(report.get(name, 0)) for name in names} | {"repeated_pairs": scored.repeated}


def _neighbors(embeddings: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The nearest items int32 [Q, 10] of the queries."""
    return top_k(embeddings[queries], embeddings, PLACES, queries)[0]


def _report_lists(method: str, statistics: dict[str, Any], prepared: Prepared) -> None:
    """Logs what the lists of a method show, and warns if most of them share an item."""
    whose = "the ranker's lists" if method == RANKED else "the embeddings' lists"
    logging.info(
        "evaluate: %s of %d show %.1f%% of the catalog; 1%% of the items fill %.1f%% of the places",
        whose, PLACES, 100 * statistics["coverage"], 100 * statistics["top_1_percent"],
    )  # fmt: skip
    if statistics["most_listed_row"] is not None:
        row = np.array([statistics["most_listed_row"]])
        name = prepared.item_ids.names(row)[0].as_py()
        warn_if_lists_share_an_item(statistics, name, whose)


def _warn_if_below_an_input(methods: dict[str, Any]) -> None:
    """Warns once if the embeddings are below the walk or the content that they are made from.

    More than noise is asked for: the interval of the difference does not reach 0.
    """
    below = [
        f"{name} for {kind} pairs ({metric} {values['metrics'][metric]['value']:.3f})"
        for name in ("walk", "content")
        for kind, values in methods.get(name, {}).get("by_kind", {}).items()
        for metric in ("hit@10", "hit@100")
        if values.get(DIFFERENCE, {}).get(metric, {}).get("high", 0.0) < 0
    ]
    if below:
        logging.warning(
            "evaluate: the embeddings are below what they are made from: %s; %s.",
            ", ".join(below),
            "the ranker's lists use both"
            if RANKED in methods
            else "--mode=rank fits lists that use both",
        )


def _vectors_by_weight(
    embeddings: np.ndarray, scored: ScoredPairs, graph: Graph
) -> list[dict[str, Any]]:
    """Hit-rates and list statistics of several --popularity_weight, for the report.

    Args:
      embeddings: float32 [N, Z], unweighted, with the popularity as last coordinate.
    """
    queries = sampled_queries(graph.num_items)
    chosen = evenly_spaced_rows(len(scored.pairs), _MAX_WEIGHTED_PAIRS)
    part = dataclasses.replace(scored, pairs=scored.pairs[chosen], kinds=scored.kinds[chosen])
    (query, target), result = part.pairs.T, []
    for weight in POPULARITY_WEIGHTS:
        vectors = weigh_popularity(embeddings, weight, has_popularity=True)
        ranks = target_ranks(vectors[query], vectors, query, target)
        result.append(_at_weight(weight, ranks, _neighbors(vectors, queries), part, graph))
    return result


def _at_weight(
    weight: float, ranks: np.ndarray, ids: np.ndarray, scored: ScoredPairs, graph: Graph
) -> dict[str, Any]:
    """hit@10 over all pairs and by kind, and the statistics of lists int [Q, 10], at a weight.

    Args:
      ranks: int64 [P], of the scored pairs.
    """
    hits = {"all": ranks} | {str(kind): ranks[scored.kinds == kind]
                             for kind in np.unique(scored.kinds)}  # fmt: skip
    degree = graph.degree()[: graph.num_items]
    return {
        "weight": weight,
        "hit@10": {name: float(np.mean(rank <= 10)) for name, rank in hits.items()},
        "lists": list_statistics(ids, degree, graph.num_collections),
    }


def _slices(kinds: np.ndarray, degree: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Masks bool [P] of every slice of the pairs, by group and name.

    Args:
      kinds: str [P], kinds of the pairs.
      degree: int [P], degrees of the targets.
    """
    slices = {("overall", "all"): np.ones(len(kinds), np.bool_)}
    slices |= {("by_kind", str(kind)): kinds == kind for kind in np.unique(kinds)}
    return slices | {("by_degree", name): mask for name, mask in _buckets(degree)}


def _buckets(degree: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Name and mask bool [P] of every degree bucket, including empty ones."""
    bucket = np.searchsorted([low for _, low in DEGREE_BUCKETS], degree, side="right") - 1
    return [(name, bucket == number) for number, (name, _) in enumerate(DEGREE_BUCKETS)]


def _curve(ranks: np.ndarray) -> dict[str, float]:
    return {str(k): float(np.mean(ranks <= k)) for k in CURVE}


def _score(
    ranks: dict[str, np.ndarray],
    query: np.ndarray,
    mask: np.ndarray,
    resamples: int,
    seed: int,
    label: str,
) -> dict[str, dict[str, Any]]:
    """Metrics of every method on one slice of the pairs.

    Returns:
      By method: "pairs", "queries", "metrics", and for a baseline "pinsage_minus_baseline" and,
      where there is a ranker, "ranker_minus_baseline".
    """
    tables = {name: metrics.query_table(rank[mask], query[mask]) for name, rank in ranks.items()}
    size = {"pairs": int(mask.sum()), "queries": len(tables[MAIN].queries)}
    if not mask.any():
        return {name: {**size, "metrics": {}} for name in ranks}
    samples = None
    if resamples:
        generator = metrics.keyed_generator(seed, label)
        samples = metrics.bootstrap_means(list(tables.values()), resamples, generator)
    result = {}
    for row, (name, table) in enumerate(tables.items()):
        totals, means = table.totals(), table.means()
        values = {
            metric: {"value": means[metric], "sum": totals[metric][0], "count": totals[metric][1]}
            for metric in metrics.METRICS
        }
        _add_intervals(values, None if samples is None else samples[row])
        result[name] = {**size, "metrics": values}
        compared = {DIFFERENCE: MAIN, RANKED_DIFFERENCE: RANKED} if name != MAIN else {}
        for key, other in compared.items():
            if other not in tables or other == name:
                continue
            reference, place = tables[other].means(), list(tables).index(other)
            difference = {
                metric: {"value": reference[metric] - means[metric]} for metric in metrics.METRICS
            }
            _add_intervals(difference, None if samples is None else samples[place] - samples[row])
            result[name][key] = difference
    return result


def _add_intervals(values: dict[str, dict[str, float]], samples: np.ndarray | None) -> None:
    """Adds "low" and "high" to every metric, from bootstrap samples [resamples, M]."""
    if samples is None:
        return
    low, high = metrics.interval(samples)
    for column, metric in enumerate(metrics.METRICS):
        values[metric]["low"] = float(low[column])
        values[metric]["high"] = float(high[column])
