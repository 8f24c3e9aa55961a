"""The models of the ranker, one for each kind of query and of candidate, and how they make lists.

Q queries, K candidates of a query
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinsage_jax.ranking.calibrated_model import CalibratedModel
from pinsage_jax.ranking.candidates import FEATURES, Candidates
from pinsage_jax.ranking.levels import KINDS

RANKER = "ranker"


@dataclasses.dataclass(frozen=True, eq=False)
class RankerModel:
    """The fitted models, and how they order lists.

    Attributes:
      models: by kind of query and kind of candidate; a kind of query without enough
        validation pairs is absent.
      levels: by kind of query, what is added to the log-odds of candidates without edges.
      by: by kind of query, `ranker` or the method that orders its lists.
      popularity_slope: by which the log-odds of candidates with edges grow with their log(1 +
        degree), on average; a lower popularity weight takes it away.
      mean_log_degree: at which that changes nothing.
    """

    models: dict[str, dict[str, CalibratedModel]]
    levels: dict[str, float]
    by: dict[str, str]
    popularity_slope: float = 0.0
    mean_log_degree: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The models as JSON values, which `from_json` reads."""
        models = {
            query: {kind: model.as_json() for kind, model in of_query.items()}
            for query, of_query in self.models.items()
        }
        return {**dataclasses.asdict(self), "models": models, "features": list(FEATURES)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> RankerModel:
        """Restores what `as_json` returned.

        Raises:
          KeyError, TypeError, ValueError: it describes another kind of model.
        """
        if saved["features"] != list(FEATURES) or saved["by"].keys() != set(KINDS):
            raise ValueError("the features are others")
        models = {
            query: {kind: CalibratedModel.from_json(of_kind) for kind, of_kind in found.items()}
            for query, found in saved["models"].items()
        }
        names = ("levels", "by", "popularity_slope", "mean_log_degree")
        return cls(models, **{name: saved[name] for name in names})

    def log_odds(
        self, candidates: Candidates, query_kind: str, popularity_weight: float = 1.0
    ) -> np.ndarray:
        """Log-odds float32 [Q, K] of candidates for queries of one kind; -inf at padding."""
        found = np.full(candidates.ids.shape, -np.inf, np.float32)
        of_kind = (candidates.ids >= 0) & ~candidates.isolated, candidates.isolated
        for kind, mask in zip(KINDS, of_kind):
            if kind in self.models[query_kind] and mask.any():
                found[mask] = self.models[query_kind][kind].log_odds(candidates.features[mask])
        found[candidates.isolated] += np.float32(self.levels[query_kind])
        if popularity_weight != 1.0:
            above = candidates.features[..., FEATURES.index("log_degree")] - self.mean_log_degree
            less = (1.0 - popularity_weight) * self.popularity_slope * above
            found -= np.where(candidates.isolated, 0.0, less).astype(np.float32)
        return found
