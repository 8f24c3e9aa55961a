"""What each format of the export costs in bytes and in recall, for one run's embeddings.

  python -m benchmarks.run export_formats --embedded=runs/example

reads the float32 embeddings of a workdir and stores them in memory in every format: the
type of the numbers, with and without fewer dimensions.  Recall@10 is against exact
float32, for a thousand items as queries, as the manifest of an export says it.  Without
--embedded, random unit vectors stand in, which are harder than any trained ones.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from pinsage_jax.export.codec import ExportForm, principal_directions
from pinsage_jax.export.reader import open_export
from pinsage_jax.retrieval.export_quality import NEIGHBORS, recall_of, spread_rows
from pinsage_jax.retrieval.topk import top_k

TYPES = ("float32", "float16", "int8")


def add_options(parser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--embedded", default="", help="workdir whose float32 embeddings to read")


def run(options: argparse.Namespace) -> list[dict]:
    """One row a format."""
    vectors, apart = _vectors(options)
    rows = spread_rows(len(vectors))
    expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]
    width, found = vectors.shape[1], []
    for dim in dict.fromkeys((width, max(width // 2, 2), max(width // 4, 2))):
        transform = None if dim == width else principal_directions(vectors, dim, apart)
        for dtype in TYPES:
            # int8 with one scale for all numbers beside one that keeps the popularity apart.
            for separate in (apart, False) if dtype == "int8" and apart else (apart,):
                form = ExportForm(dtype, separate, transform)
                codes, scales = form.encode(vectors[:1])
                quality = recall_of(form, vectors, expected)
                found.append(
                    {
                        "type": dtype,
                        "dimensions": dim,
                        "popularity_apart": str(separate),
                        "bytes_a_vector": codes.nbytes + scales.nbytes,
                        "recall@10": quality["recall@10"],
                        "standard_error": quality["standard_error"],
                    }
                )
    return [{"note": f"{len(vectors):,} vectors of {width} dimensions"}, *found]


def _vectors(options: argparse.Namespace) -> tuple[np.ndarray, bool]:
    """float32 [N, Z], and whether the last coordinate is a popularity."""
    if options.embedded:
        export = open_export(pathlib.Path(options.embedded) / "embeddings")
        apart = export.manifest.get("last_apart", not export.manifest.get("normalized", True))
        return np.asarray(export.vectors()), bool(apart)
    shape = (200, 16) if options.quick else (20_000, 128)
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), False
