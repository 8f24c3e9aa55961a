"""The report's parts about the vectors: similarities of random pairs and a projection."""

from __future__ import annotations

import math

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.reporting import page, space
from pinsage_jax.reporting.figures import Series, line_chart, scatter_chart
from pinsage_jax.reporting.page import Html

_PAIRS = 20_000
_GRID = np.linspace(-1.0, 1.0, 161)
_MOST_PROJECTED = 4000
_NO_FEATURES = "The items have no features to compare with."


def degree_bucket(degree: np.ndarray) -> np.ndarray:
    """Places in DEGREE_BUCKETS, int64, of degrees int [n]."""
    return np.searchsorted([low for _, low in DEGREE_BUCKETS], degree, side="right") - 1


def similarities(prepared: Prepared, embeddings: np.ndarray, seed: int) -> Html:
    """PinSage Figure 4: densities of the cosines of random pairs, with kurtosis."""
    series, rows, told, remarks = [], [], [], []
    for name, vectors in (("PinSage", embeddings), ("raw features", prepared.features)):
        if vectors.shape[1] == 0:
            remarks.append(page.note(_NO_FEATURES))
            continue
        # The same pairs for both.
        cosines, left_out = space.random_cosines(
            vectors, _PAIRS, keyed_generator(seed, "report similarities")
        )
        if len(cosines) == 0:
            remarks.append(
                page.note(f"{name}: there are not two vectors with a direction to compare.")
            )
            continue
        series.append(Series(name, _GRID, space.density(cosines, _GRID), fill=True))
        sharpness = space.kurtosis(cosines)
        shown = "not defined (all are equal)" if math.isnan(sharpness) else f"{sharpness:.2f}"
        mean, deviation = f"{cosines.mean():.3f}", f"{cosines.std():.3f}"
        middle = "{:.3f} to {:.3f}".format(*np.quantile(cosines, [0.05, 0.95]))
        center = page.with_interval(page.minus(mean), page.minus(middle))
        rows.append((name, page.minus(shown), center, deviation))
        told.append(f"{name}: kurtosis {shown}, mean {mean}, 90% within {middle}")
        if left_out > 0:
            remarks.append(
                page.note(f"{name}: {left_out:.1%} of the pairs have a vector of zeros and are "
                          "left out.")
            )  # fmt: skip
    if not series:
        return page.join(remarks)
    alt = "; ".join(told)
    head = ("vectors", "kurtosis", page.with_interval("mean", "90% lie within"), "deviation")
    chart = line_chart("similarity", f"Density of cosine similarities. {alt}.", series,
                       "cosine similarity")  # fmt: skip
    return page.join(
        (
            page.figure(chart, "Density of the cosines of random pairs", f"{_PAIRS:,} pairs",
                        single=True),
            page.table("Cosines of random pairs", head, rows, numbers=True),
            *remarks,
            page.note(
                "Kurtosis is the excess over a normal distribution. A wide spread and a low "
                "kurtosis mean that unlike items are kept apart; a narrow peak means that most "
                "pairs look equally alike. The paper reports 0.43 for PinSage, 1.20 for visual "
                "and 2.49 for annotation vectors."
            ),
        )
    )  # fmt: skip


def projections(prepared: Prepared, embeddings: np.ndarray, seed: int) -> Html:
    """Both kinds of vectors on their two main axes, colored by degree."""
    bucket = degree_bucket(prepared.graph.degree()[: prepared.graph.num_items])
    labels = [f"{name} edges" for name, _ in DEGREE_BUCKETS]
    pictures, remarks = [], []
    for key, name, vectors in (
        ("pinsage", "PinSage", embeddings),
        ("features", "Raw features", prepared.features),
    ):
        if vectors.shape[1] == 0:
            remarks.append(page.note(_NO_FEATURES))
            continue
        flat = space.projection(
            vectors, _MOST_PROJECTED, keyed_generator(seed, "report projection"), seed
        )
        if flat is None:
            remarks.append(page.note(f"{name}: there is nothing to spread over two axes."))
            continue
        group = bucket[flat.rows]
        told = ", ".join(f"{np.sum(group == place):,} with {label}"
                         for place, label in enumerate(labels))  # fmt: skip
        about = f"{len(flat.rows):,} items; the axes hold {flat.kept:.0%} of the variance"
        chart = scatter_chart(f"flat-{key}", f"Projection of {name}: {about}. Items: {told}.",
                              flat.points, group, labels)  # fmt: skip
        pictures.append(page.figure(chart, name, about))
    last = page.note(
        "Principal components of the vectors, scaled to unit length. Two axes show little of many "
        "dimensions: groups that overlap here may be apart. Items without edges should lie among "
        "the others, not in a clump of their own."
    )
    return page.join((page.figures(*pictures), *remarks, last) if pictures else remarks)
