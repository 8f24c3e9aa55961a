"""Forecasts how long a pipeline will take on this machine, and its memory and disk.

The time of a stage is the amount of work (items, edges, steps, pairs, widths) times the
seconds per unit that clock.py and trial.py have measured.  Work without a measurement of its
own (start-up, the report, bookkeeping of checkpoints) is counted in units of a fixed Python
loop.  The stages are those of --mode=pipeline, with the names of costs.json.  Seconds are
float64 [2], wall-clock and CPU time, as in clock.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import Any

import numpy as np

from pinsage_jax.checkup import clock
from pinsage_jax.checkup.inputs import Inputs
from pinsage_jax.checkup.trial import Trial, try_training
from pinsage_jax.config.settings import Config
from pinsage_jax.core.costs import peak_memory
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.tables import iter_batches
from pinsage_jax.data.text import MAX_FITTED_ROWS
from pinsage_jax.evaluation.baseline_choice import is_costly, parse_baselines
from pinsage_jax.evaluation.baselines import Content, Popularity, Walk
from pinsage_jax.evaluation.baselines_graph import PageRank, Steered
from pinsage_jax.retrieval.list_statistics import sampled_queries
from pinsage_jax.sampling.content_links import MAX_CANDIDATES
from pinsage_jax.sampling.pairs import hard_band, kept_ranks
from pinsage_jax.sampling.spectral import MAX_SPECTRAL_NUMBERS, POWER_ITERATIONS
from pinsage_jax.sampling.store import AUTO_BYTES
from pinsage_jax.training.curriculum import hard_negatives_in

# Work without a measurement of its own, in units of clock.python_overhead_seconds.
_START_UP, _SAVING, _REPORT = 20, 3, 40
_TEXT_POWER = 5
_TEXT_SAMPLE, _ENCODED_SAMPLE = 2000, 64
# A checkpoint is compressed, and the moments of nodes that no step has seen yet are zeros.
_CHECKPOINT_SHARE = 0.75
# The rate of each baseline that is counted.
_RATE_OF = {
    "popularity": "popularity",
    "content": "content",
    "content_columns": "content",
    "walk": "walk_baseline",
    "steered": "steered",
    "pagerank": "pagerank",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The counts that the work of a run is proportional to."""

    items: int
    nodes: int  # embedded nodes: items, or items and collections
    collections: int
    edges: int
    items_with_edges: int
    width: int  # feature columns
    spectral_dim: int
    validation_pairs: int
    eval_pairs: int
    queries: int  # distinct queries of the eval pairs
    feature_bytes: int

    @classmethod
    def of(cls, config: Config, inputs: Inputs, columns: list[dict[str, Any]]) -> Sizes:
        """The counts of these inputs; `columns` as check_features returns them."""
        graph = inputs.graph
        assert graph is not None
        items_with_edges = int((inputs.degree > 0).sum())
        width = sum(column["width"] for column in columns if column["kind"] != "text")
        # All text columns are transformed together.
        width += max((column["width"] for column in columns if column["kind"] == "text"), default=0)
        width = min(width, config.data.input_dim or width)
        items = graph.num_items
        spectral_dim = min(config.model.spectral_dim, MAX_SPECTRAL_NUMBERS // max(items, 1))
        spectral_dim = min(spectral_dim, max(min(items, graph.num_collections) - 1, 0))
        train_pairs = inputs.pairs.get("train_pairs")
        eval_pairs = inputs.pairs.get("eval_pairs")
        sizes = inputs.sizes.astype(np.int64)
        possible = len(train_pairs.pairs) if train_pairs else int((sizes * (sizes - 1)).sum())
        drawn = min(
            config.split.validation_pairs, int(config.split.validation_collections * possible)
        )
        pairs = np.empty((0, 2), np.int32) if eval_pairs is None else eval_pairs.pairs
        number_bytes = np.dtype(config.data.feature_dtype).itemsize
        return cls(
            items=items,
            nodes=graph.num_nodes if config.sampling.neighborhood == "all" else items,
            collections=graph.num_collections,
            edges=graph.num_edges,
            items_with_edges=items_with_edges,
            width=width,
            spectral_dim=spectral_dim,
            validation_pairs=drawn,
            eval_pairs=len(pairs) or drawn,
            queries=len(np.unique(pairs[:, 0])) or drawn,
            feature_bytes=items * width * number_bytes,
        )


def forecast(
    config: Config, inputs: Inputs, columns: list[dict[str, Any]], column_seconds: np.ndarray
) -> dict[str, Any]:
    """Forecasts the seconds of each stage, the peak memory and the disk use of a pipeline.

    Args:
      columns: the feature columns, as check_features returns them.
      column_seconds: time that check_features took.

    Returns:
      {seconds: {stage: s}, minutes, memory_bytes, disk_bytes, disk: {part: bytes}, ...}.

    Raises:
      UserError: what training would refuse.
    """
    sizes, threads = Sizes.of(config, inputs, columns), config.host_threads
    train_pairs = inputs.pairs.get("train_pairs")
    assert inputs.graph is not None
    trial = try_training(
        config,
        inputs.graph,
        sizes.width,
        sizes.spectral_dim,
        None if train_pairs is None else train_pairs.pairs,
        threads,
    )
    rates = _rates(config, inputs, sizes, threads)
    text = _text_seconds(config, inputs, columns, sizes)
    seconds = _seconds(config, inputs, sizes, trial, rates)
    seconds["prepare"] += text + 2 * column_seconds
    disk = _disk(config, inputs, sizes, trial)
    not_counted = set(_baselines(config, sizes)) - set(_RATE_OF)
    total, available = clock.memory_bytes()
    minutes = np.sum(list(seconds.values()), axis=0) / 60
    return {
        "seconds": {name: round(float(value[0]), 1) for name, value in seconds.items()},
        "cpu_seconds": {name: round(float(value[1]), 1) for name, value in seconds.items()},
        "minutes": round(float(minutes[0]), 2),
        "cpu_minutes": round(float(minutes[1]), 2),
        "memory_bytes": int(_memory(config, sizes, trial)),
        "disk_bytes": int(sum(disk.values())),
        "disk": {name: int(value) for name, value in disk.items()},
        "steps": trial.total_steps,
        "step_seconds": float(trial.step_seconds[0]),
        "not_counted": sorted(not_counted),
        "machine": {
            "threads": threads,
            "memory_bytes": total,
            "memory_available_bytes": available,
            "disk_free_bytes": clock.disk_free(config.workdir),
        },
        "rates": {name: rate.tolist() for name, rate in rates.items()},
    }


def _rates(config: Config, inputs: Inputs, sizes: Sizes, threads: int) -> dict[str, np.ndarray]:
    """Seconds per unit of each kind of work that _seconds counts."""
    graph, sampling, seed = inputs.graph, config.sampling, config.seed
    assert graph is not None
    embed_walks = config.embed.embed_walks or sampling.num_walks
    _, high = hard_band(sampling, sizes.items)
    neighbors = sampling.num_neighbors
    compile_ranks, rank = clock.rank_seconds(config.model.output_dim)
    with_edges = np.flatnonzero(inputs.degree > 0)
    rates = {
        "walk": clock.walk_seconds(graph, sampling, sampling.num_walks, neighbors, seed, threads),
        "embed_walk": clock.walk_seconds(graph, sampling, embed_walks, neighbors, seed, threads),
        "hard_walk": clock.walk_seconds(
            graph, sampling, sampling.hard_walks, high, seed, threads
        ),
        "compile_ranks": compile_ranks,
        "rank": rank,
        "popularity": clock.baseline_seconds(Popularity(graph), with_edges, sizes.items),
        "walk_baseline": clock.baseline_seconds(
            Walk(graph, sampling, seed, threads), with_edges, sizes.items
        ),
        "pagerank": clock.baseline_seconds(
            PageRank(graph, threads=threads), with_edges, sizes.items
        ),
        "steered": np.zeros(2),
        "bootstrap": clock.bootstrap_seconds(),
        "write": clock.write_seconds(config.workdir),
        "python": clock.python_overhead_seconds(),
        "spectral": np.zeros(2),
        "link": np.zeros(2),
        "content": np.zeros(2),
    }  # fmt: skip
    if sizes.spectral_dim:
        rates["spectral"] = clock.svd_seconds(
            sizes.items, sizes.collections, sizes.edges, sizes.spectral_dim, POWER_ITERATIONS
        )
    if sizes.width:
        size = max(config.sampling.content_neighbors, 1)
        rates["link"] = clock.link_seconds(sizes.width, size, threads)
        some = min(sizes.items, 1 << 14)
        vectors = np.random.default_rng(0).normal(size=(some, sizes.width)).astype(np.float32)
        rate = clock.baseline_seconds(Content(vectors), np.arange(some), some)
        rates["content"] = rate * sizes.items / some
        # Walks by a content that prefers nothing take as many steps.
        blind = Content(np.zeros((sizes.items, 1), np.float32))
        rates["steered"] = rates["content"] + clock.baseline_seconds(
            Steered(graph, blind, sampling, threads), with_edges, sizes.items
        )
    return rates


def _baselines(config: Config, sizes: Sizes) -> list[str]:
    """The baselines of the evaluation, without those that `default` leaves out here."""
    text, queries = config.evaluate.baselines, sizes.queries + len(sampled_queries(sizes.items))
    names = parse_baselines(text)
    if "default" in text:
        named = parse_baselines(text.replace("default", "none"))
        names = tuple(
            name
            for name in names
            if name in named
            or (
                not is_costly(name, sizes.edges, queries)
                and (name != "als" or importlib.util.find_spec("implicit") is not None)
            )
        )
    return list(names)


def _seconds(
    config: Config, inputs: Inputs, sizes: Sizes, trial: Trial, rates: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Seconds of each stage; those of prepare exclude the features."""
    python, write = rates["python"], rates["write"]
    queries, candidates = sizes.items, sizes.items_with_edges
    if sizes.items > config.sampling.content_limit:
        queries = sizes.items - sizes.items_with_edges
        candidates = min(sizes.items_with_edges, MAX_CANDIDATES)
    links = queries * candidates * rates["link"]
    if not config.sampling.content_neighbors:
        links = np.zeros(2)
    lists = sizes.nodes * rates["embed_walk"]
    embedding = sizes.nodes * trial.embed_seconds
    ranking = sizes.validation_pairs * sizes.items * rates["rank"]
    validation = (
        embedding
        + ranking
        + trial.state_bytes * write
        + _SAVING * python
    )  # fmt: skip
    baselines = sizes.validation_pairs * rates["walk_baseline"]
    train = (
        rates["spectral"]
        + links
        + (0 if config.sampling.resample else sizes.nodes) * rates["walk"]
        + trial.budget_seconds
        + baselines
        + trial.compile_seconds
        + rates["compile_ranks"]
        + trial.total_steps * trial.step_seconds
        + _hard_queries(config, sizes, trial) * rates["hard_walk"]
        + lists
        + trial.validations * validation
    )
    names = _baselines(config, sizes)
    ranking_seconds = np.sum(
        [np.zeros(2), *(rates[_RATE_OF[name]] for name in names if name in _RATE_OF)], axis=0
    )
    resampled = config.evaluate.bootstrap * sizes.queries * (len(names) + 1)
    # Without evaluation pairs the catalog is embedded once more, over the training graph.
    again = np.zeros(2) if sizes.eval_pairs else links + lists + embedding
    evaluated = sizes.eval_pairs or sizes.validation_pairs
    listed = len(sampled_queries(sizes.items))
    # The ranker's candidates: vectors and content over the catalog, and two kinds of walks.
    ranked = sizes.validation_pairs if config.search.related_by in ("auto", "ranker") else 0
    candidates = 2 * sizes.items * rates["rank"] + 2 * rates["hard_walk"]
    return {
        "prepare": _START_UP * python + inputs.seconds + _prepared_bytes(inputs, sizes) * write,
        "train": train,
        "embed": links + lists + embedding + sizes.items * config.model.output_dim * 4 * write,
        "rank": (links + lists + embedding + ranked * candidates) * (ranked > 0),
        # Three tables have intervals: all pairs, by kind, and by degree.
        "evaluate": again
        + (evaluated + listed) * (ranking_seconds + sizes.items * rates["rank"])
        + rates["compile_ranks"]
        + 3 * resampled * rates["bootstrap"],
        "report": _REPORT * python,
    }


def _hard_queries(config: Config, sizes: Sizes, trial: Trial) -> float:
    """Number of queries ranked for hard negatives; where rankings are cached, each counts once."""
    epochs = math.ceil(trial.total_steps * config.train.batch_size / trial.pairs_per_epoch)
    draws = float(
        sum(
            trial.pairs_per_epoch
            for epoch in range(epochs)
            if hard_negatives_in(epoch, config.train)
        )
    )
    if shared := config.train.shared_hard_queries:
        draws *= shared / config.train.batch_size
    _, high = hard_band(config.sampling, sizes.items)
    cached = kept_ranks(sizes.items, high) > 0
    # Queries are drawn at random with replacement.
    distinct = sizes.items_with_edges * -math.expm1(-draws / max(sizes.items_with_edges, 1))
    return distinct if cached else draws


def _text_seconds(
    config: Config, inputs: Inputs, columns: list[dict[str, Any]], sizes: Sizes
) -> np.ndarray:
    """Seconds to fit the text columns and to write their vectors."""
    names = [column["column"] for column in columns if column["kind"] == "text"]
    if not names:
        return np.zeros(2)
    data, documents = config.data, []
    for batch in iter_batches(inputs.tables["items"], names):
        parts = [
            column_values.texts(batch.column(name).slice(0, _TEXT_SAMPLE), name, batch.where)
            for name in names
        ]
        documents = [
            " ".join(text or "" for text in row)
            for row in zip(*(part.to_pylist() for part in parts))
        ]
        break
    rows = next(column["rows"] for column in columns if column["kind"] == "text")
    if (encoder := inputs.encoders.text) is not None:
        sample = documents[:_ENCODED_SAMPLE]
        return rows / len(sample) * clock.timed(lambda: encoder.encode(sample, str))
    document_seconds, terms, words = clock.text_seconds(
        documents, data.text_vocabulary, data.text_min_df
    )
    fitted = min(rows, MAX_FITTED_ROWS)
    # The vocabulary grows with about the square root of the number of documents.
    terms = int(min(terms * math.sqrt(rows / max(len(documents), 1)), data.text_vocabulary))
    if terms <= data.text_dim:
        return rows * document_seconds
    svd = clock.svd_seconds(fitted, terms, int(fitted * words), data.text_dim, _TEXT_POWER)
    # Transforming all rows is one more product with the matrix.
    return rows * document_seconds + svd * (1 + 1 / (2 * _TEXT_POWER + 2))


def _prepared_bytes(inputs: Inputs, sizes: Sizes) -> int:
    """Bytes of WORKDIR/prepared."""
    assert inputs.ids is not None and inputs.graph is not None
    graph = 8 * (sizes.items + sizes.collections + 1) + 8 * sizes.edges
    if inputs.graph.weights is not None:
        graph += 8 * sizes.edges
    names = inputs.ids.items.ids.nbytes + inputs.ids.collections.ids.nbytes
    titles = 0 if inputs.ids.titles is None else inputs.ids.titles.nbytes
    return graph + sizes.feature_bytes + names + titles + 8 * sizes.eval_pairs


def _disk(config: Config, inputs: Inputs, sizes: Sizes, trial: Trial) -> dict[str, float]:
    """Bytes of each folder of the workdir at the end of the run."""
    checkpoints = min(trial.validations, config.train.keep + 1)
    number_bytes = 2 if config.embed.export_dtype == "float16" else 4
    lists = 8 * sizes.nodes * config.sampling.num_neighbors
    store = config.store.neighborhood_store
    on_disk = store == "disk" or (store == "auto" and lists > AUTO_BYTES)
    return {
        "prepared": _prepared_bytes(inputs, sizes),
        "spectral": 4 * sizes.items * sizes.spectral_dim,
        "checkpoints": _CHECKPOINT_SHARE * checkpoints * trial.state_bytes,
        "neighborhoods": 2 * lists if on_disk else 0,
        "embeddings": number_bytes * sizes.nodes * config.model.output_dim,
    }


def _memory(config: Config, sizes: Sizes, trial: Trial) -> float:
    """Peak bytes of a run: those of this process so far, and of arrays that only a run has."""
    width = config.sampling.num_neighbors + config.sampling.content_neighbors
    spectral = 4 * sizes.spectral_dim * (2 * sizes.items + sizes.collections)
    lists = 8 * sizes.nodes * (width + config.sampling.num_neighbors)
    tables = 4 * sizes.nodes * (config.model.hidden_dim + 2 * config.model.output_dim)
    scores = 3 * 4 * min(512 * sizes.items, 1 << 25)
    arrays = sizes.feature_bytes + spectral + lists + tables + scores
    return peak_memory() + arrays + 2 * trial.parameter_bytes
