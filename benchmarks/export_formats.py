"""Measures the bytes and the recall of every export format, for one run's embeddings.

  python -m benchmarks.run export_formats --embedded=runs/example

reads the float32 embeddings of a workdir and encodes them in memory in every format: each
dtype, with all, half and a quarter of the dimensions.  recall@10 is against exact search
over float32, with a thousand items as queries, as in the manifest of an export.  Without
--embedded, random unit vectors are encoded, which lose more recall than trained ones.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from pinsage_jax.export.codec import VectorCodec, principal_directions
from pinsage_jax.export.reader import open_export
from pinsage_jax.retrieval.export_quality import (
    NEIGHBORS,
    evenly_spaced_rows,
    recall_against_float32,
)
from pinsage_jax.retrieval.topk import top_k

DTYPES = ("float32", "float16", "int8")


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--embedded", default="", help="workdir whose float32 embeddings to read")


def run(options: argparse.Namespace) -> list[dict]:
    """Returns one row per format."""
    vectors, has_bias = _vectors(options)
    rows = evenly_spaced_rows(len(vectors))
    expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]
    width, found = vectors.shape[1], []
    for dim in dict.fromkeys((width, max(width // 2, 2), max(width // 4, 2))):
        transform = None if dim == width else principal_directions(vectors, dim, has_bias)
        for dtype in DTYPES:
            # int8 is measured with and without a separate scale of the popularity bias.
            for separate in (has_bias, False) if dtype == "int8" and has_bias else (has_bias,):
                codec = VectorCodec(dtype, separate, transform)
                codes, scales = codec.encode(vectors[:1])
                quality = recall_against_float32(codec, vectors, expected)
                found.append(
                    {
                        "dtype": dtype,
                        "dimensions": dim,
                        "separate_bias_scale": str(separate),
                        "bytes_per_vector": codes.nbytes + scales.nbytes,
                        "recall@10": quality["recall@10"],
                        "standard_error": quality["standard_error"],
                    }
                )
    return [{"note": f"{len(vectors):,} vectors of {width} dimensions"}, *found]


def _vectors(options: argparse.Namespace) -> tuple[np.ndarray, bool]:
    """Vectors float32 [N, Z], and whether the last coordinate is a popularity bias."""
    if options.embedded:
        export = open_export(pathlib.Path(options.embedded) / "embeddings")
        return np.asarray(export.vectors()), export.codec.separate_bias_scale
    shape = (200, 16) if options.quick else (20_000, 128)
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), False
