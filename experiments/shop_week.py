"""A shop's week: the jobs of a night, of an hour and of a server, on a made-up shop.

    python experiments/shop_week.py [FOLDER] [--products=240] [--nights=1] [--hours=2] [--no-report]

Writes the tables of a shop (products with titles, prices, brands and stock; baskets), fits a
model, starts the server, and then, while it answers, updates the catalog every hour, trains a new
model every night, lists related products under rules, and breaks an export on purpose.  Each
step is checked, and the first check that fails ends the script with exit code 1.  It needs the
extra `serve`, and takes about a minute on one core, a third of it for report.html, which
--no-report leaves out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pinsage_jax
from pinsage_jax import main
from pinsage_jax.reporting import figures

DEPARTMENTS = {
    "camping": ("tent", "sleeping bag", "stove", "lantern", "sleeping mat", "water filter"),
    "kitchen": ("saucepan", "chef's knife", "mixing bowl", "whisk", "cutting board", "kettle"),
    "cycling": ("helmet", "bike lock", "tire pump", "saddle bag", "bike light", "bell"),
    "garden": ("watering can", "rake", "pruning shears", "seed tray", "hose", "trowel"),
    "office": ("desk lamp", "notebook", "stapler", "fountain pen", "pen holder", "calendar"),
    "nursery": ("baby bottle", "bib", "rattle", "changing mat", "night light", "stroller"),
}
BRANDS = ("Alder", "Brook", "Cedar", "Dune", "Ember")
LOOKS = ("light", "sturdy", "compact", "classic", "large", "small", "green", "blue", "red", "gray")
# Small enough for a minute; leave them out for a shop of your own.
SMALL = (
    "--item_column=sku", "--item_id_column=sku", "--collection_column=basket",
    "--categorical_columns=brand", "--text_columns=title", "--numeric_columns=price",
    "--num_neighbors=8", "--num_walks=40", "--hard_walks=60", "--embed_walks=auto",
    "--hidden_dim=16", "--layer_dim=16", "--output_dim=16", "--spectral_dim=8", "--text_dim=32",
    "--batch_size=64", "--random_negatives=64", "--pairs_per_epoch=640", "--epochs=2",
    "--bootstrap=20", "--export_format=npy", "--threads=1",
)  # fmt: skip
_ASKED = {"in_stock": "in_stock and price < 2 * query.price", "one_brand": "brand == query.brand"}


class Shop:
    """The shop's tables: it knows the truth, and grows from hour to hour."""

    def __init__(self, folder: pathlib.Path, products: int):
        self.folder, self.rng = folder, np.random.default_rng(11)
        self.products: list[dict[str, Any]] = []
        self.baskets: list[tuple[str, str]] = []
        self.add_products(products)
        self.add_baskets(2 * products)

    def add_products(self, count: int) -> list[dict[str, Any]]:
        """Takes new products into the range."""
        added = []
        for number in range(len(self.products), len(self.products) + count):
            department = tuple(DEPARTMENTS)[number % len(DEPARTMENTS)]
            kind = str(self.rng.choice(DEPARTMENTS[department]))
            brand = str(self.rng.choice(BRANDS))
            looks = " ".join(self.rng.choice(LOOKS, 2, replace=False))
            sku = f"SKU-{number:05d}"
            added.append(
                {
                    "sku": sku,
                    "title": f"{brand} {looks} {kind} for {department}",
                    "brand": brand,
                    "price": round(float(self.rng.lognormal(3.0, 0.6)), 2),
                    "in_stock": bool(self.rng.random() < 0.8),
                    "image_url": f"https://shop.example/images/{sku}.jpg",
                }
            )
        self.products += added
        return added

    def add_baskets(self, count: int, among: list[dict[str, Any]] | None = None) -> list[tuple]:
        """Sells baskets; each is of one department, with some strays."""
        first = len({basket for basket, _ in self.baskets})
        by_department: dict[str, list[str]] = {}
        for product in self.products:
            by_department.setdefault(department_of(product["title"]), []).append(product["sku"])
        sold = []
        for number in range(first, first + count):
            department = str(self.rng.choice(list(by_department)))
            if among is not None:
                department = department_of(among[number % len(among)]["title"])
            size = min(int(self.rng.integers(3, 8)), len(by_department[department]))
            skus = list(self.rng.choice(by_department[department], size, replace=False))
            if among is not None:
                skus[0] = among[number % len(among)]["sku"]
            elif self.rng.random() < 0.2:
                skus[0] = str(self.rng.choice([product["sku"] for product in self.products]))
            sold += [(f"B{number:06d}", str(sku)) for sku in dict.fromkeys(skus)]
        self.baskets += sold
        return sold

    def write(self, name: str, products: list[dict] | None, sold: list[tuple] | None) -> None:
        """Writes NAME_items.parquet and NAME_edges.parquet."""
        if products is not None:
            self._write(f"{name}_items.parquet", pa.Table.from_pylist(products))
        if sold is not None:
            baskets, skus = ([pair[side] for pair in sold] for side in (0, 1))
            self._write(f"{name}_edges.parquet", pa.table({"basket": baskets, "sku": skus}))

    def _write(self, name: str, table: pa.Table) -> None:
        # Whole, as any job of a shop should: a run that reads meanwhile sees the old table.
        pq.write_table(table, self.folder / f".{name}")
        os.replace(self.folder / f".{name}", self.folder / name)


