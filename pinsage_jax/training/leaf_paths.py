"""Pytrees as dicts of leaves by their path, as checkpoints store them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, such as "params/layer_0/kernel".

    Raises:
      ValueError: there is no leaf, or two have the same path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf
        for path, leaf in leaves
    }
    if not named or len(named) != len(leaves):
        raise ValueError("a state must have at least one leaf, and no two of the same path")
    return named


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path: {"a/b": leaf} gives {"a": {"b": leaf}}.

    Orbax's own tools can read a checkpoint of nested dicts too.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
