"""CSV files: compression, delimiter, header, and quotation marks that are never closed.

A file may be compressed (gzip, bzip2, Zstandard, xz, or a zip archive with one member), which
its first bytes tell.  Arrow reads a quotation mark that is never closed as the start of one
long cell, without an error; `check_quotes` finds such marks by the grammar of RFC 4180.
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError

# First bytes of compressed files, and Arrow's name of the compression.
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ\x00": "xz",
}
DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
_SCAN_BYTES = 1 << 22
_QUOTE, _NEWLINE = b'"\n'


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    """How the cells of a CSV file are separated.

    Attributes:
      delimiter: one character.
      header: whether the first row holds the names of the columns.
      names: names of the columns of a file without a header; () names them f0, f1, ...
    """

    delimiter: str = ","
    header: bool = True
    names: tuple[str, ...] = ()


def compression_of(head: bytes) -> str | None:
    """The compression of a file by its first bytes; None if it is not compressed."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


@contextlib.contextmanager
def open_bytes(part: pathlib.Path, flag: str) -> Iterator[pa.NativeFile]:
    """The decompressed bytes of a file.

    Raises:
      UserError: a zip archive holds another number of files than one.
      OSError: the compressed bytes are damaged or end early.
    """
    with open(part, "rb") as handle:
        compression = compression_of(handle.read(8))
    if compression == "xz":
        # Arrow has no decompressor for it.
        try:
            with lzma.open(part) as unpacked, pa.PythonFile(unpacked, "r") as stream:
                yield stream
        except (lzma.LZMAError, EOFError) as error:
            raise OSError(str(error)) from error
        return
    if compression != "zip":
        with pa.input_stream(str(part), compression=compression) as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(part) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if len(members) != 1:
                what = "a spreadsheet" if "[Content_Types].xml" in members else "an archive"
                raise UserError(
                    f"--{flag}={part} is {what} of {len(members)} files; save the table as CSV or "
                    "Parquet."
                )
            with archive.open(members[0]) as member, pa.PythonFile(member, "r") as stream:
                yield stream
    except zipfile.BadZipFile as error:
        raise OSError(str(error)) from error


def csv_format(part: pathlib.Path, flag: str, config: DataConfig | None) -> CsvFormat:
    """The format that the flags name; the delimiter by the first line where they do not.

    A tab in the first line is taken as the delimiter, else a comma, else a semicolon, else
    a vertical bar.
    """
    delimiter = "auto" if config is None else config.csv_delimiter
    header = config is None or config.csv_header == "on"
    with open_bytes(part, flag) as stream:
        first = bytes(stream.read(1 << 16)).split(b"\n", 1)[0]
    if delimiter == "auto":
        found = [mark for mark in "\t,;|" if mark.encode() in first]
        mark = found[0] if found else ","
    else:
        mark = DELIMITERS[delimiter]
    names: tuple[str, ...] = ()
    if not header and flag.endswith("_pairs"):
        # Pair tables have no flags for the names of their columns.
        names = ("query_id", "target_id", "kind")[: first.count(mark.encode()) + 1]
    return CsvFormat(mark, header, names)


@contextlib.contextmanager
def open_csv(
    part: pathlib.Path,
    flag: str,
    form: CsvFormat,
    block_bytes: int,
    convert: pa_csv.ConvertOptions | None = None,
) -> Iterator[pa_csv.CSVStreamingReader]:
    """A streaming reader of a CSV file."""
    read = pa_csv.ReadOptions(
        block_size=block_bytes,
        column_names=list(form.names) or None,
        autogenerate_column_names=not form.header and not form.names,
    )
    parse = pa_csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True)
    with (
        open_bytes(part, flag) as stream,
        pa_csv.open_csv(
            stream, read_options=read, parse_options=parse, convert_options=convert
        ) as reader,
    ):
        yield reader