def department_of(title: str) -> str:
    """The department that a title names."""
    return title.rsplit(" ", 1)[1]


# The program and the server.


def run(*flags: str) -> None:
    """Runs the program in this process."""
    code = main.main(["pinsage-jax", "--verbosity=warning", *flags])
    if code != 0:
        raise SystemExit(f"exit code {code} of {' '.join(flags)}")


class Server:
    """The server of a workdir, in processes of its own."""

    def __init__(self, process: subprocess.Popen, log: pathlib.Path, port: int):
        self.process, self.log, self.port = process, log, port

    def get(self, path: str) -> Any:
        """The answer to GET, which must be one."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict) -> Any:
        """The answer to POST, which must be one."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def wait(self, what: str, fits: Callable[[dict], bool], seconds: float = 120) -> dict:
        """Asks /health until what is served fits; every answer meanwhile must be one."""
        deadline, in_a_row = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            # Any process may answer: all of them, as far as one can tell.
            in_a_row = in_a_row + 1 if fits(found := self.get("/health")) else 0
            if in_a_row == 8:
                return found
            time.sleep(0.05 if in_a_row else 0.3)
        check(False, f"the server has {what}", self.log.read_text()[-2000:])
        raise AssertionError


@contextlib.contextmanager
def served(workdir: pathlib.Path, log: pathlib.Path, *flags: str) -> Iterator[Server]:
    """Starts a server for the block."""
    command = [sys.executable, "-m", "pinsage_jax.main", "--mode=serve", f"--workdir={workdir}",
               "--serve_port=0", *flags]  # fmt: skip
    with open(log, "w") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=handle)
    try:
        found = None
        while found is None and process.poll() is None:
            time.sleep(0.1)
            found = re.search(r"serving at http://[^/]*:(\d+)/", log.read_text())
        if found is None:
            raise SystemExit(f"The server did not start:\n{log.read_text()[-2000:]}")
        yield Server(process, log, int(found[1]))
    finally:
        process.terminate()
        code = process.wait(60)
    check(code == 143, "the server ends when it is asked to", code)


def check(holds: bool, what: str, found: Any = None) -> None:
    """Prints what was checked; ends the script if it does not hold."""
    print(f"  {'ok ' if holds else 'NOT'} {what}", flush=True)
    if not holds:
        raise SystemExit(f"{what}: {found}")


def step(title: str, begin: float = time.monotonic()) -> None:
    """Prints what comes next, and the time so far."""
    print(f"[{time.monotonic() - begin:5.1f} s] {title}", flush=True)


# The week.


def fit(shop: Shop, workdir: pathlib.Path) -> None:
    """The first model, and whether its lists make sense."""
    step(f"fit: {len(shop.products)} products, {len(shop.baskets)} sales")
    shop.write("shop", shop.products, shop.baskets)
    tables = [f"--{name}={shop.folder}/shop_{name}.parquet" for name in ("edges", "items")]
    run(*tables, f"--workdir={workdir}", *SMALL)
    titles = {product["sku"]: product["title"] for product in shop.products}
    queries = [product["sku"] for product in shop.products[:60]]
    lists = pinsage_jax.neighbors(pinsage_jax.settings(workdir, k=5), queries)
    same = [
        department_of(titles[sku]) == department_of(titles[other.item_id])
        for sku in queries
        for other in lists[sku]
    ]
    share = float(np.mean(same))
    check(share > 0.5, f"{share:.0%} of listed products are of the query's department", share)


def export(shop: Shop, workdir: pathlib.Path) -> None:
    """What a shop's own systems read: vectors, and lists under the shop's rules."""
    step("export: vectors, and related products that can be sold")
    ids, vectors = pinsage_jax.embeddings(pinsage_jax.settings(workdir))
    stored = np.load(workdir / "embeddings" / "vectors.npy", mmap_mode="r")
    check(np.array_equal(stored, vectors), "vectors.npy holds the vectors of the catalog")
    run(f"--workdir={workdir}", "--mode=neighbors", f"--where={_ASKED['in_stock']}", "--k=5")
    table = pq.read_table(workdir / "related_items.parquet").to_pylist()
    products = {product["sku"]: product for product in shop.products}
    fits = [
        products[row["neighbor_id"]]["in_stock"]
        and products[row["neighbor_id"]]["price"] < 2 * products[row["item_id"]]["price"]
        for row in table
    ]
    check(len(table) > 3 * len(ids) and all(fits), f"{len(table)} related products, all in stock")


