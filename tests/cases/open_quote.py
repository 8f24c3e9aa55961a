"""Edges with a quotation mark that is never closed, and with two such marks."""

import pathlib

rows = [f"{i},c{i % 4}" for i in range(1, 21)]
rows[5] = '6,"c2'
pathlib.Path("e.csv").write_text("item_id,collection_id\n" + "\n".join(rows) + "\n")
rows[11] = '12,"c3'
pathlib.Path("two_marks.csv").write_text("item_id,collection_id\n" + "\n".join(rows) + "\n")
rows = [f"{i},c{i % 4}" for i in range(1, 21)]
rows[5], rows[11] = '"6,c2', '"12,c0'
pathlib.Path("first_column.csv").write_text("item_id,collection_id\n" + "\n".join(rows) + "\n")
pathlib.Path("good.csv").write_text("item_id,collection_id\n1,c1\n2,c1\n")
pathlib.Path("titles.csv").write_text('item_id,title\n1,"Oak\n2,Lamp\n')
