"""One peer in a process of its own, so that time and peak memory are its own.

    python -m benchmarks.arena.contestant --peer=als --workdir=WORKDIR --result=FILE.json

It chooses settings on the validation pairs of the workdir's split, fits the training edges of the
catalog with them, and ranks the evaluation pairs.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys
import time
from typing import Any

from benchmarks.arena import closed_form, dgl_pinsage, factors, judging, lightgcn, sequences
from benchmarks.arena.peers import Peer, Unavailable, training_data
from pinsage_jax.api import settings as settings_of
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.evaluation.pair_ranks import pairs_to_score
from pinsage_jax.stages.runs import validation_split_of

PEERS = {
    peer.name: peer
    for module in (factors, closed_form, sequences, lightgcn, dgl_pinsage)
    for peer in module.PEERS
}


def compete(config: Config, peer: Peer, pythons: dict[str, str]) -> dict[str, Any]:
    """What the peer reaches on the evaluation pairs of the workdir, as JSON values.

    Returns:
      {"skipped": reason} if it cannot run; else "metrics" by kind, "settings", "validation",
      "fit_seconds" of the chosen settings, "choice_seconds", "cpu_seconds" of both, and
      "elsewhere_gib", the peak memory of programs of other environments.
    """
    prepared = open_prepared(config.workdir)
    split = validation_split_of(config, prepared)
    scored = pairs_to_score(prepared, split, prepared.graph, fitted=False)
    data = (config.seed, config.host_threads, pythons)
    cpu_before = _cpu_seconds()
    try:
        chosen = judging.choose_settings(
            peer, training_data(prepared, split.train_graph, *data), split.pairs
        )
        train = training_data(prepared, prepared.graph, *data)
        begin = time.perf_counter()
        fitted = judging.fit_chosen(peer, train, chosen.settings)
        seconds, cpu_seconds = time.perf_counter() - begin, _cpu_seconds() - cpu_before
    except Unavailable as reason:
        return {"skipped": str(reason)}
    # Of the largest program that the peer has run in another environment, at least this process.
    elsewhere = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    ranks = fitted.ranks(scored.pairs, prepared.graph.num_items)
    return {
        "metrics": judging.judge(ranks, scored.pairs, scored.kinds),
        "settings": chosen.settings,
        "validation": chosen.values,
        "fit_seconds": seconds,
        "choice_seconds": chosen.seconds,
        "cpu_seconds": cpu_seconds,
        "elsewhere_gib": elsewhere if peer.elsewhere else 0.0,
    }


def _cpu_seconds() -> float:
    """CPU time of all threads of this process and of the programs that it ran to their end."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def main(argv: list[str]) -> int:
    """Runs one peer and writes its result; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--result", type=pathlib.Path, required=True)
    options = parser.parse_args(argv)
    config = settings_of(options.workdir, threads=options.threads)
    pythons = dict(text.split("=", 1) for text in options.python)
    files.write_json(options.result, compete(config, PEERS[options.peer], pythons))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
