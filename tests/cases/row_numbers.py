"""Item tables with row numbers, ISBNs, postcodes and titles that look like numbers."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

n = 12
pq.write_table(
    pa.table(
        {"collection_id": [f"c{i % 4}" for i in range(n)], "item_id": [str(i) for i in range(n)]}
    ),
    "e.parquet",
)
pq.write_table(
    pa.table({"item_id": [str(i) for i in range(n)], "__index_level_0__": list(range(n))}),
    "i.parquet",
)
pathlib.Path("i.csv").write_text(
    "item_id,title,isbn,zip\n0,1984,0195153448,02139\n1,2001,0002005018,90210\n2,300,0060973129,10001\n"
)