def check_quotes(part: pathlib.Path, flag: str, form: CsvFormat) -> None:
    """Checks that every quotation mark that opens a cell is closed, in one pass.

    A mark opens a cell where the cell begins with it.  Inside, two marks stand for one, and
    the mark that closes must be followed by the delimiter or the end of the row.  A mark
    inside of a cell that does not begin with one is a character like any other.

    Raises:
      UserError: a mark is never closed, or text follows one that closes.
    """
    scanner = _QuoteScanner(form)
    with open_bytes(part, flag) as stream:
        block = stream.read(_SCAN_BYTES).removeprefix(b"\xef\xbb\xbf")
        while block and scanner.wrong is None:
            scanner.add(block)
            block = stream.read(_SCAN_BYTES)
    row, why = scanner.finish()
    if row is not None:
        raise UserError(
            f"--{flag}={part} has a quotation mark in row {row:,} that {why}, so that the rows "
            'behind it would be read as one cell; close it, or write a mark inside of a cell as "".'
        )


class _QuoteScanner:
    """Follows quotation marks over blocks of bytes."""

    def __init__(self, form: CsvFormat):
        self._ends = np.array([ord(form.delimiter), *b"\n\r"], np.uint8)
        self._held = b""  # marks at the end of the last block, whose next byte is not known yet
        self._before = _NEWLINE  # the byte before the block
        self._rows = 0 if form.header else 1  # number of the row that the block begins in
        self._inside = False  # whether a quoted cell is open
        self._opened = 0  # the row of the mark that opened it
        self.wrong: int | None = None  # the row of a closed cell that text follows

    def add(self, block: bytes) -> None:
        """Follows one block."""
        block = self._held + block
        kept = block.rstrip(b'"')
        self._held = block[len(kept) :]
        if kept:
            self._follow(np.frombuffer(kept, np.uint8))
            self._before = kept[-1]

    def _follow(self, block: np.ndarray) -> None:
        """Follows uint8 [n], whose last byte is no mark."""
        marks = np.flatnonzero(block == _QUOTE)
        newlines = np.flatnonzero(block == _NEWLINE)
        left = np.concatenate([np.array([self._before], np.uint8), block])[marks]
        starts = np.isin(left, self._ends)
        closes = np.isin(block[marks + 1], [*self._ends, _QUOTE])
        # Mostly each mark opens or closes a cell in turn, two marks in a cell do both.
        opening = (np.arange(len(marks)) + self._inside) % 2 == 0
        turns, wrong = np.arange(len(marks)), None
        if not np.where(opening, starts | (left == _QUOTE), closes).all():
            turns, wrong = self._turns(marks, starts, closes)
            opening = (np.arange(len(turns)) + self._inside) % 2 == 0
        # Newlines inside of a quoted cell end no row.
        quoted = (np.searchsorted(marks[turns], newlines) + self._inside) % 2 == 1
        ends = newlines[~quoted]
        opened = marks[turns][opening & starts[turns]]
        if len(opened):
            self._opened = self._rows + int(np.searchsorted(ends, opened[-1]))
        self.wrong = None if wrong is None else self._opened
        self._rows += len(ends)
        self._inside = bool((len(turns) + self._inside) % 2)

    def _turns(
        self, marks: np.ndarray, starts: np.ndarray, closes: np.ndarray
    ) -> tuple[np.ndarray, int | None]:
        """Indices int64 of the marks that open or close a cell, up to one that is wrong."""
        turns: list[int] = []
        inside, last = self._inside, -2
        for index, (mark, start, close) in enumerate(
            zip(marks.tolist(), starts.tolist(), closes.tolist())
        ):
            if inside and not close:
                return np.array(turns, np.int64), index
            if inside or start or last == mark - 1:
                inside, last = not inside, mark
                turns.append(index)
        return np.array(turns, np.int64), None

    def finish(self) -> tuple[int | None, str]:
        """The row of the first mark that is wrong, or None, and what is wrong with it."""
        if self.wrong is None and self._held:
            self._follow(np.frombuffer(self._held + b"\n", np.uint8))
        if self.wrong is not None:
            return self.wrong, "is followed by text where it is closed"
        return (self._opened, "is never closed") if self._inside else (None, "")
