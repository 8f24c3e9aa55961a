"""WORKDIR/explorer.html: the whole catalog to search and click through, offline.

One file: markup, style and script from web/, and the data as JSON in a script block
that is never run.  Numbers are little-endian bytes in base64, so that 25,000 items
open at once.  The content security policy allows this very script and style and
nothing else, so that no title can bring its own.  The server's page is the same
without the data.

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
# Dots on a map; more of them only hide each other.
_MOST_DOTS = 50_000
_LONGEST_TITLE = 300


def write_explorer(
    config: Config, prepared: Prepared, embeddings: np.ndarray
) -> pathlib.Path | None:
    """Writes the page of the run in config.workdir, unless the catalog is too large for one.

    Args:
      embeddings: float32 [N, Z]; the score of two items is their inner product.

    Returns:
      The path of the page; None if there is none.
    """
    path = pathlib.Path(config.workdir) / EXPLORER_FILE
    count = len(embeddings)
    if count > config.serve.explorer_limit:
        # An older one would show another catalog.
        path.unlink(missing_ok=True)
        logging.info(
            "no explorer.html: %d items are more than the %d that it can show; --mode=serve shows "
            "them.", count, config.serve.explorer_limit,
        )  # fmt: skip
        return None
    source = read_source(config, count)
    methods = NeighborsByMethod(source.config, prepared, embeddings, config.host_threads)
    told = frame(config, prepared, methods)
    k, items = told["k"], np.arange(count)
    for method in told["methods"]:
        ids, scores = methods.neighbors(method["name"], items, k, quiet=False)
        method |= {"rows": packed(ids), **_packed_scores(scores, ids >= 0, method["whole"])}
    titles = None if prepared.titles is None else prepared.titles.to_pylist()
    told["items"] = {
        "ids": prepared.item_ids.ids.to_pylist(),
        "titles": titles and [title and title[:_LONGEST_TITLE] for title in titles],
        "degree": packed(_degree(prepared)),
    }
    told["map"] = flat_map(directions_of(source, embeddings), config.seed, every=True)
    whole = document(told)
    with files.atomic_file(path) as temporary:
        temporary.write_text(whole, encoding="utf-8")
    logging.info("explorer written to %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def frame(config: Config, prepared: Prepared, methods: NeighborsByMethod) -> dict[str, Any]:
    """What the page is told whether or not the items are in it."""
    degree = _degree(prepared)
    first = prepared.item_ids.names(np.array([int(np.argmax(degree))]))[0].as_py()
    return {
        "run": pathlib.Path(config.workdir).resolve().name,
        "lead": f": {len(degree):,} items in {prepared.graph.num_collections:,} collections.",
        "first": first,
        "k": min(NEIGHBORS, max(len(degree) - 1, 1)),
        "methods": [
            {
                "name": name,
                "about": f"{about[:1].upper()}{about[1:]}.",
                "whole": name == "Walk",
                "why": [methods.reason_if_empty(name, 0), methods.reason_if_empty(name, 1)],
            }
            for name, about in METHODS.items()
        ],
        "buckets": [
            {"from": low, "label": f"in {name} collections", "color": figures.COLORS[place]}
            for place, (name, low) in enumerate(DEGREE_BUCKETS)
        ],
    }


def flat_map(directions: np.ndarray, seed: int, every: bool = False) -> dict[str, Any]:
    """Vectors on their two main axes, in units of 1 / 65535 of the wider one.

    Args:
      every: a place for each of the N items, of which those without one say so; else
        `rows` int64 [n] beside the places.

    Returns:
      x, y (packed), note, and perhaps rows; only a note if there is nothing to spread.
    """
    flat = space.projection(directions, _MOST_DOTS, keyed_generator(seed, "explorer map"), seed)
    if flat is None:
        return {"note": "There is nothing to spread over two axes."}
    low, high = flat.points.min(axis=0), flat.points.max(axis=0)
    span = max(float((high - low).max()), 1e-12)
    # 65535 itself says that there is no place.
    points = ((flat.points - (low + high) / 2) / span + 0.5) * 65534
    points = np.clip(points.round(), 0, 65534).astype(np.int64)
    result: dict[str, Any] = {"rows": flat.rows}
    if every:
        placed = np.full((len(directions), 2), -1, np.int64)
        placed[flat.rows] = points
        points, result = placed, {}
    of = "" if len(flat.rows) == len(directions) else f" of {len(directions):,}"
    return {
        **result,
        "x": packed(points[:, 0], 2),
        "y": packed(points[:, 1], 2),
        "note": f"{len(flat.rows):,}{of} items by the principal components of their embeddings, "
        f"which hold {flat.kept:.0%} of the variance: items that overlap here may be apart. "
        "Click a dot to open its item; drag, or use Ctrl and the wheel, to look closer.",
    }


def packed(numbers: np.ndarray, width: int = 0) -> dict[str, Any]:
    """Whole numbers as bytes, of the least width (or `width`); -1 is the greatest number."""
    most = int(numbers.max(initial=0))
    width = width or next(size for size in (1, 2, 4) if most < 2 ** (8 * size) - 1)
    data = numbers.astype(f"<u{width}").tobytes()
    return {"bytes": width, "data": base64.b64encode(data).decode("ascii")}


def _packed_scores(scores: np.ndarray, known: np.ndarray, whole: bool) -> dict[str, Any]:
    """Scores as low + step * number; numbers of 16 bits unless they are counts."""
    values = np.where(known, scores, 0.0).astype(np.float64)
    if whole:
        return {"low": 0, "step": 1, "scores": packed(values.astype(np.int64))}
    low = float(values.min(initial=0.0))
    step = max(float(values.max(initial=0.0)) - low, 1e-12) / 65534
    return {"low": low, "step": step, "scores": packed(np.round((values - low) / step), 2)}


def document(told: dict[str, Any], connect: str = "'none'") -> str:
    """The page that is told `told`.

    Args:
      connect: source that the script may fetch from, as in a content security policy.
    """
    style, script = page.BASE_STYLE + _web("explorer.css"), _web("explorer.js")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    # "<" cannot end the block, or begin a comment in it, if there is none.
    data = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = page.Html(data.replace("<", "\\u003c"))
    body = page.join(
        (
            page.Html(_web("explorer.html")),
            page.element("script", data, type="application/json", id="data"),
            page.element("script", page.Html(script)),
            page.Html("</body>"),
        )
    )
    return page.whole_page("PinSage explorer", policy, style, body)


def _web(name: str) -> str:
    folder = importlib.resources.files("pinsage_jax.reporting") / "web"
    return (folder / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _degree(prepared: Prepared) -> np.ndarray:
    return prepared.graph.degree()[: prepared.graph.num_items]
