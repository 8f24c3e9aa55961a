"""--mode=recommend: items for a user or a collection, from the embeddings of its items.

With --query, a table is printed for each named collection; otherwise
WORKDIR/recommendations.parquet lists all collections: collection_id, rank (from 1),
item_id, score.  With --test_edges, the recommendations and those of baselines are also
evaluated; the result is written to WORKDIR/recommend.json.

  U users (collections), N items, Z embedding dimensions, k recommendations
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.text_table import aligned, terminal_width, with_last_column
from pinsage_jax.graph.csr import Graph
from pinsage_jax.listing.filters import Filters
from pinsage_jax.listing.rules import Listing, Rules, rules_of
from pinsage_jax.recommend import metrics
from pinsage_jax.recommend.choice import Choice, Validation, choose, needs_validation
from pinsage_jax.recommend.graph_scores import GRAPH_METHODS, HistoryKnn, Popularity
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.recommend.scores import TIE_RULE, Histories, Scan, best_items, histories_of
from pinsage_jax.recommend.walks import HistoryWalk
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.export_quality import evenly_spaced_rows, recall_per_query
from pinsage_jax.retrieval.neighbors import query_ids, similar_ids
from pinsage_jax.sampling.spectral import saved_bases

RECOMMENDATIONS_FILE, SCORES_FILE = "recommendations.parquet", "recommend.json"
CHOICE_FILE, VECTORS_FOLDER = "recommend_choice.json", "recommend_vectors"
_MICROSECONDS_PER_DAY = 86_400_000_000
_MAX_BLOCK_ROWS = 1 << 20
_COMPARED_USERS = 100
_SCHEMA = pa.schema(
    [
        ("collection_id", pa.large_string()),
        ("rank", pa.int32()),
        ("item_id", pa.large_string()),
        ("score", pa.float32()),
    ]
)


def recommend(
    config: Config,
    prepared: Prepared,
    vectors: np.ndarray,
    threads: int,
    validation: Callable[[], Validation | None],
    search: AnnSearch | None = None,
) -> dict[str, Any] | None:
    """Prints or writes recommendations, and evaluates them on --test_edges.

    Args:
      config: settings of the run.
      prepared: the catalog.
      vectors: float32 [N, Z] of all items, computed over the whole graph.
      threads: number of threads.
      validation: builds the validation users; only called if a setting is to be chosen.
      search: an index over the vectors; None scores the whole catalog.

    Returns:
      The contents of recommend.json; None without --test_edges.

    Raises:
      UserError: a collection is unknown, or the test edges cannot be used.
    """
    settings, listed = config.recommend, config.evaluate.items_recommended
    graph = prepared.graph
    vectors = np.ascontiguousarray(vectors, np.float32)
    users = _users_of(config, prepared)
    tests = None
    if settings.test_edges:
        path = config.data.path(settings.test_edges)
        tests = metrics.read_test_edges(path, config.data, prepared)
    times, half_life = _times(config, prepared)
    choice, candidates = _choose(config, vectors, validation, threads)
    degree = graph.degree()[: graph.num_items]
    exclude_history = config.search.exclude_seen != "off"
    # The recommender excludes the history itself; the filters apply the other rules.
    rules = rules_of(config, prepared, histories=True)
    filters = Filters(config.search, graph, vectors, exclude_seen=False, rules=rules)
    recommender = Recommender(
        settings, choice, vectors, degree, threads, half_life, search, filters, exclude_history,
        rules=rules, graph=graph, bases=spectral_bases(config, choice, graph),
    )  # fmt: skip
    histories = histories_of(graph, times)
    if search is not None and choice.by not in GRAPH_METHODS:
        _log_index_recall(recommender, histories, listed)
    if users is not None:
        ids, scores = recommender.top_k(histories.select(users), listed)
        _print(users, ids, scores, prepared)
    else:
        ids, scores = recommender.top_k(histories, max(listed, metrics.DEPTH))
        _write(config, prepared, ids[:, :listed], scores, histories)
    if tests is None:
        return None
    tested = histories.select(tests.users)
    pinsage = ids[tests.users] if users is None else recommender.top_k(tested, metrics.DEPTH)[0]
    ranked = {f"pinsage, {choice.by}": pinsage}
    others = [Choice("mean"), Choice("interests")]
    if choice.graph is not None:
        single = dataclasses.replace(choice.graph, weights=(1.0, 0.0, 0.0))
        others += [Choice("cooccurrence", graph=single)]
        others += [Choice("spectral", graph=single)] if single.width else []
    for other in others:
        if choice.by != other.by:
            variant = dataclasses.replace(recommender, choice=other)
            ranked[f"pinsage, {other.by}"] = variant.top_k(tested, metrics.DEPTH)[0]
    walk = HistoryWalk(graph, config.sampling, config.seed, threads)
    for baseline in (Popularity(graph), HistoryKnn(graph), walk):
        ranked[baseline.name] = best_items(
            baseline, tested, graph.num_items, metrics.DEPTH, scan=Scan(threads)
        )[0]
    report: dict[str, Any] = {
        "protocol": metrics.PROTOCOL,
        "tie_rule": TIE_RULE,
        "test": {"file": str(path), **tests.report},
        "choice": dataclasses.asdict(choice),
        "filters": {**dataclasses.asdict(config.search), "exclude_history": exclude_history},
        "chosen_on": "collections that the validation split withheld" if candidates else "nothing",
        "candidates": candidates,
        "methods": {
            name: _means(metrics.per_user(found, tests.targets, tests.sizes))
            for name, found in ranked.items()
        },
    }
    files.write_json(pathlib.Path(config.workdir) / SCORES_FILE, report)
    print(_table(report["methods"]))
    return report


def items_for(
    config: Config,
    prepared: Prepared,
    vectors: np.ndarray,
    history: np.ndarray,
    k: int,
    listing: Listing,
) -> tuple[np.ndarray, np.ndarray]:
    """Items for one history, scored as this workdir has chosen, or else by the mean.

    Args:
      vectors: float32 [N, Z].
      history: int [h], distinct items, ascending.
      k: number of items.
      listing: which items may be listed.

    Returns:
      ids int32 [1, k] and scores float32 [1, k], best first, padded with -1 and -inf.

    Raises:
      UserError: the listing is wrong.
    """
    saved = saved_choice(config, vectors)
    choice = saved[0] if saved else Choice("mean")
    rules = Rules(listing, prepared.item_columns, None) if listing.has_rules else None
    recommender = Recommender(
        config.recommend,
        choice,
        vectors,
        prepared.graph.degree()[: prepared.graph.num_items],
        config.host_threads,
        filters=Filters(config.search, prepared.graph, vectors, exclude_seen=False, rules=rules),
        quiet=True,
        rules=rules,
        graph=prepared.graph,
        bases=spectral_bases(config, choice, prepared.graph),
    )
    one = Histories(np.array([0, len(history)], np.int64), history.astype(np.int32))
    return recommender.top_k(one, k)


def spectral_bases(config: Config, choice: Choice, graph: Graph) -> np.ndarray:
    """The spectral vectors that a choice scores by, float32 [N, D]; without any, [N, 0].

    They are made once and saved in WORKDIR/recommend_vectors/.
    """
    width = choice.graph.width if choice.graph is not None else 0
    if width == 0:
        return np.empty((graph.num_items, 0), np.float32)
    fingerprint = files.fingerprint([graph.digest(), width, config.seed])
    return saved_bases(config.workdir, graph, width, config.seed, fingerprint, VECTORS_FOLDER)


def _log_index_recall(recommender: Recommender, histories: Histories, k: int) -> None:
    """Logs the index's recall of the exact recommendations, for a sample of users."""
    nonempty = np.flatnonzero(np.diff(histories.indptr) > 0)
    sample = histories.select(nonempty[evenly_spaced_rows(len(nonempty), _COMPARED_USERS)])
    exact = dataclasses.replace(recommender, search=None).top_k(sample, k)[0]
    recall = recall_per_query(recommender.top_k(sample, k)[0], exact).mean()
    assert recommender.search is not None
    logging.info(
        "recommend: recall@%d of %s against exact search is %.4f (%d collections)",
        k, recommender.search.setting.name, recall, len(sample),
    )  # fmt: skip


