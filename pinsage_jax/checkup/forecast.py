"""How long a pipeline will take here, and how much memory and disk it will need.

Counts of work (items, edges, steps, pairs, widths) times the seconds a unit that
probe.py and trial.py measured on this machine just now.  What no probe covers
(start-up, the report, bookkeeping of checkpoints) is counted in a fixed piece of
Python.  Stages are those of `--mode=pipeline`, as costs.json has them;
seconds are float64 [2], by the clock and of the CPU, as in probe.py.
"""

from __future__ import annotations

import dataclasses
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
from pinsage_jax.evaluation.baseline_choice import parse_baselines
from pinsage_jax.evaluation.baselines import Content, Popularity, Walk
from pinsage_jax.evaluation.calibration import MAX_BIASES_TRIED
from pinsage_jax.sampling.content_links import MAX_CANDIDATES
from pinsage_jax.sampling.pairs import hard_band
from pinsage_jax.sampling.spectral import MAX_SPECTRAL_NUMBERS, POWER_ITERATIONS
from pinsage_jax.sampling.store import AUTO_BYTES
from pinsage_jax.training.curriculum import hard_negatives_in

# Pieces of Python (probe.python_overhead_seconds) of what has no probe of its own.
_START_UP, _SAVING, _REPORT = 20, 3, 40
_TEXT_POWER = 5
_TEXT_SAMPLE = 2000
# Compressed: moments of nodes that no step has met yet are zeros.
_CHECKPOINT_SHARE = 0.75
_FORECAST_BASELINES = ("popularity", "content", "walk")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The counts that a run's work grows with."""

    items: int
    nodes: int  # that are embedded: items, or all
    collections: int
    edges: int
    linked: int
    width: int  # feature columns
    places: int  # dimensions of the spectral features
    validation_pairs: int
    eval_pairs: int
    queries: int  # distinct ones among the eval pairs
    saved_features: int  # bytes

    @classmethod
    def of(cls, config: Config, inputs: Inputs, columns: list[dict[str, Any]]) -> Sizes:
        """The counts of these inputs under these settings; `columns` as check_features has."""
        graph = inputs.graph
        assert graph is not None
        linked = int((inputs.degree > 0).sum())
        width = sum(column["width"] for column in columns if column["kind"] != "text")
        if any(column["kind"] == "text" for column in columns):
            width += config.data.text_dim
        items = graph.num_items
        places = min(config.model.spectral_dim, MAX_SPECTRAL_NUMBERS // max(items, 1))
        places = min(places, max(min(items, graph.num_collections) - 1, 0))
        given, held = inputs.pairs.get("train_pairs"), inputs.pairs.get("eval_pairs")
        sizes = inputs.sizes.astype(np.int64)
        possible = len(given.pairs) if given else int((sizes * (sizes - 1)).sum())
        drawn = min(
            config.split.validation_pairs, int(config.split.validation_collections * possible)
        )
        pairs = np.empty((0, 2), np.int32) if held is None else held.pairs
        each = np.dtype(config.data.feature_dtype).itemsize
        return cls(
            items=items,
            nodes=graph.num_nodes if config.sampling.neighborhood == "all" else items,
            collections=graph.num_collections,
            edges=graph.num_edges,
            linked=linked,
            width=width,
            places=places,
            validation_pairs=drawn,
            eval_pairs=len(pairs) or drawn,
            queries=len(np.unique(pairs[:, 0])) or drawn,
            saved_features=items * width * each,
        )


def forecast(
    config: Config, inputs: Inputs, columns: list[dict[str, Any]], column_seconds: np.ndarray
) -> dict[str, Any]:
    """Seconds by stage, peak memory and disk of a pipeline with these settings.

    Args:
      columns, column_seconds: what check_features found, and how long it took.

    Returns:
      {seconds: {stage: s}, minutes, memory_bytes, disk_bytes, disk: {part: bytes}, ...}.

    Raises:
      UserError: what training would refuse.
    """
    sizes, threads = Sizes.of(config, inputs, columns), config.host_threads
    given = inputs.pairs.get("train_pairs")
    assert inputs.graph is not None
    trial = try_training(
        config,
        inputs.graph,
        sizes.width,
        sizes.places,
        None if given is None else given.pairs,
        threads,
    )
    rates = _rates(config, inputs, sizes, threads)
    text = _text_seconds(config, inputs, columns, sizes)
    seconds = _seconds(config, inputs, sizes, trial, rates)
    seconds["prepare"] += text + 2 * column_seconds
    disk = _disk(config, inputs, sizes, trial)
    left_out = set(parse_baselines(config.evaluate.baselines)) - set(_FORECAST_BASELINES)
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
        "not_counted": sorted(left_out),
        "machine": {
            "threads": threads,
            "memory_bytes": total,
            "memory_available_bytes": available,
            "disk_free_bytes": clock.disk_free(config.workdir),
        },
        "rates": {name: rate.tolist() for name, rate in rates.items()},
    }


