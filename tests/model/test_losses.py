"""Losses against float64 loops: masks, hard negatives, logQ, in-batch, both directions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model as slow

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.model.losses import LOSSES
from pinsage_jax.training.steps import score

PAIRS, RANDOM, HARD, ROWS, WIDTH = 6, 7, 3, 20, 5
NAMES = sorted(LOSSES)


def random_batch(rng, pairs=PAIRS, random=RANDOM, hard=HARD):
    """Embeddings [ROWS, Z] and a Minibatch whose ids collide often; two pairs do not count.

    The id of a row is row // 2, so that two rows may stand for one item.
    """
    embedded = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    row = {name: rng.integers(0, ROWS, size) for name, size in (("q", pairs), ("t", pairs))}
    negatives, hards = rng.integers(0, ROWS, random), rng.integers(0, ROWS, (pairs, hard))
    weights = np.ones(pairs, np.float32)
    target_ids = row["t"] // 2
    weights[1::4] = 0.0
    target_ids[1::4] = -1
    logq = rng.normal(size=ROWS).astype(np.float32)
    hard_ids = np.where(rng.random(hards.shape) < 0.3, -1, hards // 2)
    negative_ids = np.where(np.arange(random) == random - 1, -1, negatives // 2)
    batch = Minibatch(
        features=np.zeros((0, 0), np.float32),
        node_ids=np.zeros(0, np.int32),
        neighbors=np.zeros((0, 1), np.int32),
        weights=np.zeros((0, 1), np.float32),
        spectral_features=np.zeros((0, 0), np.float32),
        has_spectral=np.zeros(0, bool),
        queries=row["q"].astype(np.int32),
        targets=row["t"].astype(np.int32),
        pair_weights=weights,
        negatives=negatives.astype(np.int32),
        hard=hards.astype(np.int32),
        query_ids=(row["q"] // 2).astype(np.int32),
        target_ids=target_ids.astype(np.int32),
        negative_ids=negative_ids.astype(np.int32),
        hard_ids=hard_ids.astype(np.int32),
        query_logq=logq[row["q"]],
        target_logq=logq[row["t"]],
        negative_logq=logq[negatives],
        hard_logq=logq[hards],
        reverse_negative_logq=logq[negatives] - 0.5,
    )
    return embedded, batch


def slow_loss(embedded, batch, config, reverse=False):
    """The reference on the same batch."""
    pairs = [
        {
            "query": embedded[batch.queries[i]],
            "target": embedded[batch.targets[i]],
            "query_id": int(batch.query_ids[i]),
            "target_id": int(batch.target_ids[i]),
            "query_logq": float(batch.query_logq[i]),
            "target_logq": float(batch.target_logq[i]),
            "weight": float(batch.pair_weights[i]),
        }
        for i in range(len(batch.queries))
    ]

    def candidates(rows, ids, logq):
        return [(embedded[r], int(i), float(q)) for r, i, q in zip(rows, ids, logq)]

    logq = batch.reverse_negative_logq if reverse else batch.negative_logq
    shared = candidates(batch.negatives, batch.negative_ids, logq)
    hard = [
        [] if reverse else candidates(rows, ids, logq)
        for rows, ids, logq in zip(batch.hard, batch.hard_ids, batch.hard_logq)
    ]
    settings = {"margin": {"margin": config.margin}}.get(
        config.loss, {"temperature": config.temperature}
    )
    if config.loss == "softmax":
        settings |= {"logq": float(config.logq), "in_batch": config.in_batch}
    sides = slow.reversed_pairs(pairs) if reverse else pairs
    return slow.loss(config.loss, sides, shared, hard, **settings)


def sharing(batch):
    """The batch with the hard negatives of its first query for all."""
    names = ("hard", "hard_ids", "hard_logq")
    return batch._replace(**{name: getattr(batch, name)[:1] for name in names})


def tiled(batch):
    """The same with one copy for each query."""
    names = ("hard", "hard_ids", "hard_logq")
    return batch._replace(
        **{name: np.repeat(getattr(batch, name)[:1], len(batch.queries), 0) for name in names}
    )


def fast_loss(embedded, batch, config, reverse=False):
    def both(embedded, batch):
        return LOSSES[config.loss](score(embedded, batch, None, reverse=reverse), config)

    total, count = jax.jit(both)(jnp.asarray(embedded), batch)
    assert total.shape == count.shape == () and total.dtype == count.dtype == jnp.float32
    return float(total), float(count)


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


SETTINGS = [{"loss": "margin", "margin": m} for m in (0.0, 0.1, 2.0)]
SETTINGS += [{"loss": "cross_entropy", "temperature": t} for t in (0.3, 1.0)]
SETTINGS += [
    {"loss": "softmax", "temperature": 0.5, "logq": logq, "in_batch": in_batch}
    for logq, in_batch in itertools.product((True, False), (True, False))
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("reverse", [False, True])
def test_loss_equals_the_reference(settings, reverse, small_rng):
    config = TrainConfig(**settings)
    for _ in range(4):
        embedded, batch = random_batch(small_rng)
        close(
            fast_loss(embedded, batch, config, reverse), slow_loss(embedded, batch, config, reverse)
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(1, 1, 0), (1, 4, 2), (5, 1, 0), (2, 3, 1)])
def test_loss_of_small_batches(name, sizes, small_rng):
    config = TrainConfig(loss=name, temperature=0.5)
    embedded, batch = random_batch(small_rng, *sizes)
    close(fast_loss(embedded, batch, config), slow_loss(embedded, batch, config))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reverse", [False, True])
def test_shared_hard_negatives_count_as_one_copy_for_each_query(name, reverse, small_rng):
    config = TrainConfig(loss=name, temperature=0.5)
    embedded, batch = random_batch(small_rng, hard=7)
    expected = slow_loss(embedded, tiled(batch), config, reverse)
    close(fast_loss(embedded, sharing(batch), config, reverse), expected)


@pytest.mark.parametrize("name", NAMES)
def test_settings_change_the_loss(name, small_rng):
    embedded, batch = random_batch(small_rng)
    plain = {"loss": name, "temperature": 0.5}
    changes = {
        "margin": [{"margin": 0.7}],
        "cross_entropy": [{"temperature": 0.9}],
        "softmax": [{"logq": False}, {"in_batch": False}, {"temperature": 0.9}],
    }[name]
    values = [fast_loss(embedded, batch, TrainConfig(**{**plain, **c})) for c in [{}, *changes]]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", NAMES)
def test_accidental_hits_do_not_count(name, small_rng):
    """Whatever stands in the rows of masked candidates, loss and gradient stay."""
    config = TrainConfig(loss=name, temperature=0.5)
    embedded, batch = random_batch(small_rng)
    # Negatives are the first pair's own ends, and nothing.
    own = [batch.query_ids[0], batch.target_ids[0], -1]
    only = batch._replace(
        negatives=np.array([14, 15, 16], np.int32),
        negative_ids=np.array(own, np.int32),
        negative_logq=np.zeros(3, np.float32),
        reverse_negative_logq=np.zeros(3, np.float32),
        hard=np.full((PAIRS, 2), 17, np.int32),
        hard_ids=np.tile(np.array(own[1:], np.int32), (PAIRS, 1)),
        hard_logq=np.zeros((PAIRS, 2), np.float32),
        pair_weights=np.eye(PAIRS, dtype=np.float32)[0],
        queries=np.zeros(PAIRS, np.int32),
        targets=np.ones(PAIRS, np.int32),
    )

    def total(vectors):
        return LOSSES[name](score(vectors, only, None), config)[0]

    before, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(embedded))
    assert not np.asarray(gradient)[14:18].any()
    changed = embedded.copy()
    changed[14:18] *= 3.0
    assert float(jax.jit(total)(jnp.asarray(changed))) == float(before)
    # Without any negative the softmax has nothing to lose, and the hinge neither.
    if name != "cross_entropy":
        assert float(before) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_sums_and_counts_add_up(name, small_rng):
    """The loss of a batch is the sum over its pairs one at a time (in-batch off)."""
    config = TrainConfig(loss=name, temperature=0.5, in_batch=False)
    embedded, batch = random_batch(small_rng)
    parts = []
    for chosen in range(PAIRS):
        weights = batch.pair_weights * (np.arange(PAIRS) == chosen)
        parts.append(fast_loss(embedded, batch._replace(pair_weights=weights), config))
    close(np.sum(parts, axis=0), fast_loss(embedded, batch, config))
    assert fast_loss(embedded, batch, config)[1] == batch.pair_weights.sum() == 4.0


@pytest.mark.parametrize("name", NAMES)
def test_pairs_that_do_not_count_change_nothing(name, small_rng):
    config = TrainConfig(loss=name, temperature=0.5)
    embedded, batch = random_batch(small_rng)
    shown = batch.pair_weights > 0
    fewer = batch._replace(
        **{
            field: getattr(batch, field)[shown]
            for field in batch._fields
            if field.startswith(("quer", "target", "hard", "pair_w"))
        }
    )
    close(fast_loss(embedded, batch, config), fast_loss(embedded, fewer, config))
    close(fast_loss(embedded, batch, config, True), fast_loss(embedded, fewer, config, True))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_pairs_that_count_is_zero(name, small_rng):
    config = TrainConfig(loss=name)
    embedded, batch = random_batch(small_rng)
    empty = batch._replace(
        pair_weights=np.zeros(PAIRS, np.float32), target_ids=np.full(PAIRS, -1, np.int32)
    )

    def total(vectors):
        return LOSSES[name](score(vectors, empty, None), config)[0]

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(embedded))
    assert float(value) == 0.0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", NAMES)
def test_extreme_scores_stay_finite(name, small_rng):
    config = TrainConfig(loss=name, temperature=1e-3)
    embedded, batch = random_batch(small_rng)

    def total(vectors):
        return LOSSES[name](score(vectors, batch, None), config)[0]

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(embedded))
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient)).all()
