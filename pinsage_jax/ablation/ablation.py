"""--mode=ablate: trains variants of the settings and scores them on the same pairs.

Each variant is trained once per seed (trials.py), and all share the prepared data of WORKDIR.
An ablation that was killed goes on with what is unfinished.  All variants of a seed come before
the next seed, so that a killed ablation can be tabulated with fewer seeds.

An ablation selects settings, so variants are scored on the validation pairs by default,
over the training graph, which does not contain the collections of these pairs.  Beside them
stand two references that learn nothing: the base's network with its initial parameters, and
the cosine of the features.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.ablation.ablation_table import ablation_tables, table_files
from pinsage_jax.ablation.comparison import compare, not_above
from pinsage_jax.ablation.trials import UNTRAINED, Embeddings, Pairs, Trial, seed_folder
from pinsage_jax.ablation.variants import base_settings, chosen_variants, differences
from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.core.text_table import terminal_width
from pinsage_jax.evaluation.baselines import Content, rank_pairs
from pinsage_jax.evaluation.table_files import write_tables
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.sampling.pairs import pairs_per_epoch

RESULT_FILE = "ablate.json"


def ablate(
    config: Config,
    prepared: Prepared,
    split: ValidationSplit,
    embeddings: Embeddings,
    untrained: Embeddings | None = None,
) -> dict[str, Any]:
    """Trains and scores the variants; prints tables and writes WORKDIR/ablate.json.

    Args:
      config: settings of the run.
      prepared: the catalog.
      split: the validation split.
      embeddings: trains by given settings, in their workdir, and embeds over a graph.
      untrained: embeds with the initial parameters; None: this reference is left out.

    Returns:
      The contents of ablate.json.

    Raises:
      UserError: a variant is unknown, there is no pair to compare on, or a training fails.
    """
    overrides = chosen_variants(config.ablate.ablate_variants)
    pairs = Pairs.of(config, prepared, split)
    per_epoch = pairs_per_epoch(
        split.train_graph, split.train_pairs, config.train.pairs_per_epoch,
        config.train.least_epoch_pairs,
    )  # fmt: skip
    base = base_settings(config, per_epoch)
    seeds = [config.seed + number for number in range(config.ablate.seeds)]
    trials = {
        (name, seed): Trial.of(name, overrides[name], base, seed, prepared, pairs)
        for seed in seeds
        for name in overrides
    }
    same_as = _equal_variants({name: trials[name, config.seed] for name in overrides})
    found = _run_all(base, prepared, split, pairs, trials, same_as, embeddings)
    references = {}
    if untrained is not None:
        trial = Trial.of(UNTRAINED, {}, base, config.seed, prepared, pairs)
        references[UNTRAINED] = trial.run(pathlib.Path(config.workdir), base, pairs, untrained)[1]
    if prepared.features.shape[1]:
        content = Content(prepared.features)
        references[content.name] = rank_pairs(content, pairs.pairs, prepared.graph.num_items)
    ranks = {
        name: np.stack([found[same_as[name], seed][1] for seed in seeds]) for name in overrides
    }
    resamples = config.evaluate.bootstrap
    kinds = compare(ranks, references, pairs, resamples, config.seed)
    unbeaten = not_above(kinds)
    result = {
        "pairs_from": pairs.source,
        "pairs": len(pairs.pairs),
        "catalog_items": prepared.graph.num_items,
        "tie_rule": TIE_RULE,
        "interval": f"95%, {resamples} bootstrap resamples of queries"
        + (" and seeds" if len(seeds) > 1 else ""),
        "seed": config.seed,
        "seeds": seeds,
        "notes": [*_notes(pairs), *map(_unbeaten_note, unbeaten)],
        "not_above": unbeaten,
        "variants": {
            name: {
                **_report(found, same_as[name], seeds),
                "settings": differences(base, trials[name, config.seed].config),
                "same_as": "" if same_as[name] == name else same_as[name],
            }
            for name in overrides
        },
        "kinds": kinds,
    }
    print(ablation_tables(result, terminal_width()))
    path = pathlib.Path(config.workdir) / RESULT_FILE
    files.write_json(path, result)
    logging.info("ablations written to %s", path)
    write_tables(config.workdir, config.evaluate.table_formats, table_files(result))
    for reference in unbeaten:
        logging.warning("ablate: %s.", _unbeaten_note(reference))
    return result


def _equal_variants(trials: dict[str, Trial]) -> dict[str, str]:
    """By variant the first one with the same settings, which is itself for most."""
    first_with: dict[str, str] = {}
    return {name: first_with.setdefault(trial.fingerprint, name) for name, trial in trials.items()}


def _run_all(
    base: Config,
    prepared: Prepared,
    split: ValidationSplit,
    pairs: Pairs,
    trials: dict[tuple[str, int], Trial],
    same_as: dict[str, str],
    embeddings: Embeddings,
) -> dict[tuple[str, int], tuple[dict[str, Any], np.ndarray]]:
    """The trial's file and ranks by variant and seed, of each group of equal variants once."""
    root = pathlib.Path(base.workdir)
    distinct = {key: trial for key, trial in trials.items() if same_as[key[0]] == key[0]}
    unfinished = [key for key, trial in distinct.items() if not trial.is_finished]
    names = list(dict.fromkeys(name for name, _ in distinct))
    seeds = list(dict.fromkeys(seed for _, seed in distinct))
    logging.info(
        "ablate: %d variants, %d seeds: %d trainings, %d of them finished before",
        len(names), len(seeds), len(distinct), len(distinct) - len(unfinished),
    )  # fmt: skip
    found = {}
    with Progress(len(unfinished), "training", "ablate") as progress:
        for (name, seed), trial in distinct.items():
            place = f"variant {names.index(name) + 1} of {len(names)}"
            if len(seeds) > 1:
                place += f", seed {seeds.index(seed) + 1} of {len(seeds)}"
            progress.note(f"{place}: {name}")
            logging.info("ablate: %s: %s", place, name)
            if (name, seed) in unfinished:
                # Computed once for each seed; the folders of the variants link to it.
                folder = str(seed_folder(base, seed))
                shared = dataclasses.replace(base, workdir=folder, seed=seed)
                spectral_bases(shared, prepared, split)
            try:
                found[name, seed] = trial.run(root, base, pairs, embeddings)
            except UserError as error:
                raise UserError(f"Variant {name}: {error}") from error
            progress.update(int((name, seed) in unfinished))
            raise_if_stopped()
    return found


def _report(
    found: dict[tuple[str, int], tuple[dict[str, Any], np.ndarray]], name: str, seeds: list[int]
) -> dict[str, Any]:
    """What a variant's trainings say of themselves: that of the run's seed, and each one."""
    saved = [found[name, seed][0] for seed in seeds]
    runs = [
        {
            "seed": seed,
            **{
                key: value for key, value in entry.items() if key not in ("fingerprint", "finished")
            },
        }
        for seed, entry in zip(seeds, saved)
    ]
    minutes = round(sum(entry["minutes"] for entry in saved), 2)
    return {**saved[0], "minutes": minutes, "runs": runs}


def _notes(pairs: Pairs) -> list[str]:
    if pairs.source == "validation":
        return ["each variant's checkpoint and cold-start bias were chosen on these pairs"]
    return ["settings that are chosen by these metrics must be reported on other pairs"]


def _unbeaten_note(reference: str) -> str:
    if reference == UNTRAINED:
        return (
            "no variant is above its untrained network by more than noise: nothing was learned, "
            "and the differences between variants mean nothing; train longer (--epochs, "
            "--ablate_steps)"
        )
    return (
        "no variant is above the cosine of the features (content) by more than noise, so the "
        "differences between variants say little about a model that is worth using"
    )
