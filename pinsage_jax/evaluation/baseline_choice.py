"""Builds the baselines of --baselines and chooses their hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.baselines import Baseline, Content, Popularity, Walk
from pinsage_jax.evaluation.baselines_fusion import WEIGHTS, LateFusion, RankFusion, blend, choose
from pinsage_jax.evaluation.baselines_graph import (
    ALS_ALPHAS,
    RESTARTS,
    Als,
    BaselineUnavailable,
    ItemKnn,
    PageRank,
)
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit

NAMES = (
    "popularity",
    "content",
    "walk",
    "item_knn",
    "pagerank",
    "als",
    "fusion",
    "fusion_pagerank",
)
DEFAULT = NAMES[:3]
_NEED_FEATURES = ("content", "fusion", "fusion_pagerank")


def parse_baselines(text: str) -> tuple[str, ...]:
    """The distinct baseline names of --baselines, in order.

    Raises:
      UserError: a name is unknown.
    """
    chosen: list[str] = []
    for word in (part.strip() for part in text.split(",")):
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


class Baselines:
    """Builds the baselines of one evaluation one at a time, to bound memory.

    Attributes:
      skipped: reason by name of each baseline that cannot run; complete after `build`.
    """

    def __init__(
        self,
        config: Config,
        graph: Graph,
        features: np.ndarray,
        validation: ValidationSplit | None,
        threads: int,
    ):
        """Prepares to build baselines.

        Args:
          config: settings of the run.
          graph: the graph that the baselines may use.
          features: float [N, D].
          validation: validation pairs, and the graph without their collections, on which
            hyperparameters are chosen; None or no pairs: the defaults.
          threads: number of threads.
        """
        self._config, self._graph, self._features = config, graph, features
        self._validation = validation if validation is not None and len(validation.pairs) else None
        self._threads = threads
        self._chosen: dict[str, tuple[float, dict[str, Any]]] = {}
        self.skipped: dict[str, str] = {}

    def build(self, names: tuple[str, ...]) -> Iterator[Baseline]:
        """Yields the named baselines that can run; logs and records the others."""
        for name in names:
            try:
                if name in _NEED_FEATURES and self._features.shape[1] == 0:
                    raise BaselineUnavailable("the items have no features")
                baseline = self._build(name)
            except BaselineUnavailable as reason:
                self.skipped[name] = str(reason)
                logging.info("baseline %s skipped: %s", name, reason)
                continue
            yield baseline

    def _build(self, name: str) -> Baseline:
        graph, config = self._graph, self._config
        if name == "popularity":
            return Popularity(graph, config.data.weighs_edges)
        if name == "content":
            return Content(self._features)
        if name == "walk":
            return Walk(graph, config.sampling, config.seed, self._threads)
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
