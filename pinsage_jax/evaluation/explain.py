"""--mode=explain: explains the rank of one item among the neighbors of another.

The explanation contains evidence from the graph (shared collections, visit counts of random
walks), from the content (cosine similarity of the features) and from the embeddings (score,
rank, and the neighbors that each embedding pools, with their weights).  It is printed and
written to WORKDIR/explain as JSON.

  N items, Z embedding dimensions
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.batching.graph_view import lists_of_some
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.text_table import aligned, terminal_width
from pinsage_jax.evaluation.baselines import Content
from pinsage_jax.graph.edge_weights import kinds_between
from pinsage_jax.retrieval.neighbors import ids_and_titles, rows_of
from pinsage_jax.retrieval.ranks import ranks_from_scores
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.sampling.neighborhoods import visit_scores

FOLDER = "explain"
_MAX_COLLECTIONS = 20
_MAX_NAME_LENGTH = 40


def explain(config: Config, prepared: Prepared, embeddings: np.ndarray) -> dict[str, Any]:
    """Explains --target as a neighbor of --query; prints tables and writes a JSON file.

    Args:
      config: settings of the run.
      prepared: the catalog.
      embeddings: float32 [N, Z]; the score of two items is their inner product.

    Returns:
      The contents of the JSON file.

    Raises:
      UserError: an id is unknown, or both are the same.
    """
    given = pa.array([config.evaluate.query, config.evaluate.target], pa.large_string())
    known = prepared.item_ids.lookup(given) >= 0
    # Ids may begin or end with blanks.
    names = [name if there else name.strip() for name, there in zip(given.to_pylist(), known)]
    rows = np.concatenate(
        [rows_of([name], prepared, flag) for name, flag in zip(names, ("query", "target"))]
    )
    if rows[0] == rows[1]:
        raise UserError(f"--query and --target are both {names[0]}; name two items.")
    result = {
        "query": _item(prepared, rows[0]),
        "target": _item(prepared, rows[1]),
        "shared_collections": shared_collections(prepared, *rows.tolist()),
        "walk": _walk(config, prepared, rows),
        "kinds": kinds_of_pair(prepared, *rows.tolist()),
        "content": _content(prepared, rows),
        "embedding": _embedding(config, prepared, embeddings, rows),
        "neighbors": _pooled_neighbors(config, prepared, rows),
    }
    print(format_explanation(result, terminal_width()))
    path = pathlib.Path(config.workdir) / FOLDER / file_name(*names)
    files.write_json(path, result)
    print(f"\nWritten to {path}")
    return result


def file_name(query: str, target: str) -> str:
    """A safe, readable file name for two arbitrary ids; a hash makes it unique."""
    readable = [
        re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:_MAX_NAME_LENGTH] for name in (query, target)
    ]
    # With the length in the key, ("ab", "c") and ("a", "bc") differ.
    key = hashlib.sha256(f"{len(query)} {query}{target}".encode()).hexdigest()[:10]
    return f"{readable[0]}--{readable[1]}--{key}.json"


def _item(prepared: Prepared, row: int) -> dict[str, Any]:
    """Id, title and number of collections of one item."""
    name, *title = ids_and_titles(prepared, np.array([row]))[0]
    edges = int(prepared.graph.indptr[row + 1] - prepared.graph.indptr[row])
    return {"item_id": name, "title": "".join(title), "collections": edges}


def shared_collections(prepared: Prepared, query: int, target: int) -> dict[str, Any]:
    """The collections that contain both items: their number, and the smallest ones.

    Returns:
      {"count", "smallest": [{"collection_id", "items"}, ...]}, at most _MAX_COLLECTIONS.
    """
    graph = prepared.graph
    both = np.intersect1d(graph.neighbors(query), graph.neighbors(target), assume_unique=True)
    sizes = graph.indptr[both + 1] - graph.indptr[both]
    order = np.argsort(sizes, kind="stable")[:_MAX_COLLECTIONS]
    names = prepared.collection_ids.names(both[order] - graph.num_items).to_pylist()
    return {
        "count": len(both),
        "smallest": [
            {"collection_id": name, "items": int(size)} for name, size in zip(names, sizes[order])
        ],
    }


def kinds_of_pair(prepared: Prepared, query: int, target: int) -> dict[str, float] | None:
    """By which kinds of the query's edges one step of a walk reaches the target.

    Returns:
      The share of each kind in the probability of the step, largest first; empty if no
      collection holds both; None where edges have no kinds (--kind_column).
    """
    if prepared.edge_kinds is None:
        return None
    kinds, names = prepared.edge_kinds
    (found,) = kinds_between(prepared.graph, kinds, query, np.array([target]))
    shares = {
        name: float(part / found.sum()) for name, part in zip(names, found[: len(names)]) if part
    }
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _walk(config: Config, prepared: Prepared, rows: np.ndarray) -> dict[str, Any]:
    """Visits of each item by walks from the other, and its rank among the items visited."""
    walks = config.embed.embed_walks or config.sampling.num_walks
    ids, counts = visit_scores(
        prepared.graph, rows, config.sampling, config.seed, walks, config.host_threads
    )
    found: dict[str, Any] = {"walks": walks, "steps": config.sampling.walk_length}
    for row, name in enumerate(("query_to_target", "target_to_query")):
        column = np.flatnonzero(ids[row] == rows[1 - row])
        visits = int(counts[row, column[0]]) if len(column) else 0
        found[name] = {
            "visits": visits,
            "share": visits / max(int(counts[row].sum()), 1),
            # Of items with equal visits, those listed earlier rank better.
            "rank": int(column[0]) + 1 if len(column) else None,
            "visited_items": int((ids[row] >= 0).sum()),
        }
    return found


def _content(prepared: Prepared, rows: np.ndarray) -> dict[str, Any] | None:
    """Cosine similarity of the features and the target's rank by it; None without features."""
    if not prepared.features.shape[1]:
        return None
    scores = Content(prepared.features).scores(rows[:1])
    ranks = ranks_from_scores(scores, np.zeros(1, np.int64), rows[:1], rows[1:])
    return {"cosine": float(scores[0, rows[1]]), "rank": int(ranks[0])}


