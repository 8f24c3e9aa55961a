"""The table of modes: which module of this folder implements each --mode.

A module is imported when its stage runs, so listing neighbors does not load the training code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# The stage is the function of the mode's name in stages/MODULE.py.
MODULES = {
    "pipeline": "pipeline",
    "prepare": "prepare",
    "train": "train",
    "embed": "embed",
    "evaluate": "evaluate",
    "neighbors": "search",
    "report": "evaluate",
    "recommend": "search",
    "index": "search",
    "split": "prepare",
    "ablate": "ablate",
    "graph_tables": "prepare",
    "serve": "serve",
    "doctor": "prepare",
    "explain": "evaluate",
    "compare": "evaluate",
}
# Modes that run compiled steps, which allocate and free the same memory again and again.
WITH_STEPS = ("pipeline", "train", "embed", "ablate", "doctor")


def stage(mode: str) -> Callable[..., Any]:
    """The function that runs --mode=`mode`; it takes the settings."""
    module = importlib.import_module(f"pinsage_jax.stages.{MODULES[mode]}")
    return getattr(module, mode)
