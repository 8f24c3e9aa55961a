"""The evaluation: exact ranks in the whole catalog, for PinSage and its rivals.

Every method ranks all items for the same pairs under one tie rule (metrics.py).
Results come overall, by the pair's kind and by the target's degree, each with its
(sum, count) and a 95% bootstrap interval over queries; each rival also with its
paired difference to PinSage.

  N items, P pairs, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.baseline_choice import Baselines, parse_baselines
from pinsage_jax.evaluation.baselines import rank_pairs
from pinsage_jax.evaluation.tables import evaluation_tables
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks

EVAL_FILE = "eval.json"
MAIN = "pinsage"
# First degree of each bucket of targets.
DEGREE_BUCKETS = (("0", 0), ("1-2", 1), ("3-10", 3), ("11+", 11))
# Cut-offs of the hit-rate curve.
CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def evaluate(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    validation: ValidationSplit | None = None,
    graph: Graph | None = None,
    fingerprint: str = "",
) -> dict[str, Any]:
    """Scores the embeddings and --baselines; prints tables, writes WORKDIR/eval.json.

    Without evaluation pairs the validation pairs are scored, and both the tables and
    eval.json say so.

    Args:
      embeddings: float32 [N, Z]; the score of two items is their inner product.
      validation: where rivals' settings are chosen; never the evaluation pairs.
      graph: the graph that the embeddings were computed on, which the rivals get too;
        default prepared.graph.
      fingerprint: kept in eval.json, to know later whether it is of the same run.

    Returns:
      What eval.json holds beside its checksum; {} when there is no pair at all.

    Raises:
      UserError: an unknown baseline, or an embedding that is not finite.
    """
    names = parse_baselines(config.evaluate.baselines)
    graph = prepared.graph if graph is None else graph
    scored = _pairs_to_score(prepared, validation, graph)
    if scored is None:
        print("There are no evaluation pairs (--eval_pairs) and no validation pairs.")
        return {}
    pairs = scored.pairs
    query, target = pairs.T

    ranks = {MAIN: target_ranks(embeddings[query], embeddings, query, target)}
    settings: dict[str, Any] = {MAIN: {"dimensions": int(embeddings.shape[1])}}
    rivals = Baselines(config, graph, prepared.features, validation, config.host_threads)
    for baseline in rivals.each(names):
        ranks[baseline.name] = rank_pairs(baseline, pairs, graph.num_items)
        settings[baseline.name] = baseline.settings

    methods: dict[str, dict[str, Any]] = {
        name: {"settings": settings[name], "hit_curve": _curve(ranks[name])} for name in ranks
    }
    degree = graph.degree()[: graph.num_items]
    for (group, name), mask in _slices(scored.kinds, degree[target]).items():
        label = f"bootstrap {group} {name}"
        found = _score(ranks, query, mask, config.evaluate.bootstrap, config.seed, label)
        for method, values in found.items():
            methods[method].setdefault(group, {})[name] = values

    report = prepared.manifest.get("pairs", {}).get("eval_pairs", {})
    result = {
        "pairs_from": scored.source,
        "pairs": len(pairs),
        "queries": len(np.unique(query)),
        "dropped": {
            "unknown_query": int(report.get("unknown_query", 0)),
            "unknown_target": int(report.get("unknown_target", 0)),
            "self_pairs": int(report.get("self_pairs", 0)),
            "repeated_pairs": scored.repeated,
        },
        "catalog": graph.num_items,
        "sampled_candidates": False,
        "tie_rule": TIE_RULE,
        "score": "inner product of embeddings",
        "interval": f"95%, {config.evaluate.bootstrap} bootstrap resamples of queries",
        "seed": config.seed,
        "fingerprint": fingerprint,
        "notes": scored.notes,
        "methods": methods,
        "left_out": rivals.left_out,
    }
    print(evaluation_tables(result))
    path = pathlib.Path(config.workdir) / EVAL_FILE
    files.write_checked_json(path, result)
    logging.info("evaluation written to %s", path)
    return result


def read_evaluation(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What WORKDIR/eval.json holds, without its checksum.

    Raises:
      UserError: it is missing or damaged, or of an earlier version, which wrote no checksum.
    """
    path = pathlib.Path(workdir) / EVAL_FILE
    found = files.read_json(path)
    if isinstance(found, dict) and "checksum" not in found:
        raise UserError(
            f"{path} has no checksum, so it is damaged or of an earlier version; "
            "run --mode=evaluate again."
        )
    return files.read_checked_json(path)


