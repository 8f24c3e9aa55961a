"""The table of modes: which module of this folder implements each --mode.

A module is imported when its stage runs, so listing neighbors does not load the training code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import shlex
from collections.abc import Callable, Iterable
from typing import Any

from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.core import workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.exchange import NEXT

# The stage is the function of the mode's name in stages/MODULE.py.
MODULES = {
    "pipeline": "pipeline",
    "prepare": "prepare",
    "train": "train",
    "embed": "embed",
    "evaluate": "evaluate",
    "neighbors": "search",
    "report": "evaluate",
    "recommend": "search",
    "index": "search",
    "split": "prepare",
    "ablate": "pipeline",
    "graph_tables": "prepare",
    "serve": "serve",
    "follow": "follow",
    "doctor": "prepare",
    "explain": "evaluate",
    "rank": "search",
    "export": "search",
    "compare": "evaluate",
}
# For `pinsage-jax MODE --help`: what a mode does, the sections of Config that are its own (every
# flag is shown), and others that it reads (their basic flags are shown); not what `readers` denies.
_INPUTS = ("data", "synthetic")
TOPICS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "pipeline": (
        "Runs prepare, train, embed, evaluate and report, and skips what the workdir holds.",
        ("retraining", "encoders"),
        (*_INPUTS, "split", "sampling", "model", "train", "embed", "evaluate", "store", "prune"),
    ),
    "prepare": ("Reads the tables into WORKDIR/prepared.", (*_INPUTS, "encoders", "prune"), ()),
    "train": (
        "Trains the model; a run that was stopped goes on.",
        ("split", "sampling", "model", "train", "store", "distributed", "retraining"), _INPUTS,
    ),
    "embed": (
        "Embeds every item, or new and changed ones alone.",
        ("embed", "new", "update", "encoders", "spark"), ("store",),
    ),
    "evaluate": ("Measures the embeddings beside baselines.", ("evaluate",), ("search",)),
    "neighbors": (
        "Lists related items: of one (--query), of several or of all.",
        ("search", "new", "encoders"),
        ("evaluate",),
    ),
    "report": (
        "Writes report.html and explorer.html.", ("report", "explorer"), ("evaluate", "search"),
    ),
    "recommend": (
        "Lists items for the history of a collection.", ("recommend", "search"), ("evaluate",),
    ),
    "index": ("Measures and writes faiss indexes.", ("search",), ()),
    "split": ("Makes training and evaluation tables of one edge table.", ("split_tool",), _INPUTS),
    "ablate": (
        "Trains and compares variants of the settings.", ("ablate",),
        (*_INPUTS, "sampling", "model", "train"),
    ),
    "graph_tables": ("Writes edges and neighbor lists by Apache Spark.", ("spark",), _INPUTS),
    "serve": ("Answers over HTTP.", ("serve", "encoders"), ("search", "explorer")),
    "follow": (
        "Answers over HTTP, and follows edges as they arrive.", ("serve", "encoders"),
        ("search", "explorer"),
    ),
    "doctor": ("Checks the tables and forecasts time, memory and disk.", ("doctor",), _INPUTS),
    "explain": ("Tells why one item is a neighbor of another.", ("evaluate",), ()),
    "export": (
        "Writes the vectors for a vector store, the encoder of new items, or tables for Spark.",
        ("vector_store",), (),
    ),
    "rank": ("Fits the ranker of related items.", ("search",), ("evaluate",)),
    "compare": ("Compares two runs.", ("compare",), ("evaluate",)),
}  # fmt: skip
# Modes that need no earlier one; only they make a workdir.
BEGINNING = ("pipeline", "prepare", "split", "ablate", "graph_tables", "doctor")
# Modes that run compiled steps, which allocate and free the same memory again and again.
WITH_STEPS = ("pipeline", "train", "embed", "ablate", "doctor")
_TRACKER_PACKAGES = {
    "tensorboard": ("tensorboardX",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
# Sections of Config, and flags, that only some modes read.  Prepare and train write what a run
# remembers, so that what they are given counts later.
_LISTING, _FITTING = ("neighbors", "recommend"), ("pipeline", "prepare", "train")
_SHOWING = ("pipeline", "evaluate", "report", "neighbors", "serve", "follow")
READERS_OF_SECTIONS: dict[str, tuple[str, ...]] = {
    "train": (*_FITTING, "ablate", "doctor"),
    "split_tool": ("split",),
    "ablate": ("ablate",),
    "doctor": ("doctor",),
    "compare": ("compare",),
    "serve": ("serve", "follow"),
    "spark": ("pipeline", "embed", "graph_tables"),
    "vector_store": ("export",),
    "encoders": (
        "pipeline",
        "prepare",
        "embed",
        "neighbors",
        "ablate",
        "doctor",
        "serve",
        "follow",
    ),
}
READERS: dict[str, tuple[str, ...]] = {
    "cpu_kernels": tuple(MODULES),
    "spark_tables": ("embed", "export"),
    "export_format": (*_FITTING, "embed"),
    "export_dim": (*_FITTING, "embed"),
    "align_to": (*_FITTING, "embed"),
    "keep_layers": (*_FITTING, "embed"),
    "baselines": (*_FITTING, "evaluate", "doctor"),
    "bootstrap": (*_FITTING, "evaluate", "ablate", "compare", "doctor"),
    "query": (*_LISTING, "explain"),
    "queries": ("neighbors",),
    "target": ("explain",),
    "k": (*_LISTING, "explain", "compare", "report", "pipeline"),
    "index_settings": ("index",),
    "follow": ("follow",),
    "follow_tolerance": ("follow",),
    "search": (*_LISTING, "serve", "follow"),
    "related_by": _SHOWING,
    "new_item_price": _SHOWING,
    "popularity_weight": (*_SHOWING, "recommend", "explain", "rank", "compare", "export"),
    **dict.fromkeys(
        ("exclude_seen", "one_per_collection", "min_degree", "where", "boost", "one_per",
         "block_items", "allow_items", "diversity"),
        _LISTING,
    ),
    "color_column": ("pipeline", "report"),
    "tables": ("pipeline", "evaluate", "ablate"),
    "recommend_by": ("recommend", "serve", "follow"),
    "test_edges": ("recommend",),
}  # fmt: skip
# What to do after a mode; {} is the workdir.
_NEXT = {
    "pipeline": "open {}/report.html; list related items with --workdir={} --mode=neighbors "
    "--query=ID; the vectors are in {}/embeddings",
    "prepare": "--workdir={} --mode=train",
    "train": "--workdir={} --mode=embed",
    "embed": "--workdir={} --mode=neighbors --query=ID, or --mode=evaluate",
    "evaluate": "--workdir={} --mode=report",
    "report": "open {}/report.html and {}/explorer.html",
    "split": "--edges={}/split/train_edges.parquet --eval_pairs={}/split/eval_pairs.parquet, with "
    "--items and a workdir of its own",
    "index": "choose by the table, and search with --workdir={} --mode=neighbors --search=NAME",
}


def readers() -> dict[str, tuple[str, ...]]:
    """The modes that read a setting, by its name; a setting that is not here is for all."""
    found: dict[str, tuple[str, ...]] = {}
    for section, modes in READERS_OF_SECTIONS.items():
        settings: Any = getattr(Config, section)
        found |= {field.name: modes for field in dataclasses.fields(settings)}
    return found | READERS


def warn_unread(mode: str, typed: Iterable[str]) -> None:
    """Warns of flags on the command line that the mode does not read.

    Lines of a flagfile are for all modes of a run, and are not meant.
    """
    known = readers()
    names = {name: name if name in known else name.removeprefix("no") for name in typed}
    unread = [f"--{given}" for given, name in names.items() if mode not in known.get(name, (mode,))]
    if unread:
        logging.warning("--mode=%s does not read %s.", mode, " or ".join(unread))


def say_next(config: Config, done: bool) -> None:
    """Tells what a person may do after the command, if it was `done` and not stopped."""
    if not done or config.mode not in _NEXT or config.new.new_items or config.update.has_changes:
        return
    folder = os.path.dirname(config.workdir) if config.retraining.beside else config.workdir
    parts = _NEXT[config.mode].replace("{}", folder).split("; ")
    if config.mode == "pipeline" and os.path.exists(os.path.join(folder, "embeddings")):
        first = importlib.import_module("pinsage_jax.stages.runs").first_item_id(folder)
        parts = [part.replace("--query=ID", f"--query={shlex.quote(first)}") for part in parts]
    # Without matplotlib there is no report.
    if not os.path.exists(os.path.join(folder, "report.html")):
        parts = [part for part in parts if not part.startswith("open ")]
    if parts:
        logging.info("next: %s", "; ".join(parts))


def only_reads(config: Config) -> bool:
    """Whether the command writes nothing into its workdir, and needs no lock."""
    asks = config.mode == "neighbors" and bool(config.evaluate.query)
    checks = config.mode == "export" and bool(config.vector_store.check)
    return config.mode in ("serve", "follow") or asks or checks


def extras_of(config: Config) -> list[tuple[str, str, tuple[str, ...]]]:
    """What a command needs beyond the base installation: flag, extra, packages."""
    mode = config.mode
    found: list[tuple[str, str, tuple[str, ...]]] = []
    trains, lists = ("pipeline", "train", "ablate"), ("neighbors", "recommend", "serve", "follow")
    for name in config.train.trackers if mode in trains else ():
        found.append((f"--tracker={name}", name, _TRACKER_PACKAGES[name]))
    if mode == "report":
        found.append(("--mode=report", "report", ("matplotlib",)))
    shown = ("pipeline", "report", "serve", "follow")
    if config.explorer.map_layout == "umap" and mode in shown:
        found.append(("--map_layout=umap", "map", ("umap",)))
    if config.explorer.image_column and not config.explorer.image_hosts and mode in shown:
        found.append((f"--image_column={config.explorer.image_column}", "report", ("PIL",)))
    if config.spark.on_spark and mode in ("pipeline", "embed"):
        found.append((f"--engine={config.spark.engine}", "spark", ("pyspark", "pandas")))
    if mode == "graph_tables":
        found.append(("--mode=graph_tables", "spark", ("pyspark", "pandas")))
    if mode == "index":
        found.append(("--mode=index", "ann", ("faiss",)))
    if config.search.search != "exact" and mode in lists:
        found.append((f"--search={config.search.search}", "ann", ("faiss",)))
    if mode == "export" and config.vector_store.to == "lancedb":
        found.append(("--to=lancedb", "lancedb", ("lancedb",)))
    if mode == "export" and (repo := config.vector_store.hub_repo):
        found.append((f"--hub_repo={repo}", "huggingface", ("huggingface_hub",)))
    if mode == "export" and config.vector_store.export_model:
        found.append(("--export_model", "stablehlo", ("flatbuffers",)))
    if config.encoders.text_folder and mode in READERS_OF_SECTIONS["encoders"]:
        flag = f"--text_encoder={config.encoders.text_encoder}"
        found.append((flag, "text-encoder", ("sentence_transformers",)))
    if mode in ("serve", "follow"):
        found.append((f"--mode={mode}", "serve", ("fastapi", "uvicorn", "fastapi_offline")))
    named = {name.strip() for name in config.evaluate.baselines.split(",")}
    if "als" in named and mode in ("pipeline", "evaluate"):
        found.append(("--baselines=als", "als", ("implicit",)))
    return found


def require_extras(config: Config) -> None:
    """Refuses a command whose extras are not installed, before it does any work.

    Raises:
      UserError: a package is missing; the sentence has the command that installs it.
    """
    for flag, extra, packages in extras_of(config):
        for package in packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{flag} needs {package}: pip install 'pinsage-jax[{extra}]'.")


def opened(config: Config) -> contextlib.AbstractContextManager:
    """The workdir of a command, locked where the command writes."""
    # Process 0 holds the lock for all.
    if config.distributed.process_id:
        return contextlib.nullcontext()
    if only_reads(config):
        return workdir.opened(config.workdir)
    return workdir.locked(config.workdir, create=config.mode in BEGINNING)


def in_its_workdir(config: Config) -> Config:
    """The settings with the folder that the command writes to; a new model has one of its own."""
    if not config.retraining.beside:
        return config
    return dataclasses.replace(config, workdir=os.path.join(config.workdir, NEXT))


def stage(mode: str) -> Callable[..., Any]:
    """The function that runs --mode=`mode`; it takes the settings."""
    module = importlib.import_module(f"pinsage_jax.stages.{MODULES[mode]}")
    return getattr(module, mode)
