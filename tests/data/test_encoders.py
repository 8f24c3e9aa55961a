"""Encoders of text and pictures: what they are given, what they may return, what is stored."""

import base64
import dataclasses
import json
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig, EncoderConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.encoders import encoder as encoding
from pinsage_jax.data.encoders import loading
from pinsage_jax.data.encoders.encoder import IMAGE, TEXT, Encoder, same_fingerprint
from pinsage_jax.data.encoders.loading import Encoders, open_encoders
from pinsage_jax.data.features import FeatureTransform, write_features
from pinsage_jax.data.tables import open_table, table_in_memory


def words(texts):
    """Counts of hashed words, float64 [n, 12]."""
    out = np.zeros((len(texts), 12))
    for row, text in enumerate(texts):
        for word in text.split():
            out[row, zlib.crc32(word.encode()) % 12] += 1
    return out


def sizes(pictures):
    """Length and first byte of each picture, float32 [n, 2]."""
    return np.array([[len(p), p[0]] for p in pictures], np.float32)


def text_encoder(function=words, name="mine:words"):
    return Encoder(function, name, TEXT)


def described(path, folder, encoders, rows, **data):
    folder.mkdir(exist_ok=True)
    config = DataConfig(**data)
    report = write_features(open_table(path, "items", config), config, rows, rows, folder, encoders)
    return report, np.load(folder / "features.npy")


ITEMS = {
    "item_id": ["a", "b", "c", "d", "e"],
    "title": ["red tea pot", None, "  ", "blue cup", "red cup"],
    "text": ["for four", "", None, "old", None],
}