def _embedding(
    config: Config, prepared: Prepared, embeddings: np.ndarray, rows: np.ndarray
) -> dict[str, Any]:
    """The score of the embeddings, its parts, and the rank of each item for the other."""
    pair = embeddings[rows]
    ranks = target_ranks(pair, embeddings, rows, rows[::-1])
    found: dict[str, Any] = {
        "score": float(pair[0] @ pair[1]),
        "rank_of_target": int(ranks[0]),
        "rank_of_query": int(ranks[1]),
        "catalog_items": prepared.graph.num_items,
    }
    if config.model.popularity_bias:
        # The last coordinate is the popularity bias, which does not depend on the query.
        found["similarity"] = float(pair[0, :-1] @ pair[1, :-1])
        found["popularity_bias"] = float(pair[0, -1] * pair[1, -1])
    return found


def _pooled_neighbors(config: Config, prepared: Prepared, rows: np.ndarray) -> dict[str, Any]:
    """The --k neighbors of largest weight that each embedding pools, and those in both lists."""
    lists = lists_of_some(config, prepared, rows)
    ids, weights = lists.lookup(rows.astype(np.int32))
    walk_columns = lists.source.sampling.num_neighbors
    graph = prepared.graph
    found: dict[str, Any] = {}
    merged: list[dict[int, float]] = []
    for row, name in enumerate(("query", "target")):
        total: dict[int, float] = {}
        walk_weight: dict[int, float] = {}
        # A neighbor may be listed twice, by the walk and by its content.
        for column in np.flatnonzero((ids[row] >= 0) & (weights[row] > 0)).tolist():
            node, weight = int(ids[row, column]), float(weights[row, column])
            total[node] = total.get(node, 0.0) + weight
            by_walk = weight if column < walk_columns else 0.0
            walk_weight[node] = walk_weight.get(node, 0.0) + by_walk
        merged.append(total)
        best = [node for _, node in sorted((-weight, node) for node, weight in total.items())]
        found[name] = [
            {**_node(prepared, node), "weight": total[node], "walk_weight": walk_weight[node]}
            for node in best[: config.evaluate.neighbors_listed]
            if node < graph.num_nodes
        ]
        if prepared.edge_kinds is not None:
            for node, entry in zip(best, found[name]):
                if node < graph.num_items:
                    entry["kinds"] = kinds_of_pair(prepared, int(rows[row]), node)
    both = sorted(set(merged[0]) & set(merged[1]), key=lambda n: (-merged[0][n] * merged[1][n], n))
    found["in_both"] = [
        {
            **_node(prepared, node),
            "weight_in_query": merged[0][node],
            "weight_in_target": merged[1][node],
        }
        for node in both[: config.evaluate.neighbors_listed]
    ]
    return found