def _rates(config: Config, inputs: Inputs, sizes: Sizes, threads: int) -> dict[str, np.ndarray]:
    """Seconds a unit of everything that _seconds counts."""
    graph, sampling, seed = inputs.graph, config.sampling, config.seed
    assert graph is not None
    embed_walks = config.embed.embed_walks or sampling.num_walks
    _, high = hard_band(sampling, sizes.items)
    kept = sampling.num_neighbors
    compile_ranks, rank = clock.rank_seconds(config.model.output_dim)
    linked = np.flatnonzero(inputs.degree > 0)
    rates = {
        "walk": clock.walk_seconds(graph, sampling, sampling.num_walks, kept, seed, threads),
        "embed_walk": clock.walk_seconds(graph, sampling, embed_walks, kept, seed, threads),
        "hard_walk": clock.walk_seconds(
            graph, sampling, sampling.hard_walks, high, seed, threads
        ),
        "compile_ranks": compile_ranks,
        "rank": rank,
        "popularity": clock.rival_seconds(Popularity(graph), linked, sizes.items),
        "by_walk": clock.rival_seconds(
            Walk(graph, sampling, seed, threads), linked, sizes.items
        ),
        "bootstrap": clock.bootstrap_seconds(),
        "write": clock.write_seconds(config.workdir),
        "thinking": clock.python_overhead_seconds(),
        "spectral": np.zeros(2),
        "link": np.zeros(2),
        "content": np.zeros(2),
    }  # fmt: skip
    if sizes.places:
        rates["spectral"] = clock.svd_seconds(
            sizes.items, sizes.collections, sizes.edges, sizes.places, POWER_ITERATIONS
        )
    if sizes.width:
        size = max(config.sampling.content_neighbors, 1)
        rates["link"] = clock.link_seconds(sizes.width, size, threads)
        some = min(sizes.items, 1 << 14)
        vectors = np.random.default_rng(0).normal(size=(some, sizes.width)).astype(np.float32)
        rate = clock.rival_seconds(Content(vectors), np.arange(some), some)
        rates["content"] = rate * sizes.items / some
    return rates


