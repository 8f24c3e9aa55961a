"""Initial parameters of the network, and how many nodes have an embedding as a neighbor."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.model.pinsage import PinSage

# With --neighbor_embeddings=auto, the largest table (nodes times M numbers): a larger one takes
# too much memory, and its dense gradient too much time.
MAX_EMBEDDING_NUMBERS = 50_000_000


def init_model(
    config: Config, input_dim: int, num_nodes: int, rows: tuple[int, ...] = ()
) -> tuple[PinSage, Any]:
    """The network for frontiers of `rows` rows, and its initial parameters.

    The parameters depend on the seed, the sizes of the model and the number of nodes
    alone.

    Args:
      input_dim: D, the width of an input vector.
      num_nodes: N, nodes that can be in a minibatch.
      rows: rows of every frontier, seeds first; () for whole-catalog inference.

    Returns:
      (module, parameters); the parameters are float32 jax.Arrays.
    """
    num_ids = num_neighbor_embeddings(config.model, num_nodes)
    small = PinSage(config.model, (1,) * (config.model.num_layers + 1), num_ids)
    # Compiled whole: op by op it takes seconds.
    params = jax.jit(small.init)(
        jax.random.key(config.seed),
        np.zeros((1, input_dim), np.float32),
        np.zeros(1, np.int32),
        np.zeros((1, 1), np.int32),
        np.zeros((1, 1), np.float32),
    )
    return PinSage(config.model, rows, num_ids), params


def num_neighbor_embeddings(model: ModelConfig, num_nodes: int) -> int:
    """Nodes that have a learned vector as a neighbor (--neighbor_embeddings): all or none."""
    small = num_nodes * model.hidden_dim <= MAX_EMBEDDING_NUMBERS
    wanted = model.neighbor_embeddings == "on" or (model.neighbor_embeddings == "auto" and small)
    return num_nodes if wanted and model.num_layers else 0
