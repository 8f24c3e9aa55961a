"""Which files a table consists of, and of what kind they are.

A folder is read with all folders inside it.  Names that begin with `_` or `.` are hidden:
Spark, Hadoop and notebooks give them to markers, unfinished files and copies.  They are left
out, as are files of another kind; what is left out is logged.  Of a folder that Hugging Face
`datasets` saved, the files are read that its state.json lists.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.csv_files import compression_of

PARQUET, CSV, ARROW, MEMORY = "parquet", "csv", "arrow", "memory"
_PARQUET_MAGIC, _ARROW_MAGIC = b"PAR1", b"ARROW1"
# The first bytes of every message of an Arrow stream.
_STREAM_MARK = b"\xff\xff\xff\xff"
# What `datasets` writes beside its files, of one split and of several.
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# In the order of preference within a folder.
_SUFFIXES = {
    PARQUET: (".parquet", ".pq"),
    ARROW: (".feather", ".arrow"),
    CSV: tuple(
        text + packed
        for text in (".csv", ".tsv", ".txt")
        for packed in ("", ".gz", ".bz2", ".zst", ".xz", ".zip")
    ),
}
# First bytes of files that are often taken for tables, and what they are.
_OTHERS = {
    b"FEA1": "an old Feather file (version 1)",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet (.xls)",
    b"{": "JSON",
    b"[{": "JSON",
    b"%PDF": "a PDF document",
}
# Where the part of a name ends that all files of a table have.
_NUMBER = re.compile(r"\d|\.")
# A share of the bytes read, from which on what is left out is warned of.
_OF_SIZE = 0.05


def kind_of(path: pathlib.Path, flag: str) -> str:
    """The kind of a file, by its first bytes.

    Raises:
      UserError: the file cannot be read, or is of a kind that is not supported.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be read ({error.strerror}).") from None
    if head.startswith(_UTF16_MARKS):
        raise not_utf8(path, flag)
    if head.startswith(_PARQUET_MAGIC) or path.suffix in _SUFFIXES[PARQUET]:
        return PARQUET
    if head.startswith((_ARROW_MAGIC, _STREAM_MARK)):
        return ARROW
    if compression_of(head) is None:
        for magic, what in _OTHERS.items():
            if head.startswith(magic):
                raise UserError(f"--{flag}={path} is {what}; save the table as Parquet or CSV.")
    return CSV


def not_utf8(path: pathlib.Path, flag: str) -> UserError:
    """The error of a text file of another encoding."""
    return UserError(
        f"--{flag}={path} is not UTF-8 text; save it as UTF-8 (iconv -f LATIN1 -t UTF-8) or as "
        "Parquet."
    )


def files_of(folder: pathlib.Path, flag: str) -> tuple[list[pathlib.Path], str]:
    """The files of a folder that are read, sorted, and their kind; logs what is left out.

    Raises:
      UserError: the folder holds no table, or several.
    """
    if (folder / _SPLITS).is_file():
        splits = ", ".join(path.name for path in sorted(folder.iterdir()) if path.is_dir())
        raise UserError(
            f"--{flag}={folder} holds several splits of a dataset ({splits}); name the folder of "
            "one of them."
        )
    listed = _listed_files(folder / _STATE)
    files: list[pathlib.Path] = []
    hidden: list[pathlib.Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            names = path.relative_to(folder).parts
            (hidden if any(name[0] in "._" for name in names) else files).append(path)
    for kind, suffixes in _SUFFIXES.items():
        parts = [path for path in files if path.name.lower().endswith(suffixes)]
        if listed is not None:
            parts = [path for path in parts if path.name in listed]
        if parts:
            others = [path for path in files if path not in set(parts)]
            _log_folder(folder, flag, kind, parts, hidden, others)
            return parts, kind
    raise UserError(
        f"--{flag}={folder} is a folder without any .parquet file (or .feather, or .csv)."
    )


def _listed_files(state: pathlib.Path) -> set[str] | None:
    """Names of the data files that a saved dataset consists of; None if this is no such state.

    A dataset that was saved over another one may lie beside files of that one.
    """
    try:
        found = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return {str(entry["filename"]) for entry in found}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def arrow_batches(path: pathlib.Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The schema and the batches of an Arrow file, or of a file that holds an Arrow stream.

    Raises:
      pyarrow.ArrowInvalid: the file is damaged.
    """
    with pa.memory_map(str(path)) as source:
        is_stream = source.read(len(_STREAM_MARK)) == _STREAM_MARK
        source.seek(0)
        if is_stream:
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)
        else:
            reader = pa.ipc.open_file(source)
            numbers = range(reader.num_record_batches)
            yield reader.schema, (reader.get_batch(number) for number in numbers)


def of_two_tables(first: pathlib.Path, second: pathlib.Path) -> str:
    """A remark for messages where the names of two files of a folder begin in different ways.

    Writers number the files of a table, as in part-00000 and part-00001; a folder that also has
    collections-00000 holds another table as well.
    """
    one, other = (_NUMBER.split(path.name, maxsplit=1)[0].rstrip("-_.") for path in (first, second))
    if one == other:
        return ""
    return (
        f" The folder seems to hold two tables, {one}* and {other}*; keep each in a folder of "
        "its own."
    )


def _log_folder(
    folder: pathlib.Path,
    flag: str,
    kind: str,
    parts: Sequence[pathlib.Path],
    hidden: Sequence[pathlib.Path],
    others: Sequence[pathlib.Path],
) -> None:
    """One line about a folder: at level warning if much of it is left out."""
    sentences = [f"--{flag}={folder}: {_counted(parts, f'{kind} file')} read"]
    for what, paths in (("hidden file", hidden), ("file of another kind", others)):
        if paths:
            name = paths[0].relative_to(folder)
            sentences.append(f"{_counted(paths, what)} left out (such as {name})")
    keys = {
        name.split("=")[0]: None
        for path in parts
        for name in path.relative_to(folder).parts[:-1]
        if "=" in name
    }
    if keys:
        sentences.append(f"names of its folders are not read as columns ({', '.join(keys)})")
    left_out = _bytes([*hidden, *others])
    level = logging.WARNING if left_out > _OF_SIZE * _bytes(parts) else logging.INFO
    logging.log(level, "%s.", "; ".join(sentences))


def _counted(paths: Sequence[pathlib.Path], what: str) -> str:
    words = what.split(" ")
    place = 1 if words[0] != "file" else 0
    if len(paths) != 1:
        words[place] += "s"
    size = _bytes(paths)
    size_text = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    return f"{len(paths):,} {' '.join(words)} ({size_text})"


def _bytes(paths: Sequence[pathlib.Path]) -> int:
    return sum(path.stat().st_size for path in paths)
