"""Embedding a catalog after a change, into WORKDIR/updated.

WORKDIR/updated/ has the form of a workdir: prepared/ and embeddings/ of the catalog with
every change so far, so that --workdir=WORKDIR/updated lists neighbors and builds indexes
of it.  Another change goes on from there.  WORKDIR/layers holds what the next one is
computed from.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.changes import read_changes, write_changed
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import open_table
from pinsage_jax.export import writer
from pinsage_jax.inference.current_catalog import CurrentCatalog, fill_tables
from pinsage_jax.inference.new_item_model import Trained
from pinsage_jax.inference.tables import KeptTables
from pinsage_jax.inference.updating import Update
from pinsage_jax.retrieval.export_quality import recall_against_float32
from pinsage_jax.stages.checkpoint import (
    about_run,
    as_exported,
    cold_adjustment,
    kept_tables,
    restored,
)
from pinsage_jax.stages.runs import identity_of, split_of

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
    key, changed = _changes_key(config), config.update
    bases = spectral_bases(config, trained_on, split_of(config, trained_on))
    first = CurrentCatalog(config, trained_on, before, bases)
    nodes = trained_on.graph
    everything = config.sampling.neighborhood == "all"
    trained = restored(
        config, trained_on, first.inputs.dim, nodes.num_nodes if everything else nodes.num_items
    )
    trained, codec = as_exported(config, trained)
    made_with = _settings_key(config, trained)
    if source == updated:
        done = files.read_json(updated / writer.FOLDER / writer.MANIFEST)
        if done.get("changes") != key:
            logging.info("update: on top of the changes that %s holds", updated)
        elif done.get("made_with") == made_with:
            logging.info("update: %s holds these changes already", updated)
            return done
        else:
            logging.info("update: %s holds these changes; embedding it anew", updated)
            changed = UpdateConfig()
    changes = read_changes(before, workdir / "prepared" / "features", config.data, changed)

    def tables(catalog: CurrentCatalog, fingerprint: str) -> KeptTables:
        return kept_tables(config, catalog.graph, trained, fingerprint, keep=True)

    old = tables(first, before.manifest["fingerprint"])
    fill_tables(first, trained.params, old, cold_adjustment(first.graph, trained.cold_start_bias))
    with files.atomic_folder(updated) as folder:
        write_changed(before, changes, source / "prepared", folder / "prepared")
        after = open_prepared(folder)
        second = CurrentCatalog(config, trained_on, after, bases)
        new = tables(second, after.manifest["fingerprint"])
        vectors, report = Update(
            first, second, changes, trained.params, old, new, trained.cold_start_bias
        ).run()
        items = after.graph.num_items
        manifest = writer.write_embeddings(
            folder,
            config.embed,
            after.item_ids,
            vectors[:items],
            {
                **about_run(config, trained),
                "against_float32": recall_against_float32(codec, vectors[:items]),
                "ids": after.item_ids.digest(),
                "data": identity_of(after),
                "changes": key,
                "made_with": made_with,
                "update": report,
            },
            after.collection_ids if everything else None,
            vectors[items:] if everything else None,
            codec=codec,
        )
    new.remove_others()
    print(_said(report))
    logging.info("update: the catalog with its changes is in %s", updated)
    return manifest


def _changes_key(config: Config) -> str:
    """Hash of the rows that the tables of changes hold, whatever catalog they change.

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
    """Hash of the model and of the settings that decide its exported vectors."""
    embed = dataclasses.asdict(config.embed)
    for name in ("embed_block", "keep_layers"):
        del embed[name]
    sampling = dataclasses.asdict(config.sampling)
    return files.fingerprint(
        [trained.digest, trained.cold_start_bias, embed, sampling, config.seed]
    )


def _said(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    nodes, total = report["nodes"], max(report["nodes"], 1)

    def share(count: int) -> str:
        return f"{count:,} of {nodes:,} ({100 * count / total:.2f}%)"

    lines = [
        f"changes: {report['edges_added']:,} edges added, {report['edges_reweighted']:,} "
        f"reweighted, {report['edges_removed']:,} removed; {report['items_added']:,} items added, "
        f"{report['items_changed']:,} changed; {report['collections_added']:,} collections added",
        f"walked again from {share(report['walked_again'])}; lists that differ: "
        f"{share(report['lists_changed'])}",
    ]
    for layer, count in enumerate(report["computed"]):
        lines.append(f"recomputed in layer {layer + 1}: {share(count)}")
        if layer < len(report["projected"]):
            lines[-1] += f", from messages of {share(report['projected'][layer])}"
    return "\n".join(lines)
