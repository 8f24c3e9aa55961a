"""The stage that embeds a catalog again after a change, into WORKDIR/updated.

WORKDIR/updated/ is itself a workdir, with prepared/ and embeddings/ of the catalog after
every change so far, so that --workdir=WORKDIR/updated lists neighbors and builds indexes.
The next change starts from it and from the tables in WORKDIR/layers.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.changes import read_changes, write_changed
from pinsage_jax.catalog.encoders import load_transform
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import SyntheticConfig
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import open_table
from pinsage_jax.export import writer
from pinsage_jax.export.writer import Embeddings
from pinsage_jax.inference.current_catalog import CurrentCatalog, fill_tables
from pinsage_jax.inference.new_item_model import Trained
from pinsage_jax.inference.tables import PersistentTables
from pinsage_jax.inference.updating import Update
from pinsage_jax.ranking.saved_ranker import carry_ranker
from pinsage_jax.retrieval.export_quality import recall_against_float32
from pinsage_jax.stages.checkpoint import (
    cold_start_adjustment,
    load_trained,
    match_export,
    persistent_tables,
    run_metadata,
)
from pinsage_jax.stages.runs import data_identity, remember, validation_split_of

FOLDER = "updated"


def update(config: Config) -> dict[str, Any]:
    """Applies --changed_edges, --removed_edges and --changed_items and embeds the result.

    Returns:
      The manifest of WORKDIR/updated/embeddings.

    Raises:
      UserError: a table cannot be used, or nothing was trained.
    """
    workdir = pathlib.Path(config.workdir)
    updated = workdir / FOLDER
    trained_on = open_prepared(workdir)
    source = updated if (updated / writer.FOLDER / writer.MANIFEST).exists() else workdir
    before = open_prepared(source)
    fingerprint = trained_on.manifest["fingerprint"]
    if before.manifest.get("base", fingerprint) != fingerprint:
        raise UserError(
            f"{updated} is of another catalog than {workdir / 'prepared'}; delete it and run again."
        )
    key, change_tables = _changes_key(config), config.update
    bases = spectral_bases(config, trained_on, validation_split_of(config, trained_on))
    catalog_before = CurrentCatalog(config, trained_on, before, bases)
    everything = config.sampling.neighborhood == "all"
    num_nodes = trained_on.graph.num_nodes if everything else trained_on.graph.num_items
    trained = load_trained(
        config,
        trained_on,
        catalog_before.inputs.dim,
        num_nodes,
    )
    trained, codec = match_export(config, trained)
    settings_key = _settings_key(config, trained)
    if source == updated:
        done = files.read_json(updated / writer.FOLDER / writer.MANIFEST)
        if done.get("changes") != key:
            logging.info("update: the changes are applied to the catalog in %s", updated)
        elif done.get("settings_key") == settings_key:
            logging.info("update: %s contains these changes already", updated)
            carry_ranker(config, updated)
            return done
        else:
            logging.info("update: %s contains these changes; embedding it anew", updated)
            change_tables = UpdateConfig()
    changes = read_changes(before, load_transform(config), config.data, change_tables)

    def tables(catalog: CurrentCatalog, fingerprint: str) -> PersistentTables:
        return persistent_tables(config, catalog.graph, trained, fingerprint, keep=True)

    old = tables(catalog_before, before.manifest["fingerprint"])
    adjust = cold_start_adjustment(catalog_before.graph, trained.cold_start_bias)
    fill_tables(catalog_before, trained.params, old, adjust)
    with files.atomic_folder(updated) as folder:
        write_changed(before, changes, source / "prepared", folder / "prepared")
        after = open_prepared(folder)
        catalog_after = CurrentCatalog(config, trained_on, after, bases)
        new = tables(catalog_after, after.manifest["fingerprint"])
        vectors, report = Update(
            catalog_before,
            catalog_after,
            changes,
            trained.params,
            old,
            new,
            trained.cold_start_bias,
        ).run()
        items = after.graph.num_items
        manifest = writer.write_embeddings(
            folder,
            config.embed,
            Embeddings(after.item_ids, vectors[:items]),
            {
                **run_metadata(config, trained),
                "against_float32": recall_against_float32(codec, vectors[:items]),
                "ids": after.item_ids.digest(),
                "data": data_identity(after),
                "changes": key,
                "settings_key": settings_key,
                "update": report,
            },
            Embeddings(after.collection_ids, vectors[items:]) if everything else None,
            codec=codec,
        )
        # Without the tables: they are those of the catalog before its changes.
        columns = dataclasses.replace(
            config.data, edges="", items="", train_pairs="", eval_pairs=""
        )
        remember(dataclasses.replace(config, data=columns, synthetic=SyntheticConfig()), folder)
        ranked = carry_ranker(config, folder)
    new.remove_others()
    print(_format_report(report))
    logging.info("update: the catalog with its changes is in %s", updated)
    if not ranked:
        logging.info("update: %s has no ranker of its embeddings; vectors order the lists", workdir)
    return manifest


def _changes_key(config: Config) -> str:
    """Hash of the files of the tables of changes, independent of the catalog that they change.

    Raises:
      UserError: a table cannot be opened.
    """
    found: list[list[str]] = []
    for flag in ("changed_edges", "removed_edges", "changed_items"):
        value = getattr(config.update, flag)
        parts = open_table(config.data.path(value), flag, config.data).files if value else ()
        found.append([files.checksum(part) for part in parts])
    return files.fingerprint(found)


def _settings_key(config: Config, trained: Trained) -> str:
    """Hash of the model and of the settings that its exported vectors depend on."""
    embed = dataclasses.asdict(config.embed)
    for name in ("embed_block", "keep_layers"):
        del embed[name]
    sampling = dataclasses.asdict(config.sampling)
    return files.fingerprint(
        [trained.digest, trained.cold_start_bias, embed, sampling, config.seed]
    )


def _format_report(report: dict[str, Any]) -> str:
    """The report of an update as lines of text."""
    nodes, total = report["nodes"], max(report["nodes"], 1)

    def share(count: int) -> str:
        return f"{count:,} of {nodes:,} ({100 * count / total:.2f}%)"

    lines = [
        f"changes: {report['edges_added']:,} edges added, {report['edges_reweighted']:,} "
        f"reweighted, {report['edges_removed']:,} removed; {report['items_added']:,} items added, "
        f"{report['items_changed']:,} changed; {report['collections_added']:,} collections added",
        f"neighborhoods sampled again for {share(report['resampled'])}; lists that changed: "
        f"{share(report['lists_changed'])}",
    ]
    for layer, count in enumerate(report["computed"]):
        lines.append(f"recomputed in layer {layer + 1}: {share(count)}")
        if layer < len(report["projected"]):
            lines[-1] += f", from messages of {share(report['projected'][layer])}"
    return "\n".join(lines)
