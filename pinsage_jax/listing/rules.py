"""The rules by which items are listed: --where, --boost, --one_per and lists of ids.

N items, Q queries, n pairs of a query and an item
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import examples, format_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import iter_batches, open_table
from pinsage_jax.listing.expressions import Expression


@dataclasses.dataclass(frozen=True)
class Listing:
    """The rules of one request, as its texts and ids.

    Attributes:
      where: expressions that all must hold.
      boost: expression that scores are multiplied by; "": none.
      one_per: column; one item is listed for each of its values; "": none.
      blocked: ids of items that are not listed.
      allowed: ids of the items that are; None: all.
      prefix: text before a name in messages, "--" for flags.
      warns: whether unknown ids in `blocked` and `allowed` are logged as a warning.
    """

    where: tuple[str, ...] = ()
    boost: str = ""
    one_per: str = ""
    blocked: Sequence[str] = ()
    allowed: Sequence[str] | None = None
    prefix: str = "--"
    warns: bool = True

    @property
    def has_rules(self) -> bool:
        """Whether there is any rule."""
        given = (self.where, self.boost, self.one_per, self.blocked)
        return any(map(bool, given)) or self.allowed is not None


class Rules:
    """The rules of a listing, applied to the columns of one catalog.

    Attributes:
      active: whether there is any rule.
      restricts: whether some items may not be listed.
      boosts: whether scores are multiplied.
      shared: whether the rules are the same for all queries.
    """

    def __init__(self, listing: Listing, catalog: ItemColumns, queries: ItemColumns | None):
        """Parses the expressions.

        Args:
          catalog: columns of the N items.
          queries: columns of the queries; None where a query is no item.

        Raises:
          UserError: an expression or a column is wrong.
        """
        self._catalog, self._queries, self._listing = catalog, queries, listing
        prefix, types = listing.prefix, catalog.types
        self._where = [Expression(t, f"{prefix}where", types, False) for t in listing.where]
        self._boost = None
        if listing.boost:
            self._boost = Expression(listing.boost, f"{prefix}boost", types, True)
        if listing.one_per and listing.one_per not in types:
            # The parser of expressions raises the error with the nearest column.
            Expression(f"item[{listing.one_per!r}] is None", f"{prefix}one_per", types, False)
        parts = [*self._where, *([self._boost] if self._boost else [])]
        self._query_columns = sorted({name for part in parts for name in part.query_columns})
        if self._query_columns and queries is None:
            raise UserError(
                f"{prefix}where and {prefix}boost cannot read query.{self._query_columns[0]} here, "
                "because a history is not one item; leave out query."
            )
        self.boosts = self._boost is not None
        self.shared = not self._query_columns

    @functools.cached_property
    def values(self) -> np.ndarray | None:
        """Codes int32 [N] of the values of the --one_per column, -1 for a missing value."""
        name = self._listing.one_per
        return self._catalog.codes(name) if name else None

    def groups(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups queries whose rules are the same.

        Args:
          rows: int [Q], rows of `queries`.

        Returns:
          The group of each query, int64 [Q], and a row of each group, int64 [G].
        """
        if self.shared or self._queries is None:
            return np.zeros(len(rows), np.int64), np.asarray(rows[:1], np.int64)
        codes = np.stack([self._codes(name)[rows] for name in self._query_columns], axis=1)
        _, first, groups = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        return groups.reshape(-1), np.asarray(rows, np.int64)[first]

    def allowed(self, row: int) -> np.ndarray:
        """Items that may be listed for the query at `row`, int64, ascending."""
        if self.shared:
            return self._shared_rows
        mask = self.mask.copy()
        for part in self._where:
            if part.query_columns:
                mask &= part.holds(self._catalog.column, self._of_query(row), len(mask))
        return np.flatnonzero(mask)

    def factors(self, row: int) -> np.ndarray | None:
        """Factors float32 [N] by which the items' scores are multiplied; None without a boost.

        Raises:
          UserError: a factor is not above 0.
        """
        if self._boost is None:
            return None
        if not self._boost.query_columns:
            return self._shared_factors
        return self._factors(row)

    def hold_for(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether item items[i] may be listed for the query at rows[i], bool [n]."""
        result = self.mask[items]
        if self.shared:
            return result
        chosen, queries = pa.array(items.astype(np.int64)), pa.array(rows.astype(np.int64))

        def of_item(name: str) -> Any:
            return self._catalog.column(name).take(chosen)

        def of_query(name: str) -> Any:
            assert self._queries is not None, "a query's columns are read from its row"
            return self._queries.column(name).take(queries)

        for part in self._where:
            if part.query_columns:
                result &= part.holds(of_item, of_query, len(items))
        return result

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Items that pass the rules that do not depend on the query, bool [N]."""
        count = len(self._catalog)
        mask = np.ones(count, np.bool_)
        names = self._catalog.column
        for part in self._where:
            if not part.query_columns:
                mask &= part.holds(names, _no_query, count)
        prefix = self._listing.prefix
        if self._listing.allowed is not None:
            chosen = np.zeros(count, np.bool_)
            chosen[self._rows(self._listing.allowed, f"{prefix}allow_items")] = True
            mask &= chosen
            if not chosen.any():
                raise UserError(f"{prefix}allow_items names no item of the catalog.")
        if self._listing.blocked:
            mask[self._rows(self._listing.blocked, f"{prefix}block_items")] = False
        return mask

    def _rows(self, names: Sequence[str], label: str) -> np.ndarray:
        """Rows of the ids that the catalog has; the others are logged as a warning."""
        rows = self._catalog.ids.lookup(pa.array(list(names), pa.large_string()))
        unknown = [name for name, row in zip(names, rows) if row < 0]
        if unknown and self._listing.warns:
            logging.warning(
                "%s: %d of %d ids are not in the catalog%s.",
                label, len(unknown), len(names), examples(unknown),
            )  # fmt: skip
        return rows[rows >= 0]

    @functools.cached_property
    def _shared_rows(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    @functools.cached_property
    def _shared_factors(self) -> np.ndarray:
        return self._factors(0)

    def _factors(self, row: int) -> np.ndarray:
        assert self._boost is not None, "there is a boost"
        query = self._of_query(row) if self._boost.query_columns else _no_query
        found = self._boost.numbers(self._catalog.column, query, len(self._catalog), 1.0)
        result = found.astype(np.float32)
        if not ((result > 0) & np.isfinite(result)).all():
            item = int(np.argmin(np.where(np.isfinite(result), result, -np.inf)))
            name = format_id(self._catalog.ids.names(np.array([item]))[0].as_py())
            raise UserError(
                f"{self._listing.prefix}boost is {found[item]:g} for item {name}; scores are "
                "multiplied by it, so it must be above 0, as 1 + 0.2 * on_sale is."
            )
        return result

    def _of_query(self, row: int) -> Any:
        assert self._queries is not None, "a query's columns are read from its row"
        queries = self._queries
        return lambda name: queries.column(name)[row]

    @functools.lru_cache(maxsize=64)  # noqa: B019 - rules live as long as one request or stage.
    def _codes(self, name: str) -> np.ndarray:
        assert self._queries is not None, "a query's columns are read from its row"
        return self._queries.codes(name)


def _no_query(name: str) -> Any:
    raise KeyError(name)


def listing_of(config: Config, known: IdTable) -> Listing:
    """The listing that the flags describe.

    Args:
      known: ids of the items.

    Raises:
      UserError: a list of ids cannot be read.
    """
    search = config.search
    return Listing(
        (search.where,) if search.where else (),
        search.boost,
        search.one_per,
        _id_list(config, search.block_items, "block_items", known) or (),
        _id_list(config, search.allow_items, "allow_items", known),
    )


def rules_of(config: Config, prepared: Prepared, histories: bool = False) -> Rules | None:
    """The rules that the flags describe; None if there are none.

    Args:
      histories: whether queries are histories and not items.

    Raises:
      UserError: a rule is wrong, or the prepared folder has no columns.
    """
    search = config.search
    lists = (search.block_items, search.allow_items)
    if not any((search.where, search.boost, search.one_per, *lists)):
        return None
    listing = listing_of(config, prepared.item_ids)
    columns = prepared.item_columns
    return Rules(listing, columns, None if histories else columns)


def _id_list(config: Config, value: str, flag: str, known: IdTable) -> list[str] | None:
    """The ids of a flag: those of a table's column of ids, or a comma-separated list."""
    if not value:
        return None
    if known.lookup(pa.array([value], pa.large_string()))[0] >= 0:
        return [value]
    if config.data.path(value).exists():
        return read_ids(config, value, flag)
    if "," not in value and pathlib.Path(value).suffix:
        raise UserError(f"--{flag}={value}: there is no such file, and no such item.")
    try:
        cells = next(csv.reader([value], skipinitialspace=True))
    except csv.Error:
        raise UserError(f"--{flag}={value} cannot be read; close its quotation marks.") from None
    return [name.strip() for name in cells if name.strip()]


def read_ids(config: Config, value: str, flag: str) -> list[str]:
    """The column of item ids of a table, such as a CSV with the header item_id.

    Raises:
      UserError: there is no such table or column, or it has a missing id.
    """
    table = open_table(config.data.path(value), flag, config.data)
    names = (config.data.item_id_column, config.data.item_column)
    column = next((name for name in names if name in table.columns), names[0])
    table.require(column, "item_id_column")
    return [
        name
        for batch in iter_batches(table, [column], ids=[column])
        for name in batch.column(column).to_pylist()
    ]
