"""eval_ranks.parquet: other programs open it, and eval.json follows from it."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.evaluation.evaluate import read_evaluation
from pinsage_jax.evaluation.pair_ranks import RANKS_FILE
from pinsage_jax.stages.evaluate import saved_evaluation


@pytest.mark.parametrize("read", [pd.read_parquet, lambda path: pq.read_table(path).to_pandas()])
def test_the_ranks_give_the_numbers_of_eval_json(trained, read):
    frame = read(pathlib.Path(trained.workdir) / RANKS_FILE)
    saved = read_evaluation(trained.workdir)
    methods = saved["methods"]
    assert list(frame.columns[:4]) == ["query_id", "item_id", "kind", "candidates"]
    assert {f"rank_{name}" for name in methods} == set(frame.columns[4:]) and len(methods) > 3
    assert len(frame) == saved["pairs"] == len(frame[["query_id", "item_id"]].drop_duplicates())
    assert (frame["candidates"] == saved["catalog_items"] - 1).all()
    for name, values in methods.items():
        ranks = frame[f"rank_{name}"]
        assert ranks.between(1, frame["candidates"].iloc[0]).all()
        assert values["hit_curve"] == {
            k: pytest.approx((ranks <= int(k)).mean()) for k in values["hit_curve"]
        }
        for kind, scored in values["by_kind"].items():
            part = frame[frame["kind"] == kind]
            assert len(part) == scored["pairs"] > 0
            found = {m: scored["metrics"][m]["value"] for m in ("hit@10", "hit@100", "mrr")}
            of_kind = part[f"rank_{name}"]
            assert found == {
                "hit@10": pytest.approx((of_kind <= 10).mean()),
                "hit@100": pytest.approx((of_kind <= 100).mean()),
                "mrr": pytest.approx((1 / of_kind).mean()),
            }
            recall = (of_kind <= 10).groupby(part["query_id"]).mean().mean()
            assert scored["metrics"]["recall@10"]["value"] == pytest.approx(recall)


def test_the_pairs_are_those_of_the_table(trained):
    table = pq.read_table(pathlib.Path(trained.workdir) / RANKS_FILE)
    prepared = open_prepared(trained.workdir)
    rows = [prepared.item_ids.lookup(table.column(name)) for name in ("query_id", "item_id")]
    expected = np.unique(prepared.eval_pairs, axis=0)
    np.testing.assert_array_equal(np.unique(np.stack(rows, axis=1), axis=0), expected)
    saved = read_evaluation(trained.workdir)
    assert table.schema.metadata[b"fingerprint"].decode() == saved["fingerprint"]
    assert table.schema.metadata[b"tie_rule"].decode() == saved["tie_rule"]


def test_an_evaluation_without_ranks_is_made_again(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.workdir, folder)
    config = dataclasses.replace(trained, workdir=str(folder))
    assert saved_evaluation(config) is not None
    (folder / RANKS_FILE).unlink()
    assert saved_evaluation(config) is None
