"""Text search over titles and ids, in a catalog of any size.

Case and accents do not count.  Where nothing matches, one typo in a word is forgiven.  Results
are those of the page's own search (web/search.js, web/sources.js).
"""

from __future__ import annotations

import functools
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.catalog.prepare import Prepared

# Words from this length on may have a typo.
_MIN_TYPO_LENGTH = 4
_UNACCENTED = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ł": "l", "\u0131": "i"}
_LETTER = r"[\p{L}\p{N}]"
_WORD_BEGIN = r"(?:^|[^\p{L}\p{N}])"


def fold(texts: pa.Array) -> pa.Array:
    """Lower-case texts without accents, large_string [n]."""
    folded = pc.utf8_normalize(pc.utf8_lower(texts), "NFKD")
    folded = pc.replace_substring_regex(folded, "[\u0300-\u036f]", "")
    for letter, plain in _UNACCENTED.items():
        folded = pc.replace_substring(folded, letter, plain)
    return folded


def one_typo(word: str) -> str:
    """A regular expression of texts with a word that begins like `word` but for one typo.

    A letter is changed, missing, too many, or exchanged with the next.
    """
    letters = [re.escape(letter) for letter in word]
    forms = []
    for place, letter in enumerate(letters):
        before, after = "".join(letters[:place]), letters[place + 1 :]
        forms += [before + _LETTER + "".join(after), before + _LETTER + letter + "".join(after)]
        if len(letters) > _MIN_TYPO_LENGTH:
            forms.append(before + "".join(after))
        if after:
            forms.append(before + after[0] + letter + "".join(after[1:]))
    return f"{_WORD_BEGIN}(?:{'|'.join(forms)})"


class CatalogSearch:
    """Substring search over titles and ids; every query scans the catalog."""

    def __init__(self, prepared: Prepared):
        self._degree = prepared.graph.degree()[: prepared.graph.num_items]
        self._ids = fold(prepared.item_ids.ids)
        self._titles = self._ids
        if prepared.titles is not None:
            self._titles = pc.fill_null(fold(prepared.titles), "")
        self._has_titles = prepared.titles is not None

    def find(self, query: str, limit: int) -> tuple[int, np.ndarray, bool]:
        """Finds the items whose title or id contains every word of the query.

        First comes the item whose id equals the query, then ids and then titles that begin
        with it; among equals, items with more edges come first.

        Returns:
          The number of matches, the rows int64 of the first `limit` of them, and whether they
          match but for a typo alone.
        """
        whole = fold(pa.array([query.strip()], pa.large_string()))[0].as_py()
        words, similar = whole.split(), False
        if not words:
            return 0, np.empty(0, np.int64), False
        rows = self._matching(words, typos=False)
        can_have_typo = self._has_titles and max(map(len, words)) >= _MIN_TYPO_LENGTH
        if len(rows) == 0 and can_have_typo:
            rows = self._matching(words, typos=True)
            similar = len(rows) > 0
        ids, titles = self._ids.take(pa.array(rows)), self._titles.take(pa.array(rows))
        tests = [pc.equal(ids, whole), pc.starts_with(ids, whole), pc.starts_with(titles, whole)]
        rank = np.select([test.to_numpy(zero_copy_only=False) for test in tests], [0, 1, 2], 3)
        order = np.lexsort((rows, -self._degree[rows], rank))
        return len(rows), rows[order[:limit]], similar

    def _matching(self, words: list[str], typos: bool) -> np.ndarray:
        """Rows int64 of the items that contain every word."""
        tests = []
        for word in words:
            either = [pc.match_substring(column, word) for column in (self._ids, self._titles)]
            if typos and len(word) >= _MIN_TYPO_LENGTH:
                either.append(pc.match_substring_regex(self._titles, one_typo(word)))
            tests.append(functools.reduce(pc.or_, either))
        matches = functools.reduce(pc.and_, tests)
        return np.flatnonzero(matches.to_numpy(zero_copy_only=False))
