"""A folder of edges in which a job and a notebook left files of their own."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq


def part(path, collections, items):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"collection_id": collections, "item_id": items}), path)


part("f/part-0.parquet", ["a", "a", "b", "b"], ["x", "y", "y", "z"])
part("f/_temporary/0/part-9.parquet", ["GHOST"], ["ghost"])
part("f/.ipynb_checkpoints/part-0-checkpoint.parquet", ["GHOST2"], ["ghost2"])
