"""Slow, readable reference of the network and its losses in float64 NumPy loops.

Written from the paper (Ying et al. 2018, Algorithms 1 and 2, equation 1) and not from
the package.  A graph is two dictionaries: `features[node]` is a vector and
`lists[node]` is [(neighbor, weight), ...]; a node is any hashable name.
"""

from __future__ import annotations

import math

import numpy as np


def dense(layer: dict, vector: np.ndarray) -> np.ndarray:
    """kernel^T x + bias, in float64; the bias is optional."""
    out = np.zeros(np.shape(layer["kernel"])[1])
    for row, value in enumerate(vector):
        out += value * np.asarray(layer["kernel"][row], np.float64)
    return out + np.asarray(layer["bias"], np.float64) if "bias" in layer else out


def rectified(vector: np.ndarray) -> np.ndarray:
    return np.array([max(value, 0.0) for value in vector])


def unit(vector: np.ndarray) -> np.ndarray:
    length = math.sqrt(sum(value * value for value in vector))
    return vector / length if length > 0 else vector


def pooled(vectors: list[np.ndarray], weights: list[float], width: int, pooling: str) -> np.ndarray:
    """Weighted sum, or elementwise maximum of the neighbors that weigh anything."""
    out = np.zeros(width)
    for vector, weight in zip(vectors, weights):
        if pooling == "max":
            out = np.maximum(out, vector) if weight > 0 else out
        else:
            out = out + weight * vector
    return out


def message(tree, layer, vector, name):
    """ReLU(Q h + q), in the first layer with a vector of the sender's id if it has one."""
    out = dense(tree[f"projections_{layer - 1}"]["Q"], vector)
    if (
        layer == 1
        and "neighbor_embeddings" in tree
        and 0 <= name < len(tree["neighbor_embeddings"])
    ):
        out = out + np.asarray(tree["neighbor_embeddings"][name], np.float64)
    return rectified(out)


def pool_of(tree, layer, neighbors, names, weights, pooling):
    """Algorithm 1, line 1, for one node: project every neighbor, then pool."""
    projection = tree[f"projections_{layer - 1}"]["Q"]
    sent = [message(tree, layer, vector, name) for vector, name in zip(neighbors, names)]
    return pooled(sent, weights, np.shape(projection["kernel"])[1], pooling)


def combine(tree, layer, own, pool):
    """Algorithm 1, lines 2 and 3: self first, then unit length."""
    combination = tree[f"combinations_{layer - 1}"]["W"]
    return unit(rectified(dense(combination, np.concatenate([own, pool]))))


def head(tree, hidden, features, pool, normalized):
    """G2 ReLU(G1 h + g), plus linear maps of input and last pool where the tree has them.

    Where the tree has them too, one coordinate more: 1 + popularity / 10.
    """
    active = rectified(dense(tree["G1"], hidden))
    out = dense(tree["G2"], active)
    if "skip_self" in tree:
        out = out + dense(tree["skip_self"], features)
    if "skip_neighbors" in tree:
        out = out + dense(tree["skip_neighbors"], pool)
    out = unit(out) if normalized else out
    if "popularity" in tree:
        likely = dense(tree["popularity"], active) + dense(tree["popularity_self"], features)
        out = np.concatenate([out, 1.0 + 0.1 * likely])
    return out


def embed(params, features, lists, nodes, *, layers, pooling, normalized, names=None) -> np.ndarray:
    """Algorithm 2: float64 [len(nodes), Z] of `nodes`, each layer of each node once.

    `names[node]` is its id, for the vectors of ids; without it the node is its own id.
    """
    tree = params["params"]
    known = {}

    def pool(node, layer):
        listed = lists[node]
        vectors = [hidden(other, layer - 1) for other, _ in listed]
        ids = [other if names is None else names[other] for other, _ in listed]
        return pool_of(tree, layer, vectors, ids, [weight for _, weight in listed], pooling)

    def hidden(node, layer):
        if layer == 0:
            return np.asarray(features[node], np.float64)
        if (node, layer) not in known:
            own = hidden(node, layer - 1)
            known[node, layer] = combine(tree, layer, own, pool(node, layer))
        return known[node, layer]

    def out(node):
        last = pool(node, layers) if layers else None
        return head(tree, hidden(node, layers), hidden(node, 0), last, normalized)

    return np.array([out(node) for node in nodes])


# Losses.  A side is {"query", "target": vectors, "query_id", "target_id": ids} of one
# pair; a candidate is (vector, id, log chance).


def allowed(pair, candidates):
    """Candidates that are neither the pair's query nor its target, and are there at all."""
    own = (pair["query_id"], pair["target_id"])
    return [entry for entry in candidates if entry[1] >= 0 and entry[1] not in own]


def inner(left, right) -> float:
    return float(sum(float(a) * float(b) for a, b in zip(left, right)))


def margin_of(pair, negatives, in_batch, margin):
    positive = inner(pair["query"], pair["target"])
    hinges = [
        max(0.0, inner(pair["query"], vector) - positive + margin) for vector, _, _ in negatives
    ]
    return sum(hinges) / len(hinges) if hinges else 0.0


def cross_entropy_of(pair, negatives, in_batch, temperature):
    def chance(score):
        return 1.0 / (1.0 + math.exp(-score / temperature))

    loss = -math.log(chance(inner(pair["query"], pair["target"])))
    wrong = [-math.log(chance(-inner(pair["query"], vector))) for vector, _, _ in negatives]
    return loss + (sum(wrong) / len(wrong) if wrong else 0.0)


def softmax_of(pair, negatives, in_batch, temperature, logq):
    def logit(vector, log_chance):
        return inner(pair["query"], vector) / temperature - logq * log_chance

    positive = logit(pair["target"], pair["target_logq"])
    logits = [positive] + [logit(vector, q) for vector, _, q in negatives + in_batch]
    most = max(logits)
    return most + math.log(sum(math.exp(value - most) for value in logits)) - positive


def loss(name, pairs, shared, hard, **settings) -> tuple[float, float]:
    """(sum, count) over `pairs`.

    Args:
      name: margin, cross_entropy or softmax.
      pairs: dictionaries with query, target, query_id, target_id, target_logq, weight.
      shared: random negatives, the same for each pair; hard: one list per pair.
      settings: in_batch and what the loss needs.
    """
    use_in_batch = settings.pop("in_batch", True)
    each = {"margin": margin_of, "cross_entropy": cross_entropy_of, "softmax": softmax_of}[name]
    total = count = 0.0
    for place, pair in enumerate(pairs):
        others = [
            (other["target"], other["target_id"], other["target_logq"])
            for number, other in enumerate(pairs)
            if number != place and other["weight"] > 0 and use_in_batch
        ]
        negatives = allowed(pair, shared) + allowed(pair, hard[place])
        total += pair["weight"] * each(pair, negatives, allowed(pair, others), **settings)
        count += pair["weight"]
    return total, count


def reversed_pairs(pairs) -> list[dict]:
    """The same pairs with query and target exchanged."""
    return [
        {
            "query": pair["target"],
            "target": pair["query"],
            "query_id": pair["target_id"],
            "target_id": pair["query_id"],
            "target_logq": pair["query_logq"],
            "query_logq": pair["target_logq"],
            "weight": pair["weight"],
        }
        for pair in pairs
    ]
