"""The verdict of the report: words from paired intervals, and which kinds are judged."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from hostile_catalog import HOSTILE, ITEMS, small_config, small_embeddings, small_prepared

from pinsage_jax.evaluation import evaluate as evaluation
from pinsage_jax.reporting import page as markup
from pinsage_jax.reporting.sections import glossary, scores, verdict
from pinsage_jax.reporting.sources import Source, read_source

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def scored(hit: float, pairs: int = 500, **difference) -> dict:
    """A method's entry for one kind of pair; `difference` is that of PinSage to it."""
    found = {
        "pairs": pairs, "queries": pairs,
        "metrics": {metric: {"value": hit} for metric in ("hit@10", "hit@100")},
    }  # fmt: skip
    for key, bounds in difference.items():
        value, low, high = bounds
        interval = {} if low is None else {"low": low, "high": high}
        both = {metric: {"value": value, **interval} for metric in ("hit@10", "hit@100")}
        found[f"{key}_minus_baseline"] = both
    return found


def methods_of(kinds: dict[str, dict[str, dict]]) -> dict:
    """The methods of an eval.json from what each scored for each kind; "all" is overall."""
    methods = {}
    for kind, found in kinds.items():
        for method, entry in found.items():
            group = "overall" if kind == "all" else "by_kind"
            methods.setdefault(method, {}).setdefault(group, {})[kind] = entry
    return methods


def shown(methods: dict, **more) -> str:
    source = Source(
        small_config("w"), True, {}, [], [], {"methods": methods, "catalog_items": ITEMS, **more},
        stale=False,
    )  # fmt: skip
    return str(verdict.verdict(source))


@pytest.mark.parametrize(
    "bounds, word",
    [
        ((0.1, 0.01, 0.2), verdict.BETTER),
        ((0.1, -0.01, 0.2), verdict.LEVEL),
        ((0.1, 0.0, 0.2), verdict.LEVEL),
        ((-0.1, -0.2, -0.01), verdict.WORSE),
        ((0.1, None, None), verdict.UNDECIDED),
    ],
)
def test_the_word_follows_the_interval_of_the_best_baseline(bounds, word):
    weaker = scored(0.1, pinsage=(0.2, 0.1, 0.3))
    methods = methods_of(
        {"all": {"pinsage": scored(0.3), "walk": weaker, "content": scored(0.2, pinsage=bounds)}}
    )
    found = verdict.judge(methods, "pinsage", "overall", "all", "hit@10")
    assert (found.word, found.baseline, found.value, found.best) == (word, "content", 0.3, 0.2)


def test_every_kind_has_its_own_best_baseline_and_word():
    kinds = {
        "all": {
            "pinsage": scored(0.3), "walk": scored(0.2, pinsage=(0.1, 0.05, 0.15)),
            "content": scored(0.25, pinsage=(0.05, -0.01, 0.11)),
        },
        "warm": {
            "pinsage": scored(0.4), "walk": scored(0.45, pinsage=(-0.05, -0.08, -0.02)),
            "content": scored(0.1, pinsage=(0.3, 0.2, 0.4)),
        },
        "cold": {
            "pinsage": scored(0.2), "walk": scored(0.0, pinsage=(0.2, 0.1, 0.3)),
            "content": scored(0.05, pinsage=(0.15, 0.1, 0.2)),
        },
    }  # fmt: skip
    page = shown(methods_of(kinds))
    cards = re.findall(r'<div class="(\w+)"><h3>(\w+) pairs<.*?by (\w+) ', page)
    assert sorted(cards) == [("better", "Cold", "content"), ("level", "All", "content"),
                             ("worse", "Warm", "walk")]  # fmt: skip
    words = re.sub(r"<[^>]*>", "", page)
    assert "PinSage is better than the best baseline for cold pairs; level with" in words
    assert "worse than the best baseline for warm pairs." in words
    points = markup.minus("(-5.0 points, -8.0 to -2.0)")
    assert f"40.0% against 45.0% by walk {points}" in words


def test_kinds_with_few_pairs_are_not_judged():
    few = scores.MIN_PAIRS - 1
    kinds = {
        kind: {"pinsage": scored(0.3, pairs), "walk": scored(0.2, pairs, pinsage=(0.1, 0.0, 0.2))}
        for kind, pairs in (("all", 2 * few + 1), ("warm", few + 1), (HOSTILE[0], few))
    }
    methods = methods_of(kinds)
    assert scores.kinds_of(methods) == (["warm"], [HOSTILE[0]])
    page = shown(methods)
    assert page.count("<h3>") == 2 and HOSTILE[0] not in page
    assert f"fewer than {scores.MIN_PAIRS} pairs: <bdi>&lt;script&gt;" in page
    # One kind alone is all pairs.
    assert scores.kinds_of(methods_of({"all": kinds["all"], "warm": kinds["all"]})) == ([], [])


