"""Terms of text in many scripts, and features for each of them."""

import html
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from pinsage_jax.config.data import DataConfig
from pinsage_jax.data.features import write_features
from pinsage_jax.data.tables import open_table
from pinsage_jax.data.text import terms_of


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("阳台收纳12 灯", ["阳台", "台收", "收纳", "12", "灯"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("ภาษาไทย", ["ภาษ", "าษา", "ษาไ", "าไท", "ไทย"]),
        ("한국어는 책", ["한국어는", "한국", "국어", "어는"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),
        ("C++ and F# code", ["and", "code", "c++", "f#"]),
        ("R", ["r"]),
        ("🎉", ["🎉"]),
        ("Tom &amp; Jerry&#39;s caf&eacute;", ["tom", "jerry", "café"]),
        ("", []),
        ("?!", []),
    ],
)
def test_terms_of_many_scripts(text, terms):
    assert terms_of(text) == terms


def test_composed_and_decomposed_text_have_the_same_terms():
    for text in ("Été à la crème", "한국어는", "ガラス"):
        assert terms_of(unicodedata.normalize("NFD", text)) == terms_of(text)
        assert terms_of(html.escape(text)) == terms_of(text)


def test_words_of_alphabets_are_those_of_scikit_learn(small_rng):
    words = TfidfVectorizer().build_analyzer()
    letters = list("ab zI_1-.,'\n\u00e9\u0434\u03c3")
    for _ in range(2000):
        text = "".join(small_rng.choice(letters, small_rng.integers(0, 30)))
        assert words(text) in (terms_of(text), []), repr(text)


@pytest.mark.parametrize("blank", ["", " "])
def test_titles_without_blanks_have_features(blank, tmp_path, small_rng):
    rooms, things = ["阳台", "厨房", "卧室", "书房"], ["收纳", "灯具", "绿植", "地毯", "窗帘"]
    topic = np.arange(200) % 5
    titles = [
        blank.join([str(small_rng.choice(rooms)), things[t], str(small_rng.integers(400))])
        for t in topic
    ]
    ids = [f"i{n}" for n in range(200)]
    pq.write_table(pa.table({"item_id": ids, "title": titles}), tmp_path / "i.parquet")
    table = open_table(tmp_path / "i.parquet", "items")
    report = write_features(table, DataConfig(text_dim=16), 200, 200, tmp_path)
    assert report["items_all_zero"] == 0
    features = np.load(tmp_path / "features.npy")
    scores = features @ features.T - 2 * np.eye(200)
    near = np.argsort(-scores, axis=1)[:, :5]
    assert np.mean(topic[near] == topic[:, None]) > 0.4


def test_items_without_features_are_warned_of(tmp_path, caplog):
    texts = ["oak table", "oak lamp", "?", "!"] * 5
    ids = [f"i{n}" for n in range(20)]
    pq.write_table(pa.table({"item_id": ids, "text": texts}), tmp_path / "i.parquet")
    with caplog.at_level("WARNING"):
        write_features(open_table(tmp_path / "i.parquet", "items"), DataConfig(), 20, 20, tmp_path)
    assert "10 of 20 rows of --items have no feature but zeros." in caplog.text
