"""Checks across tables: ids that do not match, features that are missing, leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.checkup.findings import Findings
from pinsage_jax.checkup.inputs import Inputs, PairTable
from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import column_choice, leaks, pairs_table
from pinsage_jax.data import columns as column_values
from pinsage_jax.data import feature_blocks as blocks
from pinsage_jax.data.columns import examples, format_id, share
from pinsage_jax.data.ids import (
    COMPARED_IDS,
    IdTable,
    look_alikes,
    missing_ids,
    spelled_alike,
    spelling,
    unmet_ids,
)
from pinsage_jax.data.tables import Table, iter_batches

_FEW, _MANY, _HALF, _NEARLY_ALL = 0.01, 0.1, 0.5, 0.95
_BATCH_ROWS = 8192
# Rows that are compared in the search for items with equal features.
_COMPARED_ROWS = 20_000
# Evaluation pairs that are looked up in the edges.
_CHECKED_PAIRS = 5_000


def check_ids(inputs: Inputs, findings: Findings) -> dict[str, Any]:
    """Compares the ids of edges, items and pairs; returns counts for the table."""
    ids, graph = inputs.ids, inputs.graph
    assert ids is not None and graph is not None
    counts: dict[str, Any] = {}
    degree = inputs.degree
    if ids.item_rows:
        counts["items_without_row"] = graph.num_items - ids.item_rows
        if found := unmet_ids(ids.items, ids.item_rows, degree):
            report = findings.problem if found.problem else findings.warn
            report("ids", found.sentence)
    for what, id_table in (("items", ids.items), ("collections", ids.collections)):
        _check_names(what, id_table, findings)
    for flag, table in inputs.pairs.items():
        known = ids.items.names(np.arange(min(graph.num_items, COMPARED_IDS))).to_pylist()
        alike = spelled_alike(table.unknown_ids, known)
        if table.unknown:
            many = len(alike) > _MANY * len(table.unknown_ids)
            report = findings.problem if many else findings.warn
            report(
                "ids",
                f"{share(table.unknown, table.rows)} pairs of --{flag} name an item that is in "
                f"neither --edges nor --items{examples(table.unknown_ids)}; they are left out."
                f"{spelling(alike, '--edges or --items')}",
            )
        if table.self_pairs + table.repeated > _FEW * table.rows:
            findings.warn(
                "ids",
                f"--{flag}: {table.self_pairs:,} pairs join an item with itself, "
                f"which are left out, and {table.repeated:,} are repeated, which count once.",
            )
    return counts


def _check_names(what: str, table: IdTable, findings: Findings) -> None:
    """Warns of ids that look like a missing value, or like one another."""
    if missing := missing_ids(table):
        findings.warn(
            "ids",
            f"{share(len(missing), len(table))} {what} have ids that look like a missing value"
            f"{examples(missing)}: rows without an id would all be one of the {what}.",
        )
    if alike := look_alikes(table):
        one, other = alike[0]
        findings.warn(
            "ids",
            f"{share(len(alike), len(table))} {what} have an id that looks like another one, such "
            f"as {format_id(one)} like {format_id(other)}: is one thing listed under several ids?",
        )


def check_features(inputs: Inputs, findings: Findings) -> tuple[list[dict[str, Any]], list[str]]:
    """Checks the feature columns as the prepare stage does; its errors become problems.

    Returns:
      An entry for each feature column (kind, rows with a value), and a sentence for each table.
    """
    lines = [
        column_choice.line_of_columns(table, _used_columns(flag, inputs.data))
        for flag, table in inputs.tables.items()
        if flag != "items"
    ]
    table = inputs.tables.get("items")
    if table is None:
        return [], lines
    chosen = None
    with findings.caught("features"):
        chosen = column_choice.choose_columns(table, inputs.data)
        inputs.encoders.check(bool(chosen.text), chosen.image, table.label)
    if chosen is None:
        return [], lines
    lines.append(chosen.line(table))
    for name, why in chosen.ignored.items():
        if why.startswith(column_choice.NUMBERS_AS_NAMES):
            findings.warn(
                "features",
                f"Column '{name}' of --items holds {column_choice.NUMBERS_AS_NAMES}: it is no "
                "feature.",
            )
    described = []
    kinds = (
        ("vector", chosen.dense),
        ("number", chosen.numeric),
        ("category", chosen.categorical),
        ("text", chosen.text),
        ("picture", chosen.image),
    )
    rows = inputs.ids.item_rows if inputs.ids is not None else table.num_rows
    for kind, names in kinds:
        for name in names:
            with findings.caught("features"):
                found = _column(table, inputs, kind, name)
                described.append(found)
                if found["present"] < _HALF * found["rows"]:
                    findings.warn(
                        "features",
                        f"Column '{name}' of --items is empty in "
                        f"{share(found['rows'] - found['present'], found['rows'])} rows.",
                    )
    if not described:
        findings.warn(
            "features",
            f"--items has no feature column among {', '.join(table.columns)}; name some with "
            "--text_columns, --dense_columns, --numeric_columns or --categorical_columns.",
        )
    elif rows:
        with findings.caught("features"):
            _check_repeated(table, inputs.data, chosen.all(), findings)
    return described, lines


def _column(table: Table, inputs: Inputs, kind: str, name: str) -> dict[str, Any]:
    data, encoders = inputs.data, inputs.encoders
    fitter: Any = {
        "vector": lambda: blocks.DenseFit(name),
        "number": lambda: blocks.NumericFit(name),
        "category": lambda: blocks.CategoricalFit(
            name, data.category_limit, data.category_separator
        ),
        "text": lambda: None,
        "picture": lambda: None,
    }[kind]()
    rows = present = 0
    for batch in iter_batches(table, [name], batch_rows=_BATCH_ROWS):
        column = batch.column(name)
        if fitter is not None:
            fitter.add(lambda _, column=column: column, len(batch), batch.where)
        elif kind == "picture":
            present += len(column) - column.null_count
        else:
            text = column_values.texts(column, name, batch.where)
            words = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
            present += int(pc.sum(pc.fill_null(words, False)).as_py() or 0)
        rows += len(batch)
    if fitter is not None:
        present = rows - fitter.missing
        block = fitter.finish()
        width = 0 if block is None else block.width
    else:
        encoder = encoders.image if kind == "picture" else encoders.text
        width = len(encoder.fingerprint) if encoder is not None else data.text_dim
    return {"column": name, "kind": kind, "rows": rows, "present": present, "width": width}


def _check_repeated(table: Table, data: DataConfig, names: list[str], findings: Findings) -> None:
    """Warns of rows whose features are all those of an earlier row."""
    groups: dict[tuple[str, ...], str] = {}
    copies: list[str] = []
    rows = 0
    wanted = [data.item_id_column, *(name for name in names if name != data.item_id_column)]
    for batch in iter_batches(table, wanted, batch_rows=_BATCH_ROWS):
        ids = batch.column(data.item_id_column).cast(pa.large_string()).to_pylist()
        columns = [batch.column(name).to_pylist() for name in names]
        for name, *values in zip(ids, *columns):
            if not any(values):
                continue
            key = tuple(map(repr, values))
            if groups.setdefault(key, name) != name:
                copies.append(name)
        rows += len(batch)
        if rows >= _COMPARED_ROWS:
            break
    if len(copies) > _FEW * rows:
        findings.warn(
            "items",
            f"{share(len(copies), rows)} items have the same features as an earlier item"
            f"{examples(copies)}: is one thing listed under several ids?",
        )


def check_leaks(inputs: Inputs, findings: Findings) -> dict[str, Any]:
    """Checks that evaluation pairs cannot be read off the edges or the training pairs.

    Leaks that the prepare stage refuses become problems.

    Returns:
      Counts of evaluation pairs for the table.
    """
    counts: dict[str, Any] = {}
    ids, graph = inputs.ids, inputs.graph
    assert ids is not None and graph is not None
    train, eval_pairs = inputs.pairs.get("train_pairs"), inputs.pairs.get("eval_pairs")
    if train is not None and eval_pairs is not None:
        with findings.caught("leaks"):
            leaks.check_disjoint_pairs(train.pairs, eval_pairs.pairs, ids.items)
    if eval_pairs is None:
        return counts
    with findings.caught("leaks"):
        leaks.check_against_split(
            eval_pairs.table.path,
            inputs.tables["edges"],
            (ids.items, inputs.degree),
            (ids.collections, inputs.sizes),
        )
    counts["eval_pairs"] = len(eval_pairs.pairs)
    counts["eval_pairs_cold"] = int((inputs.degree[eval_pairs.pairs[:, 1]] == 0).sum())
    together, checked, example = pairs_in_one_collection(eval_pairs, inputs)
    counts["share_of_eval_pairs_in_one_collection"] = together / max(checked, 1)
    if together > _NEARLY_ALL * checked:
        query, target = (format_id(name.as_py()) for name in ids.items.names(np.array(example)))
        findings.warn(
            "leaks",
            f"{share(together, checked)} pairs of --eval_pairs whose two items have edges are in "
            f"a collection of --edges together (such as {query} with {target}): if they were "
            "made from these edges, training has seen the answers; --mode=split makes tables "
            "without this leak.",
        )
    return counts


def pairs_in_one_collection(table: PairTable, inputs: Inputs) -> tuple[int, int, list[int]]:
    """Counts pairs whose two items are in the same collection.

    Only pairs whose two items have edges are checked, at most 5,000 of them.

    Returns:
      The number of such pairs, the number of checked pairs, and the first such pair.
    """
    graph = inputs.graph
    assert graph is not None
    rows = np.flatnonzero((inputs.degree[table.pairs] > 0).all(axis=1))
    if len(rows) > _CHECKED_PAIRS:
        rows = rows[np.arange(_CHECKED_PAIRS) * len(rows) // _CHECKED_PAIRS]
    found, example = 0, [0, 0]
    for query, target in table.pairs[rows].tolist():
        # Rows are ascending and hold each neighbor once.
        if len(np.intersect1d(graph.neighbors(query), graph.neighbors(target), True)):
            found += 1
            example = [query, target] if found == 1 else example
    return found, len(rows), example


def refuse_problems(findings: Findings) -> None:
    """Raises UserError if there is a problem, so that the exit code is 2."""
    if count := len(findings.of("problem")):
        things = "problem" if count == 1 else "problems"
        raise UserError(
            f"The inputs have {count} {things}, listed above; correct "
            f"{'it' if count == 1 else 'them'} and run --mode=doctor again."
        )


def _used_columns(flag: str, data: DataConfig) -> dict[str, str]:
    """What the columns of a table that is not --items are, by name."""
    if flag.endswith("_pairs"):
        pairs = (pairs_table.QUERY_COLUMN, pairs_table.TARGET_COLUMN)
        return dict.fromkeys(pairs, "ids") | {pairs_table.KIND_COLUMN: "kind"}
    used = dict.fromkeys((data.collection_column, data.item_column), "ids")
    optional = {data.weight_column: "weights", data.time_column: "times", data.kind_column: "kinds"}
    return used | optional
