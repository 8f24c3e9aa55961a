"""Expressions over the columns of --items, such as "in_stock and price < 2 * query.price".

The text is parsed by Python's own parser into a syntax tree, of which only the nodes named
here are accepted; each is computed by a vectorized function of pyarrow.compute.  Nothing is
ever evaluated as Python.

  name, item["any name"]          a column of the item that may be listed
  query.name, query["any name"]   the same column of the query
  1, 2.5, "text", True, None      constants
  == != < <= > >=                 numbers, texts, or times (a constant time is ISO text)
  x in ["a", "b"], x not in [..]  one of several constants
  "vegan" in tags, "red" in name  one of a list's values; part of a text
  x is None, x is not None        a missing value
  and or not                      booleans
  + - * /                         numbers; a boolean column counts as 1 and 0

A missing value is neither equal nor unequal to anything, as in SQL: what is compared with
it does not hold, and neither does the opposite.

  n pairs of a query and an item
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError
from pinsage_jax.listing.values import (
    BOOL,
    NULL,
    NUMBER,
    TAGS,
    TEXT,
    TIME,
    Values,
    alike,
    as_numpy,
    floats,
    in_lists,
    is_in,
    kind_of,
)

# Longer and deeper expressions are refused, because Python's parser recurses.
MAX_LENGTH, MAX_DEPTH = 4000, 60
_QUERY, _ITEM = "query", "item"
_COMPARISONS: dict[type, Callable] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type, Callable] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}

Column = Callable[[str], Values]


@dataclasses.dataclass(frozen=True)
class _Node:
    """A part of an expression: the kind of its values, and a function (item, query) to them."""

    kind: str
    compute: Callable[[Column, Column], Values]
    constant: Any = None


class Expression:
    """A parsed expression.

    Attributes:
      text: as it was given.
      item_columns, query_columns: the columns that it reads of items and of the query.
    """

    def __init__(self, text: str, label: str, types: Mapping[str, pa.DataType], numeric: bool):
        """Parses and checks an expression.

        Args:
          text: the expression.
          label: what it is called in messages, such as "--where".
          types: type of each column.
          numeric: whether it must be a number; otherwise it must be yes or no.

        Raises:
          UserError: it is no expression, reads an unknown column, or does not fit together;
            the message names the place by its character, from 1.
        """
        self.text, self._label, self._types = text, label, types
        self.item_columns: set[str] = set()
        self.query_columns: set[str] = set()
        tree = self._parsed()
        self._node = self._visit(tree)
        wanted = (NUMBER, BOOL) if numeric else (BOOL,)
        if self._node.kind not in wanted:
            raise self._error(tree, f"this is {self._node.kind}, not {wanted[0]}")

    def holds(self, item: Column, query: Column, count: int) -> np.ndarray:
        """Whether the expression holds, bool [n].

        Args:
          item: the values of a column for the n items.
          query: the values of a column for the queries, an array [n] or one scalar.
          count: n.
        """
        return as_numpy(pc.fill_null(self._node.compute(item, query), False), count, np.bool_)

    def numbers(self, item: Column, query: Column, count: int, missing: float) -> np.ndarray:
        """Computes the expression as numbers, float64 [n]; `missing` where a value is missing.

        The arguments are those of `holds`.
        """
        values = pc.cast(self._node.compute(item, query), pa.float64())
        return as_numpy(pc.fill_null(values, missing), count, np.float64)

    def _parsed(self) -> ast.expr:
        text = self.text.replace("\n", " ").strip()
        if not text:
            raise UserError(f"{self._label} is empty; leave it out or write an expression.")
        if len(text) > MAX_LENGTH:
            raise UserError(
                f"{self._label} has {len(text):,} characters, more than {MAX_LENGTH:,}; use a "
                "file of ids instead."
            )
        self._shift = len(self.text) - len(self.text.lstrip())
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            # Python gives no place for an end that comes too early.
            place = (error.offset or len(text) + 1) + self._shift
            raise UserError(
                f"{self._label}: '{text}' is not an expression ({error.msg} at character {place}); "
                'write one such as in_stock and price < 20 and category == "shoes".'
            ) from None
        except (ValueError, RecursionError, MemoryError):
            raise self._too_deep() from None
        level, depth = [tree], 0
        while level:
            depth += 1
            level = [child for node in level for child in ast.iter_child_nodes(node)]  # type: ignore[misc]
        if depth > MAX_DEPTH:
            raise self._too_deep()
        return tree

    def _too_deep(self) -> UserError:
        return UserError(f"{self._label} cannot be read: too many parentheses or odd characters.")

    def _visit(self, node: ast.AST) -> _Node:
        visit = {
            ast.BoolOp: self._bool_op,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._arithmetic,
            ast.Compare: self._compare,
            ast.Constant: self._constant,
            ast.Name: self._column,
            ast.Attribute: self._column,
            ast.Subscript: self._column,
        }.get(type(node))
        if visit is None:
            raise self._error(
                node,
                "only columns, constants, comparisons, and, or, not, in, + - * / are understood",
            )
        return visit(node)  # type: ignore[operator]

    def _bool_op(self, node: ast.BoolOp) -> _Node:
        parts = [self._visit_as(part, BOOL) for part in node.values]
        combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene

        def compute(item: Column, query: Column) -> Values:
            result = parts[0].compute(item, query)
            for part in parts[1:]:
                result = combine(result, part.compute(item, query))
            return result

        return _Node(BOOL, compute)

    def _unary(self, node: ast.UnaryOp) -> _Node:
        if isinstance(node.op, ast.Not):
            part = self._visit_as(node.operand, BOOL)
            return _Node(BOOL, lambda item, query: pc.invert(part.compute(item, query)))
        if not isinstance(node.op, ast.USub):
            raise self._error(node, "only - and not are understood before a value")
        part = self._visit_as(node.operand, NUMBER)
        if part.constant is not None:
            return _constant_node(-part.constant)
        return _Node(NUMBER, lambda item, query: pc.negate(floats(part.compute(item, query))))

    def _arithmetic(self, node: ast.BinOp) -> _Node:
        operate = _ARITHMETIC.get(type(node.op))
        if operate is None:
            raise self._error(node, "of arithmetic only + - * / are understood")
        left, right = (self._visit_as(part, NUMBER, BOOL) for part in (node.left, node.right))

        def compute(item: Column, query: Column) -> Values:
            one, other = floats(left.compute(item, query)), floats(right.compute(item, query))
            return operate(one, other)

        return _Node(NUMBER, compute)

    def _compare(self, node: ast.Compare) -> _Node:
        operands = [node.left, *node.comparators]
        parts = [
            self._comparison(operands[place], operator, operands[place + 1], node)
            for place, operator in enumerate(node.ops)
        ]
        if len(parts) == 1:
            return parts[0]

        def compute(item: Column, query: Column) -> Values:
            result = parts[0].compute(item, query)
            for part in parts[1:]:
                result = pc.and_kleene(result, part.compute(item, query))
            return result

        return _Node(BOOL, compute)

    def _comparison(
        self, left: ast.expr, operator: ast.cmpop, right: ast.expr, whole: ast.Compare
    ) -> _Node:
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._membership(left, right, whole)
            if isinstance(operator, ast.In):
                return found
            return _Node(BOOL, lambda item, query: pc.invert(found.compute(item, query)))
        one, other = self._visit(left), self._visit(right)
        if NULL in (one.kind, other.kind):
            if not isinstance(operator, ast.Is | ast.IsNot | ast.Eq | ast.NotEq):
                raise self._error(right, "None has no order; write x is None")
            tested = other if one.kind == NULL else one
            test = pc.is_null if isinstance(operator, ast.Is | ast.Eq) else pc.is_valid
            return _Node(BOOL, lambda item, query: test(tested.compute(item, query)))
        if isinstance(operator, ast.Is | ast.IsNot):
            raise self._error(right, "is and is not are for None; write ==")
        one, other = self._as_time(one, other, left), self._as_time(other, one, right)
        if one.kind != other.kind or one.kind == TAGS:
            raise self._error(whole, f"this compares {one.kind} with {other.kind}")
        compare = _COMPARISONS[type(operator)]
        if one.kind == BOOL and not isinstance(operator, ast.Eq | ast.NotEq):
            raise self._error(whole, "yes and no have no order; write == or !=")

        def compute(item: Column, query: Column) -> Values:
            return compare(*alike(one.compute(item, query), other.compute(item, query)))

        return _Node(BOOL, compute)

    def _membership(self, left: ast.expr, right: ast.expr, whole: ast.Compare) -> _Node:
        one = self._visit(left)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            values = [self._visit(part) for part in right.elts]
            for part, value in zip(right.elts, values):
                if value.constant is None:
                    raise self._error(part, "a list after in holds constants")
                if (value := self._as_time(value, one, part)).kind != one.kind:
                    raise self._error(part, f"this is {value.kind}, compared with {one.kind}")
            if one.kind not in (NUMBER, TEXT, TIME, BOOL):
                raise self._error(left, f"{one.kind} cannot be one of a list's values")
            constants = [
                self._as_time(value, one, part).compute(_none, _none)
                for part, value in zip(right.elts, values)
            ]
            return _Node(BOOL, lambda item, query: is_in(one.compute(item, query), constants))
        other = self._visit(right)
        if one.kind != TEXT or other.kind not in (TEXT, TAGS):
            raise self._error(whole, f"this looks for {one.kind} in {other.kind}")
        if other.kind == TEXT:
            if one.constant is None:
                raise self._error(left, "only constant text can be looked for in a text")
            return _Node(
                BOOL,
                lambda item, query: pc.match_substring(other.compute(item, query), one.constant),
            )
        return _Node(
            BOOL, lambda item, query: in_lists(one.compute(item, query), other.compute(item, query))
        )  # fmt: skip

    def _constant(self, node: ast.Constant) -> _Node:
        value = node.value
        if value is None:
            return _Node(NULL, lambda item, query: pa.scalar(None))
        if not isinstance(value, bool | int | float | str):
            raise self._error(node, "only numbers, text, True, False and None are constants")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = float(value)
        if isinstance(value, float) and not np.isfinite(value):
            raise self._error(node, "this number is too large")
        return _constant_node(value)

    def _column(self, node: ast.Name | ast.Attribute | ast.Subscript) -> _Node:
        of_query = False
        if isinstance(node, ast.Name):
            name = node.id
            words = {"true": True, "false": False}
            if name in words and name not in self._types:
                return _constant_node(words[name])
        else:
            owner = node.value
            if not isinstance(owner, ast.Name) or owner.id not in (_QUERY, _ITEM):
                raise self._error(node, "only query.COLUMN and item.COLUMN have a dot")
            of_query = owner.id == _QUERY
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
                name = node.slice.value
            else:
                raise self._error(node, 'a name in brackets is quoted, as in item["Brand Name"]')
        if name not in self._types:
            near = difflib.get_close_matches(name, list(self._types), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "columns are those of --items: " + (
                ", ".join(self._types) or "none"
            )  # fmt: skip
            raise self._error(node, f"there is no column '{name}'; {hint}")
        kind = kind_of(self._types[name])
        if kind is None:
            raise self._error(node, f"column '{name}' holds {self._types[name]}, which is not read")
        (self.query_columns if of_query else self.item_columns).add(name)
        if of_query:
            return _Node(kind, lambda item, query: query(name))
        return _Node(kind, lambda item, query: item(name))

    def _as_time(self, node: _Node, other: _Node, place: ast.expr) -> _Node:
        """Parses a constant text as a time, because it is compared with a time."""
        if other.kind != TIME or node.kind != TEXT or node.constant is None:
            return node
        try:
            moment = pa.scalar(node.constant).cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            raise self._error(
                place, f"'{node.constant}' is no time; write 2024-05-31 or 2024-05-31T12:00:00"
            ) from None
        return _Node(TIME, lambda item, query: moment, node.constant)

    def _visit_as(self, part: ast.expr, *kinds: str) -> _Node:
        node = self._visit(part)
        if node.kind not in kinds:
            raise self._error(part, f"this is {node.kind}, not {kinds[0]}")
        return node

    def _error(self, node: ast.AST, reason: str) -> UserError:
        text = self.text.replace("\n", " ").strip()
        start = _characters(text, getattr(node, "col_offset", 0))
        part = ast.get_source_segment(text, node) or text
        return UserError(
            f"{self._label}: '{part}' at character {start + self._shift + 1}: {reason}"
            f"{'' if reason.endswith('?') else '.'}"
        )


def _none(name: str) -> Values:
    raise KeyError(name)


def _constant_node(value: Any) -> _Node:
    kind = BOOL if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
    scalar = pa.scalar(value, pa.large_string() if kind == TEXT else None)
    return _Node(kind, lambda item, query: scalar, value)


def _characters(text: str, offset: int) -> int:
    """Characters in the first `offset` bytes of a one-line text; the parser counts bytes."""
    return len(text.encode()[:offset].decode(errors="ignore"))
