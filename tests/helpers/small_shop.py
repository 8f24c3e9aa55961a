"""Tables of a small shop with other column names than the default, and flags for a short run."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
from command_line import run

# Relative paths: the folder of the tables is the current one.
FLAGS = (
    "--edges=edges.csv", "--items=items.csv", "--collection_column=basket", "--item_column=sku",
    "--item_id_column=sku", "--text_columns=label", "--title_column=label",
    "--num_neighbors=8", "--num_walks=30", "--hard_walks=60", "--hidden_dim=16", "--layer_dim=16",
    "--output_dim=16", "--spectral_dim=8", "--text_dim=8", "--batch_size=64",
    "--random_negatives=32", "--pairs_per_epoch=320", "--epochs=2", "--bootstrap=20",
    "--embed_walks=auto", "--devices=1", "--threads=1",
)  # fmt: skip


@contextlib.contextmanager
def finished(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder with its tables and the workdir `run` of a whole run, as the current folder."""
    write_tables(folder)
    with contextlib.chdir(folder):
        assert run(*FLAGS, "--workdir=run") == 0
        yield folder


def write_tables(folder: pathlib.Path, items: int = 120, edges: int = 900) -> None:
    """Writes items.csv, edges.csv, and a change of them: new.csv, new_items.csv, new_edges.csv."""
    rng = np.random.default_rng(5)
    names = [f"p{n}" for n in range(items)]
    words = [f"w{n}" for n in range(30)]
    tables = {
        "items": {
            "sku": names,
            "label": [" ".join(rng.choice(words, 5)) for _ in names],
            "price": rng.lognormal(size=items),
        },
        "edges": {
            "basket": [f"b{n}" for n in rng.integers(0, 40, edges)],
            "sku": [names[n] for n in rng.integers(0, items - 10, edges)],
        },
        "new": {"basket": ["b1", "b2"], "sku": ["p3", "p119"]},
        "new_items": {"sku": ["q1"], "label": ["w1 w2"], "price": [1.5]},
        "new_edges": {"basket": ["b1"], "sku": ["q1"]},
    }
    for name, columns in tables.items():
        pyarrow.csv.write_csv(pa.table(columns), folder / f"{name}.csv")
