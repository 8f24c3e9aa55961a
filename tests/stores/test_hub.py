"""A repository of the Hugging Face hub: its card, its files, and what an upload asks of the hub."""

import inspect
import pathlib
import re
import sys
import types

import numpy as np
import pytest
import yaml
from store_rows import IDS, catalog

from pinsage_jax.config.tools import VectorStoreConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.hub import card, repository
from pinsage_jax.stores.rows import StoreRows

METRICS = {"hit@10": 0.25, "hit@100": 0.5, "ndcg@10": 0.125, "mrr": 0.1}


def method(scale):
    found = {name: {"value": value * scale, "sum": 1.0} for name, value in METRICS.items()}
    found["hit@10"] |= {"low": 0.1, "high": 0.4}
    return {"overall": {"all": {"metrics": found}}}


EVALUATION = {
    "pairs": 1200, "pairs_from": "validation", "interval": "95%, 100 bootstrap resamples",
    "methods": {"ranker": method(2), "walk": method(0.5), "pinsage": method(1)},
}  # fmt: skip


def facts(**changed):
    values = {
        "name": "me/shop-1.0",
        "license": "",
        "counts": {"items": 1200, "edges": 34567, "collections": 8, "items_without_edges": 9},
        "features": [{"kind": "text", "width": 3}, {"kind": "numeric"}, {"kind": "numeric"}],
        "evaluation": EVALUATION,
    }
    return card.Facts(**(values | changed))


def export(rows):
    return {
        "items": len(rows), "dimension": rows.dimension, "columns": list(rows.columns),
        "metric": "cosine" if rows.by_cosine else "inner product", "program": "pinsage_jax 0",
    }  # fmt: skip


def written(folder, unit_length=False, **changed):
    rows = StoreRows.of(*catalog(), "all", "v1", unit_length)
    repository.write(rows, "items", folder)
    (folder / card.FILE).write_text(card.card(facts(**changed), export(rows)), encoding="utf-8")
    return rows


def header(folder):
    return yaml.safe_load((folder / card.FILE).read_text().split("---\n")[1])


def test_the_header_is_that_of_a_model_card(tmp_path):
    written(tmp_path)
    found = header(tmp_path)
    assert found["library_name"] == "pinsage_jax" and "license" not in found
    assert "# license: which others may use this under" in (tmp_path / card.FILE).read_text()
    ((result,),) = [model["results"] for model in found["model-index"]]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == METRICS and result["dataset"]["name"] == "validation pairs"
    (tmp_path / "other").mkdir()
    written(tmp_path / "other", license="apache-2.0", evaluation=None)
    assert header(tmp_path / "other")["license"] == "apache-2.0"
    assert "model-index" not in header(tmp_path / "other")
    assert "These vectors were not evaluated." in (tmp_path / "other" / card.FILE).read_text()


def test_the_text_has_the_figures_and_no_path(tmp_path):
    written(tmp_path)
    text = (tmp_path / card.FILE).read_text()
    assert "Embeddings of 12 items with 5 dimensions" in text
    assert "Trained on 34,567 edges between 1,200 items and 8 collections; 9 items" in text
    assert "Features of items: text (TF-IDF), numbers." in text
    rows = re.findall(r"^\| (pinsage|walk|ranker) \| (.*) \|$", text, re.MULTILINE)
    # What orders other lists than these vectors is left out.
    assert rows == [
        ("pinsage", r"0.250 \[0.100, 0.400\] | 0.500 | 0.125 | 0.100"),
        ("walk", r"0.125 \[0.100, 0.400\] | 0.250 | 0.062 | 0.050"),
    ]
    assert str(tmp_path) not in text and "encoder/" not in text
    made = card.card(facts(has_encoder=True), export(StoreRows.of(*catalog(), "", "v1", False)))
    assert "| `encoder/` | new items" in made


