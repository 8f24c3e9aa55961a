"""The pipeline on generated catalogs of 1M, 10M and 100M edges: time, memory and disk.

Each stage runs in a separate process, so that its peak memory can be measured: the catalog is
written as Parquet, prepared, sampled from, trained on for some steps, embedded and evaluated.
There are 20 edges per item and 80 per collection, and T=10 neighbors from 50 walks of 2 steps.

  python -m benchmarks.scale --scale_edges=1000000,10000000
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import sys
import time

from benchmarks import processes

_EDGES_PER_ITEM = 20
_STAGES = ("prepare", "sample", "train", "embed", "evaluate")


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--scale_edges", default="1000000,10000000", help="sizes, ascending")
    parser.add_argument("--scale_steps", type=int, default=30, help="training steps of each size")
    parser.add_argument("--scale_folder", default="", help="workdirs; default: beside the JSON")
    parser.add_argument("--scale_keep", action="store_true", help="do not delete the workdirs")
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
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        found, rate = _one_size(edges, workdir, options)
        costs += found
        rates.append(rate)
        print(json.dumps(rate), file=sys.stderr, flush=True)
        if not options.scale_keep:
            shutil.rmtree(workdir)
    return costs + rates + _ratios(rates)


def _one_size(edges: int, workdir: pathlib.Path, options) -> tuple[list[dict], dict]:
    items = edges // _EDGES_PER_ITEM
    size = [f"--synthetic_size={items}x{edges}", f"--workdir={workdir}", "--synthetic"]
    inputs = workdir / "inputs"
    tables = [f"--{name}={inputs / name}.parquet" for name in ("edges", "items", "eval_pairs")]
    settings = [
        *tables,
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
        "--baselines=popularity",
        "--bootstrap=0",
        *options.scale_flags.split(),
    ]
    program = ["-m", "benchmarks.scale_stages"]
    stages = {
        "generate": [*program, "generate", *size],
        **{name: [*program, name, *settings] for name in _STAGES},
    }
    rows, found = [], {}
    for name, arguments in stages.items():
        cost = found[name] = processes.run(arguments, workdir / "log.txt")
        rows.append(
            {
                "edges": edges,
                "stage": name,
                "seconds": round(cost.seconds, 1),
                "peak_gib": round(cost.peak_gib, 2),
                "anon_gib": round(cost.anon_gib, 2),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    sampled = json.loads((workdir / "sampled.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pairs = sorted(line["pairs_per_second"] for line in lines if "pairs_per_second" in line)
    # The first window holds the compilation.
    rate = {
        "edges": edges,
        "items": items,
        "generate_s": round(found["generate"].seconds, 1),
        "prepare_s": round(found["prepare"].seconds, 1),
        "peak_gib": round(max(cost.peak_gib for cost in found.values()), 2),
        "neighborhoods_per_s": round(sampled["neighborhoods_per_second"]),
        "pairs_per_s": round(pairs[len(pairs) // 2]),
        "embedded_items_per_s": round(items / found["embed"].seconds),
        "graph_bytes_per_edge": round(_size(workdir / "prepared" / "graph") / edges, 2),
        "disk_bytes_per_edge": round(_size(workdir) / edges, 1),
    }
    return rows, rate


def _ratios(rates: list[dict]) -> list[dict]:
    """Cost per edge (or per unit) of the largest size over that of the smallest."""
    first, last = rates[0], rates[-1]
    if first is last:
        return []
    growth = last["edges"] / first["edges"]
    result = {"largest_over_smallest": f"{last['edges']:,} / {first['edges']:,} edges"}
    for name in ("generate_s", "prepare_s"):
        result[f"{name}_per_edge"] = round(last[name] / max(first[name], 1e-9) / growth, 2)
    for name in ("neighborhoods_per_s", "pairs_per_s", "embedded_items_per_s"):
        result[f"cost_{name[:-6]}"] = round(first[name] / max(last[name], 1e-9), 2)
    return [result]


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
