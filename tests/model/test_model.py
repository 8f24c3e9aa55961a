"""The Flax network against the float64 loops of reference_model, on minibatches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_model as slow
from small_runs import apply, embed_batch, make_run, random_params, unit_features

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.model.layers import l2_normalize
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.model.pooling import pool_neighbors

WIDTH = 6
SIZES = {"hidden_dim": 12, "layer_dim": 10, "output_dim": 8}


def compact_graph(rng, layers, width=5):
    """Random frontiers: short, empty and repeated lists, and padding rows."""
    rows = tuple(itertools.accumulate((5, 7, 9, 11)[: layers + 1]))
    listed = rows[-2] if layers else 0
    features = rng.normal(size=(rows[-1], WIDTH)).astype(np.float32)
    features[1] = 0.0
    neighbors = np.zeros((listed, width), np.int32)
    weights = np.zeros((listed, width), np.float32)
    for row in range(listed):
        # Row 0 has no neighbor, row 2 the same one throughout.
        reach = next(size for size in rows[1:] if row < rows[rows.index(size) - 1])
        size = 0 if row == 0 else int(rng.integers(1, width + 1))
        neighbors[row, :size] = 3 if row == 2 else rng.integers(0, reach, size)
        mass = rng.random(size) + 0.05
        weights[row, :size] = mass / mass.sum() if size else 0.0
    return rows, features, neighbors, weights


def no_ids(rows):
    return np.full(rows[-1], -1, np.int32)


def slow_rows(params, config, rows, features, names, neighbors, weights):
    lists = {
        row: [(int(n), float(w)) for n, w in zip(neighbors[row], weights[row]) if w > 0]
        for row in range(len(neighbors))
    }
    return slow.embed(
        params,
        dict(enumerate(features)),
        lists,
        range(rows[0]),
        layers=config.num_layers,
        pooling=config.pooling,
        normalized=True,
        names=names,
    )


# Additions to the paper's network, all on and all off.
ADDED = {"skip": True, "popularity_bias": True}
PAPER = {"skip": False, "popularity_bias": False}


VARIANTS = [(ADDED, 9), (PAPER, 0), (ADDED, 0)]
POOLINGS = ["importance", "mean", "max"]
# Every depth with every pooling and every variant, each in turn.
CASES = [
    (layers, POOLINGS[(layers + number) % 3], *variant)
    for layers in range(4)
    for number, variant in enumerate(VARIANTS)
]


@pytest.mark.parametrize("layers,pooling,added,num_ids", CASES)
def test_forward_equals_the_reference(layers, pooling, added, num_ids, small_rng):
    config = ModelConfig(num_layers=layers, pooling=pooling, **added, **SIZES)
    params = random_params(config, WIDTH, num_ids)
    rows, features, neighbors, weights = compact_graph(small_rng, layers)
    # Ids beyond the known ones and padding have no vector.
    names = np.arange(rows[-1], dtype=np.int32) * 5 % 13 - 1
    out = apply(PinSage(config, rows, num_ids), params, features, names, neighbors, weights)
    assert out.shape == (rows[0], 8) and out.dtype == np.float32
    expected = slow_rows(params, config, rows, features, names, neighbors, weights)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    directions = out[:, :-1] if config.popularity_bias else out
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("neighborhood", ["items", "all"])
@pytest.mark.parametrize("pooling", ["importance", "max"])
def test_a_built_minibatch_equals_the_reference_by_node(neighborhood, pooling):
    """Rows are named by node, features and lists come from the graph: no row of a batch."""
    run = make_run(
        links=2,
        features=unit_features(40),
        masked=False,
        sampling={"neighborhood": neighborhood},
        model={"pooling": pooling},
    )
    builder = run.builder()
    batch, _ = builder.make(1)
    num_ids = run.lists.source.num_nodes
    params = random_params(run.model, run.inputs.dim, num_ids)
    out = embed_batch(PinSage(run.model, builder.budgets.rows, num_ids), params, batch)
    nodes = np.arange(run.lists.source.num_nodes, dtype=np.int32)
    ids, weights = run.lists.lookup(nodes)
    lists = {
        int(node): [(int(n), float(w)) for n, w in zip(ids[node], weights[node]) if n >= 0]
        for node in nodes
    }
    vectors = dict(enumerate(run.inputs.gather(nodes)))
    settings = {"layers": 2, "pooling": pooling, "normalized": True}
    for rows, names in (
        (batch.queries[0], batch.query_ids[0]),
        (batch.targets[0], batch.target_ids[0]),
        (batch.negatives[0], batch.negative_ids[0]),
    ):
        kept = names >= 0
        expected = slow.embed(params, vectors, lists, names[kept].tolist(), **settings)
        np.testing.assert_allclose(out[rows[kept]], expected, rtol=1e-5, atol=1e-5)


def test_poolings_differ(small_rng):
    rows, features, neighbors, weights = compact_graph(small_rng, 2)
    outs = []
    for pooling in ("importance", "max"):
        config = ModelConfig(num_layers=2, pooling=pooling, **SIZES)
        outs.append(
            apply(
                PinSage(config, rows),
                random_params(config, WIDTH),
                *(features, no_ids(rows), neighbors, weights),
            )
        )
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


@pytest.mark.parametrize("pooling", ["importance", "max"])
def test_masked_neighbors_are_not_read(pooling, small_rng):
    projected = jnp.asarray(small_rng.random((4, 3)), jnp.float32)
    neighbors = np.array([[1, 2, 3], [0, 0, 0]], np.int32)
    weights = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    bias = jnp.zeros(projected.shape[1])
    before = pool_neighbors(projected, bias, neighbors, weights, pooling)
    changed = projected.at[jnp.array([0, 3])].set(9.0)
    after = pool_neighbors(changed, bias, neighbors, weights, pooling)
    np.testing.assert_array_equal(before, after)
    assert not np.asarray(before)[1].any()


@pytest.mark.parametrize("layers,pooling", [(0, "mean"), (2, "importance"), (2, "max")])
def test_bfloat16_is_close_and_returns_float32(layers, pooling, small_rng):
    rows, features, neighbors, weights = compact_graph(small_rng, layers)
    full = ModelConfig(num_layers=layers, pooling=pooling, **SIZES)
    half = ModelConfig(num_layers=layers, pooling=pooling, compute_dtype="bfloat16", **SIZES)
    params = random_params(full, WIDTH)
    exact = apply(PinSage(full, rows), params, features, no_ids(rows), neighbors, weights)
    rough = apply(PinSage(half, rows), params, features, no_ids(rows), neighbors, weights)
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.1
    made = random_params(half, WIDTH)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(made))


def operations(jaxpr):
    """All operations of a jaxpr, with those of its loops and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("pooling", ["importance", "max"])
