"""Last section of the report: the terms that it uses, as docs/glossary.md defines them."""

from __future__ import annotations

import re

from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html

# A term of docs/glossary.md and its meaning, in the same words.
TERMS = {
    "item, collection": (
        "The two kinds of nodes: pins and boards, papers and libraries, products and baskets. "
        "Ids come from the tables and come back unchanged."
    ),
    "edge": (
        "One item in one collection, with an optional weight. Edges of the two columns form an "
        "undirected bipartite graph."
    ),
    "degree": ("The number of collections that hold an item, or of items in a collection."),
    "isolated item": (
        "An item without an edge. It is embedded from its features and its content links."
    ),
    "warm pair": ("An evaluation pair whose target has edges in the graph that the model reads."),
    "cold pair": (
        "An evaluation pair whose target is isolated there. A new item is found only if cold "
        "pairs are."
    ),
    "query, target": (
        "A pair asks for items related to the query; the target is the item that should be found."
    ),
    "walk": (
        "A random walk with restarts from a node, in steps item, collection, item. Its visit "
        "counts approximate personalized PageRank."
    ),
    "hard negative": (
        "An item of a given band of personalized-PageRank ranks of the query: related, but less"
        " than the target."
    ),
    "popularity bias": (
        "The learned b in the last coordinate 1 + b of an embedding: how likely an item is "
        "whatever the query."
    ),
    "cold-start bias": (
        "One number added to the last coordinate of every isolated item, chosen on validation "
        "pairs and costing at most 2% of the hits on warm ones. It moves isolated items against "
        "the others and changes no order among them."
    ),
    "baseline": (
        "A method that ranks the same pairs: popularity, content (of all columns, and of each), "
        "walk, steered walk, item-kNN, PageRank, ALS and two fusions."
    ),
    "hit@K, recall@K, NDCG@K": (
        "The share of pairs whose target ranks K or better; the share of a query's targets in "
        "its first K; the same with a discount by rank."
    ),
    "MRR, scaled MRR": (
        "The mean of 1 / rank; the mean of 1 / ceil(rank / 100), the paper's measure for large "
        "catalogs."
    ),
    "paired difference": (
        "The difference between two methods on the same pairs. Its interval resamples the "
        "queries, the same for both methods; if it contains 0, the pairs do not tell the two "
        "apart."
    ),
    "coverage": ("The share of the catalog's items that stand in at least one list."),
    "Gini coefficient": (
        "Concentration of the places in lists: 0 if all items stand in as many lists, near 1 if"
        " few items fill them all."
    ),
    "novelty": (
        "The mean of log2((C + 1) / (degree + 1)) over the places in lists, with C collections,"
        " in bits: how surprising it is to meet an item."
    ),
    "new-item price": (
        "The share of the hits on items with edges that lists may give up to show items without"
        " edges."
    ),
}


def term(name: str, shown: str = "") -> Html:
    """A link to a term, which shows its meaning under the pointer.

    Args:
      name: the term, one of TERMS.
      shown: text of the link; "": the term.
    """
    return page.element(
        "a", shown or name, class_="term", href=f"#{_address(name)}", title=TERMS[name]
    )


def glossary() -> Html:
    """All terms and their meanings."""
    parts = [
        page.element(
            "div", page.element("dt", name, id=_address(name)), page.element("dd", meaning)
        )
        for name, meaning in TERMS.items()
    ]
    return page.element("dl", *parts, class_="terms")


def _address(name: str) -> str:
    return "term-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
