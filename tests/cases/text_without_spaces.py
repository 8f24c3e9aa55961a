"""Items with Chinese titles, of which a quarter has no edges; the topic is number % 5."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

r = np.random.default_rng(2)
rooms, things, verbs = (
    ["阳台", "厨房", "卧室", "书房"],
    ["收纳", "灯具", "绿植", "地毯", "窗帘"],
    ["改造", "搭配", "灵感", "攻略"],
)
n = 400
topic = np.arange(n) % 5
title = [
    "".join(
        [
            str(r.choice(rooms)),
            things[t],
            str(r.choice(verbs)),
            str(r.choice(rooms)),
            str(r.integers(400)),
        ]
    )
    for t in topic
]
edges = [(f"c{topic[i]}_{c}", f"i{i}") for i in range(300) for c in r.integers(0, 8, 2)]
pq.write_table(
    pa.table({"collection_id": [a for a, _ in edges], "item_id": [b for _, b in edges]}),
    "e.parquet",
)
pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(n)], "title": title}), "i.parquet")
