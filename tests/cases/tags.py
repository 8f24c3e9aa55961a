"""Items with several values a cell: a list column, and text with a separator."""

import pyarrow as pa
import pyarrow.parquet as pq

n = 40
pq.write_table(
    pa.table(
        {"collection_id": [f"c{i % 8}" for i in range(n)], "item_id": [str(i) for i in range(n)]}
    ),
    "e.parquet",
)
pq.write_table(
    pa.table(
        {
            "item_id": [str(i) for i in range(n)],
            "tags": [["a", "b"][: 1 + i % 2] for i in range(n)],
            "genres": ["Action|Comedy" if i % 2 else "Comedy|Action" for i in range(n)],
        }
    ),
    "i.parquet",
)