def ask(shop: Shop, server: Server) -> None:
    """Requests of the shop's pages."""
    step("requests: neighbors under rules, a basket, a product that no table holds")
    products = {product["sku"]: product for product in shop.products}
    sku = shop.products[0]["sku"]
    body = {"items": [sku], "k": 4, "where": _ASKED["one_brand"], "columns": ["image_url", "price"]}
    (answer,) = server.post("/neighbors", body)["items"]
    listed = [entry["item_id"] for entry in answer["neighbors"]]
    fits = all(products[other]["brand"] == products[sku]["brand"] for other in listed)
    check(len(listed) == 4 and fits, "neighbors of the same brand")
    shown = answer["neighbors"][0]["columns"]
    check(shown["image_url"].endswith(f"{listed[0]}.jpg"), "with their images and prices")
    basket = [pair[1] for pair in shop.baskets if pair[0] == shop.baskets[0][0]]
    answer = server.post("/neighbors/history", {"items": basket, "k": 5})
    check(
        not {entry["item_id"] for entry in answer["neighbors"]} & set(basket),
        "products for a basket, without what is in it",
    )
    new = {**shop.products[0], "sku": "SKU-NEW"}
    sold = [pair[0] for pair in shop.baskets if pair[1] == sku][:3]
    edges = [{"basket": number, "sku": new["sku"]} for number in sold]
    (answer,) = server.post("/neighbors/new", {"items": [new], "edges": edges, "k": 5})["items"]
    departments = [department_of(entry["title"]) for entry in answer["neighbors"]]
    check(
        departments.count(department_of(new["title"])) >= 3,
        f"neighbors of a new product: {departments}",
        departments,
    )
    with contextlib.suppress(urllib.error.HTTPError):
        server.get("/neighbors?item=nobody")
        check(False, "an unknown product is refused")


def hour(shop: Shop, workdir: pathlib.Path, server: Server) -> None:
    """New products and sales of an hour, which the server then answers with."""
    new = shop.add_products(2)
    sold = shop.add_baskets(6, among=new)
    step(f"an hour: {len(new)} new products, {len(sold)} sales")
    shop.write("hour", new, sold)
    run(
        f"--workdir={workdir}", "--mode=embed",
        f"--changed_items={shop.folder}/hour_items.parquet",
        f"--changed_edges={shop.folder}/hour_edges.parquet",
    )  # fmt: skip
    wanted = len(shop.products)
    server.wait("the products of the hour", lambda h: h["items"] == wanted and h["updated"])
    near = server.get(f"/neighbors?item={new[0]['sku']}&k=5")["neighbors"]
    check(len(near) == 5, f"{new[0]['title']}: {near[0]['title']}, ...")


def night(shop: Shop, workdir: pathlib.Path, server: Server) -> None:
    """A new model of all tables, while the old one answers."""
    shop.add_baskets(20)
    step(f"a night: training on {len(shop.products)} products, {len(shop.baskets)} sales")
    shop.write("shop", shop.products, shop.baskets)
    before = server.get("/health")
    run(f"--workdir={workdir}", "--retrain", f"--init_from={workdir}")
    found = server.wait(
        "the model of the night",
        lambda health: health["loaded_at"] > before["loaded_at"] and not health["updated"],
    )
    check(found["reload_error"] is None, f"the server has {found['items']} products")


def accident(workdir: pathlib.Path, server: Server) -> None:
    """An export is damaged: the server goes on, says so, and recovers."""
    step("an accident: the export is damaged")
    manifest = workdir / "embeddings" / "_manifest.json"
    shutil.copy2(manifest, manifest.with_suffix(".kept"))
    manifest.with_suffix(".bad").write_text("{")
    os.replace(manifest.with_suffix(".bad"), manifest)
    found = server.wait("noticed", lambda health: health["reload_error"] is not None)
    check(len(server.get("/neighbors?item=SKU-00000&k=3")["neighbors"]) == 3, "it still answers")
    print(f"      {found['reload_error']}")
    os.replace(manifest.with_suffix(".kept"), manifest)
    server.wait("recovered", lambda health: health["reload_error"] is None)
    check("_manifest.json" in server.log.read_text(), "the log names the file")


def week(folder: pathlib.Path, products: int, nights: int, hours: int) -> None:
    """The whole week, in a folder that holds nothing of an earlier one."""
    workdir = folder / "run"
    if workdir.exists():
        raise SystemExit(f"{workdir} exists already; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    shop = Shop(folder, products)
    fit(shop, workdir)
    export(shop, workdir)
    step("serve: two processes on one port")
    with served(workdir, folder / "server.log", "--serve_workers=2", "--threads=1") as server:
        server.wait("started", lambda health: health["items"] == products)
        ask(shop, server)
        for _ in range(nights):
            for _ in range(hours):
                hour(shop, workdir, server)
            night(shop, workdir, server)
        accident(workdir, server)
    step("the week is over")


def parse() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="a new folder to write to")
    parser.add_argument("--products", type=int, default=240)
    parser.add_argument("--nights", type=int, default=1)
    parser.add_argument("--hours", type=int, default=2, help="updates before each night")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    if options.no_report:
        # As where matplotlib is not installed.
        figures.available = lambda: False
    with tempfile.TemporaryDirectory(prefix="pinsage-shop-") as temporary:
        week(
            options.folder or pathlib.Path(temporary),
            options.products,
            options.nights,
            options.hours,
        )
