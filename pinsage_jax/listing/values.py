"""Values of expressions: the kinds of columns, and comparisons that Arrow lacks.

n values
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NUMBER, BOOL, TEXT, TIME, TAGS, NULL = "a number", "yes or no", "text", "a time", "a list", "None"

# An array of n values, or one scalar for all.
Values = Any


def kind_of(dtype: pa.DataType) -> str | None:
    """The kind of values of an Arrow type; None for a type that expressions do not support."""
    if pa.types.is_boolean(dtype):
        return BOOL
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return NUMBER
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return TEXT
    if pa.types.is_date(dtype) or pa.types.is_timestamp(dtype):
        return TIME
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return TAGS if kind_of(dtype.value_type) == TEXT else None
    return None


def floats(values: Values) -> Values:
    # Whole numbers could overflow.
    if pa.types.is_boolean(values.type):
        values = pc.cast(values, pa.int8())
    return pc.cast(values, pa.float64(), safe=False)


def alike(one: Values, other: Values) -> tuple[Values, Values]:
    """Converts both sides of a comparison to one type."""
    if kind_of(one.type) == TIME:
        return _moments(one), _moments(other)
    if pa.types.is_integer(one.type) and pa.types.is_floating(other.type):
        return floats(one), other
    if pa.types.is_floating(one.type) and pa.types.is_integer(other.type):
        return one, floats(other)
    return one, other


def _moments(values: Values) -> Values:
    # Times with a zone are compared as UTC.
    return pc.cast(values, pa.timestamp("us"), safe=False)


def is_in(values: Values, constants: list[pa.Scalar]) -> Values:
    result = pa.scalar(False)
    for constant in constants:
        result = pc.or_kleene(result, pc.equal(*alike(values, constant)))
    return result


def in_lists(values: Values, lists: Values) -> Values:
    """Whether each text is in its list: null for a missing text or list."""
    if isinstance(lists, pa.Scalar):
        if not lists.is_valid:
            return pa.scalar(None, pa.bool_())
        return pc.if_else(pc.is_valid(values), is_in(values, list(lists.values)), None)
    parents = pc.list_parent_indices(lists)
    wanted = values if isinstance(values, pa.Scalar) else values.take(parents)
    equal = pc.fill_null(pc.equal(pc.list_flatten(lists), wanted), False)
    found = np.zeros(len(lists), np.bool_)
    found[parents.filter(equal).to_numpy(zero_copy_only=False)] = True
    known = pc.and_(pc.is_valid(lists), pc.is_valid(values))
    return pc.if_else(known, pa.array(found), pa.scalar(None, pa.bool_()))


def as_numpy(values: Values, count: int, dtype: type) -> np.ndarray:
    if isinstance(values, pa.Scalar):
        return np.full(count, values.as_py(), dtype)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype)
