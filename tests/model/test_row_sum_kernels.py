"""The Pallas kernels of pooling and its derivative, interpreted, against sums in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinsage_jax.batching.transposed import WIDTHS, Layout, transpose
from pinsage_jax.model import grouped_pooling, row_sum_kernels

KERNELS = {"gpu": row_sum_kernels.sums_on_gpu, "tpu": row_sum_kernels.sums_on_tpu}


def lists(kind, rng):
    """Neighbors and weights of lists of few senders, of which nobody names the last."""
    # A TPU adds eight pieces at a time, of 256 entries at most: it needs as many entries.
    rows, width = {"gpu": (430, 6), "tpu": (2600, 6)}[kind]
    neighbors = rng.integers(0, 29, (rows, width)).astype(np.int32)
    weights = rng.random((rows, width), np.float32) * (rng.random((rows, width)) < 0.9)
    # In every list: a sum of several pieces.  Padding is a list without weights.
    neighbors[:, 0], weights[:, 0] = 3, 1.0
    weights[rows - 40 :] = 0.0
    return np.where(weights > 0, neighbors, 0), weights


def gradients(kind, neighbors, weights, projected, cotangent, monkeypatch):
    """Those of the projected rows and of the bias, by the interpreted kernel and in float64."""
    layout = Layout(*neighbors.shape, len(projected))
    transposed = jnp.asarray(transpose((len(neighbors), len(projected)), neighbors, weights))
    kernel = functools.partial(KERNELS[kind], interpret=True)

    def sums(cotangents, transposed, layout):
        parts = grouped_pooling._parts(transposed, layout)
        summed = grouped_pooling._sums_by_kernel(cotangents, parts, layout, kernel)
        return grouped_pooling._merged(summed, parts, layout)

    monkeypatch.setattr(grouped_pooling, "_sums", sums)

    @jax.jit
    def back(projected, bias, cotangent):
        def pooled(projected, bias):
            return grouped_pooling.weighted_relu_sum(
                projected, bias, neighbors, weights, transposed, layout
            )

        return jax.vjp(pooled, projected, bias)[1](cotangent)

    bias = jnp.zeros(projected.shape[1], projected.dtype)
    found = back(projected, bias, cotangent)
    # The same bits every time.
    assert all(map(np.array_equal, found, back(projected, bias, cotangent)))
    spread = weights.astype(np.float64)[..., None] * np.asarray(cotangent, np.float64)[:, None]
    expected = np.zeros(projected.shape)
    np.add.at(expected, neighbors, spread)
    expected *= np.asarray(projected, np.float64) > 0
    return found, (expected, expected.sum(axis=0)), layout


@pytest.mark.parametrize(
    "kind, dtype, columns",
    [
        ("gpu", jnp.bfloat16, 5),
        ("gpu", jnp.float32, 130),
        ("tpu", jnp.bfloat16, 512),
        ("tpu", jnp.float32, 128),
    ],
)
def test_gradients_are_sums_in_float64(kind, dtype, columns, small_rng, monkeypatch):
    neighbors, weights = lists(kind, small_rng)
    projected = jnp.asarray(small_rng.normal(size=(31, columns))).astype(dtype)
    cotangent = jnp.asarray(small_rng.normal(size=(len(neighbors), columns))).astype(dtype)
    found, expected, layout = gradients(kind, neighbors, weights, projected, cotangent, monkeypatch)
    assert row_sum_kernels.fits_tpu(cotangent, layout) == (kind == "tpu")
    rough = {jnp.float32: 1e-5, jnp.bfloat16: 2.0**-7}[dtype]
    for mine, sums in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(mine, np.float64), sums, rtol=rough, atol=1e-3)
    assert not np.asarray(found[0][29:]).any()


@pytest.mark.parametrize(
    "kind, dtype, columns",
    [
        ("gpu", jnp.bfloat16, 5),
        ("gpu", jnp.float32, 1030),
        ("tpu", jnp.bfloat16, 256),
        ("tpu", jnp.float32, 256),
    ],
)
def test_pooled_rows_are_sums_in_float64(kind, dtype, columns, small_rng, monkeypatch):
    # Two groups and a part of the third.
    monkeypatch.setattr(row_sum_kernels, "_SMEM_SLOTS", 370)
    neighbors, weights = lists("gpu", small_rng)
    neighbors, weights = neighbors[::9].repeat(3, 1), jnp.asarray(weights[::9].repeat(3, 1))
    table = jnp.asarray(small_rng.normal(size=(31, columns))).astype(dtype)
    kernel = {"gpu": row_sum_kernels.pooled_on_gpu, "tpu": row_sum_kernels.pooled_on_tpu}[kind]
    found = jax.jit(functools.partial(kernel, interpret=True))(table, neighbors, weights)
    assert found.dtype == dtype
    expected = np.einsum("nt,ntm->nm", weights, np.asarray(table, np.float64)[neighbors])
    rough = {jnp.float32: 1e-5, jnp.bfloat16: 2.0**-8}[dtype]
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rough, atol=1e-4)
    assert not np.asarray(found[-4:]).any()


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_lists_without_weights_have_no_gradient(kind, small_rng, monkeypatch):
    neighbors, weights = lists(kind, small_rng)
    ones = jnp.ones((len(neighbors), 128))
    found, _, _ = gradients(kind, neighbors, 0 * weights, ones[:31], ones, monkeypatch)
    assert not np.asarray(found[0]).any() and not np.asarray(found[1]).any()


@pytest.mark.parametrize(
    "lists, dtype, columns, fits",
    [
        (1500, jnp.bfloat16, 256, True),
        (1500, jnp.float32, 128, True),
        # Groups of too few pieces; rows that leave lanes empty; a type without a kernel.
        (300, jnp.float32, 128, False),
        (1500, jnp.bfloat16, 128, False),
        (1500, jnp.float32, 100, False),
        (1500, jnp.float16, 256, False),
    ],
)
def test_what_the_kernels_for_tpus_take(lists, dtype, columns, fits):
    table = jax.ShapeDtypeStruct((lists, columns), dtype)
    assert row_sum_kernels.fits_tpu(table, Layout(lists, 6, 31)) == fits
    assert not row_sum_kernels.fits_tpu(table, Layout(lists, 2049, 31))


@pytest.mark.parametrize("choice, calls", [("auto", True), ("off", False)])
def test_kernels_are_compiled_unless_they_are_off(choice, calls):
    layout = Layout(1500, 6, 31)
    shapes = [jax.ShapeDtypeStruct((1500, 256), jnp.bfloat16)]
    shapes += [jax.ShapeDtypeStruct((layout.size,), jnp.int32)]
    grouped_pooling.choose_kernels(choice)
    try:
        sums = jax.make_jaxpr(lambda *given: grouped_pooling._sums(*given, layout))(*shapes)
    finally:
        grouped_pooling.choose_kernels("auto")
    assert ("pallas_call" in str(sums)) == calls


def test_every_group_has_a_width(small_rng):
    neighbors, weights = lists("gpu", small_rng)
    layout = Layout(*neighbors.shape, 31)
    counts = layout.split(transpose((len(neighbors), 31), neighbors, weights))["counts"][:-1]
    groups, sums = row_sum_kernels._firsts(jnp.asarray(counts), layout)
    assert groups.tolist() == [0, *np.cumsum(counts)]
    pieces = counts * layout.slots // np.array(WIDTHS)
    assert sums.tolist() == [0, *np.cumsum(pieces)]


@pytest.mark.parametrize("fault", ["", "wrong sums", "an exception"])
def test_kernels_that_fail_a_small_problem_are_not_used(fault, monkeypatch):
    plain = grouped_pooling._sums

    def sums(cotangents, transposed, layout):
        found = plain(cotangents, transposed, layout)
        if grouped_pooling._settings["kernels"] == "off" or not fault:
            return found
        if fault == "an exception":
            raise RuntimeError("no such instruction")
        return found + 1.0

    monkeypatch.setattr(grouped_pooling, "_sums", sums)
    monkeypatch.setattr(grouped_pooling, "_settings", {"kernels": "off"})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    warned = []
    monkeypatch.setattr(grouped_pooling.logging, "warning", lambda *texts: warned.append(texts))
    grouped_pooling.choose_kernels("auto")
    assert grouped_pooling._settings["kernels"] == ("off" if fault else "auto")
    expected = {"": [], "wrong sums": ["float32 otherwise"], "an exception": ["no such instru"]}
    assert len(warned) == len(expected[fault])
    assert all(text in warned[0][1] for text in expected[fault])
