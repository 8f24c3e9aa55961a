"""Blocks of the feature matrix that an encoder makes, beside those of feature_blocks.py.

  encoded_text    vectors of the joined text columns, unit length; no text is zeros
  encoded_image   vectors of the pictures of one column, unit length; no picture is zeros

A saved block names its encoder and keeps its fingerprint.  What it needs to encode, a command
gives (`given`); without it only rows that have nothing to encode are transformed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import Where, format_id
from pinsage_jax.data.encoders.encoder import IMAGE, TEXT, Encoder, same_fingerprint
from pinsage_jax.data.feature_blocks import Column, joined_text, unit_rows

_WHAT = {TEXT: "text", IMAGE: "pictures"}


@dataclasses.dataclass(frozen=True)
class EncodedBlock:
    """Columns that an encoder transforms; the base of two kinds.

    Attributes:
      columns: names of the columns.
      name: of the encoder, for messages alone.
      fingerprint: unit vector [width] of the encoder's fixed value.
      encoder: what the command gave; None: nothing. It is not saved.
    """

    columns: tuple[str, ...]
    name: str
    fingerprint: tuple[float, ...]
    encoder: Encoder | None = dataclasses.field(default=None, compare=False)
    kind = ""
    flag = ""

    @classmethod
    def of(cls, columns: tuple[str, ...], encoder: Encoder) -> Self:
        """A new block with this encoder."""
        return cls(columns, encoder.name, encoder.fingerprint, encoder)

    @classmethod
    def restored(cls, columns: list[str], name: str, fingerprint: list[float]) -> Self:
        """A saved block, without an encoder."""
        return cls(tuple(map(str, columns)), str(name), tuple(map(float, fingerprint)))

    @property
    def width(self) -> int:
        """Number of dimensions of a vector."""
        return len(self.fingerprint)

    def given(self, encoder: Encoder | None) -> Self:
        """The block with the encoder of a command.

        Raises:
          UserError: it is another one than that of the catalog.
        """
        if encoder is None:
            return self
        if not same_fingerprint(encoder.fingerprint, self.fingerprint):
            found = len(encoder.fingerprint)
            how = "otherwise" if found == self.width else f"by {found} numbers, not {self.width}"
            raise UserError(
                f"{encoder.label} is not the encoder of the catalog's {_WHAT[self.flag]}, "
                f"{format_id(self.name)}: it encodes a fixed value {how}; give that one, or train "
                "with the other in a --workdir of its own."
            )
        return dataclasses.replace(self, encoder=encoder)

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Rows of unit length, float32 [rows, width]; zeros where there is nothing to encode.

        Raises:
          UserError: there is something, and no encoder was given, or it fails.
        """
        out = np.zeros((rows, self.width), np.float32)
        values, present = self._values(column, where)
        if not len(present):
            return out
        if self.encoder is None:
            there = "is text" if self.flag == TEXT else "is a picture"
            raise UserError(f"There {there} in {where(int(present[0]))}; {self.needed()}")
        vectors = self.encoder.encode(values, lambda index: where(int(present[index])))
        out[present] = unit_rows(vectors)
        return out

    def needed(self) -> str:
        """The sentence for a command without the encoder."""
        return (
            f"the catalog's {_WHAT[self.flag]} {'were' if self.flag == IMAGE else 'was'} encoded "
            f"by {format_id(self.name)}: give --{self.flag} in this command too, for no workdir "
            "is asked for code to run."
        )

    def _values(self, column: Column, where: Where) -> tuple[list[Any], np.ndarray]:
        """What is to be encoded, and the row int64 [present] of each."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EncodedText(EncodedBlock):
    """One or more text columns, joined."""

    kind = "encoded_text"
    flag = TEXT

    def _values(self, column: Column, where: Where) -> tuple[list[Any], np.ndarray]:
        texts = joined_text(self.columns, column, where)
        present = np.flatnonzero(~_empty(texts))
        return texts.take(pa.array(present)).to_pylist(), present


@dataclasses.dataclass(frozen=True)
class EncodedImage(EncodedBlock):
    """One column of pictures, as bytes (pictures.py)."""

    kind = "encoded_image"
    flag = IMAGE

    def _values(self, column: Column, where: Where) -> tuple[list[Any], np.ndarray]:
        pictures = column(self.columns[0])
        valid = pictures.is_valid().to_numpy(zero_copy_only=False)
        return pictures.drop_null().to_pylist(), np.flatnonzero(valid)


ENCODED: dict[str, type[EncodedBlock]] = {kind.kind: kind for kind in (EncodedText, EncodedImage)}


class EncodedTextFit:
    """Counts rows without text; `missing` as of the other fitters."""

    def __init__(self, columns: tuple[str, ...], encoder: Encoder):
        self._columns, self._encoder, self._rows, self.missing = columns, encoder, 0, 0

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch."""
        self._rows += rows
        self.missing += int(_empty(joined_text(self._columns, column, where)).sum())

    def finish(self) -> EncodedText | None:
        """The block, or None if no row has text."""
        if self.missing == self._rows:
            return None
        return EncodedText.of(self._columns, self._encoder)


def _empty(texts: pa.Array) -> np.ndarray:
    """Rows without text, bool [rows]."""
    lengths = pc.binary_length(pc.utf8_trim_whitespace(texts))
    return pc.equal(lengths, 0).to_numpy(zero_copy_only=False)
