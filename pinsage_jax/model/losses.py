"""Ranking losses over the scores of a minibatch; each returns (sum, count).

  margin         Ying et al. 2018, equation 1: the paper's.
  cross_entropy  the paper's ablation: positives and negatives as binary labels.
  softmax        sampled softmax with in-batch and random negatives and a correction
                 for how often an item is drawn (logQ).

Sums and counts, not means: devices hold different numbers of pairs that count, and
the mean over all of them is psum(sum) / psum(count).

Axis letters: B pairs, R shared random negatives, H hard negatives per query, C in-batch
candidates (the targets of all devices).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pinsage_jax.config.training import TrainConfig

_MASKED = -1e9


class Scored(NamedTuple):
    """What a loss compares: scores (inner products), masks and log probabilities (logQ).

    A pair's own positive is masked among the in-batch candidates.
    """

    positive: jax.Array  # float32 [B]
    positive_logq: jax.Array  # float32 [B]
    random: jax.Array  # float32 [B, R]
    random_mask: jax.Array  # bool [B, R], False for the query or target itself
    random_logq: jax.Array  # float32 [R]
    hard: jax.Array  # float32 [B, H]
    hard_mask: jax.Array  # bool [B, H]
    hard_logq: jax.Array  # float32 [B, H], or [1, H] where all queries share their hard negatives
    in_batch: jax.Array  # float32 [B, C]
    in_batch_mask: jax.Array  # bool [B, C], False for the positive too
    in_batch_logq: jax.Array  # float32 [C]
    weights: jax.Array  # float32 [B]


def _negatives(scored: Scored) -> tuple[jax.Array, jax.Array]:
    """Random and hard negatives side by side: scores and mask [B, R+H]."""
    scores = jnp.concatenate([scored.random, scored.hard], axis=1)
    return scores, jnp.concatenate([scored.random_mask, scored.hard_mask], axis=1)


def _masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean float32 [B] of the entries of values [B, n] where mask is True; 0 of none."""
    count = jnp.maximum(mask.sum(axis=1), 1).astype(values.dtype)
    return (values * mask.astype(values.dtype)).sum(axis=1) / count


def margin_loss(scored: Scored, config: TrainConfig) -> tuple[jax.Array, jax.Array]:
    """Mean over a pair's negatives of max(0, z_q.z_n - z_q.z_i + margin), summed over pairs.

    Returns:
      (sum, count) of the pairs, by their weights; float32 [].
    """
    scores, mask = _negatives(scored)
    hinge = jax.nn.relu(scores - scored.positive[:, None] + config.margin)
    each = _masked_mean(hinge, mask)
    return (each * scored.weights).sum(), scored.weights.sum()


def cross_entropy_loss(scored: Scored, config: TrainConfig) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of the positive and of the mean of its negatives; see margin_loss."""
    scores, mask = _negatives(scored)
    wrong = jax.nn.softplus(scores / config.temperature)
    each = jax.nn.softplus(-scored.positive / config.temperature) + _masked_mean(wrong, mask)
    return (each * scored.weights).sum(), scored.weights.sum()


def softmax_loss(scored: Scored, config: TrainConfig) -> tuple[jax.Array, jax.Array]:
    """Sampled softmax over the positive, in-batch, random and hard negatives; see margin_loss.

    An item that is often a candidate is often a negative.  With `logq` the log of its
    expected share among the candidates is subtracted from its score, which corrects for
    that: scores then learn how likely an item is.  Without the correction they learn how
    likely it is relative to its popularity.
    """
    scale = 1.0 / config.temperature

    def logit(scores: jax.Array, logq: jax.Array) -> jax.Array:
        return scores * scale - logq if config.logq else scores * scale

    positive = logit(scored.positive, scored.positive_logq)
    parts = [
        (positive[:, None], jnp.ones((len(positive), 1), bool)),
        (logit(scored.random, scored.random_logq[None, :]), scored.random_mask),
        (logit(scored.hard, scored.hard_logq), scored.hard_mask),
    ]
    if config.in_batch:
        parts.append((logit(scored.in_batch, scored.in_batch_logq[None, :]), scored.in_batch_mask))
    logits = jnp.concatenate([jnp.where(mask, part, _MASKED) for part, mask in parts], axis=1)
    each = jax.nn.logsumexp(logits, axis=1) - positive
    return (each * scored.weights).sum(), scored.weights.sum()


LOSSES = {"margin": margin_loss, "cross_entropy": cross_entropy_loss, "softmax": softmax_loss}
