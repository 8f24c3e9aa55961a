"""Edges of items whose ids hold a comma, such as `Film 3, The`."""

import pathlib

pathlib.Path("e.csv").write_text(
    "collection_id,item_id\n"
    + "".join(f'c{(i * 7 + j) % 30},"Film {i}, The"\n' for i in range(40) for j in range(4))
)
