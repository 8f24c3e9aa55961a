"""WORKDIR/explorer.html: an offline page to search the catalog and browse its neighbors.

The page is a single file: markup, style and script from web/, and the data as JSON in a
script block that is not executed.  Numbers are little-endian bytes in base64, so that a
page of 25,000 items opens without delay.  The content security policy allows exactly this
script and this style, so that no text of the catalog can be executed.  --mode=serve serves
the same page without the data.

  N items, k neighbors
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.reporting import figures, page, space
from pinsage_jax.reporting.sources import directions_of, read_source

EXPLORER_FILE = "explorer.html"
NEIGHBORS = 10
# Dots on the map; more would only hide each other.
_MAX_DOTS = 50_000
_MAX_TITLE_LENGTH = 300
# Coordinates of the map are 16-bit integers from 0 to _MAP_RANGE; 65535 means no coordinate.
_MAP_RANGE = 65534


def write_explorer(
    config: Config, prepared: Prepared, embeddings: np.ndarray
) -> pathlib.Path | None:
    """Writes the page of the run in config.workdir, unless the catalog is too large for one.

    Args:
      config: settings of the run.
      prepared: the catalog.
      embeddings: float32 [N, Z]; the score of two items is their inner product.

    Returns:
      The path of the page; None if the catalog has more items than `explorer_limit`.
    """
    path = pathlib.Path(config.workdir) / EXPLORER_FILE
    count = len(embeddings)
    if count > config.serve.explorer_limit:
        # An older page would show another catalog.
        path.unlink(missing_ok=True)
        logging.info(
            "explorer.html is not written: the catalog has %d items, more than the page's limit of "
            "%d; use --mode=serve to explore it.",
            count, config.serve.explorer_limit,
        )  # fmt: skip
        return None
    source = read_source(config, count)
    methods = NeighborsByMethod(source.config, prepared, embeddings, config.host_threads)
    data = page_data(config, prepared, methods)
    k, items = data["k"], np.arange(count)
    for method in data["methods"]:
        ids, scores = methods.neighbors(method["name"], items, k, quiet=False)
        method |= {
            "rows": encode_integers(ids),
            **_encode_scores(scores, ids >= 0, method["is_count"]),
        }
    titles = None if prepared.titles is None else prepared.titles.to_pylist()
    data["items"] = {
        "ids": prepared.item_ids.ids.to_pylist(),
        "titles": titles and [title and title[:_MAX_TITLE_LENGTH] for title in titles],
        "degree": encode_integers(_degree(prepared)),
    }
    data["map"] = map_data(directions_of(source, embeddings), config.seed, all_items=True)
    html = document(data)
    with files.atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    logging.info("explorer written to %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def page_data(config: Config, prepared: Prepared, methods: NeighborsByMethod) -> dict[str, Any]:
    """The data of the page that does not depend on whether it contains the items.

    Returns:
      run: name of the run.
      summary: size of the catalog, as a phrase that follows the run's name.
      first_item: id of the item to open first, the one with the most edges.
      k: number of neighbors per method.
      methods: name, description, whether scores are counts, and the reasons for an empty
        list of an item without and with edges.
      buckets: lowest degree, label and color of each range of degrees.
    """
    degree = _degree(prepared)
    first = prepared.item_ids.names(np.array([int(np.argmax(degree))]))[0].as_py()
    return {
        "run": pathlib.Path(config.workdir).resolve().name,
        "summary": f": {len(degree):,} items in {prepared.graph.num_collections:,} collections.",
        "first_item": first,
        "k": min(NEIGHBORS, max(len(degree) - 1, 1)),
        "methods": [
            {
                "name": name,
                "description": f"{description[:1].upper()}{description[1:]}.",
                "is_count": name == "Walk",
                "empty_reasons": [
                    methods.reason_if_empty(name, 0), methods.reason_if_empty(name, 1)
                ],
            }
            for name, description in METHODS.items()
        ],
        "buckets": [
            {"from": low, "label": f"in {name} collections", "color": figures.COLORS[number]}
            for number, (name, low) in enumerate(DEGREE_BUCKETS)
        ],
    }  # fmt: skip


def map_data(directions: np.ndarray, seed: int, all_items: bool = False) -> dict[str, Any]:
    """Projects vectors onto their two principal axes, as 16-bit coordinates.

    Args:
      directions: float [N, D].
      seed: key of the sample and of the decomposition.
      all_items: whether to return coordinates of all N items (65535: none); otherwise only
        those of a sample are returned, with their `rows` int64 [n].

    Returns:
      x and y (encoded), a note, and `rows` of a sample; only a note if the vectors do not
      span two axes.
    """
    flat = space.projection(directions, _MAX_DOTS, keyed_generator(seed, "explorer map"), seed)
    if flat is None:
        return {"note": "The embeddings do not span two axes."}
    low, high = flat.points.min(axis=0), flat.points.max(axis=0)
    span = max(float((high - low).max()), 1e-12)
    points = ((flat.points - (low + high) / 2) / span + 0.5) * _MAP_RANGE
    points = np.clip(points.round(), 0, _MAP_RANGE).astype(np.int64)
    result: dict[str, Any] = {"rows": flat.rows}
    if all_items:
        coordinates = np.full((len(directions), 2), -1, np.int64)
        coordinates[flat.rows] = points
        points, result = coordinates, {}
    of = "" if len(flat.rows) == len(directions) else f" of {len(directions):,}"
    return {
        **result,
        "x": encode_integers(points[:, 0], 2),
        "y": encode_integers(points[:, 1], 2),
        "note": f"{len(flat.rows):,}{of} items by the first two principal components of their "
        f"embeddings, which explain {flat.explained_variance:.0%} of the variance: items that "
        "overlap here may be far apart. Click a dot to open its item; zoom with the buttons or "
        "with Ctrl and the mouse wheel, and drag to move.",
    }


def encode_integers(numbers: np.ndarray, width: int = 0) -> dict[str, Any]:
    """Encodes integers from -1 up as unsigned bytes in base64; -1 becomes the largest number.

    Args:
      numbers: int, any shape.
      width: bytes per number: 1, 2 or 4; 0: the smallest that fits.
    """
    largest = int(numbers.max(initial=0))
    width = width or next(size for size in (1, 2, 4) if largest < 2 ** (8 * size) - 1)
    data = numbers.astype(f"<u{width}").tobytes()
    return {"bytes": width, "data": base64.b64encode(data).decode("ascii")}


def _encode_scores(scores: np.ndarray, valid: np.ndarray, is_count: bool) -> dict[str, Any]:
    """Encodes scores as offset + step * integer, of 16 bits unless the scores are counts."""
    values = np.where(valid, scores, 0.0).astype(np.float64)
    if is_count:
        return {"offset": 0, "step": 1, "scores": encode_integers(values.astype(np.int64))}
    offset = float(values.min(initial=0.0))
    step = max(float(values.max(initial=0.0)) - offset, 1e-12) / _MAP_RANGE
    codes = np.round((values - offset) / step)
    return {"offset": offset, "step": step, "scores": encode_integers(codes, 2)}


def document(data: dict[str, Any], connect: str = "'none'") -> str:
    """The page with its data.

    Args:
      data: of `page_data`, and for an offline page the items and the map.
      connect: source from which the script may fetch, as in a content security policy.
    """
    style, script = page.BASE_STYLE + _web("explorer.css"), _web("explorer.js")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    # Without "<" the data can neither end the script block nor begin a comment in it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    block = page.Html(text.replace("<", "\\u003c"))
    body = page.join(
        (
            page.Html(_web("explorer.html")),
            page.element("script", block, type="application/json", id="data"),
            page.element("script", page.Html(script)),
            page.Html("</body>"),
        )
    )
    return page.html_file("PinSage explorer", policy, style, body)


def _web(name: str) -> str:
    folder = importlib.resources.files("pinsage_jax.explorer") / "web"
    return (folder / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _degree(prepared: Prepared) -> np.ndarray:
    return prepared.graph.degree()[: prepared.graph.num_items]
