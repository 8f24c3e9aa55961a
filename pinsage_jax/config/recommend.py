"""Settings of recommending items to a collection or a user."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option
from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class RecommendConfig(Checked):
    """Items for a collection or a user's history, by --mode=recommend."""

    recommend_for: str = option(
        "", "Comma-separated collection ids to show; empty: write recommendations.parquet for all."
    )
    recommend_k: int = option(20, "Items recommended to each collection.", low=1, high=1000)
    recommend_by: str = option(
        "auto",
        "How a history scores an item: by its mean vector, by medoids of its interests, by the sum "
        "of powers or of exponentials of its similarities; auto: any of these but interests, "
        "whichever does best in validation.",
        choices=("auto", "mean", "interests", "power", "attention"),
    )
    recommend_power: float = option(
        0.0,
        "p of the sum over a history of max(0, z_h.z_i)^p; 0: chosen in validation.",
        low=0.0,
        high=1000.0,
    )
    recommend_temperature: float = option(
        0.0,
        "t of the sum over a history of exp(z_h.z_i / t); 0: chosen in validation.",
        low=0.0,
        high=1000.0,
    )
    recommend_popularity: float = option(
        -1.0,
        "power and attention: scores are multiplied by (1 + degree)^this; -1: chosen in "
        "validation.",
        low=-1.0,
        high=2.0,
    )
    recommend_rarity: float = option(
        -1.0,
        "power and attention: items of a history count (1 + degree)^-this; -1: chosen in "
        "validation.",
        low=-1.0,
        high=2.0,
    )
    recommend_interests: int = option(3, "Most interests (clusters) used of a history.", low=1)
    recommend_ward: float = option(
        1.2, "Ward distance, of unit vectors, above which interests stay apart.", low=0.0
    )
    recommend_half_life: float = option(
        0.0,
        "Time in which an item's part in an interest's importance halves, in days or the unit of "
        "--time_column; 0: never.",
        low=0.0,
    )
    test_edges: str = option(
        "",
        "Edges to score recommendations on (Recall@20, NDCG@20); no setting is chosen by them.",
    )

    def validate(self) -> None:
        super().validate()
        if 0.0 < self.recommend_temperature < 0.02:
            raise UserError(
                f"--recommend_temperature={self.recommend_temperature} must be at least 0.02, "
                "or 0 to have it chosen."
            )
