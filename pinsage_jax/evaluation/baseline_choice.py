"""Builds the baselines of --baselines and chooses their hyperparameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.baselines import Baseline, Content, Popularity, Walk, WordContent
from pinsage_jax.evaluation.baselines_fusion import WEIGHTS, LateFusion, RankFusion, blend, choose
from pinsage_jax.evaluation.baselines_graph import (
    ALS_ALPHAS,
    RESTARTS,
    STEERINGS,
    Als,
    BaselineUnavailable,
    ItemKnn,
    PackageMissing,
    PageRank,
    Steered,
)
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit

NAMES = (
    "popularity",
    "content",
    "content_columns",
    "walk",
    "steered",
    "item_knn",
    "pagerank",
    "als",
    "fusion",
    "fusion_pagerank",
)
DEFAULT = ("popularity", "content", "content_columns", "walk", "steered", "pagerank", "als")
# Edges times queries, and edges alone, up to which these members of the default run.
_MAX_PAGERANK_WORK, _MAX_ALS_EDGES = 20_000_000_000, 5_000_000
_NEED_FEATURES = ("content", "steered", "fusion", "fusion_pagerank")
_COLUMNS = "content_columns"
_COLUMN = "content_"
# Of more columns the widest are taken.
_MAX_COLUMNS = 8
_NAME_LENGTH = 40


def parse_baselines(text: str) -> tuple[str, ...]:
    """The distinct baseline names of --baselines, in order.

    Raises:
      UserError: a name is unknown.
    """
    chosen: list[str] = []
    for word in _words(text):
        expanded = {"default": DEFAULT, "all": NAMES, "none": (), "": ()}.get(word, (word,))
        for name in expanded:
            if name not in NAMES:
                raise UserError(
                    f"--baselines={text}: {name} is not one of "
                    f"{', '.join(NAMES)}, default, all or none."
                )
            if name not in chosen:
                chosen.append(name)
    return tuple(chosen)


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def is_costly(name: str, edges: int, queries: int) -> bool:
    """Whether a baseline takes long for so many edges and queries; `default` leaves it out then."""
    if name == "pagerank":
        return edges * queries > _MAX_PAGERANK_WORK
    return name == "als" and edges > _MAX_ALS_EDGES


def position(method: str) -> int:
    """Where a method of eval.json stands among others: -1 if it is no baseline."""
    if method in NAMES:
        return NAMES.index(method)
    return NAMES.index(_COLUMNS) if method.startswith(_COLUMN) else -1


@dataclasses.dataclass(frozen=True, eq=False)
class ItemContent:
    """What baselines read of the items.

    Attributes:
      features: float [N, D]; D may be 0.
      words: int32 [N, 2K], where items are text alone; None elsewhere.
      blocks: what the columns of `features` were made from, in order: "kind", "columns", "width".
    """

    features: np.ndarray
    words: np.ndarray | None = None
    blocks: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, prepared: Prepared) -> ItemContent:
        """The content of a prepared catalog."""
        blocks = prepared.manifest.get("features", {}).get("blocks", [])
        return cls(prepared.features, prepared.words, blocks)

    def by_column(self) -> dict[str, slice]:
        """The columns of `features` that each of several blocks fills, by name of a baseline.

        {} for one block alone, and for features that were projected.  A block of numbers is left
        out: it has a coordinate or two, so its cosine has hardly more than two values.
        """
        if len(self.blocks) < 2:
            return {}
        ends = np.cumsum([0, *(block["width"] for block in self.blocks)]).tolist()
        if ends[-1] != self.features.shape[1]:
            return {}
        found = [
            (_COLUMN + "_".join(block["columns"]), slice(begin, end))
            for block, begin, end in zip(self.blocks, ends, ends[1:])
            if block["kind"] != "numeric"
        ]
        widest = sorted(found, key=lambda one: one[1].start - one[1].stop)[:_MAX_COLUMNS]
        names: dict[str, slice] = {}
        for name, columns in found:
            if (name, columns) in widest:
                plain = re.sub(r"\W+", "_", name)[:_NAME_LENGTH]
                names[plain if plain not in names else f"{plain}_{len(names)}"] = columns
        return names


class Baselines:
    """Builds the baselines of one evaluation one at a time, to bound memory.

    Attributes:
      skipped: reason by name of each baseline that cannot run; complete after `build`.
    """

    def __init__(
        self,
        config: Config,
        graph: Graph,
        content: ItemContent,
        validation: ValidationSplit | None,
        threads: int,
        queries: int = 0,
    ):
        """Prepares to build baselines.

        Args:
          config: settings of the run.
          graph: the graph that the baselines may use.
          content: of the items.
          validation: validation pairs, and the graph without their collections, on which
            hyperparameters are chosen; None or no pairs: the defaults.
          threads: number of threads.
          queries: number of queries to be scored, by which costly baselines of the default are
            left out.
        """
        self._config, self._graph, self._content = config, graph, content
        self._features, self._queries = content.features, queries
        self._validation = validation if validation is not None and len(validation.pairs) else None
        self._threads = threads
        self._chosen: dict[str, tuple[float, dict[str, Any]]] = {}
        self.skipped: dict[str, str] = {}

    def build(self, names: tuple[str, ...]) -> Iterator[Baseline]:
        """Yields the named baselines that can run; logs and records the others."""
        for name in names:
            try:
                if name == _COLUMNS:
                    yield from self._columns()
                    continue
                if name in _NEED_FEATURES and self._features.shape[1] == 0:
                    raise BaselineUnavailable("the items have no features")
                edges = self._graph.num_edges
                if not self._named(name) and is_costly(name, edges, self._queries):
                    raise BaselineUnavailable(
                        f"it takes long on {edges:,} edges (--baselines=default,{name} adds it)"
                    )
                baseline = self._build(name)
            except BaselineUnavailable as reason:
                logging.info("baseline %s skipped: %s", name, reason)
                if self._named(name) or not isinstance(reason, PackageMissing):
                    self.skipped[name] = str(reason)
                continue
            yield baseline

    def _named(self, name: str) -> bool:
        """Whether --baselines asks for a baseline other than by `default`."""
        words = _words(self._config.evaluate.baselines)
        return name in words or "all" in words or "default" not in words

    def _columns(self) -> Iterator[Baseline]:
        """Content baselines of the single feature columns, and of the words behind a text."""
        if self._content.words is not None:
            yield WordContent(self._content.words, self._threads)
        for name, columns in self._content.by_column().items():
            yield Content(self._features[:, columns], name)

    def _link_content(self) -> Baseline:
        """The content by which content links and the ranker's walks compare items."""
        if self._content.words is not None:
            return WordContent(self._content.words, self._threads)
        return Content(self._features)

    def _build(self, name: str) -> Baseline:
        graph, config = self._graph, self._config
        if name == "popularity":
            return Popularity(graph, config.data.weighs_edges)
        if name == "content":
            return Content(self._features)
        if name == "walk":
            return Walk(graph, config.sampling, config.seed, self._threads)
        if name == "steered":
            steering, choice = self._steering()
            steered = Steered(graph, self._link_content(), config.sampling, self._threads, steering)
            steered.settings.update(choice)
            return steered
        if name == "item_knn":
            return ItemKnn(graph)
        if name == "als":
            alpha, choice = self._alpha()
            als = Als(graph, alpha, config.seed, self._threads)
            als.settings.update(choice)
            return als
        if name == "fusion":
            weight, choice = self._content_weight()
            fused = LateFusion(Content(self._features), ItemKnn(graph), weight)
            fused.settings.update(choice)
            return fused
        restart, choice = self._restart()
        pagerank = PageRank(graph, restart, self._threads)
        pagerank.settings.update(choice)
        if name == "pagerank":
            return pagerank
        return RankFusion(Content(self._features), pagerank)

    def _alpha(self) -> tuple[float, dict[str, Any]]:
        """The confidence weight of an edge in ALS, and the entries of `settings` about it."""

        def candidates(graph: Graph):
            fitted = [Als(graph, alpha, self._config.seed, self._threads) for alpha in ALS_ALPHAS]
            return lambda queries: (als.scores(queries) for als in fitted)

        return self._choose("alpha", ALS_ALPHAS, candidates)

    def _steering(self) -> tuple[float, dict[str, Any]]:
        """The factor of content in steered walks, and the entries of `settings` about it."""

        def candidates(graph: Graph):
            scorer = Steered(graph, self._link_content(), self._config.sampling, self._threads)
            return lambda queries: scorer.scores_by_steering(queries, STEERINGS)

        return self._choose("steering", STEERINGS, candidates)

    def _restart(self) -> tuple[float, dict[str, Any]]:
        """The restart probability of PageRank, and the entries of `settings` about it."""

        def candidates(graph: Graph):
            scorer = PageRank(graph, threads=self._threads)
            return lambda queries: scorer.scores_by_restart(queries, RESTARTS)

        return self._choose("restart", RESTARTS, candidates)

    def _content_weight(self) -> tuple[float, dict[str, Any]]:
        """The weight of content in the late fusion, and the entries of `settings` about it."""

        def candidates(graph: Graph):
            content, knn = Content(self._features), ItemKnn(graph)

            def scored(queries: np.ndarray) -> Iterator[np.ndarray]:
                content_scores, knn_scores = content.scores(queries), knn.scores(queries)
                for weight in WEIGHTS:
                    yield blend(content_scores, knn_scores, weight)

            return scored

        return self._choose("content_weight", WEIGHTS, candidates)

    def _choose(self, name: str, values, candidates) -> tuple[float, dict[str, Any]]:
        if self._validation is None:
            return values[0], {"chosen_on": "nothing: there are no validation pairs"}
        if name not in self._chosen:
            split = self._validation
            choice = choose(
                values,
                candidates(split.train_graph),
                split.pairs,
                split.train_graph.num_items,
                self._config.seed,
            )
            entries = {"chosen_on": "validation pairs", "candidates": choice.objective}
            self._chosen[name] = (choice.value, entries)
        return self._chosen[name]
