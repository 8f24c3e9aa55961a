"""Loss and gradients of gathered in-batch negatives, against float64 loops on 1, 2, 4 devices.

Every pair is compared with the targets of all devices.  The slow loss is that of
reference_model; its gradient with respect to the embeddings is measured by finite
differences, and taken to the parameters by the network of each part alone, without any
axis.
"""

import functools

import jax
import numpy as np
import pytest
import reference_model as slow
from small_runs import Run, embed_batch, make_run, random_params, unit_features

from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.steps import global_gradients, score

STEP = 11
MOVED = 1e-5
TRAIN = {"temperature": 0.5, "hard_start": "full", "random_negatives": 4, "hard_max": 1}
MODEL = {"output_dim": 4}
FEATURES = unit_features(40)


def run_for(**train) -> Run:
    return make_run(
        features=FEATURES,
        links=2,
        model=MODEL,
        train={**TRAIN, **train},
    )


@functools.cache
def fast(devices: int, **train):
    """The package's (run, model, params, batch, what a step makes of it)."""
    run = run_for(**train)
    builder = run.builder(devices)
    batch, info = builder.make(STEP)
    assert info.left_out == 0
    # Many pairs of the first device do not count, few of the last.
    chance = np.linspace(0.9, 0.0, batch.pair_weights.size)
    masked = np.random.default_rng(2).random(chance.size) < chance
    weights = batch.pair_weights * ~masked.reshape(batch.pair_weights.shape)
    batch = batch._replace(pair_weights=weights.astype(np.float32))
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    model = PinSage(
        run.model, builder.budgets.rows, len(params["params"].get("neighbor_embeddings", ()))
    )

    def function(params, batch, axis_name=None):
        gradients, total, count = global_gradients(params, batch, model, run.train, axis_name)
        return params, {"gradients": gradients, "total": total, "count": count}

    placed = replicate(params, make_devices(devices))
    _, out = compile_step(function, devices, donate=False)(placed, batch)
    return run, model, params, batch, jax.tree.map(np.asarray, out)


def sides_of(embedded, batch, device):
    """(pairs, shared, hard) of one device's part, as reference_model wants them."""
    part = {name: getattr(batch, name)[device] for name in batch._fields}

    def candidates(rows, ids, logq):
        return [(embedded[r], int(i), float(q)) for r, i, q in zip(rows, ids, logq)]

    pairs = [
        {
            "query": embedded[part["queries"][place]],
            "target": embedded[part["targets"][place]],
            "weight": float(part["pair_weights"][place]),
            "query_id": int(part["query_ids"][place]),
            "target_id": int(part["target_ids"][place]),
            "query_logq": float(part["query_logq"][place]),
            "target_logq": float(part["target_logq"][place]),
        }
        for place in range(len(part["queries"]))
    ]
    shared = candidates(part["negatives"], part["negative_ids"], part["negative_logq"])
    hard = [
        candidates(rows, ids, logq)
        for rows, ids, logq in zip(part["hard"], part["hard_ids"], part["hard_logq"])
    ]
    return pairs, shared, hard


def slow_loss(all_embedded, batch, gathered, **settings):
    """(sum, count) over all devices; `all_embedded[device]` are the seeds' vectors."""
    parts = [sides_of(one, batch, device) for device, one in enumerate(all_embedded)]
    if gathered:
        # One device that has all pairs.  The random negatives are the same on each.
        joined = ([], parts[0][1], [])
        for pairs, _, hard in parts:
            joined[0].extend(pairs)
            joined[2].extend(hard)
        parts = [joined]
    total = count = 0.0
    for pairs, shared, hard in parts:
        for sides, their_hard in ((pairs, hard), (slow.reversed_pairs(pairs), [[] for _ in pairs])):
            found = slow.loss("softmax", sides, shared, their_hard, **settings)
            total, count = total + found[0], count + found[1]
    return total, count


def slow_log_chances(run):
    """log of each item's expected share among a softmax's candidates, float64 [items]."""
    likely = run.pairs.target_probability()
    targets, random = run.train.batch_size, run.train.random_negatives
    shares = []
    for item in range(run.graph.num_items):
        uniform = 1.0 / run.graph.num_items
        expected = targets * float(likely[item]) + random * uniform
        shares.append(np.log(expected / (targets + random)))
    return np.array(shares)


def embedded_parts(model, params, batch):
    return [
        embed_batch(model, params, batch, device).astype(np.float64)
        for device in range(len(batch.queries))
    ]


