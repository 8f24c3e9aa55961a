"""--mode=explain: why one item stands where it does among the neighbors of another.

What the graph says (collections they share, visits of the walk), what the content says
(cosine of the features), which neighbors each embedding is pooled from and with what
weight, and where the embedding puts the one for the other.  WORKDIR/explain holds the
same as JSON.

  N items, Z embedding dimensions
"""

from __future__ import annotations

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
from pinsage_jax.core.text_table import aligned
from pinsage_jax.evaluation.baselines import Content
from pinsage_jax.retrieval.neighbors import ids_and_titles, rows_of
from pinsage_jax.retrieval.ranks import ranks_from_scores
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.sampling.neighborhoods import visit_scores

FOLDER = "explain"
_MOST_COLLECTIONS = 20
_NAME_LENGTH = 40


def explain(config: Config, prepared: Prepared, embeddings: np.ndarray) -> dict[str, Any]:
    """Explains --target as a neighbor of --query; prints tables and writes JSON.

    Args:
      embeddings: float32 [N, Z]; the score of two items is their inner product.

    Returns:
      What the JSON file holds.

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
        "query": _about(prepared, rows[0]),
        "target": _about(prepared, rows[1]),
        "shared_collections": shared_collections(prepared, *rows.tolist()),
        "walk": _walks(config, prepared, rows),
        "content": _content(prepared, rows),
        "embedding": _embedding(config, prepared, embeddings, rows),
        "neighbors": _neighbors(config, prepared, rows),
    }
    print(explain_text(result))
    path = pathlib.Path(config.workdir) / FOLDER / file_name(*names)
    files.write_json(path, result)
    print(f"\nWritten to {path}")
    return result


def file_name(query: str, target: str) -> str:
    """A file name for two ids whatever they hold: readable, and told apart by a hash."""
    readable = [re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:_NAME_LENGTH] for name in (query, target)]
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    key = hashlib.sha256(f"{len(query)} {query}{target}".encode()).hexdigest()[:10]
    return f"{readable[0]}--{readable[1]}--{key}.json"


def _about(prepared: Prepared, row: int) -> dict[str, Any]:
    name, *title = ids_and_titles(prepared, np.array([row]))[0]
    edges = int(prepared.graph.indptr[row + 1] - prepared.graph.indptr[row])
    return {"item_id": name, "title": "".join(title), "collections": edges}


def shared_collections(prepared: Prepared, query: int, target: int) -> dict[str, Any]:
    """Collections that hold both items: how many, and the smallest of them by id and size."""
    graph = prepared.graph
    both = np.intersect1d(graph.neighbors(query), graph.neighbors(target), assume_unique=True)
    sizes = graph.indptr[both + 1] - graph.indptr[both]
    order = np.argsort(sizes, kind="stable")[:_MOST_COLLECTIONS]
    names = prepared.collection_ids.names(both[order] - graph.num_items).to_pylist()
    return {
        "count": len(both),
        "smallest": [
            {"collection_id": name, "items": int(size)} for name, size in zip(names, sizes[order])
        ],
    }


def _walks(config: Config, prepared: Prepared, rows: np.ndarray) -> dict[str, Any]:
    """Visits of either item by walks from the other, and its place among those visited."""
    walks = config.embed.embed_walks or config.sampling.num_walks
    ids, counts = visit_scores(
        prepared.graph, rows, config.sampling, config.seed, walks, config.host_threads
    )
    found: dict[str, Any] = {"walks": walks, "steps": config.sampling.walk_length}
    for place, name in enumerate(("query_to_target", "target_to_query")):
        at = np.flatnonzero(ids[place] == rows[1 - place])
        visits = int(counts[place, at[0]]) if len(at) else 0
        found[name] = {
            "visits": visits,
            "share": visits / max(int(counts[place].sum()), 1),
            # Ties count as better, as long as they come first.
            "place": int(at[0]) + 1 if len(at) else None,
            "visited": int((ids[place] >= 0).sum()),
        }
    return found


def _content(prepared: Prepared, rows: np.ndarray) -> dict[str, Any] | None:
    """Cosine of the features, and rank of the target by it; None without features."""
    if not prepared.features.shape[1]:
        return None
    scores = Content(prepared.features).scores(rows[:1])
    ranks = ranks_from_scores(scores, np.zeros(1, np.int64), rows[:1], rows[1:])
    return {"cosine": float(scores[0, rows[1]]), "rank": int(ranks[0])}


def _embedding(
    config: Config, prepared: Prepared, embeddings: np.ndarray, rows: np.ndarray
) -> dict[str, Any]:
    """The score, what it is made of, and the ranks that it gives."""
    pair = embeddings[rows]
    ranks = target_ranks(pair, embeddings, rows, rows[::-1])
    found: dict[str, Any] = {
        "score": float(pair[0] @ pair[1]),
        "rank_of_target": int(ranks[0]),
        "rank_of_query": int(ranks[1]),
        "catalog": prepared.graph.num_items,
    }
    if config.model.popularity_bias:
        # The last coordinate tells how likely an item is whatever the query.
        found["closeness"] = float(pair[0, :-1] @ pair[1, :-1])
        found["popularity"] = float(pair[0, -1] * pair[1, -1])
    return found


def _neighbors(config: Config, prepared: Prepared, rows: np.ndarray) -> dict[str, Any]:
    """The --k neighbors that weigh most in either embedding, and those in both lists."""
    lists = lists_of_some(config, prepared, rows)
    ids, weights = lists.of(rows.astype(np.int32))
    walked = lists.source.sampling.num_neighbors
    graph = prepared.graph
    found: dict[str, Any] = {}
    merged: list[dict[int, float]] = []
    for place, name in enumerate(("query", "target")):
        total: dict[int, float] = {}
        by_walk: dict[int, float] = {}
        # A neighbor may be there twice, by the walk and by its content.
        for column in np.flatnonzero((ids[place] >= 0) & (weights[place] > 0)).tolist():
            node, weight = int(ids[place, column]), float(weights[place, column])
            total[node] = total.get(node, 0.0) + weight
            by_walk[node] = by_walk.get(node, 0.0) + (weight if column < walked else 0.0)
        merged.append(total)
        best = [node for _, node in sorted((-weight, node) for node, weight in total.items())]
        found[name] = [
            {**_named(prepared, node), "weight": total[node], "by_walk": by_walk[node]}
            for node in best[: config.evaluate.k]
            if node < graph.num_nodes
        ]
    both = sorted(set(merged[0]) & set(merged[1]), key=lambda n: (-merged[0][n] * merged[1][n], n))
    found["in_both"] = [
        {
            **_named(prepared, node),
            "weight_in_query": merged[0][node],
            "weight_in_target": merged[1][node],
        }
        for node in both[: config.evaluate.k]
    ]
    return found


def _named(prepared: Prepared, node: int) -> dict[str, str]:
    """Id and title of an item; with --neighborhood=all a neighbor may be a collection."""
    items = prepared.graph.num_items
    if node >= items:
        name = prepared.collection_ids.names(np.array([node - items]))[0].as_py()
        return {"collection_id": name}
    name, *title = ids_and_titles(prepared, np.array([node]))[0]
    return {"item_id": name, "title": "".join(title)}


def explain_text(result: dict[str, Any]) -> str:
    """The explanation for a person."""
    query, target = result["query"], result["target"]
    lines = [
        f"{heading}  {_shown(about)}" for heading, about in (("query ", query), ("target", target))
    ]
    embedding, shared, walk = (result[name] for name in ("embedding", "shared_collections", "walk"))
    rows = [["", "query", "target"]]
    rows.append(["collections", f"{query['collections']:,}", f"{target['collections']:,}"])
    rows.append(
        ["rank among the other's neighbors", f"{embedding['rank_of_query']:,}",
         f"{embedding['rank_of_target']:,}"]
    )  # fmt: skip
    back, there = walk["target_to_query"], walk["query_to_target"]
    visits = f"visits from the other ({walk['walks']:,} walks)"
    rows.append([visits, f"{back['visits']:,}", f"{there['visits']:,}"])
    rows.append(["place by visits", *(_place(way) for way in (back, there))])
    lines += ["", *aligned(rows), ""]
    score = f"score {embedding['score']:.4f}"
    if "closeness" in embedding:
        score += (
            f" = {embedding['closeness']:.4f} closeness + {embedding['popularity']:.4f} "
            "popularity of both"
        )
    lines.append(f"{score}; rank {embedding['rank_of_target']:,} of {embedding['catalog']:,}")
    if result["content"] is None:
        lines.append("The items have no features.")
    else:
        content = result["content"]
        lines.append(f"cosine of features {content['cosine']:.4f}; rank {content['rank']:,}")
    lines.append(f"shared collections: {shared['count']:,}")
    for collection in shared["smallest"]:
        name = _on_one_line(collection["collection_id"])
        lines.append(f"  {name}  ({collection['items']:,} items)")
    for name in ("query", "target"):
        heading = f"neighbors that weigh most in the {name}"
        rows = [[heading, "weight", "of it by walk"]]
        for other in result["neighbors"][name]:
            rows.append([_shown(other), f"{other['weight']:.4f}", f"{other['by_walk']:.4f}"])
        lines += ["", *(aligned(rows) if len(rows) > 1 else [f"{heading}: none"])]
    rows = [["neighbors of both", "in the query", "in the target"]]
    for other in result["neighbors"]["in_both"]:
        weights = other["weight_in_query"], other["weight_in_target"]
        rows.append([_shown(other), *(f"{weight:.4f}" for weight in weights)])
    lines += ["", *(aligned(rows) if len(rows) > 1 else ["neighbors of both: none"])]
    return "\n".join(lines)


def _place(way: dict[str, Any]) -> str:
    return "not visited" if way["place"] is None else f"{way['place']:,} of {way['visited']:,}"


def _shown(other: dict[str, Any]) -> str:
    if "collection_id" in other:
        return _on_one_line(f"collection {other['collection_id']}")
    return f"{_on_one_line(other['item_id'])}  {other['title']}".rstrip()


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
