"""--mode=ablate: trains variants of the settings and scores them on the same pairs.

The variants follow the tables of the paper (Ying et al. 2018, tables 1 and 4) and remove
the additions of this package one at a time.  Each is trained in WORKDIR/ablate/<name>/,
which shares the prepared data of WORKDIR; a variant that is finished there for the same
settings is not trained again.

An ablation selects settings, so variants are scored on the validation pairs by default,
over the training graph, which does not contain the collections of these pairs.

  N items, P pairs, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config import presets
from pinsage_jax.config.settings import Config, path_of
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.core.text_table import terminal_width
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.ablation_table import ablation_tables
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.sampling.pairs import pairs_per_epoch
from pinsage_jax.training.compatibility import RESUMABLE_OVERRIDES
from pinsage_jax.training.curriculum import total_epochs

FOLDER = "ablate"
RESULT_FILE = "ablate.json"
BASE = "base"
_VARIANT_FILE = "variant.json"
_RANKS_FILE = "ranks.npy"
COMPARED = ("hit@10", "hit@100", "mrr", "scaled_mrr")
_COLUMNS = [metrics.METRICS.index(name) for name in COMPARED]

# Trains by the settings and embeds over the graph: returns the embeddings float32 [N, Z] and
# entries for the variant's file.
Embeddings = Callable[[Config, Graph], tuple[np.ndarray, dict[str, Any]]]
Overrides = dict[str, Any]

# The method of the paper, from its preset.  Sizes, walks and the optimizer are those of the
# base, because the paper leaves them open or uses sizes that do not fit the data.
_PINSAGE: Overrides = {path_of(name): value for name, value in presets.PAPER.method.items()}
PAPER: Overrides = {**_PINSAGE, "train.hard_start": "none"}

# Group -> variant -> {"section.field": value}.
VARIANTS: dict[str, dict[str, Overrides]] = {
    "paper": {
        "paper_max": {**PAPER, "model.pooling": "max"},
        "paper_mean": {**PAPER, "model.pooling": "mean"},
        "paper_mean_cross_entropy": {
            **PAPER, "model.pooling": "mean", "train.loss": "cross_entropy",
        },
        "paper_mean_hard": {**_PINSAGE, "model.pooling": "mean"},
        "paper_pinsage": _PINSAGE,
    },
    "additions": {
        "no_popularity_bias": {"model.popularity_bias": False},
        "no_spectral_features": {"model.spectral_dim": 0},
        "no_content_neighbors": {"sampling.content_neighbors": 0},
        "no_neighbor_embeddings": {"model.neighbor_embeddings": "off"},
        "no_edge_dropout": {"train.edge_dropout": 0.0},
        "no_skip": {"model.skip": False},
    },
    "neighbors": {
        f"T{size}": {"sampling.num_neighbors": size} for size in (10, 20, 50)
    },
    "layers": {f"K{number}": {"model.num_layers": number} for number in (0, 1, 2)},
    "hard": {
        f"hard_{start}": {"train.hard_start": start} for start in ("curriculum", "full", "none")
    },
    "loss": {
        "margin": {"train.loss": "margin"},
        "softmax": {"train.loss": "softmax"},
        "softmax_no_logq": {"train.loss": "softmax", "train.logq": False},
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs on which variants are scored, and the graph over which they are embedded."""

    source: str  # validation or eval
    graph: Graph
    pairs: np.ndarray  # int32 [P, 2], distinct
    kinds: np.ndarray  # str [P]

    @classmethod
    def of(cls, config: Config, prepared: Prepared, split: ValidationSplit) -> Pairs:
        """The pairs that `ablate_pairs` names.

        Raises:
          UserError: there are no such pairs.
        """
        source = config.ablate.ablate_pairs
        if source == "eval":
            graph, pairs, kinds = prepared.graph, prepared.eval_pairs, prepared.eval_kinds
            remedy = "ablate_pairs='eval' needs --eval_pairs"
        else:
            graph, pairs, kinds = split.train_graph, split.pairs, split.kinds
            remedy = (
                "--validation_collections must be above 0, with collections of two items or more"
            )
        if len(pairs) == 0:
            raise UserError(f"There is no pair on which to compare variants; {remedy}.")
        distinct, first = np.unique(pairs, axis=0, return_index=True)
        return cls(source, graph, distinct, np.asarray(kinds)[first])


def chosen_variants(names: str) -> dict[str, Overrides]:
    """The settings that each variant of --ablate_variants overrides, the base first.

    Args:
      names: comma-separated variants or groups, or all.

    Raises:
      UserError: a name is unknown; the message lists the known ones.
    """
    known = {name: overrides for group in VARIANTS.values() for name, overrides in group.items()}
    wanted = {BASE}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "all":
            wanted |= set(known)
        elif name in VARIANTS:
            wanted |= set(VARIANTS[name])
        elif name in known or name == BASE:
            wanted.add(name)
        else:
            raise UserError(
                f"--ablate_variants={name} is not a variant; use all, a group "
                f"({', '.join(VARIANTS)}) or a variant ({', '.join(known)})."
            )
    everything = {BASE: {}, **known}
    return {name: everything[name] for name in everything if name in wanted}