def _choose(
    config: Config,
    vectors: np.ndarray,
    validation: Callable[[], Validation | None],
    threads: int,
) -> tuple[Choice, list[dict[str, Any]]]:
    """The scoring method and the candidates tried: saved in the workdir, or chosen now."""
    saved = saved_choice(config, vectors)
    if saved is not None:
        return saved
    settings = config.recommend
    users = validation() if needs_validation(settings) else None
    choice, candidates = choose(settings, users, threads)
    if candidates:
        logging.info("recommend: chosen in validation: %s", choice)
    elif needs_validation(settings):
        logging.warning(
            "recommend: the validation split withholds no collection to choose by; using %s.",
            choice,
        )
    contents = {
        "fingerprint": _choice_fingerprint(config, vectors),
        "choice": dataclasses.asdict(choice),
        "candidates": candidates,
    }
    files.write_json(pathlib.Path(config.workdir) / CHOICE_FILE, contents)
    return choice, candidates


def saved_choice(config: Config, vectors: np.ndarray) -> tuple[Choice, list[dict[str, Any]]] | None:
    """The choice saved in the workdir and the candidates tried; None for other settings."""
    path = pathlib.Path(config.workdir) / CHOICE_FILE
    if not path.exists():
        return None
    saved = files.read_json(path)
    if saved.get("fingerprint") != _choice_fingerprint(config, vectors):
        return None
    return Choice.from_json(saved["choice"]), saved["candidates"]


