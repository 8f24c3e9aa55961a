"""The same edges in formats that are read, and in some that are refused."""

import bz2
import pathlib
import zipfile

import pyarrow as pa
import pyarrow.feather as feather

rows = [(f"c{i % 5}", f"é{i % 9}") for i in range(30)]
text = "collection_id,item_id\n" + "".join(f"{a},{b}\n" for a, b in rows)
for name, mark in (("e.tsv", "\t"), ("semicolons.csv", ";"), ("bars.csv", "|")):
    pathlib.Path(name).write_text(text.replace(",", mark))
pathlib.Path("no_header.csv").write_text(text.split("\n", 1)[1])
pathlib.Path("latin1.csv").write_bytes(text.encode("latin-1"))
pathlib.Path("e.csv.bz2").write_bytes(bz2.compress(text.encode()))
with zipfile.ZipFile("e.csv.zip", "w") as archive:
    archive.writestr("e.csv", text)
feather.write_feather(
    pa.table({"collection_id": [a for a, _ in rows], "item_id": [b for _, b in rows]}), "e.feather"
)
pathlib.Path("folder").mkdir(exist_ok=True)
pathlib.Path("folder/0.csv").write_text(text)
pathlib.Path("ragged.csv").write_text(text + "c1,x,too,many\n")
