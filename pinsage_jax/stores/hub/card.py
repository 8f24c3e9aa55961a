"""The model card of a run: README.md with a header in YAML, as the hub reads it.

The header is written as JSON, which YAML contains, so that nothing has to be installed.  The
license is the user's to name; the card holds nothing of a local path.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pinsage_jax.evaluation.evaluate import MAIN, RANKED
from pinsage_jax.evaluation.table_files import markdown_text
from pinsage_jax.stores.rows import ID, VECTOR, VERSION

FILE = "README.md"
_LICENSE_HINT = "# license: which others may use this under, such as apache-2.0 (--hub_license)"
_TAGS = ["recommender-systems", "embeddings", "graph-neural-networks", "pinsage"]
_SHOWN = ("hit@10", "hit@100", "ndcg@10", "mrr")
_PAIRS = {"eval_pairs": "pairs of an evaluation table", "validation": "validation pairs"}
_KINDS = {
    "text": "text (TF-IDF)", "encoded_text": "text (an encoder)", "encoded_image": "pictures",
    "dense": "vectors", "numeric": "numbers", "categorical": "categories",
}  # fmt: skip
_READ = """\
import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

folder = snapshot_download({name})  # or the path of this folder
table = pq.read_table(f"{{folder}}/embeddings")
vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)

row = 0  # any row of table["item_id"]
query = vectors[row].copy(){note}
scores = vectors @ query
scores[row] = -np.inf
for near in np.argsort(-scores)[:10]:
    print(table["item_id"][int(near)], scores[near])
"""
_BODY = """\
# {name}

Embeddings of {found}, by PinSage ([Ying et al. 2018](https://arxiv.org/abs/1806.01973)), a graph
neural network over items and the collections that hold them. Made by {program}.

## Use

Items are related by {metric}.

```python
{code}```

## Files

| | |
|---|---|
| `embeddings/*.parquet` | {columns} |
| `export.json`, `canary.json` | version, checksums, and vectors to check a copy by |
{encoder}
## Training

Trained on {edges} edges between {items} items and {collections} collections; {isolated} items have
no edge. Features of items: {features}.

## Evaluation

{scores}

## Limits

The vectors follow how often these collections hold items together: what was popular in them is
listed more, and items that they hardly hold are placed by their features alone. They say nothing
of items or people outside of this catalog.
"""
_ENCODER = "| `encoder/` | new items without edges to vectors, as StableHLO (`jax.export`) |\n"
_UNIT_NOTE = "\nquery[-1] = 0  # the last coordinate is that of stored items alone"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says of a run beside its vectors.

    Attributes:
      name: of the model, letters, digits, ., _ and -; after USER/ if it has a repository.
      license: "" leaves it to the user.
      counts: of the prepared catalog.
      features: kind and width of each block of features.
      evaluation: the contents of eval.json; None: the vectors were not evaluated.
      has_encoder: whether the folder holds the encoder of new items.
    """

    name: str
    license: str
    counts: dict[str, int]
    features: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    has_encoder: bool = False


def card(facts: Facts, export: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
      export: as in export.json: items, dimension, metric, columns, model_version, program.
    """
    return "\n".join([*_header(facts), "", _text(facts, export)])


def _header(facts: Facts) -> list[str]:
    values: dict[str, Any] = {"library_name": "pinsage_jax", "tags": _TAGS}
    if facts.evaluation is not None:
        values["model-index"] = [{"name": facts.name, "results": [_result(facts.evaluation)]}]
    hint = f"license: {json.dumps(facts.license)}" if facts.license else _LICENSE_HINT
    return ["---", hint, *(f"{name}: {json.dumps(value)}" for name, value in values.items()), "---"]


def _result(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The measured values of the vectors as a result of the hub's model index."""
    metrics = _metrics(evaluation, MAIN)
    return {
        "task": {"type": "retrieval", "name": "Related items"},
        "dataset": {"type": "pairs", "name": _pairs(evaluation)},
        "metrics": [
            {"type": name, "name": name, "value": round(float(metrics[name]["value"]), 6)}
            for name in metrics
        ],
    }


def _text(facts: Facts, export: dict[str, Any]) -> str:
    by_cosine = export["metric"] == "cosine"
    repository = facts.name if "/" in facts.name else f"USER/{facts.name}"
    note = _UNIT_NOTE if by_cosine else ""
    kinds = dict.fromkeys(_KINDS.get(block["kind"], block["kind"]) for block in facts.features)
    counts = {name: f"{count:,}" for name, count in facts.counts.items()}
    return _BODY.format(
        name=facts.name,
        found=f"{export['items']:,} items with {export['dimension']} dimensions",
        program=export["program"],
        metric=export["metric"],
        code=_READ.format(name=json.dumps(repository), note=note),
        columns=", ".join(map(markdown_text, [ID, VECTOR, VERSION, *export["columns"]])),
        encoder=_ENCODER if facts.has_encoder else "",
        edges=counts["edges"],
        items=counts["items"],
        collections=counts["collections"],
        isolated=counts["items_without_edges"],
        features=", ".join(kinds) or "none",
        scores="\n".join(_scores(facts.evaluation)),
    )


def _scores(evaluation: dict[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["These vectors were not evaluated."]
    lines = [
        f"Rank of the target of {evaluation['pairs']:,} pairs ({_pairs(evaluation)}) among all "
        f"items; in brackets: {markdown_text(evaluation['interval'])}.",
        "",
        f"| | {' | '.join(_SHOWN)} |",
        f"|---|{'---|' * len(_SHOWN)}",
    ]
    methods = evaluation["methods"]
    for name in [MAIN, *(name for name in methods if name not in (MAIN, RANKED))]:
        metrics = _metrics(evaluation, name)
        cells = [_cell(metrics[metric]) if metric in metrics else "" for metric in _SHOWN]
        lines.append(f"| {markdown_text(name)} | {' | '.join(cells)} |")
    return lines


def _metrics(evaluation: dict[str, Any], method: str) -> dict[str, dict[str, float]]:
    """The metrics of a method over all pairs."""
    return evaluation["methods"][method]["overall"]["all"]["metrics"]


def _cell(metric: dict[str, float]) -> str:
    if "low" not in metric:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} \\[{metric['low']:.3f}, {metric['high']:.3f}\\]"


def _pairs(evaluation: dict[str, Any]) -> str:
    return _PAIRS.get(str(evaluation["pairs_from"]), "pairs")
