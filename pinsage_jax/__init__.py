"""PinSage in JAX: item embeddings from a table of items and collections.

Data flows, and imports point, one way:

  config -> graph -> sampling -> batching -> model -> training -> inference
         -> retrieval -> reporting -> cli/main

From Python, with one object:

  import pinsage_jax

  model = pinsage_jax.PinSage(epochs=2).fit(edges_df, items_df)
  model.similar_items("SKU-22", n=10, where="in_stock and price < 50")

or with the functions that the program itself runs:

  import pinsage_jax

  config = pinsage_jax.settings("runs/mine", edges="edges.parquet", items="items.parquet")
  data = pinsage_jax.load_graph(config)   # .graph, .features, .item_ids, .eval_pairs
  pinsage_jax.train(config)               # checkpoints and metrics.jsonl in the workdir
  pinsage_jax.embed(config)
  ids, vectors = pinsage_jax.embeddings(config)
  pinsage_jax.neighbors(config, [ids[0]])
  pinsage_jax.evaluate(config)

Names are looked up when they are asked for, so the import itself is quick and brings in
no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pinsage_jax.core.version import __version__ as __version__

if TYPE_CHECKING:
    from pinsage_jax.api import settings
    from pinsage_jax.config.settings import Config
    from pinsage_jax.core.errors import UserError
    from pinsage_jax.estimator.model import PinSage
    from pinsage_jax.stages.embed import embed
    from pinsage_jax.stages.evaluate import compare, evaluate, explain
    from pinsage_jax.stages.prepare import doctor, load_graph
    from pinsage_jax.stages.runs import embeddings
    from pinsage_jax.stages.search import neighbors
    from pinsage_jax.stages.train import train

__all__ = [
    "Config",
    "PinSage",
    "UserError",
    "compare",
    "doctor",
    "embed",
    "embeddings",
    "evaluate",
    "explain",
    "load_graph",
    "neighbors",
    "settings",
    "train",
]

# Beside the stages, which stages/modes.py lists.
_MODULES = {
    "Config": "config.settings",
    "PinSage": "estimator.model",
    "UserError": "core.errors",
    "embeddings": "stages.runs",
    "load_graph": "stages.prepare",
    "settings": "api",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in __all__:
        raise AttributeError(f"module 'pinsage_jax' has no attribute '{name}'")
    if name in _MODULES:
        return getattr(importlib.import_module(f"pinsage_jax.{_MODULES[name]}"), name)
    modes = importlib.import_module("pinsage_jax.stages.modes")
    return modes.stage(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
