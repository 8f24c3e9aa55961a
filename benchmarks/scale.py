"""The pipeline on generated catalogs of 1M to 1,000M edges: time, memory and disk of each stage.

Each stage runs in a separate process, so that its peak memory can be measured: the catalog is
written as Parquet and prepared, its neighbor lists are sampled to disk, a network is trained for
some steps, all items are embedded and indexed, and the index lists related items of a million of
them.  There are 20 edges per item and 80 per collection, 48 features, and T=10 neighbors from 50
walks of 2 steps.

  python -m benchmarks.run scale --scale_edges=1000000,10000000

WORKDIR/stages.json has what each stage cost.  With --scale_resume those that it names are not run
again, and one that was killed goes on where the program itself does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import threading
import time

from benchmarks import processes

_EDGES_PER_ITEM = 20
_STAGES = ("generate", "prepare", "lists", "train", "embed", "index", "related")
_QUERIES = 1_000_000
_INDEX = "ivfpq16:8"
_SECONDS_BETWEEN_SIZES = 5.0


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--scale_edges", default="1000000,10000000", help="sizes, ascending")
    parser.add_argument("--scale_steps", type=int, default=200, help="training steps of each size")
    parser.add_argument("--scale_folder", default="", help="workdirs; default: beside the JSON")
    parser.add_argument("--scale_keep", action="store_true", help="do not delete the workdirs")
    parser.add_argument(
        "--scale_resume", action="store_true", help="go on with workdirs that are there"
    )
    parser.add_argument(
        "--scale_stages", default=",".join(_STAGES), help="stages to run, in their order"
    )
    parser.add_argument(
        "--scale_flags", default="", help="more flags of the program, separated by spaces"
    )


def run(options) -> list[dict]:
    """One row for each size and stage, one of rates for each size, and ratios between sizes."""
    sizes = [int(size) for size in options.scale_edges.split(",")]
    if options.quick:
        sizes = [20_000]
    root = pathlib.Path(options.scale_folder or pathlib.Path(options.out) / "scale").resolve()
    costs, rates = [], []
    for edges in sizes:
        workdir = root / f"edges-{edges}"
        if not options.scale_resume:
            shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True, exist_ok=True)
        found = _one_size(edges, workdir, options)
        costs += [{"edges": edges, "stage": name, **cost} for name, cost in found.items()]
        if set(found) >= set(_STAGES):
            rates.append(_rates(edges, workdir, found))
            print(json.dumps(rates[-1]), file=sys.stderr, flush=True)
        if not options.scale_keep:
            shutil.rmtree(workdir)
    return costs + rates + _ratios(rates)


def _one_size(edges: int, workdir: pathlib.Path, options) -> dict[str, dict]:
    """Runs the stages that WORKDIR/stages.json lacks; what each cost, by its name."""
    path, commands = workdir / "stages.json", _commands(edges, workdir, options)
    found = json.loads(path.read_text()) if path.exists() else {}
    wanted = [name for name in options.scale_stages.split(",") if name]
    if unknown := sorted(set(wanted) - set(_STAGES)):
        raise SystemExit(f"--scale_stages: no stage {unknown[0]!r}; there are {_STAGES}")
    for name in _STAGES:
        if name in found or name not in wanted:
            continue
        with _WatchedFolder(workdir) as disk:
            cost = processes.run(commands[name], workdir / "log.txt")
        found[name] = {
            "seconds": round(cost.seconds, 1),
            "peak_gib": round(cost.peak_gib, 2),
            "anon_gib": round(cost.anon_gib, 2),
            "disk_gib": round(disk.peak / 2**30, 2),
            "load": round(os.getloadavg()[1], 1),
        }
        if name == "prepare":
            found[name]["input_bytes"] = _size(workdir / "inputs")
            # Nothing reads the tables again.
            if not options.scale_keep or edges > 10**8:
                shutil.rmtree(workdir / "inputs")
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        print(json.dumps({"edges": edges, "stage": name, **found[name]}), file=sys.stderr)
        sys.stderr.flush()
    return found


def _commands(edges: int, workdir: pathlib.Path, options) -> dict[str, list[str]]:
    """Arguments of Python for each stage."""
    inputs, items = workdir / "inputs", edges // _EDGES_PER_ITEM
    tables = [f"--{name}={inputs / name}.parquet" for name in ("edges", "items", "eval_pairs")]
    settings = [
        f"--workdir={workdir}",
        f"--threads={options.threads}",
        "--feature_dtype=float16",
        "--num_neighbors=10",
        "--num_walks=50",
        "--walk_length=2",
        "--restart=0.5",
        "--embed_walks=auto",
        f"--max_steps={options.scale_steps}",
        "--validate_every=1000000",
        "--hard_max=0",
        # The same kinds of work at every size; by default large catalogs skip some.
        "--neighbor_embeddings=off",
        "--spectral_dim=32",
        "--hidden_dim=128",
        "--layer_dim=128",
        "--output_dim=64",
        # A validation would embed the catalog a second time.
        "--validation_collections=0",
        "--neighborhood_store=disk",
        "--export_format=npy",
        "--export_dtype=int8",
        f"--index_settings={_INDEX}",
        *options.scale_flags.split(),
    ]
    program = ["-m", "benchmarks.scale_stages"]
    size = [f"--synthetic_size={items}x{edges}", f"--workdir={workdir}", "--synthetic"]
    queries = [f"--search={_INDEX}", f"--queries={workdir / 'queries.csv'}", "--k=10"]
    more = {"prepare": tables, "related": queries}
    commands = {name: [*program, name, *more.get(name, []), *settings] for name in _STAGES}
    return {**commands, "generate": [*program, "generate", *size]}


class _WatchedFolder:
    """Measures the largest size of a folder while a stage writes to it.

    Attributes:
      peak: bytes of its files; files without a name do not count.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self.peak, self._ended = folder, 0, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, _size(self._folder))

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_SIZES):
            self.peak = max(self.peak, _size(self._folder))


