"""The stage that trains and compares variants of the settings."""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.ablation import ablation
from pinsage_jax.ablation.variants import chosen_variants
from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.config.settings import Config
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.model.init import init_model
from pinsage_jax.stages.embed import embed_over
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.runs import validation_split_of
from pinsage_jax.stages.train import train


def ablate(config: Config) -> dict[str, Any]:
    """Trains and compares variants of the settings; writes WORKDIR/ablate.json, prints tables."""
    # An unknown name is reported before the data is prepared.
    chosen_variants(config.ablate.ablate_variants)
    prepared = prepare(config)
    split = validation_split_of(config, prepared)

    def embeddings(variant: Config, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        train(variant, split=split)
        raise_if_stopped()
        vectors, trained = embed_over(variant, prepared, graph, split)
        items = vectors[: prepared.graph.num_items]
        return items, {"checkpoint_step": trained.step, "cold_start_bias": trained.cold_start_bias}

    def untrained(variant: Config, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        encoder = Encoder.over(variant, prepared, graph, spectral_bases(variant, prepared, split))
        nodes = encoder.lists.source.num_nodes
        _, params = init_model(variant, encoder.inputs.dim, nodes)
        return encoder.embed(params)[: prepared.graph.num_items], {}

    return ablation.ablate(config, prepared, split, embeddings, untrained)