@dataclasses.dataclass(frozen=True, eq=False)
class _ScoredPairs:
    """Distinct pairs to score.

    Attributes:
      pairs: int32 [P, 2], query and target.
      kinds: str [P].
      source: eval_pairs or validation.
      repeated: pairs that occur again in the table.
      notes: sentences about the pairs for the reader of the scores.
    """

    pairs: np.ndarray
    kinds: np.ndarray
    source: str
    repeated: int
    notes: list[str]


def _pairs_to_score(
    prepared: Prepared, validation: ValidationSplit | None, graph: Graph
) -> _ScoredPairs | None:
    """The evaluation pairs or, without any, the validation pairs; None without either."""
    pairs, kinds, source = prepared.eval_pairs, prepared.eval_kinds, "eval_pairs"
    notes = []
    if len(pairs) == 0:
        if validation is None or len(validation.pairs) == 0:
            return None
        pairs, kinds, source = validation.pairs, validation.kinds, "validation"
        notes.append("no --eval_pairs: these are validation pairs, which training has selected on")
        if graph.num_edges > validation.train_graph.num_edges:
            notes.append("their collections are part of the graph, so every number is too high")
    # Each pair once, where it first occurs, in order.
    _, first = np.unique(np.asarray(pairs), axis=0, return_index=True)
    first = np.sort(first)
    repeated = len(pairs) - len(first)
    return _ScoredPairs(np.asarray(pairs)[first], np.asarray(kinds)[first], source, repeated, notes)


def _slices(kinds: np.ndarray, degree: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Members bool [P] of every slice of the pairs, by group and name.

    Args:
      degree: int [P], of the targets.
    """
    slices = {("overall", "all"): np.ones(len(kinds), np.bool_)}
    slices |= {("by_kind", str(kind)): kinds == kind for kind in np.unique(kinds)}
    return slices | {("by_degree", name): mask for name, mask in _buckets(degree)}


def _buckets(degree: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Name and members bool [P] of every degree bucket, empty ones too."""
    place = np.searchsorted([low for _, low in DEGREE_BUCKETS], degree, side="right") - 1
    return [(name, place == number) for number, (name, _) in enumerate(DEGREE_BUCKETS)]


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
    """Method -> pairs, queries, metrics and minus_<method> of one slice of the pairs."""
    tables = {name: metrics.query_table(rank[mask], query[mask]) for name, rank in ranks.items()}
    size = {"pairs": int(mask.sum()), "queries": len(tables[MAIN].queries)}
    if not mask.any():
        return {name: {**size, "metrics": {}} for name in ranks}
    samples = None
    if resamples:
        generator = metrics.keyed_generator(seed, label)
        samples = metrics.bootstrap_means(list(tables.values()), resamples, generator)
    result = {}
    for place, (name, table) in enumerate(tables.items()):
        totals, means = table.totals(), table.means()
        described = {
            metric: {"value": means[metric], "sum": totals[metric][0], "count": totals[metric][1]}
            for metric in metrics.METRICS
        }
        _add_intervals(described, None if samples is None else samples[place])
        result[name] = {**size, "metrics": described}
        if name != MAIN:
            main = tables[MAIN].means()
            gaps = {metric: {"value": main[metric] - means[metric]} for metric in metrics.METRICS}
            _add_intervals(gaps, None if samples is None else samples[0] - samples[place])
            result[name][f"{MAIN}_minus_this"] = gaps
    return result


def _add_intervals(described: dict[str, dict[str, float]], samples: np.ndarray | None) -> None:
    """Adds low and high to every metric from samples [resamples, M]."""
    if samples is None:
        return
    low, high = metrics.interval(samples)
    for place, metric in enumerate(metrics.METRICS):
        described[metric]["low"] = float(low[place])
        described[metric]["high"] = float(high[place])
