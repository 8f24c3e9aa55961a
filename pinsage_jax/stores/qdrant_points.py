"""Qdrant: bodies of its REST requests.

  collection.json        PUT /collections/NAME
  points-00000.json ...  PUT /collections/NAME/points, each about 8 MiB

A point's number is a UUID made from its item id, so a later export replaces an item's point.
The item id itself, the version and the columns are its payload.
"""

from __future__ import annotations

import pathlib
import uuid

from pinsage_jax.stores.rows import ID, StoreRows
from pinsage_jax.stores.values import dumps, json_files

COLLECTION, POINTS = "collection.json", "points"
_NAMESPACE = uuid.UUID("6f0f3a52-5d6c-5c5e-9a8e-1f0f2a6d9b11")


def point_id(item_id: str) -> str:
    """The number of an item's point: a UUID (version 5) of its id."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the bodies into a folder; returns how to go on."""
    distance = "Cosine" if rows.by_cosine else "Dot"
    body = {"vectors": {"size": rows.dimension, "distance": distance}}
    (folder / COLLECTION).write_text(dumps(body) + "\n", encoding="utf-8")
    for path, found in json_files(rows, folder, POINTS, ".json"):
        points = []
        for payload, text in found:
            head = dumps({"id": point_id(payload[ID]), "payload": payload})
            points.append(f'{head[:-1]},"vector":{text}}}')
        path.write_text('{"points":[' + ",\n".join(points) + "]}\n", encoding="utf-8")
    return f"PUT {{}}/{COLLECTION} to /collections/{table}, each {POINTS}-*.json to .../points"
