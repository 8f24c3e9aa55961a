"""Input vectors of a minibatch of which the table on the device is projected, not the rows.

The first projection multiplies every row of the last frontier by Q (Ying et al. 2018, Algorithm 1,
line 1).  Where the frontier has more rows than the catalog has nodes, Q times the table is less
work, and the input vectors of the frontier are never written: the products are gathered instead.
Matrix products are linear, so only rounding differs.  What a batch changes in an input vector (its
last columns, and spectral features that are masked) is narrow, and is projected by rows.

Axis letters: n_0 rows of the last frontier; n_1 rows that have a list, the first of them; P rows of
pairs, the first of these; N nodes; D input features, of which the last C differ from the table's;
V columns of the table, D or more; M width of Q.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The columns that every batch brings are at most so many.
_FEW_COLUMNS = 4


class TableInputs(NamedTuple):
    """Input vectors of a minibatch: the first rows themselves, the others by their table.

    Rows after the first P are of different nodes, as batching/frontier.py lays them out.

    Attributes:
      rows: float32 [n_1, D].
      narrow: float32 [n_0, C], the last columns of all rows.
      table: [N, V] of stored input vectors, of any dtype; columns past D - C do not count.
      scale: float32 [V] that the columns of the table are multiplied by, or None.
      places: int32 [n_0], the row of the table of each row; -1 for padding.
      pairs: P.
      collect: from the projected table [N, M] to the one whose rows `places` names, where devices
        share the table.
    """

    rows: jax.Array
    narrow: jax.Array
    table: jax.Array
    scale: jax.Array | None
    places: jax.Array
    pairs: int
    collect: Callable[[jax.Array], jax.Array]


def product(h: jax.Array | TableInputs, kernel: jax.Array) -> jax.Array:
    """h times the kernel, in the dtype of the kernel.

    Args:
      h: [n, D], or the inputs of a minibatch.
      kernel: [D, M].

    Returns:
      [n, M]; [n_0, M] of TableInputs.
    """
    if not isinstance(h, TableInputs):
        return h.astype(kernel.dtype) @ kernel
    dtype, first = kernel.dtype, h.pairs
    stored = kernel.shape[0] - h.narrow.shape[1]
    wide = jnp.pad(kernel[:stored], ((0, h.table.shape[1] - stored), (0, 0)))
    if h.scale is not None:
        wide = (wide.astype(jnp.float32) * h.scale[:, None]).astype(dtype)
    projected = later_rows(h.collect(h.table.astype(dtype) @ wide), h.places, first)
    projected = projected + narrow_product(h.narrow, kernel[stored:])
    of_pairs = h.rows[:first].astype(dtype) @ kernel
    return jax.lax.dynamic_update_slice(projected, of_pairs, (0, 0))


def narrow_product(narrow: jax.Array, kernel: jax.Array) -> jax.Array:
    """narrow [n, C] times kernel [C, M], in the dtype of the kernel.

    A product of a few columns is elementwise work, and its derivative a sum over rows like that of
    the bias, which XLA computes in the same pass: a matrix product would first copy its operands.
    """
    if narrow.shape[1] > _FEW_COLUMNS:
        return narrow.astype(kernel.dtype) @ kernel
    return _few_columns(narrow, kernel)


@jax.custom_vjp
def _few_columns(narrow: jax.Array, kernel: jax.Array) -> jax.Array:
    columns = narrow.astype(kernel.dtype)
    parts = [columns[:, c, None] * kernel[None, c] for c in range(narrow.shape[1])]
    return sum(parts[1:], start=parts[0])


def _few_columns_forward(narrow, kernel):
    return _few_columns(narrow, kernel), narrow


def _few_columns_backward(narrow, cotangents):
    wide = cotangents.astype(jnp.float32)
    sums = [jnp.sum(wide * narrow[:, c, None], axis=0) for c in range(narrow.shape[1])]
    # Input vectors are data: nobody asks for their derivative.
    return jnp.zeros_like(narrow), jnp.stack(sums).astype(cotangents.dtype)


_few_columns.defvjp(_few_columns_forward, _few_columns_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def later_rows(table: jax.Array, places: jax.Array, first: int) -> jax.Array:
    """table[max(places, 0)], whose derivative is a gather and counts later rows only.

    Args:
      table: [N, M].
      places: int32 [n]; after the first `first` no row of the table is named twice, and -1 is
        padding.
      first: rows whose results are not used.

    Returns:
      [n, M].
    """
    del first
    return table[jnp.maximum(places, 0)]


def _later_rows_forward(table, places, first):
    return later_rows(table, places, first), (places, len(table))


def _later_rows_backward(first, saved, cotangents):
    places, size = saved
    numbers = jnp.arange(len(places), dtype=jnp.int32)
    # Rows that do not count go to places of their own past the end, which are dropped.
    counts = (places >= 0) & (numbers >= first)
    named_by = jnp.full(size, -1, jnp.int32)
    named_by = named_by.at[jnp.where(counts, places, size + numbers)].set(
        numbers, mode="drop", unique_indices=True
    )
    found = cotangents[jnp.maximum(named_by, 0)]
    found = jnp.where((named_by >= 0)[:, None], found, jnp.zeros((), found.dtype))
    return found, np.zeros(places.shape, jax.dtypes.float0)


later_rows.defvjp(_later_rows_forward, _later_rows_backward)
