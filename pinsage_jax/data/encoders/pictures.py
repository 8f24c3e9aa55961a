"""The pictures of a table, as bytes for an image encoder.

A cell holds the content of a picture file, the path of one below a folder, a data: address, or a
struct with the fields bytes and path, as the images of Hugging Face `datasets`.  Nothing is
fetched, and no file outside the folder is read.
"""

from __future__ import annotations

import base64
import binascii
import collections
import pathlib
import re
import urllib.parse
from typing import Any

import pyarrow as pa
from absl import logging

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.columns import Where, format_id
from pinsage_jax.data.table_files import MEMORY
from pinsage_jax.data.tables import Table

# Rows of a batch: pictures of several megabytes each fit into memory.
BATCH_ROWS = 32
_MOST_BYTES = 64 << 20
_SHOWN = 200
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")


class Pictures:
    """Reads the pictures of columns, and counts those that are not there.

    Attributes:
      missing: rows without a readable picture, by column.
      found: rows with one, by column.
    """

    def __init__(self, columns: list[str], table: Table, config: DataConfig):
        """Takes the columns of the table, whose paths are looked up below --data_dir or beside it.

        Raises:
          UserError: a column holds neither bytes nor paths.
        """
        self._columns = columns
        self._folder = None if table.kind == MEMORY else _folder_of(table, config)
        self.missing: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[str] = collections.Counter()
        self._refused: dict[tuple[str, str], tuple[int, str]] = {}
        for name in columns:
            kind = table.columns.get(name, pa.binary())
            structs = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            nothing = pa.types.is_null(kind)
            if not (structs or nothing or _is_bytes(kind) or column_values.is_text(kind)):
                raise UserError(
                    f"--image_columns: column '{name}' of {table.label} is of type {kind}; give "
                    "the bytes of pictures, or paths of files."
                )

    def loaded(self, rows: pa.RecordBatch, where: Where) -> pa.RecordBatch:
        """The batch with its columns of pictures as large_binary; null where there is none.

        Raises:
          UserError: a table in memory names a file.
        """
        for name in self._columns:
            position = rows.schema.get_field_index(name)
            values = rows.column(position).to_pylist()
            read = [self._content(name, values, row, where) for row in range(len(values))]
            there = sum(content is not None for content in read)
            self.found[name] += there
            self.missing[name] += len(read) - there
            rows = rows.set_column(position, name, pa.array(read, pa.large_binary()))
        return rows

    def warn(self) -> None:
        """Warns of pictures that are named and could not be read, by column and reason."""
        for (name, reason), (count, example) in self._refused.items():
            logging.warning(
                "Column '%s': %d of its pictures %s (such as %s) and count as missing.",
                name, count, reason, format_id(example),
            )  # fmt: skip

    def require_some(self) -> None:
        """Raises UserError if a column has no picture in any row."""
        for name in self._columns:
            if not self.found[name]:
                raise UserError(
                    f"--image_columns: column '{name}' holds no picture that can be read; its "
                    f"paths are looked up below {self._folder} (--data_dir)."
                )

    def _content(self, name: str, values: list[Any], row: int, where: Where) -> bytes | None:
        """The picture of a row; None if there is none that can be read."""
        value = values[row]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = value.strip()
        if not value:
            return None
        if isinstance(value, bytes):
            return value
        if self._folder is None and not _SCHEME.match(value):
            raise UserError(
                f"Column '{name}' names a file in {where(row)}; a table in memory holds the bytes "
                "of pictures, or data: addresses."
            )
        content, reason = self._read(value)
        if reason:
            count, example = self._refused.get((name, reason), (0, value[:_SHOWN]))
            self._refused[name, reason] = count + 1, example
        return content

    def _read(self, value: str) -> tuple[bytes | None, str]:
        """The content of what a text names, or None and why there is none."""
        if value.startswith("data:"):
            head, _, body = value.partition(",")
            try:
                if head.endswith(";base64"):
                    return base64.b64decode(body, validate=True), ""
                return urllib.parse.unquote_to_bytes(body), ""
            except (binascii.Error, ValueError):
                return None, "are data: addresses that are not base64"
        if self._folder is None or _SCHEME.match(value) or value.startswith("//"):
            return None, "are addresses, which are not fetched"
        path, reason = local_file(self._folder, value)
        if path is None:
            return None, f"are {reason}"
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None, f"have more than {_MOST_BYTES >> 20} MiB"
            return path.read_bytes() or None, ""
        except OSError as error:
            return None, f"cannot be read ({error.strerror})"


def local_file(root: pathlib.Path, value: str) -> tuple[pathlib.Path | None, str]:
    """The file of a path below `root` (resolved), or None and why it is not read."""
    try:
        path = (root / value).resolve()
        if not path.is_relative_to(root):
            return None, f"outside {root}"
        return (path, "") if path.is_file() else (None, f"in no file below {root}")
    except (OSError, ValueError):
        return None, f"in no file below {root}"


def _folder_of(table: Table, config: DataConfig) -> pathlib.Path:
    """--data_dir, or else the folder of the table."""
    beside = table.path if table.path.is_dir() else table.path.parent
    return (config.path("") if config.data_dir else beside).resolve()


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
