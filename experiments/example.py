"""The library from Python, cell by cell: run it whole, or step by step in an editor.

    python experiments/example.py [WORKDIR]

Cells begin with "# %%", which VS Code, Spyder and Jupytext show as a notebook's.  It
takes half a minute on two CPU cores, on a generated catalog of 400 items.
"""

# %% Settings have the names of the flags (docs/flags.md). With tables of your own:
#    settings("runs/mine", edges="edges.parquet", items="items.parquet", eval_pairs="pairs.csv")
import sys
import tempfile

import pinsage_jax

workdir = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="pinsage-example-")
small = {
    "synthetic": True,
    "synthetic_size": "400x3000",
    "hidden_dim": 32,
    "layer_dim": 32,
    "output_dim": 32,
    "spectral_dim": 16,
    "batch_size": 64,
    "random_negatives": 64,
    "pairs_per_epoch": 640,
    "bootstrap": 100,
}
config = pinsage_jax.settings(workdir, k=5, **small)

# %% Are there problems in the inputs? (forecast=False: without measuring this machine.)
checked = pinsage_jax.doctor(pinsage_jax.settings(workdir, forecast=False, **small))
print(len(checked["findings"]), "findings")

# %% The graph, memory-mapped: items come first among the nodes, then collections.
data = pinsage_jax.load_graph(config)
degree = data.graph.degree()
print(data.graph.num_items, "items,", data.graph.num_edges, "edges,", data.features.shape)
print("most collected:", data.item_ids.ids[int(degree[: data.graph.num_items].argmax())])

# %% Training writes checkpoints and metrics.jsonl; called again, it finds the run finished.
outcome = pinsage_jax.train(config)
print(outcome.step, "steps; best validation:", outcome.best)

# %% Embeddings as an array, in the order of the ids.
pinsage_jax.embed(config)
ids, vectors = pinsage_jax.embeddings(config)
print(len(ids), "items,", vectors.shape, vectors.dtype)

# %% Neighbors of an item, and why one of them is there.
query = ids[0]
near = pinsage_jax.neighbors(config, [query])[query]
for rank, other in enumerate(near, start=1):
    print(rank, other.item_id, f"{other.score:.3f}", other.title)
why = pinsage_jax.explain(
    pinsage_jax.settings(workdir, query=query, target=near[0].item_id, k=5, **small)
)

# %% How good are they, beside baselines?
result = pinsage_jax.evaluate(config)
print("hit@10:", result["methods"]["pinsage"]["overall"]["all"]["metrics"]["hit@10"]["value"])