def with_overrides(config: Config, overrides: Overrides) -> Config:
    """A validated copy of the settings with some fields changed.

    Args:
      config: the settings.
      overrides: values by "section.field".

    Raises:
      UserError: a value is out of range.
    """
    for name, value in overrides.items():
        section, field = name.split(".")
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: changed})
    config.validate()
    return config


def base_settings(config: Config, per_epoch: int) -> Config:
    """The base variant's settings: those of the run, for --ablate_steps steps.

    The length of an epoch is scaled with the steps, so that warm-up, decay and curriculum,
    which count in epochs, pass through all of their stages whatever the number of steps.

    Args:
      config: settings of the run.
      per_epoch: pairs per epoch of the run.
    """
    steps = config.ablate.ablate_steps
    if not steps:
        return config
    epochs = total_epochs(config.train, per_epoch) or 1.0
    pairs = round(steps * config.train.batch_size / epochs)
    length = {"train.max_steps": steps, "train.pairs_per_epoch": max(pairs, 1)}
    return with_overrides(config, length)


def differences(base: Config, variant: Config) -> Overrides:
    """The variant's settings that differ from the base, by "section.field"."""
    changed: Overrides = {}
    for section in ("split", "sampling", "model", "train", "embed"):
        before = dataclasses.asdict(getattr(base, section))
        after = dataclasses.asdict(getattr(variant, section))
        changed |= {
            f"{section}.{name}": after[name] for name in after if after[name] != before[name]
        }
    return changed


def ablate(
    config: Config, prepared: Prepared, split: ValidationSplit, embeddings: Embeddings
) -> dict[str, Any]:
    """Trains and scores the variants; prints tables and writes WORKDIR/ablate.json.

    Args:
      config: settings of the run.
      prepared: the catalog.
      split: the validation split.
      embeddings: trains by given settings, in their workdir, and embeds over a graph.

    Returns:
      The contents of ablate.json.

    Raises:
      UserError: a variant is unknown, there is no pair to compare on, or a training fails.
    """
    variants = chosen_variants(config.ablate.ablate_variants)
    pairs = Pairs.of(config, prepared, split)
    per_epoch = pairs_per_epoch(split.train_graph, split.train_pairs, config.train.pairs_per_epoch)
    base = base_settings(config, per_epoch)
    root = pathlib.Path(config.workdir) / FOLDER
    # Computed once; the folders of the variants link to it.
    spectral_bases(dataclasses.replace(base, workdir=str(root)), prepared, split)
    ranks: dict[str, np.ndarray] = {}
    reports: dict[str, dict[str, Any]] = {}
    first_with: dict[str, str] = {}
    for number, (name, overrides) in enumerate(variants.items(), start=1):
        variant = with_overrides(base, overrides)
        variant = dataclasses.replace(variant, workdir=str(root / name))
        fingerprint = _fingerprint(variant, prepared, pairs)
        same_as = first_with.setdefault(fingerprint, name)
        settings = differences(base, variant)
        if same_as != name:
            logging.info("ablate: %s has the settings of %s", name, same_as)
            ranks[name] = ranks[same_as]
            reports[name] = {**reports[same_as], "settings": settings, "same_as": same_as}
            continue
        logging.info("ablate: variant %d of %d, %s", number, len(variants), name)
        try:
            saved, ranks[name] = _run(variant, base, fingerprint, pairs, embeddings)
        except UserError as error:
            raise UserError(f"Variant {name}: {error}") from error
        reports[name] = {**saved, "settings": settings, "same_as": ""}
        raise_if_stopped()
    result = {
        "pairs_from": pairs.source,
        "pairs": len(pairs.pairs),
        "catalog_items": prepared.graph.num_items,
        "tie_rule": TIE_RULE,
        "interval": f"95%, {config.evaluate.bootstrap} bootstrap resamples of queries",
        "seed": config.seed,
        "notes": _notes(pairs),
        "variants": reports,
        "kinds": _compare(ranks, pairs, config.evaluate.bootstrap, config.seed),
    }
    print(ablation_tables(result, terminal_width()))
    path = pathlib.Path(config.workdir) / RESULT_FILE
    files.write_json(path, result)
    logging.info("ablations written to %s", path)
    return result


def _notes(pairs: Pairs) -> list[str]:
    if pairs.source == "validation":
        return ["each variant's checkpoint and cold-start bias were chosen on these pairs"]
    return ["settings that are chosen by these metrics must be reported on other pairs"]


