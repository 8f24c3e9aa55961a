"""Items with a price, and changed and new items whose price is far beyond those."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

r, n = np.random.default_rng(0), 300
topic = np.arange(n) % 6
edges = [(f"c{topic[i]}_{c}", f"i{i}") for i in range(n) for c in r.integers(0, 8, 4)]
pq.write_table(
    pa.table({"collection_id": [a for a, _ in edges], "item_id": [b for _, b in edges]}),
    "e.parquet",
)
pq.write_table(
    pa.table(
        {
            "item_id": [f"i{i}" for i in range(n)],
            "title": [f"topic{t} word{i % 17}" for i, t in enumerate(topic)],
            "price": [float(i % 50) for i in range(n)],
        }
    ),
    "i.parquet",
)
for name, price in (("minus", -1e6), ("ms", 1.7e12), ("huge", 1e300)):
    pq.write_table(
        pa.table({"item_id": ["i7"], "title": ["topic1 word7"], "price": [price]}),
        f"changed_{name}.parquet",
    )
    pq.write_table(
        pa.table({"item_id": ["n1"], "title": ["topic1 word3"], "price": [price]}),
        f"new_{name}.parquet",
    )
