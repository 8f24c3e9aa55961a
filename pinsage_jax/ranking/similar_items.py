"""What items with similar content tell of an item without edges (cold).

No walk reaches a cold item and no degree is known of it.  Both are taken from the items with edges
whose content is most like its own, weighted by squared cosines: an item like those that the
walks of a query visit is likely to be collected with the query.

N items, C cold items, S similar items of each, Q queries
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.sampling.content_links import content_links
from pinsage_jax.sampling.neighborhoods import run_blocks

# 30, 60 and 120 find no more in validation on citeulike-t (docs/research.md).
SIMILAR_ITEMS = 10
_ROWS_PER_TASK = 32


class SimilarItems:
    """The items with edges that are like each cold item of one catalog."""

    def __init__(
        self,
        link_rows: np.ndarray,
        cold: np.ndarray,
        warm: np.ndarray,
        threads: int,
        size: int = SIMILAR_ITEMS,
    ):
        """Finds the similar items.

        Args:
          link_rows: features [N, D] or words int32 [N, 2K], as content links compare them.
          cold: int [C], the items without edges.
          warm: int [*], ascending, the items with edges.
          threads: host threads; they change no result.
          size: S.
        """
        ids, shares = content_links(link_rows, cold, warm, size, threads)
        row, column = np.nonzero(ids >= 0)
        counted = shares[row, column].astype(np.float32)
        of_item = sparse.csr_matrix(
            (counted, (ids[row, column], row)), shape=(len(link_rows), len(cold))
        )
        # From each item with edges to the cold ones that it is like.
        self._starts = of_item.indptr.astype(np.int64)
        self._cold, self._shares = of_item.indices.astype(np.int32), of_item.data
        self._threads, self.count = threads, len(cold)

    def mean_of(self, values: np.ndarray) -> np.ndarray:
        """The mean of values float32 [N] over the items like each cold item, float32 [C]."""
        return self.means_of(np.asarray(values, np.float32)[None])[0]

    def means_of(self, values: np.ndarray) -> np.ndarray:
        """The means of each row of values float32 [Q, N], float32 [Q, C]; those below 0 count 0."""
        means = np.zeros((len(values), self.count), np.float32)

        def work(begin: int, end: int) -> None:
            span = slice(begin, end)
            _spread(values[span], self._starts, self._cold, self._shares, means[span])

        run_blocks(len(values), self._threads, work, _ROWS_PER_TASK)
        return means


@njit(nogil=True, cache=True)
def _spread(values, starts, cold, shares, means):
    """Adds values[q, i] * shares[e] to means[q, cold[e]] for all entries e of item i.

    Few items of a row have a value above 0 when these are visits of a walk, so the cost of a row is
    that of reading it.

    Args:
      values: float32 [Q, N].
      starts: int64 [N + 1]; cold: int32 [*], shares: float32 [*], entries of each item.
      means: float32 [Q, C] output, zeros.
    """
    for row in range(values.shape[0]):
        for item in range(values.shape[1]):
            value = values[row, item]
            if value > np.float32(0.0):
                for entry in range(starts[item], starts[item + 1]):
                    means[row, cold[entry]] += value * shares[entry]
