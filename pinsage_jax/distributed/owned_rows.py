"""A table of which every device owns a part of the rows, read by the steps of all devices.

Row i of N belongs to device i mod n, which balances rows that are read often.  A device asks the
owners for the rows it needs in rounds of at most C rows from each owner, all_to_all of row numbers
one way and of rows the other.  The rounds are as many as the fullest owner needs, so that every row
is found however the rows are distributed, and no array is larger than n * C rows.

In a step each device receives rounds * n * C rows, little more than it asks for: rounds are 4 where
rows are spread evenly.

Axis letters: n devices; N rows of the table; S rows of a part; C rows of a round; k rows asked
for; D numbers of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pinsage_jax.distributed.devices import AXIS_NAME

_ROUNDS = 4


def owned_by(device: int, rows: int, count: int) -> range:
    """The rows of a table of `rows` rows that one of `count` devices owns, in their order."""
    return range(device, rows, count)


def part_size(rows: int, count: int) -> int:
    """S: rows of a part, N / n rounded up; those beyond the last owned one are zeros."""
    return -(-rows // count)


def places(rows: jax.Array, size: int, axis_name: str) -> jax.Array:
    """Where rows of the table are in all parts one after the other; -1 stays.

    Args:
      rows: int32 [k].
      size: S.
    """
    count = jax.lax.axis_size(axis_name)
    return jnp.where(rows < 0, -1, rows % count * size + rows // count)


def read_owned(part: jax.Array, rows: jax.Array, axis_name: str) -> jax.Array:
    """Rows of the table whose parts the devices hold; zeros for -1.  It has no derivative.

    Args:
      part: [S, D], this device's part of ``dealt``.
      rows: int32 [k] rows of the table, others on each device; k is the same.

    Returns:
      [k, D].
    """
    count, wanted = jax.lax.axis_size(axis_name), len(rows)
    capacity = -(-wanted // (count * _ROUNDS))
    owner = jnp.where(rows < 0, count, rows % count)
    order = jnp.argsort(owner)
    begins = jnp.searchsorted(owner[order], jnp.arange(count + 1, dtype=owner.dtype))
    left = jnp.diff(begins)
    rounds = jax.lax.pmax(jnp.max(-(-left // capacity)), axis_name)

    def ask(number, found):
        slots = number * capacity + jnp.arange(capacity, dtype=jnp.int32)
        asks = slots[None, :] < left[:, None]
        at = order[jnp.minimum(begins[:-1, None] + slots[None, :], wanted - 1)]
        asked = jnp.where(asks, rows[at] // count, 0)
        answers = part[jax.lax.all_to_all(asked, axis_name, 0, 0)]
        answers = jax.lax.all_to_all(answers, axis_name, 0, 0)
        # Slots that ask for nothing write past the end, each to a place of its own.
        past = wanted + jnp.arange(count * capacity, dtype=jnp.int32).reshape(asks.shape)
        return found.at[jnp.where(asks, at, past)].set(answers, mode="drop", unique_indices=True)

    start = jnp.zeros((wanted, part.shape[1]), part.dtype)
    return jax.lax.fori_loop(jnp.int32(0), rounds.astype(jnp.int32), ask, start)


@jax.custom_vjp
def all_parts(part: jax.Array) -> jax.Array:
    """The parts [S, M] of all devices one after the other, [n * S, M]; see ``places``.

    The derivative is the sum over all devices of what they ask of this part, in float32.
    """
    return jax.lax.all_gather(part, AXIS_NAME, tiled=True)


def _all_parts_forward(part):
    return all_parts(part), None


def _all_parts_backward(_, cotangents):
    wide = cotangents.astype(jnp.float32)
    summed = jax.lax.psum_scatter(wide, AXIS_NAME, scatter_dimension=0, tiled=True)
    return (summed.astype(cotangents.dtype),)


all_parts.defvjp(_all_parts_forward, _all_parts_backward)