def test_no_derivative_is_a_sum_in_bfloat16(pooling, backend, small_rng, monkeypatch):
    """Products of matrices are summed in float32 by the hardware; everything else has to ask."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    added = {"skip": True, "popularity_bias": True, "neighbor_embeddings": "on"}
    config = ModelConfig(num_layers=2, pooling=pooling, compute_dtype="bfloat16", **added, **SIZES)
    rows, features, neighbors, weights = compact_graph(small_rng, 2)
    model = PinSage(config, rows, 5)
    given = features, np.zeros(rows[-1], np.int32), neighbors, weights
    params = jax.eval_shape(model.init, jax.random.key(0), *given)

    def total(params):
        return jnp.sum(model.apply(params, *given))

    sums = [
        equation
        for equation in operations(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
        if "sum" in equation.primitive.name or equation.primitive.name.startswith("scatter")
    ]
    assert len(sums) > 5
    for equation in sums:
        for value in (*equation.invars, *equation.outvars):
            assert value.aval.dtype != jnp.bfloat16, equation


@pytest.mark.parametrize("added", [ADDED, PAPER])
@pytest.mark.parametrize("pooling", ["importance", "max"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_rows_give_finite_gradients(added, pooling, dtype, small_rng):
    """Zero input, no neighbors and biases that silence every unit: z = 0 at the norm."""
    config = ModelConfig(num_layers=2, pooling=pooling, compute_dtype=dtype, **added, **SIZES)
    rows, features, neighbors, weights = compact_graph(small_rng, 2)
    params = random_params(config, WIDTH)
    params = jax.tree.map(lambda leaf: -np.abs(leaf) if leaf.ndim == 1 else leaf, params)
    features = np.zeros_like(features)
    weights[:3] = 0.0

    def total(params, features):
        out = PinSage(config, rows).apply(params, features, no_ids(rows), neighbors, weights)
        return jnp.sum(out @ jnp.ones((8, 3)))

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(params, features)
    assert np.isfinite(value)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(np.asarray(leaf)).all()


def test_normalization_of_zero_and_of_large_rows():
    rows = jnp.array([[0.0, 0.0], [3.0, -4.0], [3e15, 4e15], [3e-4, 4e-4]])
    expected = [[0.0, 0.0], [0.6, -0.8], [0.6, 0.8], [0.6, 0.8]]
    np.testing.assert_allclose(l2_normalize(rows), expected, rtol=1e-6)


def test_parameters_are_shared_by_all_nodes_and_of_the_stated_shapes():
    config = ModelConfig(num_layers=2, **PAPER, **SIZES)
    tree = random_params(config, WIDTH)["params"]
    shapes = {
        "/".join(part.key for part in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert shapes == {
        "projections_0/Q/kernel": (6, 12),
        "projections_0/Q/bias": (12,),
        "combinations_0/W/kernel": (6 + 12, 10),
        "combinations_0/W/bias": (10,),
        "projections_1/Q/kernel": (10, 12),
        "projections_1/Q/bias": (12,),
        "combinations_1/W/kernel": (10 + 12, 10),
        "combinations_1/W/bias": (10,),
        "G1/kernel": (10, 10),
        "G1/bias": (10,),
        "G2/kernel": (10, 8),
    }
