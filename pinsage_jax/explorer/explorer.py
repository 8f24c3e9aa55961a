"""WORKDIR/explorer.html: an offline page to search the catalog and browse its neighbors.

The page is a single file: markup, style and script from web/, and the data as JSON in a
script block that is not executed.  Numbers are little-endian bytes in base64, so that a
page of 25,000 items opens without delay.  The content security policy allows exactly this
script and this style, so that no text of the catalog can be executed, and pictures from the
named hosts alone.  --mode=serve serves the same page without the data (answers.py).

  N items, k neighbors
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS, OrderedLists
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.explorer import areas, columns, images, layout, review
from pinsage_jax.explorer.encoding import (
    RANGE,
    encode_addresses,
    encode_integers,
    encode_repeated,
    encode_scores,
)
from pinsage_jax.reporting import page
from pinsage_jax.reporting.sources import directions_of, read_source

EXPLORER_FILE = "explorer.html"
NEIGHBORS = 10
_MAX_TITLE_LENGTH = 300
# Told apart on white and on black.
_COLORS = (
    "#1f78c8", "#d55e00", "#2a9d6f", "#b8629a", "#8c7a1f", "#8a63d2", "#2c9aa8", "#c0504d",
    "#6b8e23", "#c98a00", "#5f7fbf", "#a0653a",
)  # fmt: skip
_OTHER = "#8a8a8a"
# In this order they are one script.
_SCRIPTS = ("base", "search", "sources", "judgments", "views", "map", "main")


def check(config: Config, prepared: Prepared) -> None:
    """Refuses columns that --items does not have, before anything takes long.

    Raises:
      UserError: --show_columns or --image_column names no column, or no text.
    """
    if config.explorer.show_columns or config.explorer.image_column:
        for name in columns.named_columns(config.explorer.show_columns):
            columns.require_column(prepared.item_columns, name, "show_columns")
        images.find_images(config, prepared, quiet=True)


def write_explorer(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    ranker: OrderedLists | None = None,
) -> pathlib.Path | None:
    """Writes the page of the run in config.workdir, unless the catalog is too large for one.

    Args:
      config: settings of the run.
      prepared: the catalog.
      embeddings: float32 [N, Z]; the score of two items is their inner product.
      ranker: what orders PinSage's lists, if it is not the embeddings.

    Returns:
      The path of the page; None if the catalog has more items than `explorer_limit`.

    Raises:
      UserError: a column that a flag names is missing.
    """
    path = pathlib.Path(config.workdir) / EXPLORER_FILE
    count = len(embeddings)
    if count > config.explorer.explorer_limit:
        # An older page would show another catalog.
        path.unlink(missing_ok=True)
        logging.info(
            "explorer.html is not written: the catalog has %d items, more than the page's limit of "
            "%d; use --mode=serve to explore it.",
            count, config.explorer.explorer_limit,
        )  # fmt: skip
        return None
    check(config, prepared)
    source = read_source(config, count)
    threads = config.host_threads
    methods = NeighborsByMethod(source.config, prepared, embeddings, threads, ranker)
    data = page_data(config, prepared, methods)
    k, items = data["k"], np.arange(count)
    for method in data["methods"]:
        ids, scores = methods.neighbors(method["name"], items, k, quiet=False)
        method |= {
            "rows": encode_integers(ids),
            **encode_scores(scores, ids >= 0, method["is_count"]),
        }
        if method["name"] == "PinSage":
            lists = review.review_lists(prepared, embeddings, ids, scores)
    data["review"] = [
        {**each, "rows": each["rows"].tolist(),
         "targets": None if each["targets"] is None else each["targets"].tolist()}
        for each in lists
    ]  # fmt: skip
    data["items"], origins = _embedded_items(config, prepared)
    data["collections"] = _embedded_collections(config, prepared)
    data["map"] = map_data(
        config, prepared, directions_of(source, embeddings), config.seed, all_items=True
    )
    html = document(data, images_from=origins)
    with files.atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    logging.info("explorer written to %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _embedded_items(
    config: Config, prepared: Prepared
) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """What the page holds of each item, and the origins of its pictures."""
    titles = None if prepared.titles is None else prepared.titles.to_pylist()
    degree = item_degree(prepared)
    items = {
        "ids": prepared.item_ids.ids.to_pylist(),
        "titles": titles and [title and title[:_MAX_TITLE_LENGTH] for title in titles],
        "degree": encode_integers(degree),
        "columns": [
            encode_repeated(columns.shown_texts(prepared.item_columns, name))
            for name in columns.named_columns(config.explorer.show_columns)
        ],
    }
    found = images.find_images(config, prepared)
    if found is None:
        return items, None
    settings = config.explorer
    if any(found.addresses):
        items["addresses"] = encode_addresses(found.addresses)
    if found.has_files:
        order = np.argsort(-degree, kind="stable")
        items["thumbnails"] = images.inlined(
            found, order, settings.explorer_image_mb, settings.image_column, config.host_threads
        )
    return items, found.origins


def _embedded_collections(config: Config, prepared: Prepared) -> dict[str, Any] | None:
    """Ids of the collections and their items; None if there are too many edges for a page."""
    graph = prepared.graph
    if graph.num_edges > config.explorer.explorer_edges:
        logging.info(
            "explorer.html shows no collections: the catalog has %d edges, more than the page's "
            "limit of %d; --mode=serve shows them.",
            graph.num_edges, config.explorer.explorer_edges,
        )  # fmt: skip
        return None
    offsets = graph.indptr[graph.num_items :] - graph.indptr[graph.num_items]
    return {
        "ids": prepared.collection_ids.ids.to_pylist(),
        "offsets": encode_integers(offsets),
        "items": encode_integers(graph.indices[graph.indptr[graph.num_items] :]),
    }


def page_data(config: Config, prepared: Prepared, methods: NeighborsByMethod) -> dict[str, Any]:
    """The data of the page that does not depend on whether it contains the items.

    Returns:
      run: name of the run.
      summary: size of the catalog, as a phrase that follows the run's name.
      first_item: id of the item to open first, the one with the most edges.
      k: number of neighbors per method.
      methods: name, description, whether scores are counts, and the reasons for an empty
        list of an item without and with edges.
      columns: names of the columns that are shown beside an item.
      palette, other_color: colors of categories, and of what has none.
      catalog: digest of the ids, under which a browser keeps judgments.
    """
    degree = item_degree(prepared)
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
            for name, description in ((name, methods.description(name)) for name in METHODS)
        ],
        "columns": columns.named_columns(config.explorer.show_columns),
        "palette": _COLORS,
        "other_color": _OTHER,
        "catalog": prepared.item_ids.digest(),
    }  # fmt: skip


def map_data(
    config: Config,
    prepared: Prepared,
    directions: np.ndarray,
    seed: int,
    all_items: bool = False,
) -> dict[str, Any]:
    """Lays out the items on a plane, as 16-bit coordinates, with names of areas and colors.

    Args:
      config: settings of the run.
      prepared: the catalog.
      directions: float [N, D].
      seed: key of the sample and of the layout.
      all_items: whether to return coordinates of all N items (65535: none); otherwise only
        those of a sample are returned, with their `rows` int64 [n].

    Returns:
      x and y (encoded), a note, `areas` with name, items, x and y, `colors` (columns.py), and
      `rows` of a sample; only a note if the vectors do not span two axes.
    """
    found = layout.lay_out(directions, seed, config.explorer.map_layout)
    if found is None:
        return {"note": "The embeddings do not span two axes."}
    low, high = found.points.min(axis=0), found.points.max(axis=0)
    span = max(float((high - low).max()), 1e-12)

    def scaled(points: np.ndarray) -> np.ndarray:
        whole = ((points - (low + high) / 2) / span + 0.5) * RANGE
        return np.clip(whole.round(), 0, RANGE).astype(np.int64)

    points, result = scaled(found.points), {"rows": found.rows}
    names = []
    if prepared.titles is not None:
        titles = prepared.titles.take(pa.array(found.rows)).to_pylist()
        names = areas.named_areas(found.points, titles, seed)
    rows: np.ndarray | None = found.rows
    if all_items:
        coordinates = np.full((len(directions), 2), -1, np.int64)
        coordinates[found.rows] = points
        points, result, rows = coordinates, {}, None
    first = columns.named_columns(config.explorer.show_columns)
    colors = [_degree_coloring(prepared), *columns.color_columns(prepared.item_columns, first)]
    return {
        **result,
        "x": encode_integers(points[:, 0], 2),
        "y": encode_integers(points[:, 1], 2),
        "areas": [
            {"name": area["name"], "items": area["items"],
             "x": int(scaled(area["point"])[0]), "y": int(scaled(area["point"])[1])}
            for area in names
        ],
        "colors": [columns.encoded(coloring, rows) for coloring in colors],
        "note": _map_note(found, len(directions)),
    }  # fmt: skip


def _map_note(found: layout.Layout, count: int) -> str:
    of = "" if len(found.rows) == count else f" of {count:,}"
    note = f"{len(found.rows):,}{of} items by {found.description}."
    if np.isfinite(found.kept):
        note += (
            f" {found.kept:.0%} of the {layout.MEASURED_NEIGHBORS} nearest items of an item by "
            f"its embedding are among its {layout.MEASURED_NEIGHBORS} nearest on the map."
        )
    return f"{note} Zoom with the buttons or with Ctrl and the mouse wheel, and drag to move."


def _degree_coloring(prepared: Prepared) -> dict[str, Any]:
    lows = [low for _, low in DEGREE_BUCKETS]
    codes = np.searchsorted(lows, item_degree(prepared), side="right") - 1
    labels = [name for name, _ in DEGREE_BUCKETS]
    return {"name": "number of collections", "labels": labels, "others": 0, "codes": codes}


def document(
    data: dict[str, Any], connect: str = "'none'", images_from: Sequence[str] | None = None
) -> str:
    """The page with its data.

    Args:
      data: of `page_data`, and for an offline page the items and the map.
      connect: source from which the script may fetch, as in a content security policy.
      images_from: origins of pictures, beside those in the page itself.
    """
    style = page.BASE_STYLE + _web("explorer.css")
    scripts = "\n".join(_web(f"{name}.js") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();'
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    if images_from is not None:
        policy += f"; img-src {' '.join(('data:', *images_from))}"
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


def item_degree(prepared: Prepared) -> np.ndarray:
    """Number of collections of each item, int32 [N]."""
    return prepared.graph.degree()[: prepared.graph.num_items]