def _fingerprint(variant: Config, prepared: Prepared, pairs: Pairs) -> str:
    """Fingerprint of all that determines a variant's ranks: data, settings and pairs."""
    train = dataclasses.asdict(variant.train)
    # These may change when a run is resumed, but they change its result.
    relevant = {"epochs", "max_steps", "validate_every"}
    parts: dict[str, Any] = {
        "train": {
            name: train[name]
            for name in train
            if name in relevant or name not in RESUMABLE_OVERRIDES
        }
    }
    for section in ("split", "sampling", "model"):
        parts[section] = dataclasses.asdict(getattr(variant, section))
    embed = variant.embed
    parts["embed"] = [embed.checkpoint, embed.embed_walks, embed.cold_start_bias]
    parts["seed"], parts["pairs"] = variant.seed, [pairs.source, len(pairs.pairs)]
    return files.fingerprint([parts, prepared.manifest["fingerprint"]])


def _run(
    variant: Config, base: Config, fingerprint: str, pairs: Pairs, embeddings: Embeddings
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains and ranks one variant, unless its folder contains the result.

    Returns:
      The contents of the variant's file, and its ranks int64 [P].
    """
    folder = pathlib.Path(variant.workdir)
    saved = files.read_json(folder / _VARIANT_FILE) if (folder / _VARIANT_FILE).exists() else {}
    if saved.get("fingerprint") != fingerprint:
        # Otherwise training would resume, or refuse, the checkpoints of other settings.
        shutil.rmtree(folder, ignore_errors=True)
        saved = {"fingerprint": fingerprint, "finished": False}
        files.write_json(folder / _VARIANT_FILE, saved)
    if saved["finished"] and (folder / _RANKS_FILE).exists():
        logging.info("ablate: %s contains the finished variant", folder)
        return saved, files.read_array(folder / _RANKS_FILE)
    _link(folder / "prepared", "../../prepared")
    if variant.model.spectral_dim and variant.model.spectral_dim == base.model.spectral_dim:
        _link(folder / "spectral", "../spectral")
    start = time.monotonic()
    vectors, entries = embeddings(variant, pairs.graph)
    query, target = pairs.pairs.T
    ranks = target_ranks(vectors[query], vectors, query, target)
    files.write_array(folder / _RANKS_FILE, ranks)
    minutes = round((time.monotonic() - start) / 60, 2)
    saved = {"fingerprint": fingerprint, "finished": True, "minutes": minutes, **entries}
    files.write_json(folder / _VARIANT_FILE, saved)
    return saved, ranks


def _link(path: pathlib.Path, target: str) -> None:
    with files.reported_os_errors(path):
        if not (path.is_symlink() or path.exists()):
            path.symlink_to(target, target_is_directory=True)


def _compare(
    ranks: dict[str, np.ndarray], pairs: Pairs, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Compares the variants on all pairs and on each kind of pairs.

    Returns:
      By kind: "pairs", "queries" and, by variant, "metrics" and "minus_base" with intervals.
    """
    query = pairs.pairs[:, 0]
    masks = {"all": np.ones(len(query), np.bool_)}
    if len(names := np.unique(pairs.kinds)) > 1:
        masks |= {str(kind): pairs.kinds == kind for kind in names[::-1]}
    result = {}
    for kind, mask in masks.items():
        tables = {
            name: metrics.query_table(rank[mask], query[mask]) for name, rank in ranks.items()
        }
        samples = None
        if resamples:
            generator = metrics.keyed_generator(seed, f"ablate {kind}")
            samples = metrics.bootstrap_means(list(tables.values()), resamples, generator)
        means = {name: table.means() for name, table in tables.items()}
        base_row = list(tables).index(BASE)
        scored = {}
        for row, name in enumerate(tables):
            metric_samples = difference_samples = None
            if samples is not None:
                metric_samples = samples[row]
                difference_samples = samples[row] - samples[base_row]
            difference = {metric: means[name][metric] - means[BASE][metric] for metric in COMPARED}
            scored[name] = {
                "metrics": _with_intervals(means[name], metric_samples),
                "minus_base": _with_intervals(difference, difference_samples),
            }
        size = {"pairs": int(mask.sum()), "queries": len(tables[BASE].queries)}
        result[kind] = {**size, "variants": scored}
    return result


def _with_intervals(
    values: dict[str, float], samples: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """ "value" and, from bootstrap samples [resamples, M], "low" and "high" by metric."""
    result = {metric: {"value": values[metric]} for metric in COMPARED}
    if samples is not None:
        low, high = metrics.interval(samples)
        for metric, column in zip(COMPARED, _COLUMNS):
            result[metric] |= {"low": float(low[column]), "high": float(high[column])}
    return result
