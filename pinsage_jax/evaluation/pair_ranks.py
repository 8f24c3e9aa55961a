"""The pairs that an evaluation scores, and WORKDIR/eval_ranks.parquet, their ranks by all methods.

The table has one row a pair, in the order in which eval.json counted them:

  query_id, item_id  string; the pair
  kind               string; its kind
  candidates         int64; items that were ranked: the catalog without the query
  rank_<method>      int64; the target's rank by each method of eval.json, 1 is the best

The metadata of the schema name the tie rule and the fingerprint of the evaluation.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.core import files
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit

RANKS_FILE = "eval_ranks.parquet"
RANK = "rank_"


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredPairs:
    """The distinct pairs to score.

    Attributes:
      pairs: int32 [P, 2], query and target.
      kinds: str [P].
      source: eval_pairs or validation.
      repeated: number of repeated pairs that were dropped.
      notes: notes about the pairs, for the tables and eval.json.
    """

    pairs: np.ndarray
    kinds: np.ndarray
    source: str
    repeated: int
    notes: list[str]


def pairs_to_score(
    prepared: Prepared,
    validation: ValidationSplit | None,
    graph: Graph,
    fitted: bool,
) -> ScoredPairs | None:
    """The evaluation pairs or, without any, the validation pairs; None without either.

    Args:
      graph: the graph that the embeddings were computed over.
      fitted: whether a ranker that was fitted on the validation split is scored.
    """
    pairs, kinds, source = prepared.eval_pairs, prepared.eval_kinds, "eval_pairs"
    notes: list[str] = []
    if len(pairs) == 0:
        if validation is None or len(validation.pairs) == 0:
            return None
        pairs, kinds, source = validation.pairs, validation.kinds, "validation"
        note = (
            "there are no --eval_pairs; these are validation pairs, on which training chose its "
            "checkpoint and its cold-start bias, so the metrics of PinSage are a little too high"
        )
        if graph.num_edges > validation.train_graph.num_edges:
            notes = [
                note,
                "the graph contains the collections of the validation pairs, so every metric is "
                "too high",
            ]
        else:
            notes = [
                f"{note}; PinSage and the baselines are scored on the training graph, from which "
                "the collections of these pairs are withheld"
            ]
        if fitted:
            notes.append("the ranker was fitted on the same validation split")
    # The distinct pairs, in the order of their first occurrence.
    _, first = np.unique(np.asarray(pairs), axis=0, return_index=True)
    first = np.sort(first)
    repeated = len(pairs) - len(first)
    return ScoredPairs(np.asarray(pairs)[first], np.asarray(kinds)[first], source, repeated, notes)


def write_pair_ranks(
    workdir: str | pathlib.Path,
    pairs: np.ndarray,
    kinds: np.ndarray,
    ranks: dict[str, np.ndarray],
    item_ids: IdTable,
    about: dict[str, Any],
) -> pathlib.Path:
    """Writes the table, whole, and returns its path.

    Args:
      pairs: int32 [P, 2], query and target.
      kinds: str [P].
      ranks: int64 [P] by method.
      item_ids: ids of all items.
      about: metadata of the schema.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    query, target = pairs.T
    columns: dict[str, Any] = {
        "query_id": item_ids.names(query).cast(pa.string()),
        "item_id": item_ids.names(target).cast(pa.string()),
        "kind": pa.array(kinds.tolist(), pa.string()),
        "candidates": np.full(len(pairs), len(item_ids) - 1, np.int64),
    }
    columns |= {f"{RANK}{name}": np.asarray(rank, np.int64) for name, rank in ranks.items()}
    table = pa.table(columns)
    table = table.replace_schema_metadata({name: str(value) for name, value in about.items()})
    path = pathlib.Path(workdir) / RANKS_FILE
    with files.atomic_file(path) as temporary:
        pq.write_table(table, temporary)
    return path