@pytest.fixture
def items(tmp_path):
    pq.write_table(pa.table(ITEMS), tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def test_features_are_the_unit_vectors_of_the_joined_texts(items, tmp_path):
    report, features = described(items, tmp_path / "f", Encoders(text_encoder()), 5)
    for row, (title, text) in enumerate(zip(ITEMS["title"], ITEMS["text"])):
        (vector,) = words([f"{title or ''} {text or ''}"])
        length = np.sqrt((vector**2).sum())
        np.testing.assert_allclose(features[row], vector / max(length, 1), rtol=1e-6)
    assert report["missing"] == {"title, text": 2} and report["items_all_zero"] == 2
    assert report["blocks"] == [{"kind": "encoded_text", "columns": ["title", "text"], "width": 12}]


def test_a_saved_transform_needs_its_encoder_where_there_is_text(items, tmp_path):
    _, features = described(items, tmp_path / "f", Encoders(text_encoder()), 5)
    rows = pq.read_table(items)
    again = FeatureTransform.load(tmp_path / "f", Encoders(text_encoder(name="other:name")))
    np.testing.assert_array_equal(again.transform(rows), features)
    without = FeatureTransform.load(tmp_path / "f")
    assert not without.transform(rows.slice(1, 2)).any() and len(without.needs) == 1
    with pytest.raises(UserError, match=r"text in row 1; .* by 'mine:words': give --text_encoder"):
        without.transform(rows)
    for other, how in (
        (lambda t: words(t)[:, ::-1], "otherwise"),
        (lambda t: words(t)[:, :5], "5"),
    ):
        with pytest.raises(UserError, match=rf"other:f is not the encoder .*'mine:words'.*{how}"):
            FeatureTransform.load(tmp_path / "f", Encoders(text_encoder(other, "other:f")))
    # A transform without an encoder takes none.
    described(items, tmp_path / "tfidf", None, 5)
    with pytest.raises(UserError, match=r"mine:words: the catalog .* prepared without"):
        FeatureTransform.load(tmp_path / "tfidf", Encoders(text_encoder()))


def test_a_stored_name_is_never_imported(items, tmp_path, monkeypatch):
    described(items, tmp_path / "f", Encoders(text_encoder(name="hostile_module:encode")), 5)
    (tmp_path / "hostile_module.py").write_text("open('marker', 'w')\nencode = print\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = FeatureTransform.load(tmp_path / "f")
    with pytest.raises(UserError):
        loaded.transform(pq.read_table(items))
    assert "hostile_module" not in sys.modules and not (tmp_path / "marker").exists()


def test_the_callable_gets_few_texts_at_a_time_and_none_that_are_empty(tmp_path):
    calls = []

    def recorded(texts):
        assert type(texts) is list and all(type(text) is str and text.strip() for text in texts)
        calls.append(len(texts))
        return words(texts)

    titles = [f"t{n}" if n % 3 else None for n in range(2000)]
    table = pa.table({"item_id": [str(n) for n in range(2000)], "title": titles})
    pq.write_table(table, tmp_path / "i.parquet")
    described(tmp_path / "i.parquet", tmp_path / "f", Encoders(text_encoder(recorded)), 2000)
    # One call is that of the fingerprint.
    assert sum(calls) == 1333 + 1 and max(calls) == encoding._AT_ONCE[TEXT]


def test_the_next_answer_may_overwrite_the_last_one():
    memory = np.empty((256, 3), np.float32)

    def reusing(texts):
        memory[: len(texts)] = [[len(text), 1, 2] for text in texts]
        return memory[: len(texts)]

    texts = ["x" * (n % 7) for n in range(600)]
    found = text_encoder(reusing).encode(texts, str)
    assert found[:, 0].tolist() == [len(text) for text in texts]


class Ragged:
    """Vectors of another length in the second call."""

    calls = 0

    def __call__(self, texts):
        self.calls += 1
        return np.ones((len(texts), self.calls))


@pytest.mark.parametrize(
    "function, sentence",
    [
        (lambda texts: np.ones(len(texts)), r"array of shape \[3\] for 3 values; return \[3, d\]"),
        (lambda texts: np.ones((2, 4)), r"an array of shape \[2, 4\] for 3 values"),
        (lambda texts: np.ones((3, 0)), r"an array of shape \[3, 0\] for 3 values"),
        (lambda texts: np.ones((3, 4), np.int64), r"returned int64 for 3 values; return an array"),
        (lambda texts: None, r"returned object for 3 values"),
        (lambda texts: [["a"]] * 3, r"returned <U1 for 3 values"),
        (lambda texts: [[1.0], [1.0, 2.0], []], r"failed for row 0 and 2 more \(ValueError: "),
        (lambda texts: [[1.0], [np.nan], [2.0]], r"NaN or infinity for row 1; vectors must be"),
        (lambda texts: [[1.0], [1e60], [2.0]], r"NaN or infinity for row 1; vectors must be"),
        (lambda texts: 1 / 0, r"for row 0 and 2 more \(ZeroDivisionError: division by zero\)"),
        (lambda texts: sys.exit("no GPU"), r"\(SystemExit: no GPU\); --verbosity=debug"),
    ],
)  # fmt: skip
def test_what_a_callable_may_not_do(function, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        text_encoder(function).encode(["a", "b", "c"], lambda row: f"row {row}")
    assert str(caught.value).startswith("--text_encoder=mine:words ") and "\n" not in str(caught)


def test_every_vector_has_the_same_length():
    encoder = text_encoder(Ragged())
    encoder.encode(["a"], str)
    with pytest.raises(UserError, match="vectors of 2 numbers, and of 1 before"):
        encoder.encode(["a"], str)


def test_fingerprints_forgive_rounding_and_nothing_else(small_rng):
    one = text_encoder(lambda texts: small_rng.normal(size=(len(texts), 64))).fingerprint
    half = np.array(one, np.float16).astype(float)
    assert same_fingerprint(one, half) and not same_fingerprint(one, one[:-1])
    assert not same_fingerprint(one, np.roll(one, 1))


def test_encoders_without_columns_and_columns_without_encoders(items, tmp_path):
    folder, both = tmp_path / "f", Encoders(text_encoder(), Encoder(sizes, "mine:sizes", IMAGE))
    with pytest.raises(UserError, match=r"has no column of text; name one with --text_columns"):
        described(items, folder, both, 5, text_columns="")
    with pytest.raises(UserError, match=r"mine:sizes: name the column of .* with --image_columns"):
        described(items, folder, both, 5)
    with pytest.raises(UserError, match="--image_columns=title needs --image_encoder"):
        described(items, folder, None, 5, image_columns="title")
    with pytest.raises(UserError, match=r"--image_columns: column 'item_id' .* no picture"):
        described(items, folder, both, 5, image_columns="item_id")
    with pytest.raises(UserError, match="mine:words needs --items"):
        write_features(None, DataConfig(), 0, 3, folder, both)


PICTURES = Encoders(image=Encoder(sizes, "mine:sizes", IMAGE))


def unit(rows):
    rows = np.array(rows, float)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def test_pictures_are_bytes_paths_structs_and_data_addresses(tmp_path, monkeypatch):
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    (tmp_path / "tables" / "deep" / "a.png").write_bytes(b"\x03aaa")
    (tmp_path / "outside.png").write_bytes(b"secret")
    address = "data:image/png;base64," + base64.b64encode(b"\x05bb").decode()
    paths = ["deep/a.png", address, None, "../outside.png", "https://example.org/a.png", "no.png"]
    wanted = unit([[4, 3], [3, 5], [0, 0], [0, 0], [0, 0], [0, 0]])
    contents = [b"\x03aaa", b"\x05bb", None, b"", None, None]
    structs = [{"bytes": b"\x03aaa", "path": None}, {"bytes": None, "path": address}, *[None] * 4]
    for number, column in enumerate((paths, contents, structs)):
        path = tmp_path / "tables" / f"{number}.parquet"
        pq.write_table(pa.table({"item_id": list("abcdef"), "photo": column}), path)
        report, features = described(
            path, tmp_path / f"f{number}", PICTURES, 6, image_columns="photo"
        )
        np.testing.assert_allclose(features, wanted, atol=1e-6)
        assert report["missing"] == {"photo": 4} and report["width"] == 2
    # Paths of a table in memory, such as a request, are not read.
    config = DataConfig(image_columns="photo")
    table = table_in_memory(pa.table({"item_id": ["a"], "photo": ["deep/a.png"]}), "the request")
    monkeypatch.chdir(tmp_path / "tables")
    with pytest.raises(UserError, match=r"Column 'photo' names a file in row 1 of the request"):
        write_features(table, config, 1, 1, tmp_path / "f0", PICTURES)


def test_pictures_of_another_folder_and_column(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a").write_bytes(b"aaaa")
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a"], "photo": ["a"], "price": [1.5]}), path)
    data = {"data_dir": str(tmp_path / "pictures"), "image_columns": "photo"}
    _, features = described(path, tmp_path / "f", PICTURES, 1, **data)
    np.testing.assert_allclose(features[:, 1:], unit([[4, 97]]), atol=1e-6)
    with pytest.raises(UserError, match=r"'price' of .* is of type double; give the bytes"):
        described(path, tmp_path / "f", PICTURES, 1, image_columns="price")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the current folder that is not on the path."""
    text = """
        class Model:
            def __call__(self, texts): return [[float(len(t))] for t in texts]
        model = Model()
        def lengths(texts): return model(texts)
        number = 3
    """
    name = "module_of_a_test"
    lines = "\n".join(line[8:] for line in text.splitlines())
    (tmp_path / f"{name}.py").write_text(lines)
    (tmp_path / "module_that_fails.py").write_text("raise RuntimeError('no\\nGPU')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)
    loading._named.cache_clear()


@pytest.mark.parametrize("attribute", ["lengths", "model", "model.__call__"])
def test_a_callable_of_a_module_in_the_current_folder(module, attribute):
    found = open_encoders(EncoderConfig(text_encoder=f"{module}:{attribute}")).text
    assert found.encode(["abc", "d"], str).tolist() == [[3.0], [1.0]]
    assert found.name == f"{module}:{attribute}"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("module_of_a_test:length", r"has no length; did you mean lengths\?"),
        ("module_of_a_test:number", r"is of type int; name a function"),
        ("module_of_a_test:Model", r"is a class; name a function, or an object"),
        ("module_of_a_tset:f", r"there is no module module_of_a_tset, neither installed nor in /"),
        ("module_that_fails:f", r"module_that_fails cannot be imported \(RuntimeError: no GPU\)"),
        ("module_of_a_test", r"is not MODULE:FUNCTION, nor the folder of a model"),
        ("module_of_a_test:f()", r"is not MODULE:FUNCTION"),
    ],
)
def test_names_that_are_refused(module, name, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        open_encoders(EncoderConfig(text_encoder=name))
    assert str(caught.value).startswith(f"--text_encoder={name}")


def saved_model(folder, *types):
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps([{"type": kind} for kind in types]))
    return EncoderConfig(text_encoder=str(folder))


def test_model_folders_that_are_refused(tmp_path):
    own = "sentence_transformers.models.Transformer"
    with pytest.raises(UserError, match=r"asks for code of its own \(evil\.Module\)"):
        open_encoders(saved_model(tmp_path / "code", own, "evil.Module"))
    pickled = saved_model(tmp_path / "pickle", own)
    (tmp_path / "pickle" / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"has its weights in a pickle \(pytorch_model\.bin\)"):
        open_encoders(pickled)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"has no modules\.json; name the folder that"):
        open_encoders(EncoderConfig(text_encoder=str(tmp_path / "none")))
    (tmp_path / "code" / "modules.json").write_text("3")
    with pytest.raises(UserError, match=r"modules\.json cannot be read"):
        open_encoders(EncoderConfig(text_encoder=str(tmp_path / "code")))
    with pytest.raises(UserError, match=r"is not MODULE:FUNCTION\.$"):
        open_encoders(EncoderConfig(image_encoder=str(tmp_path / "code")))


def test_a_model_of_sentence_transformers(tmp_path):
    reason = "needs sentence-transformers (extra text-encoder)"
    library = pytest.importorskip("sentence_transformers", reason=reason)
    from sentence_transformers.sentence_transformer.modules import BoW

    model = library.SentenceTransformer(modules=[BoW(vocab=["red", "blue", "cup"])])
    model.save(str(tmp_path / "model"))
    found = open_encoders(EncoderConfig(text_encoder=str(tmp_path / "model"))).text
    vectors = found.encode(["red cup", "cup cup"], str)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(unit(vectors), unit([[1, 0, 1], [0, 0, 1]]), atol=1e-6)


def test_a_callable_is_named_by_its_module():
    config = EncoderConfig(text_encoder=words, image_encoder=Ragged())
    found = open_encoders(config)
    assert found.text.name == f"{__name__}:words" and found.image.name == f"{__name__}:Ragged"
    assert dataclasses.replace(config, image_encoder="").text_folder == ""