@pytest.mark.parametrize("unit_length", [False, True])
def test_the_program_of_the_card_finds_the_neighbors(unit_length, tmp_path, monkeypatch, capsys):
    rows = written(tmp_path, unit_length)
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / card.FILE).read_text(), re.DOTALL)
    assert 'snapshot_download("me/shop-1.0")' in program
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda repo: str(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for row, vector in enumerate(rows.vectors):
        scores = rows.vectors.astype(float) @ vector
        nearest = [item for item in np.argsort(-scores) if item != row][:10]
        exec(program.replace("row = 0", f"row = {row}"), {})
        lines = capsys.readouterr().out.replace("line\nbreak", "line break").splitlines()
        found = [line.rsplit(" ", 1)[0] for line in lines]
        assert found == [IDS[item].replace("\n", " ") for item in nearest]


def test_the_card_of_huggingface_hub(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (test-stores)")
    written(tmp_path, license="mit")
    found = hub.ModelCard.load(tmp_path / card.FILE)
    assert found.data.license == "mit" and found.data.library_name == "pinsage_jax"
    results = {result.metric_type: result.metric_value for result in found.data.eval_results}
    assert results == METRICS and found.data.model_name == "me/shop-1.0"
    assert found.text.lstrip().startswith("# me/shop-1.0")


def test_a_dataset_of_the_parquet_files(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets (extra test-stores)")
    rows = written(tmp_path)
    files = [str(path) for path in sorted((tmp_path / "embeddings").glob("*.parquet"))]
    found = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert found["item_id"][:] == IDS
    np.testing.assert_array_equal(found.with_format("numpy")["embedding"][:], rows.vectors)


class FakeApi:
    """Remembers what it is asked for."""

    asked: list[tuple[str, dict]]
    fails = False

    def __init__(self, **options):
        self.asked.append(("HfApi", options))

    def create_repo(self, repo_id, **options):
        if self.fails:
            raise OSError("401 Client Error:\nUnauthorized")
        self.asked.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options):
        self.asked.append(("upload_folder", options))
        return types.SimpleNamespace(commit_url="https://hub/me/shop/commit/1")


@pytest.fixture
def hub(monkeypatch):
    module = types.ModuleType("huggingface_hub")
    module.HfApi = type("HfApi", (FakeApi,), {"asked": []})
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module.HfApi


def test_an_upload_is_one_commit_to_a_private_repository(hub, tmp_path):
    assert repository.upload(tmp_path, "me/shop", "v1") == "https://hub/me/shop/commit/1"
    made, uploaded = dict(hub.asked)["create_repo"], dict(hub.asked)["upload_folder"]
    assert made == {
        "repo_id": "me/shop", "repo_type": "model", "private": True, "exist_ok": True,
    }  # fmt: skip
    assert uploaded["folder_path"] == tmp_path and "v1" in uploaded["commit_message"]
    # No file of an earlier upload stays beside these.
    assert set(uploaded["delete_patterns"]) == {"embeddings/*", "encoder/*"}


def test_what_is_asked_is_what_the_library_takes(hub, tmp_path):
    repository.upload(tmp_path, "me/shop", "v1")
    asked = hub.asked
    del sys.modules["huggingface_hub"]
    library = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (test-stores)")
    for name, options in asked:
        function = library.HfApi if name == "HfApi" else getattr(library.HfApi, name)
        arguments = () if name == "HfApi" else (None,)
        inspect.signature(function).bind(*arguments, **options)


def test_a_failed_upload_is_one_sentence(hub, tmp_path, monkeypatch):
    hub.fails = True
    with pytest.raises(UserError, match=r"the upload failed \(OSError: 401 .* Log in by `hf auth"):
        repository.upload(tmp_path, "me/shop", "v1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub: pip install 'pinsage-jax\[hugg"):
        repository.upload(tmp_path, "me/shop", "v1")


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"to": "qdrant", "hub_repo": "a/b"}, "--hub_repo=a/b needs --to=huggingface."),
        ({"hub_license": "mit"}, "--hub_license=mit needs --to=huggingface."),
        ({"to": "huggingface", "hub_repo": "shop"}, "--hub_repo=shop: USER/NAME is expected."),
        ({"to": "huggingface", "hub_repo": "../a/b"}, "--hub_repo=../a/b: USER/NAME is expected."),
        ({"to": "huggingface", "hub_license": 'mit"\nx: y'}, "an identifier such as mit is"),
    ],
)
def test_names_that_are_refused(settings, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        VectorStoreConfig(**settings).validate()


def test_a_model_is_named_by_its_repository_or_workdir():
    assert repository.model_name("me/shop", pathlib.Path("runs/x")) == "me/shop"
    assert repository.model_name("", pathlib.Path("runs/my shop: ünï")) == "my-shop-n-"