def _seconds(
    config: Config, inputs: Inputs, sizes: Sizes, trial: Trial, rates: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Seconds by stage; of prepare without the features."""
    thinking, write = rates["thinking"], rates["write"]
    wanted = sizes.items, sizes.linked
    if sizes.items > config.sampling.content_limit:
        wanted = sizes.items - sizes.linked, min(sizes.linked, MAX_CANDIDATES)
    links = wanted[0] * wanted[1] * rates["link"]
    if not config.sampling.content_neighbors:
        links = np.zeros(2)
    lists = sizes.nodes * rates["embed_walk"]
    embedding = sizes.nodes * trial.embed_seconds
    chosen = config.model.popularity_bias and config.embed.cold_start_bias is None
    offsets = MAX_BIASES_TRIED if chosen and config.split.validation_cold_items > 0 else 1
    ranking = sizes.validation_pairs * sizes.items * rates["rank"]
    validation = (
        embedding
        + offsets * ranking
        + trial.state_bytes * write
        + _SAVING * thinking
    )  # fmt: skip
    rivals = sizes.validation_pairs * rates["by_walk"]
    train = (
        rates["spectral"]
        + links
        + (0 if config.sampling.resample else sizes.nodes) * rates["walk"]
        + trial.budget_seconds
        + rivals
        + trial.compile_seconds
        + rates["compile_ranks"]
        + trial.total_steps * trial.step_seconds
        + _hard_queries(config, sizes, trial) * rates["hard_walk"]
        + lists
        + trial.validations * validation
    )
    names = parse_baselines(config.evaluate.baselines)
    by = {"popularity": "popularity", "content": "content", "walk": "by_walk"}
    each = np.sum([np.zeros(2), *(rates[by[name]] for name in names if name in by)], axis=0)
    resampled = config.evaluate.bootstrap * sizes.queries * (len(names) + 1)
    return {
        "prepare": _START_UP * thinking + inputs.seconds + _prepared_bytes(inputs, sizes) * write,
        "train": train,
        "embed": links + lists + embedding + sizes.items * config.model.output_dim * 4 * write,
        # Three ways to cut the pairs: whole, by kind, by degree.
        "evaluate": sizes.eval_pairs * (each + sizes.items * rates["rank"])
        + rates["compile_ranks"]
        + 3 * resampled * rates["bootstrap"],
        "report": _REPORT * thinking,
    }


def _hard_queries(config: Config, sizes: Sizes, trial: Trial) -> float:
    """Queries that are ranked for hard negatives: each once where rankings are kept."""
    epochs = math.ceil(trial.total_steps * config.train.batch_size / trial.pairs_per_epoch)
    asked = sum(
        trial.pairs_per_epoch for epoch in range(epochs) if hard_negatives_in(epoch, config.train)
    )
    _, high = hard_band(config.sampling, sizes.items)
    kept = 4 * sizes.items * high <= 2**30
    # Drawn at random, with repetition.
    distinct = sizes.linked * -math.expm1(-asked / max(sizes.linked, 1))
    return distinct if kept else float(asked)


def _text_seconds(
    config: Config, inputs: Inputs, columns: list[dict[str, Any]], sizes: Sizes
) -> np.ndarray:
    """Seconds that vectors of text take to be fitted and written."""
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
    each, terms, words = clock.text_seconds(documents, data.text_vocabulary, data.text_min_df)
    rows = next(column["rows"] for column in columns if column["kind"] == "text")
    fitted = min(rows, MAX_FITTED_ROWS)
    # A sample knows fewer words than the whole; words grow with about the square root.
    terms = int(min(terms * math.sqrt(rows / max(len(documents), 1)), data.text_vocabulary))
    if terms <= data.text_dim:
        return rows * each
    svd = clock.svd_seconds(fitted, terms, int(fitted * words), data.text_dim, _TEXT_POWER)
    # Writing the vectors is one more product with the matrix, of all rows.
    return rows * each + svd * (1 + 1 / (2 * _TEXT_POWER + 2))


def _prepared_bytes(inputs: Inputs, sizes: Sizes) -> int:
    assert inputs.ids is not None and inputs.graph is not None
    graph = 8 * (sizes.items + sizes.collections + 1) + 8 * sizes.edges
    if inputs.graph.weights is not None:
        graph += 8 * sizes.edges
    names = inputs.ids.items.ids.nbytes + inputs.ids.collections.ids.nbytes
    titles = 0 if inputs.ids.titles is None else inputs.ids.titles.nbytes
    return graph + sizes.saved_features + names + titles + 8 * sizes.eval_pairs


def _disk(config: Config, inputs: Inputs, sizes: Sizes, trial: Trial) -> dict[str, float]:
    """Bytes that the run leaves, by folder of the workdir."""
    kept = min(trial.validations, config.train.keep + 1)
    each = 2 if config.embed.export_dtype == "float16" else 4
    lists = 8 * sizes.nodes * config.sampling.num_neighbors
    store = config.store.neighborhood_store
    on_disk = store == "disk" or (store == "auto" and lists > AUTO_BYTES)
    return {
        "prepared": _prepared_bytes(inputs, sizes),
        "spectral": 4 * sizes.items * sizes.places,
        "checkpoints": _CHECKPOINT_SHARE * kept * trial.state_bytes,
        "neighborhoods": 2 * lists if on_disk else 0,
        "embeddings": each * sizes.nodes * config.model.output_dim,
    }


def _memory(config: Config, sizes: Sizes, trial: Trial) -> float:
    """Peak bytes: what this process has come to, and what only the whole run holds."""
    width = config.sampling.num_neighbors + config.sampling.content_neighbors
    places = 4 * sizes.places * (2 * sizes.items + sizes.collections)
    lists = 8 * sizes.nodes * (width + config.sampling.num_neighbors)
    tables = 4 * sizes.nodes * (config.model.hidden_dim + 2 * config.model.output_dim)
    scores = 3 * 4 * min(512 * sizes.items, 1 << 25)
    found = sizes.saved_features + places + lists + tables + scores
    return peak_memory() + found + 2 * trial.parameter_bytes