def test_what_orders_the_lists_is_judged_and_the_embeddings_beside_it():
    kinds = {
        "all": {
            "pinsage": scored(0.3),
            "ranker": scored(0.4, pinsage=(-0.1, -0.2, -0.05)),
            "walk": scored(0.35, pinsage=(-0.05, -0.1, -0.01), ranker=(0.05, 0.01, 0.1)),
        }
    }
    methods = methods_of(kinds)
    methods["ranker"]["settings"] = {"related_by": "ranker"}
    words = re.sub(r"<[^>]*>", "", shown(methods))
    assert (
        "PinSage, its lists ordered by the ranker, is better than the best baseline for all"
        in words
    )
    assert "Embeddings alone: hit@10 30.0%, worse." in words
    # An eval.json without the ranker's intervals decides nothing.
    del methods["walk"]["overall"]["all"]["ranker_minus_baseline"]
    words = re.sub(r"<[^>]*>", "", shown(methods))
    assert "so there is no verdict" in words
    assert "40.0% against 35.0% by walk (+5.0 points)" in words


def test_coverage_and_the_tail_are_said():
    methods = methods_of(
        {"all": {"pinsage": scored(0.3), "walk": scored(0.2, pinsage=(0.1, 0.0, 0.2))}}
    )
    methods["pinsage"]["lists"] = {"queries": 9, "coverage": 0.421, "top_1_percent": 0.123}
    methods["walk"]["lists"] = {"queries": 9, "coverage": 0.5, "top_1_percent": 0.456}
    words = re.sub(r"<[^>]*>", "", shown(methods))
    assert "show 42.1% of the catalog" in words
    assert "hold 12.3% of all places (walk 45.6%)" in words


class Reversed:
    """Orders the catalog against the embeddings."""

    by, prices = "ranker", ()

    def at_weights(self, pairs, queries, k, weights):
        ranks = 1 + (np.arange(len(pairs)) % ITEMS)
        return [(ranks, np.tile(np.arange(k, dtype=np.int32), (len(queries), 1)))] * len(weights)


def test_evaluate_pairs_the_ranker_with_every_baseline(tmp_path):
    config = small_config(tmp_path, baselines="popularity,content")
    evaluation.evaluate(config, small_prepared(), small_embeddings(), ranker=Reversed())
    methods = read_source(config, ITEMS).known_scores["methods"]
    for name in ("popularity", "content"):
        entry = methods[name]["overall"]["all"]
        for key, other in (("pinsage", "pinsage"), ("ranker", "ranker")):
            found = entry[f"{key}_minus_baseline"]["hit@10"]
            own = methods[other]["overall"]["all"]["metrics"]["hit@10"]["value"]
            assert found["value"] == pytest.approx(own - entry["metrics"]["hit@10"]["value"])
            assert found["low"] <= found["value"] + 1e-9 and found["high"] >= found["value"] - 1e-9
    assert "ranker_minus_baseline" not in methods["ranker"]["overall"]["all"]
    assert "pinsage_minus_baseline" in methods["ranker"]["overall"]["all"]
    assert "pinsage_minus_baseline" not in methods["pinsage"]["overall"]["all"]
    without = dataclasses.replace(config, workdir=str(tmp_path / "other"))
    evaluation.evaluate(without, small_prepared(), small_embeddings())
    assert "ranker_minus" not in (tmp_path / "other" / "eval.json").read_text()


def test_the_glossary_is_that_of_the_documents():
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    documented = dict(rows)
    assert len(glossary.TERMS) > 15
    for term, meaning in glossary.TERMS.items():
        assert documented[term] == meaning
    found = glossary.term("warm pair", "<warm>")
    assert 'href="#term-warm-pair"' in found and "&lt;warm&gt;" in found
    assert 'id="term-warm-pair"' in glossary.glossary()


def test_kinds_of_one_word_are_enumerated():
    entries = {"pinsage": scored(0.3), "walk": scored(0.2, pinsage=(0.1, 0.05, 0.15))}
    words = re.sub(r"<[^>]*>", "", shown(methods_of({"all": entries, "a": entries, "b": entries})))
    assert "better than the best baseline for all pairs, kind a and kind b." in words
