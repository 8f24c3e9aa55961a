"""The paper's graph on paper: what lies where, what moves, hours and dollars, term by term.

3 billion nodes and 18 billion edges (Ying et al. 2018), taken as 2 billion items and 1 billion
collections, at the paper's sizes with --input_dim=512.  Nothing runs: every term is a product of
constants, and each constant says where it was measured or published.
"""

from __future__ import annotations

ITEMS, COLLECTIONS, EDGES = 2e9, 1e9, 18e9
HOSTS, DEVICES = 8, 64
WIDTH, HIDDEN, OUTPUT, NEIGHBORS, BATCH = 512, 2048, 1024, 50, 2048
# 130,000 iterations of 2,048 pairs (section 4.2).
PAIRS = 130_000 * 2048

# Name -> (value, source).
CONSTANTS: dict[str, tuple[float, str]] = {
    "lists a core and second": (188_844 / 2, "BUILD_NOTES, neighborhood store: T = 50, 100 walks"),
    "pace of walks out of cache": (0.5, "BUILD_NOTES, scale: 100M edges over 1M"),
    "walks a list over 100": (5.0, "--preset=paper has 500"),
    "rows of the second frontier": (422_324, "docs/scaling.md: real batches on 1M items"),
    "rows of the first frontier": (16_884, "docs/scaling.md: real batches on 1M items"),
    "operations a step": (12e12, "docs/scaling.md: paper with --input_dim=512"),
    "operations a second": (989e12, "data sheet of the H200, bfloat16"),
    "bytes a step": (361e9, "docs/scaling.md: compiled for the H200, 4,352 inputs"),
    "memory bytes a second": (4.8e12, "data sheet of the H200"),
    "network bytes a second and device": (50e9, "3,200 Gbit/s a host of 8"),
    "bytes reduced a step": (91.3e6, "docs/scaling.md"),
    "Spark core-seconds an item and layer": (0.19e-3, "BUILD_NOTES, Spark: width 256, 2 cores"),
    "Spark bytes an item and layer": (13_085, "BUILD_NOTES, Spark: width 256, unreduced"),
    "dollars an hour of 8 H200": (43.26, "EC2 Capacity Blocks, list of the end of 2024"),
    "dollars an hour of a core": (0.0504, "EC2 m7i, on demand, list of 2024"),
}


def constant(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name][0]


def storage() -> dict[str, float]:
    """Bytes of what lies on disk or in memory."""
    return {
        "graph, mapped by every host": 8 * (ITEMS + COLLECTIONS) + 8 * EDGES,
        "lists of T = 50, mapped": 8 * NEIGHBORS * ITEMS,
        "inputs in bfloat16, split over the devices": 2 * WIDTH * ITEMS,
        "messages of a layer in bfloat16": 2 * HIDDEN * ITEMS,
        "embeddings in float16": 2 * OUTPUT * ITEMS,
    }


def step(rows: float) -> dict[str, float]:
    """Seconds of the parts of one training step, whose last frontier has so many rows."""
    # Products and bytes were counted with 1,021,428 rows in the last frontier.
    extra = max(rows - 1_021_428, 0)
    products = constant("operations a step") + 3 * 2 * extra * WIDTH * HIDDEN
    moved = constant("bytes a step") + 3 * 2 * extra * (WIDTH + HIDDEN)
    network = constant("network bytes a second and device")
    return {
        "products": products / constant("operations a second"),
        "memory": moved / constant("memory bytes a second"),
        "rows from their owners": 2 * rows * WIDTH * (DEVICES - 1) / DEVICES / network,
        "reduce": 2 * constant("bytes reduced a step") / network,
    }


def run(options) -> list[dict]:
    """What lies where, then what each part takes."""
    rows = [{"what": name, "TB": value / 1e12, "GB a device": value / 1e9 / DEVICES}
            for name, value in storage().items()]  # fmt: skip
    walks = ITEMS / constant("lists a core and second") / constant("pace of walks out of cache")
    walks *= constant("walks a list over 100") / 3600
    core = constant("dollars an hour of a core")
    parts = [_part("lists of all items", walks / 1536, walks * core, "8 hosts of 192 cores")]
    overlapping = constant("rows of the second frontier")
    distinct = constant("rows of the first frontier") * (NEIGHBORS + 1) ** 2
    for name, last in (("as on 1M items", overlapping), ("no node twice", distinct)):
        seconds = step(last)
        hours = PAIRS / BATCH / DEVICES * sum(seconds.values()) / 3600
        dollars = hours * HOSTS * constant("dollars an hour of 8 H200")
        slowest = max(seconds, key=lambda part: seconds[part])
        how = f"{1e3 * sum(seconds.values()):.0f} ms a step, most of it {slowest}"
        parts.append(_part(f"training, last frontier {name}", hours, dollars, how))
    ratio, layers = HIDDEN / 256, 2
    cores = constant("Spark core-seconds an item and layer") * ITEMS * layers * ratio / 3600
    shuffled = constant("Spark bytes an item and layer") * ITEMS * layers * ratio
    how = f"{shuffled / 1e12:,.0f} TB shuffled, {shuffled / 378 / 1.25e9 / 3600:.2f} h at 10 Gbit/s"
    parts.append(_part("embedding on Spark, 378 machines", cores / 378 / 16, cores * core, how))
    sources = [{"constant": name, "value": f"{value:,.4g}", "source": source}
               for name, (value, source) in CONSTANTS.items()]  # fmt: skip
    return [*rows, *parts, *sources]


def _part(name: str, hours: float, dollars: float, how: str) -> dict:
    return {"part": name, "hours": hours, "dollars": dollars, "how": how}
