"""Items for a collection or a user, from the embeddings of what it holds.

--recommend_for shows a table; without it WORKDIR/recommendations.parquet lists all:
collection_id, rank (from 1), item_id, score.  With --test_edges the recommendations
are also scored, beside plain rivals, into WORKDIR/recommend.json.

  U users (collections), N items, Z embedding dimensions, k recommendations
"""

from __future__ import annotations

import concurrent.futures
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
from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.text_table import aligned
from pinsage_jax.recommend import metrics, multi_interest
from pinsage_jax.recommend.ann import best_among
from pinsage_jax.recommend.choice import Choice, Validation, choose, needs_validation
from pinsage_jax.recommend.scores import (
    TIE_RULE,
    Histories,
    HistoryKnn,
    Mean,
    Popularity,
    Scorer,
    Shape,
    Sharpened,
    best_items,
    histories_of,
)
from pinsage_jax.recommend.walks import HistoryWalk
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.filters import Filters
from pinsage_jax.retrieval.neighbors import similar_ids
from pinsage_jax.retrieval.retrieval.export_quality import evenly_spaced_rows, recall_per_query

RECOMMENDATIONS_FILE, SCORES_FILE = "recommendations.parquet", "recommend.json"
CHOICE_FILE = "recommend_choice.json"
_MICROSECONDS_A_DAY = 86_400_000_000
_ROWS_AT_ONCE = 1 << 20
# Users whose interests are clustered at once.
_USERS_AT_ONCE = 4096
_COMPARED_USERS = 100
_SCHEMA = pa.schema(
    [
        ("collection_id", pa.large_string()),
        ("rank", pa.int32()),
        ("item_id", pa.large_string()),
        ("score", pa.float32()),
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """Recommends by one choice of settings.

    Attributes:
      vectors: float32 [N, Z].
      degree: int [N], training edges.
      half_life: in the unit of the histories' times.
      search: an index of the vectors; None scores the whole catalog.
      filters: what may be listed; None: all that the history does not hold.
      hide_history: whether what a history holds is left out.
      quiet: show no progress.
    """

    config: RecommendConfig
    choice: Choice
    vectors: np.ndarray
    degree: np.ndarray
    threads: int
    half_life: float = 0.0
    search: AnnSearch | None = None
    filters: Filters | None = None
    hide_history: bool = True
    quiet: bool = False

    def best(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [U, k] and scores float32 [U, k], best first, -1 and -inf padded."""
        if self.filters is None:
            return self._best(histories, k)
        return self.filters.top_k(
            lambda users, depth: self._best(histories.select(users), depth),
            len(histories), k, histories.of,
        )  # fmt: skip

    def _best(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        choice = self.choice
        if choice.by == "interests":
            return self._by_interests(histories, k)
        if choice.by == "mean":
            scorer: Scorer = Mean(self.vectors)
        else:
            shape = Shape(choice.by, choice.value)
            scorer = Sharpened(
                self.vectors, self.degree, shape, choice.popularity, choice.rarity, self.threads
            )
        return self._scored(scorer, histories, k, self._hidden(histories), quiet=self.quiet)

    def _hidden(self, histories: Histories) -> Histories:
        """What each user is not to be shown."""
        if self.hide_history:
            return histories
        return Histories(np.zeros_like(histories.indptr), np.empty(0, np.int32))

    def _scored(
        self, scorer: Scorer, histories: Histories, k: int, exclude: Histories, quiet: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best by a scorer, of the whole catalog or of what the index finds."""
        if self.search is not None:
            return best_among(self.search, self.vectors, scorer, histories, k, exclude)
        return best_items(
            scorer, histories, len(self.vectors), k,
            threads=self.threads, exclude=exclude, quiet=quiet,
        )  # fmt: skip

    def _by_interests(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(histories), k), -1, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        for start in range(0, len(histories), _USERS_AT_ONCE):
            users = np.arange(start, min(start + _USERS_AT_ONCE, len(histories)))
            ids[users], scores[users] = self._part_by_interests(histories.select(users), k)
        return ids, scores

    def _part_by_interests(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        def cluster(user: int) -> multi_interest.Interests | None:
            span = slice(histories.indptr[user], histories.indptr[user + 1])
            if span.start == span.stop:
                return None
            worth = None
            if histories.times is not None:
                worth = multi_interest.halving_worth(histories.times[span], self.half_life)
            return multi_interest.interests_of(
                self.vectors[histories.items[span]],
                self.config.recommend_interests,
                self.config.recommend_ward,
                worth,
            )

        users = range(len(histories))
        with concurrent.futures.ThreadPoolExecutor(max(self.threads, 1)) as pool:
            found = list(pool.map(cluster, users))
        owners = np.repeat(users, [0 if one is None else len(one.medoids) for one in found])
        medoids = [histories.of(user)[one.medoids] for user, one in zip(users, found) if one]
        points = np.concatenate([np.empty(0, np.int32), *medoids]).astype(np.int32)
        # Each medoid is a history of one item, which leaves out all that its user holds.
        alone = Histories(np.arange(len(points) + 1, dtype=np.int64), points)
        hidden = self._hidden(histories).select(owners.astype(np.int64))
        candidates, values = self._scored(Mean(self.vectors), alone, k, hidden, quiet=True)
        ids = np.full((len(histories), k), -1, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        starts = np.searchsorted(owners, np.arange(len(histories) + 1))
        for user, one in zip(users, found):
            if one is not None:
                span = slice(starts[user], starts[user + 1])
                ids[user], scores[user] = multi_interest.blend(
                    one.importance, candidates[span], values[span], k
                )
        return ids, scores


def recommend(
    config: Config,
    prepared: Prepared,
    vectors: np.ndarray,
    threads: int,
    validation: Callable[[], Validation | None],
    search: AnnSearch | None = None,
) -> dict[str, Any] | None:
    """Shows, writes or scores recommendations.

    Args:
      vectors: float32 [N, Z] of all items, made on the whole graph.
      validation: makes the users that settings are chosen by, if any are open.
      search: an index of the vectors; None scores the whole catalog.

    Returns:
      What recommend.json holds, or None without --test_edges.

    Raises:
      UserError: an unknown collection, or test edges that cannot be used.
    """
    settings = config.recommend
    graph = prepared.graph
    vectors = np.ascontiguousarray(vectors, np.float32)
    wanted = _wanted(settings, prepared)
    tests = None
    if settings.test_edges:
        path = config.data.path(settings.test_edges)
        tests = metrics.read_test_edges(path, config.data, prepared)
    times, half_life = _times(config, prepared)
    choice, tried = _chosen(config, vectors, validation, threads)
    degree = graph.degree()[: graph.num_items]
    hide = config.search.exclude_seen != "off"
    # The recommender excludes the history itself; the filters apply the other rules.
    filters = Filters(config.search, graph, vectors, exclude_seen=False)
    recommender = Recommender(
        settings, choice, vectors, degree, threads, half_life, search, filters, hide
    )
    histories = histories_of(graph, times)
    if search is not None:
        _log_missed(recommender, histories, settings.recommend_k)
    if wanted is not None:
        ids, scores = recommender.best(histories.select(wanted), settings.recommend_k)
        _print(wanted, ids, scores, prepared)
    else:
        ids, scores = recommender.best(histories, max(settings.recommend_k, metrics.DEPTH))
        _write(config, prepared, ids[:, : settings.recommend_k], scores, histories)
    if tests is None:
        return None
    own = histories.select(tests.users)
    mine = ids[tests.users] if wanted is None else recommender.best(own, metrics.DEPTH)[0]
    ranked = {f"pinsage, {choice.by}": mine}
    for by in ("mean", "interests"):
        if choice.by != by:
            other = dataclasses.replace(recommender, choice=Choice(by))
            ranked[f"pinsage, {by}"] = other.best(own, metrics.DEPTH)[0]
    walk = HistoryWalk(graph, config.sampling, config.seed, threads)
    for rival in (Popularity(graph), HistoryKnn(graph), walk):
        ranked[rival.name] = best_items(
            rival, own, graph.num_items, metrics.DEPTH, threads=threads
        )[0]
    report: dict[str, Any] = {
        "protocol": metrics.PROTOCOL,
        "ties": TIE_RULE,
        "test": {"file": str(path), **tests.report},
        "settings": dataclasses.asdict(choice),
        "listed": {**dataclasses.asdict(config.search), "history_hidden": hide},
        "chosen_on": "collections that the validation split withheld" if tried else "nothing",
        "tried": tried,
        "methods": {
            name: _described(metrics.per_user(found, tests.targets, tests.sizes))
            for name, found in ranked.items()
        },
    }
    files.write_json(pathlib.Path(config.workdir) / SCORES_FILE, report)
    print(_table(report["methods"]))
    return report


def _log_missed(recommender: Recommender, histories: Histories, k: int) -> None:
    """Says how much of the exact lists the index finds, for a few users."""
    held = np.flatnonzero(np.diff(histories.indptr) > 0)
    some = histories.select(held[evenly_spaced_rows(len(held), _COMPARED_USERS)])
    exact = dataclasses.replace(recommender, search=None).best(some, k)[0]
    share = recall_per_query(recommender.best(some, k)[0], exact).mean()
    assert recommender.search is not None
    logging.info(
        "recommend: %s finds %.4f of the exact first %d (%d collections)",
        recommender.search.setting.name, share, k, len(some),
    )  # fmt: skip


def _chosen(
    config: Config,
    vectors: np.ndarray,
    validation: Callable[[], Validation | None],
    threads: int,
) -> tuple[Choice, list[dict[str, Any]]]:
    """The choice that the workdir remembers for the same settings, or a new one."""
    saved = saved_choice(config, vectors)
    if saved is not None:
        return saved
    settings = config.recommend
    found = validation() if needs_validation(settings) else None
    choice, tried = choose(settings, found, threads)
    if tried:
        logging.info("recommend: chosen in validation: %s", choice)
    elif needs_validation(settings):
        logging.warning("recommend: no withheld collection to choose by; %s is used.", choice)
    files.write_json(
        pathlib.Path(config.workdir) / CHOICE_FILE,
        {"key": _choice_key(config, vectors), "choice": dataclasses.asdict(choice), "tried": tried},
    )
    return choice, tried


def saved_choice(config: Config, vectors: np.ndarray) -> tuple[Choice, list[dict[str, Any]]] | None:
    """What the workdir remembers to have chosen for these settings and vectors, and tried."""
    path = pathlib.Path(config.workdir) / CHOICE_FILE
    if not path.exists():
        return None
    saved = files.read_json(path)
    if saved.get("key") != _choice_key(config, vectors):
        return None
    return Choice(**saved["choice"]), saved["tried"]


def _choice_key(config: Config, vectors: np.ndarray) -> str:
    about = ("by", "power", "temperature", "popularity", "rarity")
    return files.fingerprint(
        [
            [getattr(config.recommend, f"recommend_{name}") for name in about],
            dataclasses.asdict(config.split),
            config.seed,
            f"{zlib.crc32(np.ascontiguousarray(vectors).data):08x}",
        ]
    )


def _times(config: Config, prepared: Prepared) -> tuple[np.ndarray | None, float]:
    """Times of the edges, and the half-life in their unit, if recency counts."""
    half_life = config.recommend.recommend_half_life
    if half_life == 0:
        return None, 0.0
    kind = prepared.manifest.get("time_kind")
    if kind is None:
        raise UserError(
            "--recommend_half_life needs times; run --mode=prepare with --time_column first."
        )
    times = files.read_array(pathlib.Path(config.workdir) / "prepared" / "times.npy")
    return times, half_life * (_MICROSECONDS_A_DAY if kind == "timestamp" else 1)


def _wanted(settings: RecommendConfig, prepared: Prepared) -> np.ndarray | None:
    """Indices of the collections of --recommend_for; None if it is empty."""
    names = [part.strip() for part in settings.recommend_for.split(",") if part.strip()]
    if not names:
        return None
    found = prepared.collection_ids.lookup(pa.array(names, pa.large_string()))
    for name, index in zip(names, found):
        if index < 0:
            close = similar_ids(name, prepared.collection_ids)
            hint = f"did you mean {' or '.join(close)}?" if close else "ids are those of --edges."
            raise UserError(f"--recommend_for: there is no collection {name}; {hint}")
    return found.astype(np.int64)


def _print(wanted: np.ndarray, ids: np.ndarray, scores: np.ndarray, prepared: Prepared) -> None:
    names = prepared.collection_ids.names(wanted).to_pylist()
    for name, row, values in zip(names, ids, scores):
        found = row >= 0
        items = prepared.item_ids.names(row[found]).to_pylist()
        table = [["item_id", "score"]]
        table += [[item, f"{value:.4g}"] for item, value in zip(items, values[found])]
        lines = aligned(table)
        if prepared.titles is not None:
            titles = prepared.titles.take(pa.array(row[found].astype(np.int64))).to_pylist()
            shown = ["title", *(" ".join((title or "").split())[:70] for title in titles)]
            lines = [f"{line}  {title}".rstrip() for line, title in zip(lines, shown)]
        print("\n".join([f"for  {name}", *lines, ""]))


def _write(
    config: Config, prepared: Prepared, ids: np.ndarray, scores: np.ndarray, histories: Histories
) -> None:
    path = pathlib.Path(config.workdir) / RECOMMENDATIONS_FILE
    block = max(_ROWS_AT_ONCE // max(ids.shape[1], 1), 1)
    # A collection without items says nothing about what it wants.
    held = np.diff(histories.indptr) > 0
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA) as writer,
    ):
        for start in range(0, len(ids), block):
            part = ids[start : start + block]
            place, rank = np.nonzero((part >= 0) & held[start : start + block, None])
            columns = [
                prepared.collection_ids.names(start + place),
                pa.array((rank + 1).astype(np.int32)),
                prepared.item_ids.names(part[place, rank]),
                pa.array(scores[start + place, rank]),
            ]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
    logging.info("recommendations for %d collections written to %s", int(held.sum()), path)


def _described(values: np.ndarray) -> dict[str, Any]:
    """Means over users [U, 2] and their 95% intervals (normal approximation)."""
    result: dict[str, Any] = {}
    width = 1.96 * values.std(axis=0) / np.sqrt(max(len(values), 1))
    for name, mean, half in zip(metrics.METRICS, values.mean(axis=0), width):
        result[name] = float(mean)
        result[f"{name}_interval"] = [float(mean - half), float(mean + half)]
    return result


def _table(methods: dict[str, dict[str, Any]]) -> str:
    rows = [["method", *metrics.METRICS]]
    for name, values in methods.items():
        rows.append([name, *(f"{values[metric]:.4f}" for metric in metrics.METRICS)])
    return "\n".join(aligned(rows))