def _choice_fingerprint(config: Config, vectors: np.ndarray) -> str:
    return files.fingerprint(
        [
            config.recommend.recommend_by,
            dataclasses.asdict(config.split),
            config.seed,
            # Without the last coordinate: a choice holds for every --popularity_weight.
            f"{zlib.crc32(np.ascontiguousarray(vectors[:, :-1]).data):08x}",
        ]
    )


def _times(config: Config, prepared: Prepared) -> tuple[np.ndarray | None, float]:
    """Times of the edges, and the half-life in the same unit; (None, 0) without a half-life."""
    half_life = config.recommend.recommend_half_life
    if half_life == 0:
        return None, 0.0
    kind = prepared.manifest.get("time_kind")
    if kind is None:
        raise UserError(
            "recommend_half_life needs times; run --mode=prepare with --time_column first."
        )
    times = files.read_array(pathlib.Path(config.workdir) / "prepared" / "times.npy")
    return times, half_life * (_MICROSECONDS_PER_DAY if kind == "timestamp" else 1)


def _users_of(config: Config, prepared: Prepared) -> np.ndarray | None:
    """Indices int64 of the collections of --query; None if the flag is empty."""
    names = query_ids(config.evaluate.query, prepared.collection_ids)
    if not names:
        return None
    found = prepared.collection_ids.lookup(pa.array(names, pa.large_string()))
    for name, index in zip(names, found):
        if index < 0:
            similar = similar_ids(name, prepared.collection_ids)
            hint = "ids are those of --edges."
            if similar:
                hint = f"did you mean {' or '.join(similar)}?"
            raise UserError(f"--query: there is no collection {name}; {hint}")
    return found.astype(np.int64)


def _print(users: np.ndarray, ids: np.ndarray, scores: np.ndarray, prepared: Prepared) -> None:
    names = prepared.collection_ids.names(users).to_pylist()
    for name, row, values in zip(names, ids, scores):
        valid = row >= 0
        items = prepared.item_ids.names(row[valid]).to_pylist()
        table = [["item_id", "score"]]
        table += [[item, f"{value:.4g}"] for item, value in zip(items, values[valid])]
        lines = aligned(table)
        if prepared.titles is not None:
            titles = prepared.titles.take(pa.array(row[valid].astype(np.int64))).to_pylist()
            column = ["title", *(" ".join((title or "").split())[:70] for title in titles)]
            lines = with_last_column(lines, column, terminal_width())
        print("\n".join([f"for  {name}", *lines, ""]))


def _write(
    config: Config, prepared: Prepared, ids: np.ndarray, scores: np.ndarray, histories: Histories
) -> None:
    path = pathlib.Path(config.workdir) / RECOMMENDATIONS_FILE
    block = max(_MAX_BLOCK_ROWS // max(ids.shape[1], 1), 1)
    # There is nothing to recommend by for a collection without items.
    nonempty = np.diff(histories.indptr) > 0
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA) as writer,
    ):
        for start in range(0, len(ids), block):
            part = ids[start : start + block]
            row, rank = np.nonzero((part >= 0) & nonempty[start : start + block, None])
            columns = [
                prepared.collection_ids.names(start + row),
                pa.array((rank + 1).astype(np.int32)),
                prepared.item_ids.names(part[row, rank]),
                pa.array(scores[start + row, rank]),
            ]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
    logging.info("recommendations for %d collections written to %s", int(nonempty.sum()), path)


def _means(values: np.ndarray) -> dict[str, Any]:
    """Means of float64 [U, 2] over users, and their 95% intervals (normal approximation)."""
    result: dict[str, Any] = {}
    half_widths = 1.96 * values.std(axis=0) / np.sqrt(max(len(values), 1))
    for name, mean, half_width in zip(metrics.METRICS, values.mean(axis=0), half_widths):
        result[name] = float(mean)
        result[f"{name}_interval"] = [float(mean - half_width), float(mean + half_width)]
    return result


def _table(methods: dict[str, dict[str, Any]]) -> str:
    rows = [["method", *metrics.METRICS]]
    for name, values in methods.items():
        rows.append([name, *(f"{values[metric]:.4f}" for metric in metrics.METRICS)])
    return "\n".join(aligned(rows, terminal_width()))
