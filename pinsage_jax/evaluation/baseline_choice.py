"""--baselines: which rivals run, and with which settings."""

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
    CannotRun,
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
    """The names that --baselines asks for, in order, each once.

    Raises:
      UserError: an unknown name.
    """
    chosen: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        known = {"default": DEFAULT, "all": NAMES, "none": (), "": ()}.get(word, (word,))
        for name in known:
            if name not in NAMES:
                raise UserError(
                    f"--baselines={text}: {name} is not one of "
                    f"{', '.join(NAMES)}, default, all or none."
                )
            if name not in chosen:
                chosen.append(name)
    return tuple(chosen)


class Baselines:
    """Makes the baselines of one evaluation one by one, so that one is in memory at a time.

    Attributes:
      left_out: name -> why it did not run; complete after `each`.
    """

    def __init__(
        self,
        config: Config,
        graph: Graph,
        features: np.ndarray,
        validation: ValidationSplit | None,
        threads: int,
    ):
        """Args:
        graph: what the baselines may know.
        features: float [N, D].
        validation: pairs, and the graph without their collections, to choose settings
          on; None or no pairs: defaults.
        """
        self._config, self._graph, self._features = config, graph, features
        self._validation = validation if validation is not None and len(validation.pairs) else None
        self._threads = threads
        self._chosen: dict[str, tuple[float, dict[str, Any]]] = {}
        self.left_out: dict[str, str] = {}

    def each(self, names: tuple[str, ...]) -> Iterator[Baseline]:
        """Yields the named baselines that can run here; says in a line which cannot."""
        for name in names:
            try:
                if name in _NEED_FEATURES and self._features.shape[1] == 0:
                    raise CannotRun("the items have no features")
                baseline = self._make(name)
            except CannotRun as reason:
                self.left_out[name] = str(reason)
                logging.info("baseline %s left out: %s", name, reason)
                continue
            yield baseline

    def _make(self, name: str) -> Baseline:
        graph, config = self._graph, self._config
        if name == "popularity":
            return Popularity(graph)
        if name == "content":
            return Content(self._features)
        if name == "walk":
            return Walk(graph, config.sampling, config.seed, self._threads)
        if name == "item_knn":
            return ItemKnn(graph)
        if name == "als":
            alpha, how = self._alpha()
            als = Als(graph, alpha, config.seed, self._threads)
            als.settings.update(how)
            return als
        if name == "fusion":
            weight, how = self._content_weight()
            fused = LateFusion(Content(self._features), ItemKnn(graph), weight)
            fused.settings.update(how)
            return fused
        restart, how = self._restart()
        pagerank = PageRank(graph, restart, self._threads)
        pagerank.settings.update(how)
        if name == "pagerank":
            return pagerank
        return RankFusion(Content(self._features), pagerank)

    def _alpha(self) -> tuple[float, dict[str, Any]]:
        """ALS's weight of an edge, and how it was chosen."""

        def candidates(graph: Graph):
            fitted = [Als(graph, alpha, self._config.seed, self._threads) for alpha in ALS_ALPHAS]
            return lambda queries: (als.scores(queries) for als in fitted)

        return self._choose("alpha", ALS_ALPHAS, candidates)

    def _restart(self) -> tuple[float, dict[str, Any]]:
        """PageRank's restart probability, and how it was chosen."""

        def candidates(graph: Graph):
            scorer = PageRank(graph, threads=self._threads)
            return lambda queries: scorer.scores_by_restart(queries, RESTARTS)

        return self._choose("restart", RESTARTS, candidates)

    def _content_weight(self) -> tuple[float, dict[str, Any]]:
        """Late fusion's weight of content, and how it was chosen."""

        def candidates(graph: Graph):
            content, knn = Content(self._features), ItemKnn(graph)

            def scored(queries: np.ndarray) -> Iterator[np.ndarray]:
                by_content, by_graph = content.scores(queries), knn.scores(queries)
                for weight in WEIGHTS:
                    yield blend(by_content, by_graph, weight)

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
            how = {"chosen_on": "validation pairs", "candidates": choice.objective}
            self._chosen[name] = (choice.value, how)
        return self._chosen[name]
