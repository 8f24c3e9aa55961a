"""PinSage beside other recommenders, each by its own code, on the same pairs.

    python -m benchmarks.arena --workdir=runs/mine
    python -m benchmarks.arena --data_dir=data/citeulike-t --peers=als,lightfm,ease

--workdir names a finished run: its tables, its validation split, its vectors and its ranker.
Without one, the tables of --data_dir (train_edges, items and eval_pairs, or edges) are prepared
with default settings, and only the peers are judged.

Peers learn the training edges, settings are chosen on the validation pairs from a small grid, and
the evaluation pairs are ranked once, in the whole catalog and by the tie rule of --mode=evaluate.
Every peer is a process of its own: `fit min` and `choice min` are the wall-clock minutes of the
last fit and of the choice of its settings, `CPU min` the CPU minutes and `GiB` the peak resident
memory of both.  arena.json is written after each peer.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from typing import Any

from benchmarks import machine, processes
from benchmarks import run as frame
from benchmarks.arena import judging
from benchmarks.arena.contestant import PEERS
from benchmarks.arena.peers import Unavailable
from pinsage_jax.api import settings as settings_of
from pinsage_jax.catalog.prepare import open_prepared, prepare
from pinsage_jax.config.settings import Config
from pinsage_jax.core import costs, files, logging_setup
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.pair_ranks import pairs_to_score
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.stages.runs import listed_vectors, remember
from pinsage_jax.stages.search import listed_by

_RESULTS = pathlib.Path(__file__).parent.parent / "results"
# Beginnings of the names of files of --data_dir, by setting.
_TABLES = {
    "edges": ("train_edges.", "edges."),
    "items": ("items.",),
    "eval_pairs": ("eval_pairs.",),
}
_KINDS = ("warm", "cold", "all")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arena", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data_dir", default="", help="folder of tables, without --workdir")
    parser.add_argument("--workdir", default="", help="a finished run, beside which peers are set")
    parser.add_argument("--peers", default="all", help=f"comma-separated: {', '.join(PEERS)}")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="the Python program of an environment for "
        + " or ".join(name for name, peer in PEERS.items() if peer.elsewhere),
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=pathlib.Path, default=_RESULTS, help="for arena.json")
    options = parser.parse_args(argv)
    options.peers = list(PEERS) if options.peers == "all" else options.peers.split(",")
    if unknown := sorted(set(options.peers) - set(PEERS)):
        parser.error(f"--peers: {unknown[0]} is not one of {', '.join(PEERS)}")
    pythons = {}
    for text in options.python:
        name, _, path = text.partition("=")
        if not (name in PEERS and PEERS[name].elsewhere and pathlib.Path(path).is_file()):
            parser.error(f"--python={text}: a peer and a Python program are expected")
        pythons[name] = os.path.abspath(path)
    options.pythons = pythons
    if bool(options.data_dir) == bool(options.workdir):
        parser.error("name either --data_dir or --workdir, which knows its tables")
    return options


def opened(options: argparse.Namespace) -> Config:
    """The settings of the finished run, or of the tables, which are then prepared.

    Raises:
      UserError: there are no tables, no finished run or no evaluation pairs.
    """
    if options.workdir:
        config = settings_of(options.workdir, threads=options.threads)
        prepared = open_prepared(config.workdir)
    else:
        folder = pathlib.Path(options.data_dir)
        tables = {
            name: found[0].name
            for name, starts in _TABLES.items()
            if (found := [path for start in starts for path in sorted(folder.glob(f"{start}*"))])
        }
        if "edges" not in tables:
            raise UserError(f"--data_dir={folder} holds no train_edges.* or edges.* table.")
        workdir = options.out / "arena" / folder.resolve().name
        config = settings_of(
            workdir, threads=options.threads, data_dir=str(folder.resolve()), **tables
        )
        prepared = prepare(config)
        remember(config)
    if len(prepared.eval_pairs) == 0:
        raise UserError(
            "Peers are judged on evaluation pairs, and there are none: give --eval_pairs to the "
            "run, or an eval_pairs table in --data_dir."
        )
    return config


def own_results(config: Config) -> dict[str, dict[str, Any]]:
    """What the run's vectors and its ranker reach, by name; {} without an export."""
    workdir = pathlib.Path(config.workdir)
    if not (workdir / writer.FOLDER).exists():
        return {}
    prepared = open_prepared(workdir)
    scored = pairs_to_score(prepared, None, prepared.graph, fitted=False)
    (query, target), vectors = scored.pairs.T, listed_vectors(config, prepared)
    ranks = {"pinsage": target_ranks(vectors[query], vectors, query, target)}
    ranker = listed_by(config, prepared, config.host_threads, load_embeddings(workdir, prepared))
    if ranker is not None:
        ranks[f"pinsage, {ranker.by}"] = ranker.ranks(scored.pairs)
    spent = _training_costs(workdir)
    return {
        name: {"metrics": judging.judge(rank, scored.pairs, scored.kinds), "settings": {}, **spent}
        for name, rank in ranks.items()
    }


