"""Ids of items that are padded with zeros in one table and integers in the other."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

pathlib.Path("e.csv").write_text(
    "collection_id,item_id\n" + "".join(f"c{i % 9},{i % 60:05d}\n" for i in range(240))
)
pq.write_table(
    pa.table({"item_id": list(range(60)), "price": [float(i) for i in range(60)]}), "i.parquet"
)
