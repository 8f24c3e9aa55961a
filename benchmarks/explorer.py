"""The explorer of 25,975 items: the size of its file, and the time to open it and to search.

The catalog has the counts of citeulike-t and random content: titles of random words, and random
vectors as features and embeddings.  Headless Chromium opens the file.  Opening ends when the
first item and the map are drawn, and a search when its results are in the document.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import tempfile

import numpy as np
import pyarrow as pa

from benchmarks import machine
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.data.ids import IdTable
from pinsage_jax.explorer import explorer
from pinsage_jax.graph.csr import Graph

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "helpers"))

_ITEMS, _COLLECTIONS, _EDGES = 25_975, 7_947, 134_860
_FEATURES, _EMBEDDING = 300, 256
# Typed letter by letter, so that each is searched for several times.
_SEARCHES = ("neural", "graph network", "item-12345", "a", "zzzz")
_LATER = """async (words) => {
  const field = document.getElementById("search-field");
  const results = document.getElementById("results");
  const times = [];
  for (let end = 1; end <= words.length; end++) {
    const done = new Promise((resolve) => {
      const watcher = new MutationObserver(() => { watcher.disconnect(); resolve(); });
      watcher.observe(document.getElementById("result-count"),
        { childList: true, characterData: true, subtree: true });
    });
    field.value = words.slice(0, end);
    const begin = performance.now();
    field.dispatchEvent(new Event("input"));
    await done;
    results.getBoundingClientRect();
    times.push(performance.now() - begin);
  }
  return times;
}"""


def catalog(items: int, collections: int, edges: int) -> tuple[Prepared, np.ndarray]:
    """A random catalog and random embeddings of unit length."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["neural", "network", "graph"]
    words += ["".join(rng.choice(letters, rng.integers(2, 12))) for _ in range(8000)]
    titles = [" ".join(rng.choice(words, rng.integers(4, 16))).capitalize() for _ in range(items)]
    # A few items are in many collections.
    item = np.minimum(rng.pareto(1.2, edges) * items / 40, items - 1).astype(np.int32)
    graph = Graph.from_edges(
        rng.permutation(items).astype(np.int32)[item],
        rng.integers(0, collections, edges).astype(np.int32),
        items,
        collections,
    )
    vectors = rng.normal(size=(items, _EMBEDDING)).astype(np.float32)
    prepared = Prepared(
        graph=graph,
        features=rng.normal(size=(items, _FEATURES)).astype(np.float32),
        item_ids=IdTable(pa.array([f"item-{place}" for place in range(items)])),
        collection_ids=IdTable(pa.array([f"c{place}" for place in range(collections)])),
        titles=pa.array(titles, pa.large_string()),
        train_pairs=None,
        eval_pairs=np.empty((0, 2), np.int32),
        eval_kinds=np.empty(0, np.str_),
        manifest={},
    )
    return prepared, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def run(options) -> list[dict]:
    """One row for the file, one for opening it, and one for each search."""
    import browser as browsers

    shrink = 50 if options.quick else 1
    prepared, vectors = catalog(_ITEMS // shrink, _COLLECTIONS // shrink, _EDGES // shrink)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(mode="report", workdir=folder, seed=0, threads=options.threads)
        spent = machine.seconds(lambda: explorer.write_explorer(config, prepared, vectors))
        path = pathlib.Path(folder) / explorer.EXPLORER_FILE
        rows = [{"items": len(vectors), "built in s": spent, "MB": path.stat().st_size / 1e6}]
        with browsers.launched() as browser:
            opened = []
            for _ in range(options.repeat):
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                page.goto(path.as_uri())
                page.wait_for_selector("body[data-ready]")
                opened.append(
                    page.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1e3
                )
                if len(opened) < options.repeat:
                    page.close()
            rows.append(
                {
                    "what": "opening",
                    "median ms": 1e3 * statistics.median(opened),
                    "worst ms": 1e3 * max(opened),
                }
            )
            for words in _SEARCHES:
                taken = [
                    each for _ in range(options.repeat) for each in page.evaluate(_LATER, words)
                ]
                rows.append(
                    {
                        "what": f"search {json.dumps(words)}",
                        "median ms": statistics.median(taken),
                        "worst ms": max(taken),
                    }
                )
    return rows
