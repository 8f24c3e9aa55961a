"""evaluate.py: numbers by hand, slices, intervals, files and the printed tables."""

import dataclasses
import json
import re
import shutil
import sys

import numpy as np
import pytest
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.evaluate import evaluate, read_evaluation
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.ranks import TIE_RULE
from pinsage_jax.stages.pipeline import pipeline


def slow_rank(scores, query, target):
    others = [item for item in range(len(scores)) if item not in (query, target)]
    equal = sum(scores[item] == scores[target] for item in others)
    return 1 + sum(scores[item] > scores[target] for item in others) + -(-equal // 2)


@pytest.fixture
def small_case(small_rng):
    """40 items in small collections; whole-number embeddings, so ties are exact."""
    graph = random_graph(small_rng, num_items=40, num_collections=12, edges=150)
    embeddings = small_rng.integers(-2, 3, (40, 3)).astype(np.float32)
    pairs = {(int(q), int(t)) for q, t in small_rng.integers(0, 40, (120, 2)) if q != t}
    pairs |= {(1, 39), (2, 38), (3, 37)}
    pairs = np.array(sorted(pairs), np.int32)
    degree = graph.degree()
    kinds = ["cold" if degree[target] == 0 else "warm" for _, target in pairs]
    return graph, embeddings, pairs, kinds


def ranks_by_hand(embeddings, pairs):
    return np.array([slow_rank(embeddings @ embeddings[q], q, t) for q, t in pairs])


def test_every_slice_equals_the_ranks_by_hand(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    prepared = make_prepared(graph, eval_pairs=pairs, eval_kinds=kinds)
    result = evaluate(make_config(tmp_path, bootstrap=50), prepared, embeddings)
    ranks = ranks_by_hand(embeddings, pairs)
    degree = graph.degree()[pairs[:, 1]]
    slices = {
        ("overall", "all"): degree >= 0,
        ("by_kind", "cold"): degree == 0,
        ("by_kind", "warm"): degree > 0,
        ("by_degree", "0"): degree == 0,
        ("by_degree", "1-2"): (degree >= 1) & (degree <= 2),
        ("by_degree", "3-10"): (degree >= 3) & (degree <= 10),
        ("by_degree", "11+"): degree >= 11,
    }
    main = result["methods"]["pinsage"]
    for (group, name), mask in slices.items():
        found = main[group][name]
        assert found["pairs"] == mask.sum(), name
        if not mask.any():
            assert found["metrics"] == {}
            continue
        totals = metrics.query_table(ranks[mask], pairs[mask, 0]).totals()
        for metric, (total, count) in totals.items():
            values = found["metrics"][metric]
            assert (values["sum"], values["count"]) == pytest.approx((total, count))
            assert values["value"] == pytest.approx(total / count)
            assert values["low"] <= values["value"] + 1e-9 and values["value"] <= (
                values["high"] + 1e-9
            )
    assert main["hit_curve"]["5"] == pytest.approx(np.mean(ranks <= 5))


def test_baselines_come_with_paired_differences(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    features = embeddings[:, ::-1].copy()
    prepared = make_prepared(graph, features, pairs, kinds)
    result = evaluate(
        make_config(tmp_path, bootstrap=60, baselines="content,popularity"), prepared, embeddings
    )
    assert list(result["methods"]) == ["pinsage", "content", "popularity"]
    degree = graph.degree()[:40].astype(float)
    ranks = np.array([slow_rank(degree, q, t) for q, t in pairs])
    by_degree = result["methods"]["popularity"]["overall"]["all"]
    assert by_degree["metrics"]["hit@10"]["value"] == pytest.approx(np.mean(ranks <= 10))
    main = result["methods"]["pinsage"]["overall"]["all"]["metrics"]
    gap = by_degree["pinsage_minus_baseline"]["hit@10"]
    assert gap["value"] == pytest.approx(
        main["hit@10"]["value"] - by_degree["metrics"]["hit@10"]["value"]
    )
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert "pinsage_minus_baseline" not in result["methods"]["pinsage"]["overall"]["all"]


def test_embeddings_equal_to_the_features_tie_with_content(small_case, tmp_path, small_rng):
    """The block-wise and the dense ranking must agree."""
    graph, _, pairs, kinds = small_case
    features = small_rng.normal(size=(40, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    prepared = make_prepared(graph, features, pairs, kinds)
    config = make_config(tmp_path, bootstrap=30, baselines="content")
    result = evaluate(config, prepared, unit)
    gaps = result["methods"]["content"]["overall"]["all"]["pinsage_minus_baseline"]
    for values in gaps.values():
        assert values == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_eval_json_documents_the_protocol(small_case, tmp_path, capsys):
    graph, embeddings, pairs, kinds = small_case
    repeated = np.concatenate([pairs, pairs[:4]])
    prepared = make_prepared(graph, None, repeated, kinds + kinds[:4])
    result = evaluate(make_config(tmp_path, bootstrap=10), prepared, embeddings)
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written.pop("checksum") and written == json.loads(json.dumps(result))
    assert written["pairs_from"] == "eval_pairs"
    assert written["pairs"] == len(pairs) and written["queries"] == len(np.unique(pairs[:, 0]))
    assert written["catalog_items"] == 40 and written["sampled_candidates"] is False
    assert written["tie_rule"] == TIE_RULE
    assert written["dropped_pairs"] == {
        "unknown_query": 2, "unknown_target": 1, "self_pairs": 0, "repeated_pairs": 4,
    }  # fmt: skip
    assert written["skipped_baselines"] == dict.fromkeys(
        ("content", "steered"), "the items have no features"
    )
    assert written["methods"]["walk"]["settings"]["num_walks"] == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval_ranks.parquet"]

    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for title in ("all pairs", "kind cold", "kind warm", "hit@10 / hit@100 by degree"):
        assert sum(line.startswith(title) for line in lines) == 1, title
    start = next(place for place, line in enumerate(lines) if line.startswith("all pairs"))
    table = lines[start : start + 4]
    assert [line.split()[0] for line in table[1:]] == ["pinsage", "popularity", "walk"]
    # Columns are aligned to the right: the end of the first interval is one place.
    assert len({line.index("]") for line in table[1:]}) == 1
    value = result["methods"]["pinsage"]["overall"]["all"]["metrics"]["hit@10"]["value"]
    assert f"{value:.3f}" in table[1]


def test_eval_json_is_read_only_while_it_is_what_was_written(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    config = make_config(tmp_path, bootstrap=10, baselines="popularity")
    result = evaluate(config, make_prepared(graph, None, pairs, kinds), embeddings)
    path = tmp_path / "eval.json"
    assert read_evaluation(tmp_path) == json.loads(json.dumps(result))
    whole = path.read_bytes()
    for place in [match.start() for match in re.finditer(rb"[0-9]", whole)][::7]:
        digit = b"1" if whole[place : place + 1] != b"1" else b"2"
        path.write_bytes(whole[:place] + digit + whole[place + 1 :])
        if json.loads(path.read_bytes()) == json.loads(whole):
            # A digit beyond the precision of float64.
            continue
        with pytest.raises(UserError) as caught:
            read_evaluation(tmp_path)
        assert str(path) in str(caught.value) and "again" in str(caught.value)
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=re.escape(f"{path} is not valid JSON")):
            read_evaluation(tmp_path)
    # Written anew by another program, or by a version that wrote no checksum.
    files.write_json(path, result)
    with pytest.raises(UserError, match=r"has no checksum.*run --mode=evaluate again"):
        read_evaluation(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("how", ["digit", "cut", "without checksum"])
def test_the_pipeline_evaluates_again_what_is_not_intact(how, trained, tmp_path, caplog):
    shutil.copytree(trained.workdir, tmp_path / "run")
    path = tmp_path / "run" / "eval.json"
    whole = path.read_text()
    config = dataclasses.replace(trained, workdir=str(tmp_path / "run"))
    if how == "digit":
        value = json.loads(whole)["methods"]["pinsage"]["overall"]["all"]["metrics"]["mrr"]["value"]
        path.write_text(whole.replace(repr(value), repr(value + 0.25)))
    elif how == "cut":
        path.write_text(whole[:-20])
    else:
        found = json.loads(whole)
        del found["checksum"]
        files.write_json(path, found)
    assert path.read_text() != whole
    with caplog.at_level("WARNING", "absl"):
        pipeline(config)
    assert path.read_text() == whole
    assert f"{path} " in caplog.text and "evaluating again" in caplog.text


def test_runs_repeat_and_the_seed_moves_only_intervals(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    prepared = make_prepared(graph, None, pairs, kinds)
    config = make_config(tmp_path, bootstrap=40, baselines="none")
    first, again = evaluate(config, prepared, embeddings), evaluate(config, prepared, embeddings)
    assert first == again


def test_no_intervals_without_bootstrap(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    prepared = make_prepared(graph, None, pairs, kinds)
    config = make_config(tmp_path, bootstrap=0, baselines="popularity")
    result = evaluate(config, prepared, embeddings)
    values = result["methods"]["popularity"]["overall"]["all"]
    assert set(values["metrics"]["mrr"]) == {"value", "sum", "count"}
    assert set(values["pinsage_minus_baseline"]["mrr"]) == {"value"}


def test_without_eval_pairs_the_validation_pairs_are_scored_and_it_is_logged(
    small_case, tmp_path, capsys
):
    graph, embeddings, pairs, kinds = small_case
    smaller = graph.without(collections=np.array([1], np.int32))
    none = np.empty(0, np.int32)
    split = ValidationSplit(smaller, none, none, pairs, np.array(kinds))
    config = make_config(tmp_path, bootstrap=0, baselines="popularity")
    result = evaluate(config, make_prepared(graph), embeddings, split)
    assert result["pairs_from"] == "validation" and result["pairs"] == len(pairs)
    assert len(result["notes"]) == 2
    assert "there are no --eval_pairs; these are validation pairs" in capsys.readouterr().out
    # Embeddings over the training graph need no note about the graph.
    fair = evaluate(config, make_prepared(graph), embeddings, split, graph=smaller)
    assert len(fair["notes"]) == 1
    degree = smaller.degree()[pairs[:, 1]]
    by_degree = fair["methods"]["pinsage"]["by_degree"]
    assert by_degree["0"]["pairs"] == np.count_nonzero(degree == 0)


def test_without_any_pair_it_says_so(small_case, tmp_path, capsys):
    graph, embeddings, _, _ = small_case
    assert evaluate(make_config(tmp_path), make_prepared(graph), embeddings) == {}
    assert "no evaluation pairs" in capsys.readouterr().out
    assert not (tmp_path / "eval.json").exists()


def test_bad_input_is_an_error(small_case, tmp_path):
    graph, embeddings, pairs, kinds = small_case
    prepared = make_prepared(graph, None, pairs, kinds)
    with pytest.raises(UserError, match="--baselines=itemknn"):
        evaluate(make_config(tmp_path, baselines="itemknn"), prepared, embeddings)
    broken = embeddings.copy()
    broken[5] = np.nan
    with pytest.raises(UserError, match="row 5 is not finite"):
        evaluate(make_config(tmp_path), prepared, broken)
    assert not (tmp_path / "eval.json").exists()


def test_a_single_pair_is_enough(tmp_path):
    graph = Graph.from_edges(np.array([0, 1], np.int32), np.array([0, 0], np.int32), 3, 1)
    prepared = make_prepared(graph, np.eye(3, dtype=np.float32), np.array([[0, 1]]))
    result = evaluate(make_config(tmp_path, bootstrap=5), prepared, np.eye(3, dtype=np.float32))
    # Items 1 and 2 tie for the content; popularity knows that item 1 has an edge.
    content = result["methods"]["content"]["overall"]["all"]["metrics"]["mrr"]
    assert content["value"] == content["low"] == content["high"] == 0.5
    assert result["methods"]["popularity"]["overall"]["all"]["metrics"]["mrr"]["value"] == 1


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_on_a_terminal_one_table_fits_it(small_case, tmp_path, monkeypatch, capsys, width):
    graph, embeddings, pairs, kinds = small_case
    prepared = make_prepared(graph, None, pairs, kinds)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    result = evaluate(make_config(tmp_path, bootstrap=10), prepared, embeddings)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("hit@10", "pinsage", "walk"))]
    assert all(len(line) <= width for line in table)
    heads = re.findall(r"(all|cold|warm) \(", table[0])
    assert heads == ["all", "cold", "warm"] if width >= 80 else heads[0] == "all"
    metrics = result["methods"]["pinsage"]["overall"]["all"]["metrics"]
    shown = [f"{metrics[name]['value']:.3f}" for name in ("hit@10", "hit@100")]
    assert " / ".join(shown) in table[1]
    rest = " ".join(lines)
    assert f"{tmp_path}/eval.json" in rest
    for kind in {"cold", "warm"} - {*heads}:
        assert f"{kind} (" in rest[rest.index("Also measured") :]