def _node(prepared: Prepared, node: int) -> dict[str, str]:
    """Id and title of an item, or the id of a collection (with --neighborhood=all)."""
    items = prepared.graph.num_items
    if node >= items:
        name = prepared.collection_ids.names(np.array([node - items]))[0].as_py()
        return {"collection_id": name}
    name, *title = ids_and_titles(prepared, np.array([node]))[0]
    return {"item_id": name, "title": "".join(title)}


def format_explanation(result: dict[str, Any], width: int | None = None) -> str:
    """The explanation as aligned text, its tables of at most `width` characters."""
    table = functools.partial(aligned, width=width, least=3)
    query, target = result["query"], result["target"]
    lines = [
        f"{heading}  {_format_node(item)}"
        for heading, item in (("query ", query), ("target", target))
    ]
    embedding, shared, walk = (result[name] for name in ("embedding", "shared_collections", "walk"))
    rows = [["", "query", "target"]]
    rows.append(["collections", f"{query['collections']:,}", f"{target['collections']:,}"])
    rows.append(
        ["rank among the other's neighbors", f"{embedding['rank_of_query']:,}",
         f"{embedding['rank_of_target']:,}"]
    )  # fmt: skip
    of_query, of_target = walk["target_to_query"], walk["query_to_target"]
    visits = f"visits by walks from the other ({walk['walks']:,} walks)"
    rows.append([visits, f"{of_query['visits']:,}", f"{of_target['visits']:,}"])
    rows.append(["rank by visits", _format_visit_rank(of_query), _format_visit_rank(of_target)])
    lines += ["", *table(rows), ""]
    score = f"score {embedding['score']:.4f}"
    if "similarity" in embedding:
        score += (
            f" = {embedding['similarity']:.4f} (similarity) + "
            f"{embedding['popularity_bias']:.4f} (product of the popularity biases)"
        )
    lines.append(f"{score}; rank {embedding['rank_of_target']:,} of {embedding['catalog_items']:,}")
    if result["content"] is None:
        lines.append("The items have no features.")
    else:
        content = result["content"]
        lines.append(
            f"cosine similarity of features {content['cosine']:.4f}; rank {content['rank']:,}"
        )
    lines.append(f"shared collections: {shared['count']:,}")
    if result["kinds"]:
        lines.append(f"by kind, of a step from query to target: {_format_kinds(result['kinds'])}")
    for collection in shared["smallest"]:
        name = _on_one_line(collection["collection_id"])
        lines.append(f"  {name}  ({collection['items']:,} items)")
    for name in ("query", "target"):
        heading = f"neighbors of largest weight in the {name}'s embedding"
        listed = result["neighbors"][name]
        with_kinds = any("kinds" in node for node in listed)
        rows = [[heading, "weight", "from the walk"] + ["by kind"] * with_kinds]
        for node in listed:
            rows.append([_format_node(node), f"{node['weight']:.4f}", f"{node['walk_weight']:.4f}"])
            rows[-1] += [_format_kinds(node.get("kinds") or {})] * with_kinds
        lines += ["", *(table(rows) if len(rows) > 1 else [f"{heading}: none"])]
    rows = [["neighbors of both", "weight in query", "weight in target"]]
    for node in result["neighbors"]["in_both"]:
        weights = node["weight_in_query"], node["weight_in_target"]
        rows.append([_format_node(node), *(f"{weight:.4f}" for weight in weights)])
    lines += ["", *(table(rows) if len(rows) > 1 else ["neighbors of both: none"])]
    return "\n".join(lines)


def _format_visit_rank(visits: dict[str, Any]) -> str:
    if visits["rank"] is None:
        return "not visited"
    return f"{visits['rank']:,} of {visits['visited_items']:,}"


def _format_node(node: dict[str, Any]) -> str:
    if "collection_id" in node:
        return _on_one_line(f"collection {node['collection_id']}")
    return f"{_on_one_line(node['item_id'])}  {node['title']}".rstrip()


def _format_kinds(kinds: dict[str, float]) -> str:
    return ", ".join(f"{_on_one_line(name)} {share:.0%}" for name, share in kinds.items())


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