def _rates(edges: int, workdir: pathlib.Path, found: dict[str, dict]) -> dict:
    """The row of one size in the table of sizes."""
    items = edges // _EDGES_PER_ITEM
    sampled = json.loads((workdir / "lists.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pairs = sorted(line["pairs_per_second"] for line in lines if "pairs_per_second" in line)
    seconds = {name: cost["seconds"] for name, cost in found.items()}
    return {
        "edges": edges,
        "items": items,
        **{f"{name}_s": seconds[name] for name in _STAGES},
        "total_s": round(sum(seconds.values()), 1),
        "peak_gib": max(cost["peak_gib"] for cost in found.values()),
        "anon_gib": max(cost["anon_gib"] for cost in found.values()),
        "neighborhoods_per_s": round(sampled["neighborhoods_per_second"]),
        # The first window holds the compilation.
        "pairs_per_s": round(pairs[len(pairs) // 2]),
        "embedded_items_per_s": round(items / seconds["embed"]),
        "related_per_s": round(min(items, _QUERIES) / seconds["related"]),
        "input_bytes_per_edge": round(found["prepare"]["input_bytes"] / edges, 2),
        "graph_bytes_per_edge": round(_size(workdir / "prepared" / "graph") / edges, 2),
        "disk_bytes_per_edge": round(
            max(cost["disk_gib"] for cost in found.values()) * 2**30 / edges, 1
        ),
    }


def _ratios(rates: list[dict]) -> list[dict]:
    """Cost per edge (or per unit) of the largest size over that of the smallest."""
    if len(rates) < 2:
        return []
    first, last = rates[0], rates[-1]
    growth = last["edges"] / first["edges"]
    result = {"largest_over_smallest": f"{last['edges']:,} / {first['edges']:,} edges"}
    for name in ("generate_s", "prepare_s", "embed_s", "index_s"):
        result[f"{name}_per_edge"] = round(last[name] / max(first[name], 1e-9) / growth, 2)
    for name in ("neighborhoods_per_s", "pairs_per_s", "embedded_items_per_s"):
        result[f"cost_{name[:-6]}"] = round(first[name] / max(last[name], 1e-9), 2)
    return [result]


def _size(folder: pathlib.Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        # A stage may have just renamed or deleted it.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def main() -> None:
    """Runs this benchmark alone and writes scale.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    add_options(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    rows = run(options)
    for row in rows:
        print(row)
    print(f"{time.perf_counter() - begin:.0f} s in total")
    (options.out / "scale.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
