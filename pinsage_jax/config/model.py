"""Settings of the network."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """PinSage, Algorithm 1 and 2 (Ying et al. 2018), and its variants."""

    num_layers: int = option(
        1, "K: convolution layers; 0 embeds by features alone.", low=0, high=5, basic=True
    )
    hidden_dim: int = option(256, "m: width of Q, the projected neighbors.", low=1)
    layer_dim: int = option(256, "d: width of each layer's output.", low=1)
    output_dim: int = option(256, "Width of the exported embedding.", low=1, basic=True)
    pooling: str = option(
        "importance",
        "How neighbors are pooled: by visit count, equally, or elementwise maximum.",
        choices=("importance", "mean", "max"),
    )
    spectral_dim: int = option(
        256,
        "Dimensions of an item's place in a spectral map of the graph, found through its "
        "collections and appended to its features; 0: none (the paper). Fewer where items times "
        "dimensions would pass 200 million.",
        low=0,
        high=4096,
    )
    isolated_feature: bool = constant(
        True, "Append a column that marks items without edges (not in the paper)."
    )
    popularity_bias: bool = option(
        True,
        "Make the last coordinate of an embedding 1 + b, with b learned: how likely an item is "
        "whatever the query (not in the paper).",
    )
    neighbor_embeddings: str = option(
        "auto",
        "Add a learned vector of the neighbor's id to what it sends; with one layer an item's "
        "own id never enters its embedding. auto: when they have at most 50 million numbers.",
        choices=("auto", "on", "off"),
    )
    skip: bool = constant(
        True, "Add linear maps of a node's own input and of its pooled neighbors to the output."
    )
    whiten: float = constant(
        0.5,
        "Feature columns are divided by their root mean square to this power.",
        low=0.0,
        high=1.0,
    )
    compute_dtype: str = option(
        "float32", "Type of the matrix products.", choices=("float32", "bfloat16")
    )
