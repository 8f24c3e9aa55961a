"""Runs benchmarks by name, prints a table of each and writes RESULTS/NAME.json.

    python -m benchmarks.run            every benchmark
    python -m benchmarks.run sampler    one or more of them
    python -m benchmarks.run --list

A benchmark is a module benchmarks/NAME.py with

    def run(options) -> list[dict]       one row for each measurement
    def add_options(parser) -> None      optional: its flags

and the first line of its docstring as title.  A row is flat: strings and numbers in the
order in which the table shows them.  A row {"note": "..."} is a sentence below the table.
A row with other keys than the row above begins a new table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import re
import sys

from benchmarks import machine
from pinsage_jax.cpu import allocator

FOLDER = pathlib.Path(__file__).parent
_IS_BENCHMARK = re.compile(r"^def run\(options\b", re.MULTILINE)


def names() -> list[str]:
    """Names of the benchmarks in this folder, found without importing them."""
    return sorted(
        path.stem
        for path in FOLDER.glob("*.py")
        if _IS_BENCHMARK.search(path.read_text(encoding="utf-8"))
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses a command line with the shared flags and those of the chosen benchmarks."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("names", nargs="*", metavar="name", help=", ".join(names()))
    shared.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    shared.add_argument("--out", type=pathlib.Path, default=FOLDER / "results", help="for the JSON")
    shared.add_argument("--repeat", type=int, default=5, help="timings behind every median")
    shared.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    shared.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    shared.add_argument(
        "--graphs",
        type=pathlib.Path,
        default=FOLDER / "results" / "graphs",
        help="folder in which synthetic graphs are saved between runs",
    )
    shared.add_argument("--graph_file", default="", help="bipartite graph as .npz, for training")
    shared.add_argument(
        "--dgl_python",
        type=pathlib.Path,
        help="Python of an environment with DGL 2.1: measure it side by side",
    )
    chosen = shared.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        shared.error(f"no benchmark {unknown[0]!r}; there are {', '.join(names())}")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__.splitlines()[0], parents=[shared]
    )
    for name in chosen.names or names():
        if hasattr(module := _module(name), "add_options"):
            module.add_options(parser.add_argument_group(name))
    options = parser.parse_args(argv)
    options.names = options.names or names()
    return options


def _module(name: str):
    return importlib.import_module(f"benchmarks.{name}")


def tables(rows: list[dict]) -> str:
    """Rows as aligned text; consecutive rows with the same keys share a table."""
    lines, group = [], []
    for row in [*rows, None]:
        if group and (row is None or "note" in row or row.keys() != group[0].keys()):
            lines += [*_table(group), ""]
            group = []
        if row is None:
            break
        if "note" in row:
            lines += [row["note"], ""]
        else:
            group.append(row)
    return "\n".join(lines)


def _table(rows: list[dict]) -> list[str]:
    names = list(rows[0])
    cells = [names] + [[_text(row[name]) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    right = [isinstance(rows[0][name], int | float) for name in names]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right)
        ).rstrip()
        for line in cells
    ]


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def write(folder: pathlib.Path, name: str, contents: dict) -> pathlib.Path:
    """Writes NAME.json atomically, under a temporary name that is then replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    temporary.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def main(argv: list[str]) -> int:
    """Runs the benchmarks that the command line names; returns the exit status."""
    allocator.single_heap()
    options = parse(argv)
    if options.list:
        for name in names():
            print(f"{name:12} {_module(name).__doc__.splitlines()[0]}")
        return 0
    if options.repeat < 5:
        print(f"Medians of {options.repeat} timings: too few to quote.")
    for name in options.names:
        module = _module(name)
        facts = machine.facts()
        print(f"== {name}: {module.__doc__.splitlines()[0]}", flush=True)
        rows = module.run(options)
        facts["peak_memory_gib"] = round(machine.peak_memory_gib(), 2)
        contents = {"benchmark": name, "command": argv, "machine": facts, "rows": rows}
        path = write(options.out, name, contents)
        print(tables(rows))
        print(f"{facts['cores']} cores of {facts['processor']}, {facts['date']}; saved in {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
