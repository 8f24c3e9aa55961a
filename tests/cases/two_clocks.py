"""A folder of edges whose times are timestamps in one file and seconds in the other."""

import datetime
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

pathlib.Path("t").mkdir(exist_ok=True)
start = datetime.datetime(2024, 1, 1)
pq.write_table(
    pa.table(
        {
            "collection_id": ["a", "a"],
            "item_id": ["x", "y"],
            "at": pa.array([start, start], pa.timestamp("us")),
        }
    ),
    "t/0.parquet",
)
pq.write_table(
    pa.table({"collection_id": ["b", "b"], "item_id": ["y", "z"], "at": [1700000000, 1700000001]}),
    "t/1.parquet",
)
