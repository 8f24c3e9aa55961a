"""Fits the ranker on validation pairs, and chooses the level of new items.

The pairs come from the collections that the validation split withheld, and from the other
collections of items that the split made isolated: such an item is the query or the target of a
pair, so that there are enough pairs of items without edges (cold).  The vectors are those of the
trained network over the graph without all of these edges.  Every figure that is reported or
compared is cross-validated: the queries are divided into four folds, and each fold is scored by
models that were fitted on the other three.

levels.py chooses how many hits on warm items may be lost to cold ones.

P pairs, Q queries, K candidates of a query, F features
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.evaluation import metrics
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.pair_draws import PairGroup, draw_pairs
from pinsage_jax.graph.validation_split import ENOUGH_COLD, ValidationSplit
from pinsage_jax.ranking.calibrated_model import CalibratedModel, fit
from pinsage_jax.ranking.candidates import FEATURES, METHODS, Candidates, CandidateSource
from pinsage_jax.ranking.levels import (
    CUTOFFS,
    KINDS,
    LEVELS,
    Comparison,
    choose_level,
    choose_method,
    with_intervals,
)
from pinsage_jax.ranking.ranker import ranks_by_score, ranks_in_list, select
from pinsage_jax.ranking.ranker_model import RANKER, RankerModel
from pinsage_jax.retrieval.ranks import tie_rank

# Number, subset and stream of the pairs drawn from withheld collections, to cold targets and
# from cold queries.
_PAIRS = ((6000, 5, 2 << 32), (2000, 6, 3 << 32), (1500, 7, 4 << 32))
_FOLDS = 4
# One in so many negatives is drawn, and has this weight.
_NEGATIVES = 6
# With fewer pairs of a kind than this no model is fitted.
_LEAST_PAIRS = 30


@dataclasses.dataclass(frozen=True, eq=False)
class _Query:
    """A query with its candidates, its targets, and the ranks that need no fitted model."""

    row: int
    kind: str
    candidates: Candidates  # of this query alone, scores left out
    labels: np.ndarray  # int8 [K]: 1 target, 0 not, -1 unknown or related but not drawn
    targets: np.ndarray  # int32 [T]
    isolated: np.ndarray  # bool [T]
    place: np.ndarray  # int64 [T], index of the target among the candidates, -1: none
    outside: np.ndarray  # int64 [T], its rank where it is none
    ranks: dict[str, np.ndarray]  # int64 [T] by method


def ranking_pairs(graph: Graph, split: ValidationSplit, seed: int) -> np.ndarray:
    """Pairs int32 [P, 2] that the split's training graph does not contain, distinct.

    With --train_pairs they are the pairs that the split left for validation.  Otherwise they
    are drawn evenly from the collections.  Items that are isolated in the whole graph are
    in no pair; items whose collections were all withheld count as cold.  Of a split by time pairs
    with a cold item come from the collections that began last, and from others only where
    these have too few: an older collection that a new item joined resembles none to come.
    """
    if split.train_pairs is not None:
        return np.unique(np.asarray(split.pairs, np.int32).reshape(-1, 2), axis=0)
    warm = split.train_graph.degree()[: graph.num_items] > 0
    withheld = np.zeros(graph.num_collections, np.bool_)
    withheld[split.collections] = True
    groups: tuple[list[PairGroup], ...] = ([], [], [])
    latest: tuple[list[PairGroup], ...] = ([], [], [])
    for collection in range(graph.num_collections):
        members = np.asarray(graph.neighbors(graph.num_items + collection))
        known = warm[members]
        if withheld[collection]:
            groups[0].append(PairGroup(collection, members, members))
        if not known.all() and (split.by_time or not withheld[collection]):
            found = latest if withheld[collection] else groups
            found[1].append(PairGroup(collection, members[known], members[~known]))
            found[2].append(PairGroup(collection, members[~known], members))
    drawn = []
    for first, others, (size, subset, stream) in zip(latest, groups, _PAIRS):
        drawn.append(draw_pairs(first, size, seed, subset, stream))
        if len(drawn[-1]) < ENOUGH_COLD:
            drawn.append(draw_pairs(others, size, seed, subset, stream))
    return np.unique(np.concatenate(drawn), axis=0)


def fit_ranker(
    source: CandidateSource, graph: Graph, split: ValidationSplit, seed: int
) -> tuple[RankerModel, dict[str, Any]]:
    """Fits and evaluates the ranker.

    Args:
      source: candidates over split.train_graph.
      graph: the whole graph, for the items of the withheld collections.
      split: the validation split.
      seed: key of the pairs, folds and intervals.

    Returns:
      The model, with the default level, and what was measured, for ranker.json.
    """
    pairs = ranking_pairs(graph, split, seed)
    queries = _queries(source, pairs, _relations_outside_training(graph, split))
    folds = metrics.keyed_generator(seed, "ranker folds").integers(0, _FOLDS, len(queries))
    models = _fit_models(queries, seed)
    # Log-odds of every query's candidates by the models of the other folds.
    odds: dict[int, np.ndarray] = {}
    for fold in range(_FOLDS):
        others = _fit_models([q for q, f in zip(queries, folds) if f != fold], seed)
        model = RankerModel(others, dict.fromkeys(KINDS, 0.0), {})
        for query in [q for q, f in zip(queries, folds) if f == fold and q.kind in others]:
            odds[query.row] = model.log_odds(query.candidates, query.kind)[0]
    by, levels, measured = {}, {}, {}
    for kind in KINDS:
        levels[kind], by[kind] = 0.0, "vectors"
        judged = [query for query in queries if query.kind == kind and query.row in odds]
        if kind not in models or not judged:
            continue
        measured[kind], levels[kind], by[kind] = _choose_level_and_method(judged, odds, seed, kind)
    slope, mean = _popularity_slope(queries, models)
    model = RankerModel(models, levels, by, slope, mean)
    report = {"pairs": len(pairs), "queries": len(queries), "measured": measured}
    for kind in [kind for kind in KINDS if kind not in measured]:
        found = sum(len(query.targets) for query in queries if query.kind == kind)
        logging.info(
            "rank: %d pairs of %s queries are too few to fit on; vectors order their lists",
            found, kind,
        )  # fmt: skip
    _log(report, by)
    return model, report


def _relations_outside_training(
    graph: Graph, split: ValidationSplit
) -> Callable[[int], tuple[np.ndarray, bool]]:
    """Finds the items that are related to an item by edges outside the training graph.

    Returns:
      A function of an item: the items (int32, ascending) with which it shares a collection
      that was withheld or from which one of the two was taken; and whether the item is in a
      withheld collection or cold itself, so that its relations to warm items are known too.
    """
    withheld = np.zeros(graph.num_nodes, np.bool_)
    withheld[graph.num_items + split.collections] = True
    warm = split.train_graph.degree()[: graph.num_items] > 0
    given = split.train_pairs is not None

    def related(item: int) -> tuple[np.ndarray, bool]:
        parts, collections = [np.empty(0, np.int32)], np.asarray(graph.neighbors(item))
        for collection in collections:
            members = np.asarray(graph.neighbors(int(collection)))
            hidden = withheld[collection] or not warm[item]
            parts.append(members if hidden else members[~warm[members]])
        known = given or not warm[item] or bool(withheld[collections].any())
        return np.unique(np.concatenate(parts)), known

    return related


def _queries(
    source: CandidateSource,
    pairs: np.ndarray,
    related: Callable[[int], tuple[np.ndarray, bool]],
) -> list[_Query]:
    """Every query of the pairs (sorted by query) with its candidates and targets."""
    rows, starts = np.unique(pairs[:, 0], return_index=True)
    ends, found = np.append(starts[1:], len(pairs)), list[_Query]()
    for block in source.blocks(rows):
        for place in range(len(block.rows)):
            number = len(found)
            targets = pairs[starts[number] : ends[number], 1]
            one = select(block, np.array([place]))
            ids = one.ids[0]
            hidden, all_known = related(int(rows[number]))
            labels = np.where(np.isin(ids, hidden) | (ids < 0), -1, 0).astype(np.int8)
            if not all_known:
                labels[~one.isolated[0]] = -1
            labels[np.isin(ids, targets)] = 1
            index = np.minimum(np.searchsorted(ids, targets), len(ids) - 1)
            inside = ids[index] == targets
            scores = {name: values[0] for name, values in one.scores.items()}
            ranks = {name: ranks_by_score(values, targets) for name, values in scores.items()}
            nowhere = np.full(len(ids), -np.inf, np.float32)
            outside = ranks_in_list(one, 0, nowhere, targets)
            found.append(
                _Query(
                    int(rows[number]),
                    KINDS[int(source.isolated[rows[number]])],
                    dataclasses.replace(one, scores={}),
                    labels,
                    targets,
                    source.isolated[targets],
                    np.where(inside, index, -1),
                    outside,
                    ranks,
                )
            )
    return found


def _fit_models(queries: list[_Query], seed: int) -> dict[str, dict[str, CalibratedModel]]:
    """Fits a model for each kind of query and of candidate that has enough pairs.

    No walk leaves a cold query, so both kinds of its candidates have the same features, and where
    one kind has too few pairs, one model serves both.
    """
    models: dict[str, dict[str, CalibratedModel]] = {}
    for query_kind in KINDS:
        of_kind = [query for query in queries if query.kind == query_kind]
        fitted = {kind: _fit_model(of_kind, (kind,), seed) for kind in KINDS}
        if query_kind == "cold" and None in fitted.values():
            fitted = dict.fromkeys(KINDS, _fit_model(of_kind, KINDS, seed))
        # Items with edges are most of every catalog: without their model there is no list.
        if fitted["warm"] is not None:
            models[query_kind] = {kind: one for kind, one in fitted.items() if one is not None}
    return models


def _fit_model(queries: list[_Query], kinds: tuple[str, ...], seed: int) -> CalibratedModel | None:
    """Fits the candidates of some kinds; None if they have too few pairs."""
    features, labels = [np.empty((0, len(FEATURES)), np.float32)], [np.empty(0, np.int8)]
    for query in queries:
        mask = query.labels >= 0
        if len(kinds) == 1:
            mask &= query.candidates.isolated[0] == (kinds == ("cold",))
        # Keyed by the query, so that folds draw the same negatives.
        draws = np.random.default_rng([seed, query.row]).random(len(mask))
        mask &= (query.labels == 1) | (draws * _NEGATIVES < 1.0)
        features.append(query.candidates.features[0][mask])
        labels.append(query.labels[mask])
    target = np.concatenate(labels) == 1
    if target.sum() < _LEAST_PAIRS or target.all():
        return None
    return fit(np.concatenate(features), target, np.where(target, 1.0, float(_NEGATIVES)))


def _choose_level_and_method(
    queries: list[_Query], odds: dict[int, np.ndarray], seed: int, kind: str
) -> tuple[dict[str, Any], float, str]:
    """Measures hit-rates by level; chooses the level and the method for this kind of query."""
    owner = np.concatenate([np.full(len(query.targets), query.row) for query in queries])
    isolated = np.concatenate([query.isolated for query in queries])
    masks = {"warm": ~isolated, "cold": isolated}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    by_method = {name: np.concatenate([query.ranks[name] for query in queries]) for name in METHODS}
    by_level = [_ranks_at(queries, odds, level) for level in LEVELS]
    compared = {
        name: Comparison.of(
            [ranks[mask] for ranks in by_level],
            {method: ranks[mask] for method, ranks in by_method.items()},
            owner[mask],
            seed,
            name,
        )
        for name, mask in masks.items()
    }
    level = choose_level(compared)
    frontier = []
    for number, ranks in enumerate(by_level):
        entry: dict[str, Any] = {"level": LEVELS[number]}
        for name, mask in masks.items():
            entry[name] = with_intervals(ranks[mask], owner[mask], seed)
        frontier.append(entry)
    methods = {
        name: {kind_: with_intervals(ranks[mask], owner[mask], seed)
               for kind_, mask in masks.items()}
        for name, ranks in by_method.items()
    }  # fmt: skip
    number = LEVELS.index(level)
    method = choose_method(compared, number)
    for name, found in compared.items():
        if below := found.below(number):
            logging.warning(
                "rank: for %s queries and %s items the ranker is below a single method (%s); %s",
                kind, name, ", ".join(f"{metric} of {other}" for metric, other in below.items()),
                f"their lists are ordered by {method}" if method
                else "a higher --new_item_price lists more of them",
            )  # fmt: skip
    by = method or RANKER
    pairs = {name: int(mask.sum()) for name, mask in masks.items()}
    return {"pairs": pairs, "methods": methods, "frontier": frontier, "level": level}, level, by


def _ranks_at(queries: list[_Query], odds: dict[int, np.ndarray], level: float) -> np.ndarray:
    """Ranks int64 of all targets, with `level` added to the log-odds of cold candidates."""
    found = []
    for query in queries:
        raised = odds[query.row] + np.float32(level) * query.candidates.isolated[0]
        limits = raised[query.place][:, None]
        greater = (raised[None, :] > limits).sum(axis=1)
        equal = (raised[None, :] == limits).sum(axis=1) - 1
        found.append(np.where(query.place >= 0, tie_rank(greater, equal), query.outside))
    return np.concatenate(found)


def _popularity_slope(
    queries: list[_Query], models: dict[str, dict[str, CalibratedModel]]
) -> tuple[float, float]:
    """Slope of warm candidates' log-odds over log(1 + degree), and the mean of log(1 + degree)."""
    if "warm" not in models:
        return 0.0, 0.0
    x, y = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    for query in queries:
        if query.kind == "warm":
            mask = (query.candidates.ids[0] >= 0) & ~query.candidates.isolated[0]
            features = query.candidates.features[0][mask]
            x.append(features[:, FEATURES.index("log_degree")])
            y.append(models["warm"]["warm"].log_odds(features))
    degree, odds = np.concatenate(x).astype(np.float64), np.concatenate(y).astype(np.float64)
    spread = float(degree.var())
    mean = float(degree.mean())
    return (float(np.mean((degree - mean) * odds)) / spread if spread > 0 else 0.0), mean


def _log(report: dict[str, Any], by: dict[str, str]) -> None:
    for kind, measured in report["measured"].items():
        at = next(entry for entry in measured["frontier"] if entry["level"] == measured["level"])
        for name in measured["pairs"]:
            values = " / ".join(f"{at[name][f'hit@{k}'][0]:.4f}" for k in CUTOFFS)
            others = ", ".join(
                f"{method} " + " / ".join(f"{found[name][f'hit@{k}'][0]:.4f}" for k in CUTOFFS)
                for method, found in measured["methods"].items()
            )
            logging.info(
                "rank: %s queries, %d %s targets: hit@10 / hit@100 in cross-validation %s; alone: "
                "%s; lists are ordered by %s",
                kind, measured["pairs"][name], name, values, others, by[kind],
            )  # fmt: skip