def slow_gradients(model, params, batch, **settings):
    """Gradients of the mean loss, by finite differences as far as the embeddings."""
    parts = embedded_parts(model, params, batch)
    _, count = slow_loss(parts, batch, True, **settings)
    gradients = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    names = ("features", "node_ids", "neighbors", "weights")
    for device, part in enumerate(parts):
        slopes = np.zeros_like(part)
        used = [
            getattr(batch, name)[device] for name in ("queries", "targets", "negatives", "hard")
        ]
        for row in np.unique(np.concatenate([rows.reshape(-1) for rows in used])):
            for column in range(part.shape[1]):
                sums = []
                for step in (MOVED, -MOVED):
                    before = part[row, column]
                    part[row, column] = before + step
                    sums.append(slow_loss(parts, batch, True, **settings)[0])
                    part[row, column] = before
                slopes[row, column] = (sums[0] - sums[1]) / (2 * MOVED)
        arrays = [getattr(batch, name)[device] for name in names]
        _, backwards = jax.vjp(jax.jit(lambda p, arrays=arrays: model.apply(p, *arrays)), params)
        (own,) = backwards(slopes.astype(np.float32))
        gradients = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), gradients, own)
    return jax.tree.map(lambda leaf: leaf / count, gradients)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_loss_is_that_of_the_reference(devices):
    assert_is_the_slow_loss(devices)


def test_loss_is_that_of_the_reference_without_the_correction():
    assert_is_the_slow_loss(2, logq=False)


def assert_is_the_slow_loss(devices, **given):
    _, model, params, batch, out = fast(devices, **given)
    logq = float(given.get("logq", True))
    parts = embedded_parts(model, params, batch)
    total, count = slow_loss(parts, batch, True, temperature=0.5, logq=logq)
    assert 0 < count == out["count"] < 2 * batch.pair_weights.size
    np.testing.assert_allclose(out["total"], total, rtol=1e-5)
    # That of each device's own targets is another number.
    other, _ = slow_loss(parts, batch, False, temperature=0.5, logq=logq)
    assert devices == 1 or abs(other - total) > 1e-2 * total


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_gradients_are_those_of_the_reference(devices):
    _, model, params, batch, out = fast(devices)
    wanted = slow_gradients(model, params, batch, temperature=0.5, logq=1.0)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    assert largest > 1e-2
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        out["gradients"],
        wanted,
    )


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_log_chances_are_of_the_candidates_of_all_devices(devices):
    run, _, _, batch, _ = fast(devices)
    wanted = slow_log_chances(run)
    for ids, given in (
        (batch.query_ids, batch.query_logq),
        (batch.target_ids, batch.target_logq),
        (batch.negative_ids, batch.negative_logq),
        (batch.hard_ids, batch.hard_logq),
    ):
        there = ids >= 0
        np.testing.assert_allclose(given[there], wanted[ids[there]], rtol=1e-5)


def test_directed_pairs_reversed_are_the_pairs_of_a_table_the_other_way_round():
    """Few queries, many targets: each direction is corrected by its own candidates."""
    drawn = np.random.default_rng(5)
    pairs = np.stack([drawn.integers(0, 4, 60), drawn.integers(4, 40, 60)], axis=1)
    given = {"features": FEATURES, "links": 2, "model": MODEL, "train": TRAIN | {"hard_max": 0}}
    one, other = (make_run(train_pairs=table, **given) for table in (pairs, pairs[:, ::-1]))
    builders = one.builder(1), other.builder(1)
    batch, swapped = (builder.make(STEP)[0] for builder in builders)
    params = random_params(one.model, one.inputs.dim, one.lists.source.num_nodes)
    sides = []
    for builder, each, reverse in zip(builders, (batch, swapped), (True, False), strict=True):
        model = PinSage(one.model, builder.budgets.rows, 0)
        embedded = embed_batch(model, params, each, 0)
        part = jax.tree.map(lambda leaf: leaf[0], each)
        sides.append(score(embedded, part, None, reverse=reverse))
    for name, ours, theirs in zip(sides[0]._fields, *sides, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)
    # The expected share of each candidate, counted by hand.
    queries, random = one.train.batch_size, one.train.random_negatives
    for ids, logq in (
        (batch.query_ids, batch.query_logq),
        (batch.negative_ids, batch.reverse_negative_logq),
    ):
        likely = np.array([(pairs[:, 0] == item).mean() for item in ids.reshape(-1)])
        share = (queries * likely + random / one.graph.num_items) / (queries + random)
        np.testing.assert_allclose(logq.reshape(-1), np.log(share), rtol=1e-5)


def test_random_negatives_are_shared_by_all_devices():
    batches = [fast(devices)[3] for devices in (1, 2, 4)]
    for batch in batches:
        assert (batch.negative_ids == batches[0].negative_ids[0]).all()
