"""The structures of XLA's foreign function interface, as named fields.

XLA hands C structures to the functions that it calls, and takes others from them; here they
are arrays of 64-bit words.  The tables below say at which word of its structure a field is.
A structure inside another begins at the word of its field.

`check_header` compares the tables with `xla/ffi/api/c_api.h` of the installed jaxlib, so that
a jaxlib whose structures differ is noticed before anything is read from them.
"""

from __future__ import annotations

import collections
import re
from typing import Any

WORD_BYTES = 8
# (major, minor) versions of the interface that the kernels were tried with, first and last:
# JAX 0.10 has 0.3, JAX 0.11.2 has 0.4 and JAX 0.12 has 0.5.
TRIED_VERSIONS = ((0, 1), (0, 5))

_TABLES: dict[str, dict[str, int]] = {}
# Names of structures in earlier versions of the interface, where they had the same fields.
_EARLIER_NAMES = {"XLA_FFI_InternalExtension": "XLA_FFI_Extension_Base"}
# Bytes of the structures that are made here, as XLA wants them in their first field.
_SIZES: dict[str, int] = {}


def _struct(name: str, *, size_in_bytes: int = 0, **words: int) -> Any:
    """A named tuple with the word of each field, and size_in_bytes."""
    _TABLES[name], _SIZES[name] = words, size_in_bytes
    fields = words | {"size_in_bytes": size_in_bytes}
    # mypy knows named tuples of literal names alone.
    make: Any = collections.namedtuple
    return make(name, fields)(**fields)


# What a handler is called with.
CALL_FRAME = _struct(
    "XLA_FFI_CallFrame", extension_start=1, api=2, ctx=3, args=5, rets=10, attrs=15
)
# Operands and results: so many pointers to buffers.
ARGS = _struct("XLA_FFI_Args", size=2, args=4)
RETS = _struct("XLA_FFI_Rets", size=2, rets=4)
# Attributes, in the order of their names: so many pointers to scalars (or other kinds).
ATTRS = _struct("XLA_FFI_Attrs", size=2, attrs=5)
SCALAR = _struct("XLA_FFI_Scalar", value=1)
BUFFER = _struct("XLA_FFI_Buffer", data=3, rank=4, dims=5)
# A call without work, that asks for the version a handler was made for.
EXTENSION = _struct("XLA_FFI_InternalExtension", type=1)
METADATA_EXTENSION = _struct("XLA_FFI_Metadata_Extension", metadata=3)
METADATA = _struct("XLA_FFI_Metadata", api_version=1)
# Both numbers are in one word.
API_VERSION = _struct("XLA_FFI_Api_Version", major_version=2)
# XLA's functions, and the structures that they take.
API = _struct(
    "XLA_FFI_Api",
    struct_size=0,
    api_version=2,
    XLA_FFI_Error_Create=6,
    XLA_FFI_Error_Destroy=8,
    XLA_FFI_ThreadPool_Schedule=17,
    XLA_FFI_ThreadPool_NumThreads=18,
)
ERROR_CREATE = _struct(
    "XLA_FFI_Error_Create_Args",
    struct_size=0,
    extension_start=1,
    message=2,
    errc=3,
    size_in_bytes=28,
)
ERROR_DESTROY = _struct(
    "XLA_FFI_Error_Destroy_Args", struct_size=0, extension_start=1, error=2, size_in_bytes=24
)
SCHEDULE = _struct(
    "XLA_FFI_ThreadPool_Schedule_Args",
    struct_size=0,
    extension_start=1,
    ctx=2,
    task=3,
    data=4,
    size_in_bytes=40,
)
NUM_THREADS = _struct(
    "XLA_FFI_ThreadPool_NumThreads_Args",
    struct_size=0,
    extension_start=1,
    ctx=2,
    num_threads=3,
    size_in_bytes=32,
)

METADATA_TYPE, RESOURCE_EXHAUSTED, INTERNAL = 1, 8, 13
_CONSTANTS = {
    "XLA_FFI_Extension_Metadata": METADATA_TYPE,
    "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED": RESOURCE_EXHAUSTED,
    "XLA_FFI_Error_Code_INTERNAL": INTERNAL,
}


def interface_version(header: str) -> tuple[int, int] | None:
    """(major, minor) from the text of XLA's header; None where it does not say."""
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR")]
    major, minor = (int(match[1]) if match else None for match in found)
    return None if major is None or minor is None else (major, minor)


def check_header(header: str) -> str:
    """The first difference between the tables of this file and XLA's header, or "".

    Args:
      header: the text of `xla/ffi/api/c_api.h`.
    """
    parsed = _Header(header)
    for table, words in _TABLES.items():
        name = table if parsed.has(table) else _EARLIER_NAMES.get(table, table)
        try:
            places, size = parsed.layout(name)
        except KeyError as error:
            return f"the size of {name} is not known without {error.args[0]}"
        for field, word in words.items():
            if places.get(field) != word * WORD_BYTES:
                where = f"at byte {places[field]}" if field in places else "missing"
                return f"{name}.{field} is {where}, not at byte {word * WORD_BYTES}"
        if _SIZES[table] not in (0, size):
            return f"{name} has {size} bytes, not {_SIZES[table]}"
    for name, value in _CONSTANTS.items():
        if parsed.constants.get(name) != value:
            return f"{name} is {parsed.constants.get(name, 'missing')}, not {value}"
    return ""


class _Header:
    """C structures and enumerations, from the text of a header.

    Attributes:
      constants: values of enumerations by name.
    """

    def __init__(self, text: str):
        text = re.sub(r"//.*", "", text)
        # Bytes of types, which are also their alignments.
        self._scalars = {"size_t": 8, "int64_t": 8, "int": 4, "int32_t": 4, "uint32_t": 4}
        self.constants: dict[str, int] = {}
        for body, name in re.findall(r"enum \{([^}]*)\}\s*(\w+);", text):
            self._scalars[name] = 4
            self.constants |= {key: int(n) for key, n in re.findall(r"(\w+)\s*=\s*(\d+)", body)}
        for known, name in re.findall(r"typedef (\w+) (\w+);", text):
            if known in self._scalars:
                self._scalars[name] = self._scalars[known]
        self._bodies = dict(re.findall(r"struct (\w+) \{([^}]*)\}", text))

    def has(self, name: str) -> bool:
        """Whether the header defines a structure of this name."""
        return name in self._bodies

    def layout(self, name: str) -> tuple[dict[str, int], int]:
        """Bytes at which the fields of a structure begin, and at which the last one ends.

        Raises:
          KeyError: the structure, or the type of a field, is not known.
        """
        places: dict[str, int] = {}
        end = 0
        for declaration in filter(None, map(str.strip, self._bodies[name].split(";"))):
            field, size, alignment = self._field(declaration)
            places[field] = end + -end % alignment
            end = places[field] + size
        return places, end

    def _field(self, declaration: str) -> tuple[str, int, int]:
        """Name, bytes and alignment of a field."""
        function = re.match(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\)|\w+ \(\*(\w+)\)", declaration)
        if function:
            return function[1] or function[2], WORD_BYTES, WORD_BYTES
        field = re.split(r"\W", declaration)[-1]
        kind = declaration.removesuffix(field).strip()
        if kind.endswith("*"):
            return field, WORD_BYTES, WORD_BYTES
        if kind in self._scalars:
            return field, self._scalars[kind], self._scalars[kind]
        # Every structure of the interface holds a word, so it is aligned and padded to words.
        size = self.layout(kind)[1]
        return field, size + -size % WORD_BYTES, WORD_BYTES
