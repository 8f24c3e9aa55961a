"""Tables that map the ids of items, or of collections, to indices and back.

Index i of an IdTable is item i (or collection i) in all other modules.  The ids are one
Arrow large_string array, so that no Python object per id or edge is needed; they are
saved as an uncompressed Arrow IPC file that is memory-mapped when loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import examples, format_id, share

_MAX_IDS = 2**31 - 1
_PENDING_ROWS = 1 << 22
_PENDING_BYTES = 1 << 28
_DIGEST_ROWS = 1 << 20
# Ids on either side that are compared as spellings of one another.
COMPARED_IDS = 100_000
_FEW, _MANY = 0.01, 0.1
# So many times fewer ids than a table has are few.
_FEW_LOOKUPS = 8
# Integer ids are looked up in an array over their range, if it has at most so many places (or
# places for each id); others are hashed.
_MOST_PLACES, _MOST_PLACES_PER_ID = 1 << 24, 8
_MISSING_IDS = tuple(
    ["na", "n/a", "#n/a", "nan", "null", "none", "nil", "undefined", "unknown", "-", "?", "\\n"]
)


class IdTable:
    """Distinct ids; the index of an id is its position."""

    def __init__(self, ids: pa.Array):
        """Takes an array of text or int64 without nulls or duplicates."""
        self._ids = ids.cast(pa.large_string())
        # Integers are hashed much faster than their text, which matters for edge tables.
        self._integers = ids if ids.type == pa.int64() else None
        self._places: _Places | None = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> pa.LargeStringArray:
        """All ids in the order of their indices."""
        return self._ids

    def lookup(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Indices int32 [n] of n ids (text or int64); -1 for an unknown id.

        Every call reads the whole table, so look up many ids at a time.
        """
        if self._integers is not None and ids.type == pa.int64():
            known: pa.Array = self._integers
            # Making the array takes as long as looking up as many ids.
            if self._places is None and _FEW_LOOKUPS * len(ids) > len(known):
                self._places = _Places.of(known)
            if self._places is not None and ids.null_count == 0:
                return self._places.lookup(_numbers(ids))
        else:
            known, ids = self._ids, ids.cast(pa.large_string())
        if _FEW_LOOKUPS * len(ids) > len(known):
            return _filled(pc.index_in(ids, value_set=known))
        # A hash table of the few is 20 times as fast as one of all.
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        rows = pc.indices_nonzero(pc.is_in(known, value_set=ids))
        places = _filled(pc.index_in(ids, value_set=known.take(rows)))
        rows = np.append(rows.to_numpy(zero_copy_only=False).astype(np.int32), np.int32(-1))
        # Place -1 is the last entry, which is -1 as well.
        return rows[places]

    def names(self, indices: np.ndarray) -> pa.LargeStringArray:
        """The ids, large_string [n], of integer indices [n]."""
        return self._ids.take(pa.array(np.asarray(indices, np.int64)))

    def digest(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 over the ids in order."""
        total = hashlib.sha256(str(len(self)).encode())
        for start in range(0, len(self), _DIGEST_ROWS):
            part = self._ids.slice(start, _DIGEST_ROWS)
            _, offsets, data = part.buffers()
            offsets = np.frombuffer(offsets, np.int64)[part.offset : part.offset + len(part) + 1]
            total.update(np.diff(offsets).tobytes())
            if data is not None:
                total.update(memoryview(data)[offsets[0] : offsets[-1]])
        return total.hexdigest()[:16]

    def save(self, path: str | pathlib.Path) -> None:
        """Writes an uncompressed Arrow IPC file, atomically."""
        save_column(path, self._ids, "id")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> IdTable:
        """Opens a saved table, memory-mapped.

        Raises:
          UserError: the file is missing or damaged.
        """
        return cls(load_column(path))


def _filled(indices: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The result of pc.index_in as int32 [n], -1 for null."""
    if isinstance(indices, pa.ChunkedArray):
        indices = indices.combine_chunks()
    filled = pc.fill_null(indices, -1).to_numpy(zero_copy_only=False)
    return filled.astype(np.int32, copy=False)


def _numbers(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 ids without nulls as an array."""
    found: np.ndarray = ids.to_numpy() if isinstance(ids, pa.ChunkedArray) else ids.to_numpy(False)
    return found


class _Places:
    """The index of each integer of a range, int32; -1: it is no id.

    Attributes:
      low, end: the first integer of the range, and the one after it.
    """

    def __init__(self, low: int, size: int):
        self.low, self.end = low, low + size
        self._index = np.full(size, -1, np.int32)

    @staticmethod
    def fit(low: int, high: int, count: int) -> bool:
        """Whether there may be an array over the range low to high for `count` ids."""
        return high - low < max(_MOST_PLACES, _MOST_PLACES_PER_ID * count)

    @classmethod
    def of(cls, ids: pa.Array) -> _Places | None:
        """Of distinct int64 ids in the order of their indices; None if they lie too far apart."""
        numbers = _numbers(ids)
        if not len(numbers):
            return None
        low, high = int(numbers.min()), int(numbers.max())
        if not cls.fit(low, high, len(numbers)):
            return None
        found = cls(low, high - low + 1)
        found._index[numbers - low] = np.arange(len(numbers), dtype=np.int32)
        return found

    def lookup(self, numbers: np.ndarray) -> np.ndarray:
        """Indices int32 [n] of int64 [n]; -1 for one that is no id."""
        # As unsigned numbers those below the range are above it, and no difference overflows.
        places = numbers.view(np.uint64) - np.uint64(self.low & (2**64 - 1))
        inside = places < np.uint64(len(self._index))
        if inside.all():
            return self._index[places.view(np.int64)]
        return np.where(inside, self._index[np.where(inside, places, 0).view(np.int64)], -1)

    def add(self, numbers: np.ndarray, first: int) -> np.ndarray:
        """Gives numbers of the range without an index the next ones, by first appearance.

        Takes int64 [n] inside the range and the next index; returns the new numbers, each once.
        """
        places = numbers - self.low
        new = self._index[places] < 0
        if not new.any():
            return numbers[:0]
        places = places[new]
        order = np.arange(first, first + len(places), dtype=np.int32)
        # Of equal places the one that is assigned last stays, here that of the first row.
        self._index[places[::-1]] = order[::-1]
        earliest = self._index[places] == order
        if not earliest.all():
            places = places[earliest]
            self._index[places] = order[: len(places)]
        return places + self.low

    def widened(self, low: int, high: int) -> _Places:
        """The same over a range that holds low to high, and half of its size more."""
        spare = len(self._index) // 2
        first = self.low if low >= self.low else max(low - spare, -(2**63))
        end = self.end if high < self.end else min(high + spare, 2**63 - 1) + 1
        wider = _Places(first, end - first)
        wider._index[self.low - first : self.end - first] = self._index
        return wider


class UniqueIds:
    """Collects the distinct ids of a stream."""

    def __init__(self, kind: pa.DataType | None = None):
        """Takes the type of the ids: pa.int64(), or None for text."""
        self._known = pa.array([], kind or pa.large_string())
        self._pending: list[pa.Array] = []
        self._pending_rows = self._pending_bytes = 0
        # Integers close together need no hashing; `_count` ids are known or pending then.
        self._places = _Places(0, 0) if kind == pa.int64() else None
        self._count = 0

    def add(self, ids: pa.Array) -> None:
        """Adds a batch of ids."""
        if self._places is not None and self._add_numbers(ids):
            return
        unique = pc.unique(ids)
        self._pending.append(unique)
        self._pending_rows += len(unique)
        self._pending_bytes += unique.nbytes
        # A merge hashes all known ids, so it waits for as many new ones; the total cost
        # then stays linear in the number of ids.
        enough = self._pending_rows > max(_PENDING_ROWS, len(self._known))
        if enough or self._pending_bytes > max(_PENDING_BYTES, self._known.nbytes):
            self._merge()

    def finish(self, kind: str, sorted_from: int | None = None) -> IdTable:
        """The table of all distinct ids, in the order of their first appearance.

        Args:
          kind: 'items' or 'collections', for the message.
          sorted_from: ids from this index on are sorted as text, by bytes, so that they do
            not depend on the order of the stream; None: none are.

        Raises:
          UserError: there are more ids than int32 can number.
        """
        self._merge()
        if len(self._known) > _MAX_IDS:
            raise UserError(
                f"There are {len(self._known):,} {kind}, more than the {_MAX_IDS:,} that 32-bit "
                "ids can name; split the data."
            )
        if sorted_from is None:
            return IdTable(self._known)
        rest = self._known.slice(sorted_from)
        # As text also where ids are integers: the order may not depend on the file format.
        order = pc.sort_indices(rest.cast(pa.large_string()))
        return IdTable(pa.concat_arrays([self._known.slice(0, sorted_from), rest.take(order)]))

    def _add_numbers(self, ids: pa.Array) -> bool:
        """Adds integers by their places; False if they lie too far apart, from now on."""
        assert self._places is not None
        if not len(ids):
            return True
        numbers, places = _numbers(ids), self._places
        low, high = int(numbers.min()), int(numbers.max())
        if self._count == 0:
            places = _Places(low, 0)
        if low < places.low or high >= places.end:
            span = min(low, places.low), max(high, places.end - 1)
            if not _Places.fit(*span, self._count):
                self._merge()
                self._places = None
                return False
            places = places.widened(low, high)
        self._places = places
        new = places.add(numbers, self._count)
        if len(new):
            self._pending.append(pa.array(new))
            self._count += len(new)
        return True

    def _merge(self) -> None:
        if self._pending and self._places is not None:
            self._known = pa.concat_arrays([self._known, *self._pending])
            self._pending = []
        elif self._pending:
            self._known = pc.unique(pa.chunked_array([self._known, *self._pending]))
            self._pending = []
            self._pending_rows = self._pending_bytes = 0


@dataclasses.dataclass(frozen=True)
class Unmet:
    """Ids of --edges that are not in --items.

    Attributes:
      none_met: whether no id is in both tables.
      problem: whether the run would be of no use: no id is in both, or many ids differ in
        spelling only.
      sentence: the message to the user.
    """

    none_met: bool
    problem: bool
    sentence: str


def unmet_ids(items: IdTable, item_rows: int, degree: np.ndarray) -> Unmet | None:
    """Whether ids of --edges are missing in --items, or spelled in another way there.

    Args:
      items: ids of all items, those of the item table first.
      item_rows: how many those are.
      degree: edges of every item, int32 [num_items].
    """
    without_row = np.arange(item_rows, len(items))
    without_edge = np.flatnonzero(degree[:item_rows] == 0)
    names = items.names(without_row[:COMPARED_IDS]).to_pylist()
    others = items.names(without_edge[:COMPARED_IDS]).to_pylist()
    alike = spelled_alike(names, others)
    if len(without_edge) == item_rows:
        return Unmet(
            True,
            True,
            f"No id of --edges{examples(names)} is one of --items{examples(others)}."
            f"{spelling(alike, '--items')}",
        )
    if len(without_row) > _FEW * len(items) or alike:
        return Unmet(
            False,
            len(alike) > _MANY * len(names),
            f"{share(len(without_row), len(items))} items are in --edges but not in "
            f"--items{examples(names)}: they have no features.{spelling(alike, '--items')}",
        )
    return None


def missing_ids(table: IdTable) -> list[str]:
    """Ids that are spelled as a missing value, such as NA, null or nan."""
    lowered = pc.utf8_lower(pc.utf8_trim_whitespace(table.ids))
    spellings = pa.array(_MISSING_IDS, pa.large_string())
    return table.ids.filter(pc.is_in(lowered, value_set=spellings)).to_pylist()


def normal_forms(ids: pa.Array) -> pa.Array:
    """One form for all spellings of an id, large_string [n].

    Spellings differ in case, surrounding blanks, the composition of characters (NFKC),
    leading zeros, and '.0' after an integer.
    """
    composed = pc.utf8_normalize(ids.cast(pa.large_string()), "NFKC")
    forms = pc.utf8_lower(pc.utf8_trim_whitespace(composed))
    forms = pc.replace_substring_regex(forms, r"^(\d+)\.0$", r"\1")
    return pc.replace_substring_regex(forms, "^0+(.)", r"\1")


def look_alikes(table: IdTable) -> list[tuple[str, str]]:
    """Pairs of an id and an earlier id of the table with the same normal form."""
    forms = normal_forms(table.ids)
    first = pc.index_in(forms, value_set=pc.unique(forms)).to_numpy(zero_copy_only=False)
    # The position of the first id of each group, in the order of pc.unique.
    earliest = np.unique(first, return_index=True)[1]
    later = np.flatnonzero(earliest[first] != np.arange(len(first)))[:COMPARED_IDS]
    return list(
        zip(table.names(later).to_pylist(), table.names(earliest[first[later]]).to_pylist())
    )


def spelled_alike(ids: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Pairs of an id and another spelling of it in `others`: both have the same normal form."""

    def forms(names: list[str]) -> list[str]:
        return normal_forms(pa.array(names, pa.large_string())).to_pylist()

    spelling_of = dict(zip(forms(others), others))
    return [
        (name, spelling_of[form])
        for name, form in zip(ids, forms(ids))
        if spelling_of.get(form, name) != name
    ]


def spelling(alike: list[tuple[str, str]], others: str) -> str:
    """The sentence ' 3 of them differ in spelling only: ...', or '' without such ids."""
    if not alike:
        return ""
    one, other = alike[0]
    return (
        f" {len(alike):,} of them differ in spelling only: {format_id(one)} is {format_id(other)} "
        f"in {others}."
    )


def save_column(path: str | pathlib.Path, column: pa.Array, name: str) -> None:
    """Writes one column as an uncompressed Arrow IPC file, atomically."""
    with files.atomic_file(path) as temporary:
        schema = pa.schema([(name, column.type)])
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([column], schema=schema))


def load_column(path: str | pathlib.Path) -> pa.Array:
    """Opens a column that save_column wrote, memory-mapped.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            column = pa.ipc.open_file(source).read_all().column(0)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run --mode=prepare again.") from None
    except (pa.ArrowException, OSError, IndexError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({message}); delete it and run again.") from None
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