def _training_costs(workdir: pathlib.Path) -> dict[str, Any]:
    """Time and memory of the run's last command, if that command trained."""
    path = workdir / costs.COSTS_FILE
    spent = files.read_json(path) if path.exists() else {}
    if "train" not in spent.get("seconds", {}):
        return {}
    return {"fit_seconds": spent["total_seconds"], "peak_gib": spent["peak_memory_bytes"] / 2**30}


def peer_result(config: Config, name: str, pythons: dict[str, str]) -> dict[str, Any]:
    """What one peer reaches, in a process of its own, and its peak memory; or why it is skipped."""
    try:
        PEERS[name].require(pythons)
    except Unavailable as reason:
        return {"skipped": str(reason)}
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        command = ["-m", "benchmarks.arena.contestant", f"--peer={name}", f"--result={result}"]
        command += [f"--workdir={os.path.abspath(config.workdir)}"]
        command += [f"--threads={config.host_threads}"]
        command += [f"--python={peer}={path}" for peer, path in pythons.items()]
        try:
            cost = processes.run(command, pathlib.Path(folder) / "log")
        except RuntimeError as error:
            # A peer that crashes or runs out of memory is a result too.
            return {"skipped": f"it failed: {str(error).strip().splitlines()[-1].rstrip('.')}"}
        found = files.read_json(result)
        return found | {"peak_gib": max(cost.peak_gib, found.get("elsewhere_gib", 0.0))}


def rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The table, a row for each method that ran, and a note for each that did not."""
    table, notes = [], []
    for name, found in results.items():
        if "skipped" in found:
            notes.append({"note": f"{name} is skipped: {found['skipped']}."})
            continue
        row = {"method": name}
        for kind in _KINDS:
            values = found["metrics"].get(kind, {})
            row |= {f"{kind} {metric}": values.get(metric) for metric in judging.METRICS[:2]}
        row |= {
            title: found[key] / 60 if key in found else None
            for title, key in (
                ("fit min", "fit_seconds"),
                ("choice min", "choice_seconds"),
                ("CPU min", "cpu_seconds"),
            )
        }
        row |= {"GiB": found.get("peak_gib"), "settings": judging.as_text(found["settings"])}
        table.append(row)
    return [*table, *notes]


def main(argv: list[str]) -> int:
    """Judges PinSage and the peers, prints a table and writes arena.json; the exit status."""
    options = parse(argv)
    logging_setup.set_up("warning")
    facts = machine.facts()
    try:
        config = opened(options)
        results = own_results(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    contents = {"benchmark": "arena", "command": argv, "machine": facts, "tie_rule": TIE_RULE}
    path = frame.write(options.out, "arena", contents | {"results": results})
    for name in options.peers:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = peer_result(config, name, options.pythons)
        frame.write(options.out, "arena", contents | {"results": results})
    print(frame.tables(rows(results)))
    print(f"{facts['cores']} cores of {facts['processor']}, {facts['date']}; saved in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
