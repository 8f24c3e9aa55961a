"""The report: text of the catalog never becomes markup, and every section shows its data.

The workdirs are built by hand: a small catalog with hostile ids and titles, random
embeddings, a log, and an eval.json written by the evaluation.
"""

import dataclasses
import html.parser
import json
import math
import os
import re
import urllib.parse
import xml.etree.ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hostile_catalog import HOSTILE, ITEMS, small_config, small_embeddings, small_prepared

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.config.fields import with_saved
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.config.tools import ReportConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import evaluate as evaluation
from pinsage_jax.reporting import figures, page, space
from pinsage_jax.reporting.report import FIGURES, REPORT_FILE, write_report
from pinsage_jax.reporting.sections import examples, lists, run
from pinsage_jax.reporting.sources import read_source
from pinsage_jax.stages import pipeline
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.loop import Outcome

SECTIONS = {
    "verdict": "Verdict",
    "scores": "Metrics by method",
    "degree": "Hit-rate by degree",
    "lists": "What lists show",
    "learning": "Learning curves",
    "similarity": "Similarity of random pairs",
    "projection": "Projection",
    "examples": "Example queries",
    "run": "Run, data and settings",
    "glossary": "Glossary",
}
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """Parses a page and checks that it is well formed."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.section_texts = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        for tag, attributes in self.open:
            if tag == "section":
                name = attributes["id"]
                self.section_texts[name] = self.section_texts.get(name, "") + data

    def values(self, name: str) -> list[str]:
        return [value for _, found, value in self.attributes if found == name]


def write_log(workdir, lines: int = 30) -> None:
    text = []
    for place in range(1, lines + 1):
        training = {
            "epoch": 1 + place // 10, "step": 5 * place, "loss": 7.0 / place,
            "learning_rate": 1e-3 / place, "hard_per_query": min(place / 10, 2.0),
            "wait_share": 0.25, "pairs_per_second": 100.0, "padding_share": 0.1,
        }  # fmt: skip
        text.append(json.dumps(training))
        if place % 5 == 0:
            scores = {"score": place / 40, "warm_hit@10": place / 90, "warm_hit@100": place / 40}
            text.append(json.dumps({"step": 5 * place, "epoch": place / 10, **scores}))
    # Lines that a killed process may leave, and a hostile field.
    text += ['{"step": 7, "lo', "[1]", '{"step": 9, "score": 0.0, "</svg>hit@10": 1.0}', "\x00"]
    (workdir / "metrics.jsonl").write_text("\n".join(text), encoding="utf-8")


def written(tmp_path, prepared=None, config=None, vectors=None) -> str:
    config = config or small_config(tmp_path)
    prepared = prepared or small_prepared()
    path = write_report(config, prepared, small_embeddings() if vectors is None else vectors)
    assert path == tmp_path / REPORT_FILE
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """(workdir, page) of a run with everything."""
    workdir = tmp_path_factory.mktemp("<title><b>run")
    config = small_config(workdir, baselines="default,item_knn")
    evaluation.evaluate(config, small_prepared(), small_embeddings())
    write_log(workdir)
    files.write_json(
        workdir / "embeddings" / "_manifest.json",
        {"step": 100, "checkpoint": HOSTILE[0], "dimension": 6, "normalized": True},
    )
    return workdir, written(workdir, config=config)


# Text of the catalog stays text.


def test_the_page_is_well_formed_and_needs_nothing_else(full):
    found = Page(full[1])
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    assert [name for _, name, _ in found.attributes if name.startswith("on")] == []
    for name in ("href", "src", "xlink:href", "action", "srcset", "poster", "data"):
        for value in found.values(name):
            assert value.startswith(("#", "data:image/png;base64,")), value
    styles = " ".join(found.values("style")) + full[1].split("<style>")[1].split("</style>")[0]
    assert "@import" not in styles
    assert all(place.startswith("#") for place in re.findall(r"url\(['\"]?([^)]*)\)", full[1]))
    policy = next(value for value in found.values("content") if "default-src" in value)
    assert "default-src 'none'" in policy and "script-src" not in policy
    # The catalog's own names hold an address; nothing else may.
    assert not re.search(r"\w+://", re.sub(r"https://example\.org/", "", full[1]))


def test_hostile_text_is_displayed_and_never_interpreted(full):
    found = Page(full[1])
    allowed_images = [tag for tag in found.tags if tag == "img"]
    assert allowed_images == [] and found.tags.count("h1") == 1 and found.tags.count("style") == 1
    assert found.tags.count("title") == 1
    shown = "".join(found.texts)
    for text in HOSTILE[:6]:
        assert text in shown, text
        if set("<\"'&") & set(text):
            assert text not in full[1], text
    assert "\U0001f600" in shown and "$x_1^2$ &lt;i&gt; {{7*7}}" in shown
    for sign in ("\x00", "\x1b"):
        assert sign not in full[1]
    assert "\ufffd" in shown and "two lines" in shown and "<title><b>run" in shown


def test_every_id_is_there_once_and_every_reference_has_one(full):
    found = Page(full[1])
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    named = {value[1:] for value in found.values("href") + found.values("xlink:href")
             if value.startswith("#")}  # fmt: skip
    named |= set(re.findall(r"url\(#([^)]+)\)", full[1]))
    named |= set(found.values("aria-labelledby"))
    assert named <= set(ids) and len(named) > len(SECTIONS)


def test_sections_headings_and_alternatives(full):
    found = Page(full[1])
    assert list(found.section_texts) == list(SECTIONS)
    for name, title in SECTIONS.items():
        assert found.section_texts[name].startswith(title)
    assert {f"#{name}" for name in SECTIONS} <= set(found.values("href"))
    assert found.tags.count("svg") == found.tags.count("figure") == found.tags.count("figcaption")
    assert found.tags.count("svg") >= 12
    assert found.tags.count("table") == found.tags.count("caption")
    labels = [
        value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(labels) == found.tags.count("svg") and all(len(label) > 20 for label in labels)
    assert ("html", "lang", "en") in found.attributes
    assert "width=device-width, initial-scale=1" in found.values("content")


def test_charts_take_the_color_of_the_page(full):
    assert "currentColor" in full[1] and "#010203" not in full[1]
    # The background is the page's.
    assert not re.search(r"fill: ?#ffffff", full[1])


# The contents of the sections.


def test_numbers_are_those_of_eval_json(full):
    shown = Page(full[1]).section_texts
    methods = files.read_json(full[0] / "eval.json")["methods"]
    for method in methods.values():
        for name in ("hit@10", "hit@100", "mrr"):
            values = method["overall"]["all"]["metrics"][name]
            assert f"{values['value']:.3f}" in shown["scores"]
            assert f"{values['low']:.3f} to {values['high']:.3f}" in shown["scores"]
        gap = method["overall"]["all"].get("pinsage_minus_baseline", {}).get("hit@10")
        if gap:
            assert f"{gap['value']:+.3f}".replace("-", "\u2212") in shown["scores"]
        assert f"{method['hit_curve']['5']:.3f}" in shown["scores"]
        for bucket in method["by_degree"].values():
            if bucket["pairs"]:
                two = [bucket["metrics"][name]["value"] for name in ("hit@10", "hit@100")]
                assert " / ".join(f"{value:.3f}" for value in two) in shown["degree"]
    # PinSage first, then the order of the baselines, not the alphabetical one; also degrees.
    first = shown["scores"]
    assert first.index("PinSage") < first.index("popularity") < first.index("content")
    buckets = [name for name in ("1-2 edges", "3-10 edges", "11+ edges") if name in shown["degree"]]
    assert [shown["degree"].index(name) for name in buckets] == sorted(
        shown["degree"].index(name) for name in buckets
    )
    for text in HOSTILE[:3]:
        assert f"Pairs of kind {text}" in shown["scores"]


@pytest.mark.parametrize(
    "baselines, named",
    [
        ("default,item_knn", []),
        ("fusion", ["fusion (kNN)"]),
        ("popularity,fusion_pagerank", ["fusion (PR)"]),
        ("fusion,fusion_pagerank", ["fusion (kNN)", "fusion (PR)"]),
    ],
)
def test_only_fusions_that_ran_are_explained(tmp_path, baselines, named):
    config = small_config(tmp_path, baselines=baselines)
    evaluation.evaluate(config, small_prepared(), small_embeddings())
    scores = Page(written(tmp_path, config=config)).section_texts["scores"]
    explained = [
        name
        for name in ("fusion (kNN)", "fusion (PR)")
        if re.search(rf"{re.escape(name)} adds", scores)
    ]
    assert explained == named
    assert ("in combination" in scores) == bool(named)
    assert named or "usion" not in scores


def test_learning_curves_and_settings(full):
    shown = Page(full[1])
    labels = " ".join(shown.values("aria-label"))
    assert "Training loss: from 7 at step 5 to 0.2333 at step 150" in labels
    assert "Device wait: from 25% at step 5 to 25% at step 150" in labels
    assert "Validation hit-rate warm hit@10: from 0.05556 at step 25" in labels
    assert "hit@10: from 1" not in labels
    learning = shown.section_texts["learning"]
    assert "Best validation at step 150: warm hit@10 0.333, warm hit@100 0.750." in learning
    assert "The dotted line marks step 100" in learning
    run = shown.section_texts["run"]
    assert "--batch_size64" in run.replace(" ", "") and "--num_walks" in run
    assert "--learning_rate" not in run
    assert "isolated items (no edges)4 (16.7%)" in run and HOSTILE[0] in run


def test_examples_are_neighbors_by_each_method(full):
    shown = Page(full[1]).section_texts["examples"]
    prepared, vectors = small_prepared(), small_embeddings()
    degree = prepared.graph.degree()[:ITEMS]
    queries = examples.choose_queries(degree, 3)
    assert (degree[queries] == 0).sum() == 2 and len(set(queries.tolist())) == len(queries) >= 5
    for query in queries:
        scores = vectors[query] @ vectors.T
        scores[query] = -np.inf
        best = np.sort(scores)[::-1][:4]
        assert all(f"{score:.3f}" in shown for score in best)
    assert shown.count("The item has no edges, so no walk leaves it.") == 2
    assert " visits" in shown and " shared" in shown


def test_settings_are_those_of_the_checkpoint(tmp_path):
    trained = dataclasses.replace(
        small_config(tmp_path), seed=9, train=TrainConfig(margin=0.7, epochs=7)
    )
    saved = dataclasses.asdict(trained) | {"unheard_of": 1}
    saved["train"] |= {"gone": 2, "batch_size": "many"}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(4, {"w": np.zeros(2)}, {"config": saved, "data": {}})
    files.write_json(tmp_path / "embeddings" / "_manifest.json", {"step": 4})
    source = read_source(small_config(tmp_path), ITEMS)
    assert source.trained and source.config.seed == 9 and source.config.evaluate.k == 4
    changed = run.changed_settings(source.config)
    assert ("margin", 0.7, TrainConfig().margin) in changed and (
        "epochs",
        7,
        TrainConfig().epochs,
    ) in changed
    assert source.config.train.batch_size == 64
    assert with_saved(source.config, {}) == source.config
    # A checkpoint of another step does not describe the embeddings.
    files.write_json(tmp_path / "embeddings" / "_manifest.json", {"step": 5})
    assert not read_source(small_config(tmp_path), ITEMS).trained


# Missing data is reported.


def test_an_empty_workdir(tmp_path):
    shown = Page(written(tmp_path)).section_texts
    assert list(shown) == list(SECTIONS)
    for name in ("verdict", "scores", "degree", "lists"):
        assert "There is no eval.json" in shown[name]
    assert "There is no metrics.jsonl" in shown["learning"]
    assert "The workdir has no checkpoint of these embeddings" in shown["run"]
    assert "kurtosis" in shown["similarity"]


def test_no_features_no_titles_no_edges(tmp_path):
    prepared = small_prepared(titles=False, width=0, edges=False)
    evaluation.evaluate(small_config(tmp_path), prepared, small_embeddings())
    shown = Page(written(tmp_path, prepared)).section_texts
    for name in ("similarity", "projection"):
        assert "The items have no features to compare with." in shown[name]
    assert "The items have no titles, so their ids are shown." in shown["examples"]
    assert "id 3 </title><img" in shown["examples"] or "id " in shown["examples"]
    assert "The items have no features." in shown["examples"]
    assert "Skipped baseline: content, because the items have no features." in shown["scores"]
    assert "Content was not evaluated" in shown["degree"]
    assert "featuresnone" in shown["run"]


def test_vectors_that_all_point_the_same_way(tmp_path):
    prepared = small_prepared()
    prepared = dataclasses.replace(prepared, features=np.zeros((ITEMS, 3), np.float32))
    same = np.ones((ITEMS, 6), np.float32)
    shown = Page(written(tmp_path, prepared, vectors=same)).section_texts
    assert "undefined (all are equal)" in shown["similarity"]
    assert "raw features: fewer than two vectors are nonzero" in shown["similarity"]
    assert "the vectors do not span two axes" in shown["projection"]
    assert "No other item has similar features." in shown["examples"]


def test_directions_exclude_the_popularity_bias(tmp_path):
    vectors = np.concatenate([small_embeddings(), np.full((ITEMS, 1), 50.0, np.float32)], 1)
    config = dataclasses.replace(small_config(tmp_path), model=ModelConfig(popularity_bias=True))
    shown = Page(written(tmp_path, config=config, vectors=vectors)).section_texts["similarity"]
    assert "without their last coordinate" in shown
    plain = Page(written(tmp_path)).section_texts["similarity"]
    assert "without their last coordinate" not in plain
    row = re.search("PinSage(\u2212?\\d+\\.\\d\\d\u2212?0\\.\\d{3})", plain)[1]
    assert f"PinSage{row}" in shown


def test_damaged_and_foreign_files_are_passed_over(tmp_path):
    evaluation.evaluate(small_config(tmp_path), small_prepared(), small_embeddings())
    whole = json.loads((tmp_path / "eval.json").read_text())
    config = small_config(tmp_path)
    assert read_source(config, ITEMS).scores is not None
    for content in ("{", "[]", "{}"):
        (tmp_path / "eval.json").write_text(content)
        assert read_source(config, ITEMS).scores is None
    del whole["checksum"]
    files.write_checked_json(tmp_path / "eval.json", whole | {"catalog_items": ITEMS + 1})
    assert read_source(config, ITEMS).scores is None
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n{}\nnull\n")
    shown = written(tmp_path)
    assert "There is no eval.json for this catalog" in shown
    assert "There is no metrics.jsonl" in shown


def test_scores_that_were_changed_are_named_and_not_shown(tmp_path, caplog):
    evaluation.evaluate(small_config(tmp_path), small_prepared(), small_embeddings())
    path = tmp_path / "eval.json"
    whole = path.read_text()
    path.write_text(re.sub('"pairs": 2', '"pairs": 3', whole, count=1))
    assert path.read_text() != whole
    with caplog.at_level("WARNING", "absl"):
        shown = Page(written(tmp_path)).section_texts["scores"]
    sentence = f"{path} is damaged (its checksum does not match)"
    assert sentence in shown and sentence in caplog.text
    assert "hit@10" not in shown
    path.write_text(whole)
    assert "hit@10" in Page(written(tmp_path)).section_texts["scores"]


def test_a_log_without_validation(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}))
    shown = Page(written(tmp_path)).section_texts["learning"]
    assert "Training ran no validation." in shown
    assert shown.count("The log has no such values.") == 4


def test_scores_older_than_the_embeddings_are_named(tmp_path):
    evaluation.evaluate(small_config(tmp_path), small_prepared(), small_embeddings())
    manifest = tmp_path / "embeddings" / "_manifest.json"
    files.write_json(manifest, {"step": 1})
    os.utime(tmp_path / "eval.json", ns=(2, 2))
    assert "eval.json is older than the embeddings" in written(tmp_path)
    os.utime(manifest, ns=(1, 1))
    assert not read_source(small_config(tmp_path), ITEMS).stale


def test_without_intervals_or_baselines(tmp_path):
    config = dataclasses.replace(
        small_config(tmp_path), evaluate=EvalConfig(bootstrap=0, baselines="none", k=2)
    )
    evaluation.evaluate(config, small_prepared(), small_embeddings())
    shown = Page(written(tmp_path, config=config))
    assert not re.search(r"\d to \S*\d", shown.section_texts["scores"])
    assert "best baseline" not in "".join(shown.texts)
    assert "No baseline was scored" in shown.section_texts["verdict"]


def test_a_vector_that_is_not_finite_is_refused(tmp_path):
    for value in (np.nan, np.inf):
        vectors = small_embeddings()
        vectors[5, 2], vectors[6, 2] = value, -value
        with pytest.raises(UserError, match="not finite"):
            written(tmp_path, vectors=vectors)
    assert list(tmp_path.iterdir()) == []


# Writing the file.


def test_the_same_run_gives_the_same_bytes_whatever_the_matplotlibrc(full):
    import matplotlib

    workdir, first = full
    config = small_config(workdir, baselines="default,item_knn")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "svg.fonttype": "path"}):
        assert written(workdir, config=config) == first
    assert dict(matplotlib.rcParams) == before


def test_writing_is_atomic(full, monkeypatch):
    workdir, first = full

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(UserError, match="No space left"):
        write_report(small_config(workdir), small_prepared(titles=False), small_embeddings())
    assert (workdir / REPORT_FILE).read_text(encoding="utf-8") == first
    assert [path.name for path in workdir.iterdir() if ".tmp-" in path.name] == []


def test_without_matplotlib_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pinsage-jax\[report\]'"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("installed", [True, False])
def test_the_pipeline_ends_with_it_where_matplotlib_is(tmp_path, monkeypatch, installed):
    ran = []
    monkeypatch.setattr(pipeline, "rank_if_worth_it", lambda config: None)
    for name in ("prepare", "embed"):
        monkeypatch.setattr(
            pipeline, name, lambda config, name=name: ran.append(name) or {"count": 1}
        )
    monkeypatch.setattr(pipeline, "embeddings_are_current", lambda config: False)
    monkeypatch.setattr(pipeline, "train", lambda config: Outcome(1, 1, {}, False))
    monkeypatch.setattr(pipeline, "evaluate", lambda config: ran.append("evaluate") or {"a": 1})
    monkeypatch.setattr(pipeline, "report", lambda config: ran.append("report"))
    monkeypatch.setattr(figures, "available", lambda: installed)
    assert pipeline.pipeline(small_config(tmp_path)) == {"a": 1}
    assert ran == ["prepare", "embed", "evaluate"] + ["report"] * installed


# Elements, charts and statistics.


def test_text_is_escaped_once_and_markup_stays():
    assert page.text("<&\">'") == "&lt;&amp;&quot;&gt;&#x27;"
    assert page.text(page.text("<")) == "&lt;"
    assert page.element("p", "<", page.element("b", "&")) == "<p>&lt;<b>&amp;</b></p>"
    assert page.element("a", href='" onclick="x') == '<a href="&quot; onclick=&quot;x"></a>'
    # Putting markup into a plain string makes it text again.
    assert page.element("p", f"{page.element('b', 'x')}!") == "<p>&lt;b&gt;x&lt;/b&gt;!</p>"
    assert page.text("a\ud800b") == "a?b"
    assert page.user_text("a" * 500) == f"<bdi>{'a' * 157}...</bdi>"


def test_a_table_names_its_rows_and_can_be_scrolled_by_keyboard():
    found = Page(page.table(page.user_text("<cap>"), ("a", "b"), [("x", "<1>")], main=0))
    assert found.tags == ["div", "table", "caption", "span", "bdi", "thead", "tr", "th", "th",
                          "tbody", "tr", "th", "td"]  # fmt: skip
    assert found.values("scope") == ["col", "col", "row"]
    assert found.values("tabindex") == ["0"]
    assert [value.strip() for value in found.values("aria-label")] == ["<cap>"]


def slow_density(values, point, width):
    """The kernels of every value and of its reflections at -1 and 1, one by one."""
    total = 0.0
    for value in values:
        for image in (value, 2.0 - value, -2.0 - value):
            total += math.exp(-0.5 * ((point - image) / width) ** 2)
    return total / (len(values) * width * math.sqrt(2.0 * math.pi))


@pytest.mark.parametrize("count", [3, 50, 5000])
def test_density_against_a_slow_reference(small_rng, count):
    values = np.clip(small_rng.normal(0.7, 0.3, count), -1, 1)
    grid = np.linspace(-1, 1, 401)
    found = space.density(values, grid)
    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(math.sqrt(sum((v - values.mean()) ** 2 for v in values) / count),
                 (quartiles[1] - quartiles[0]) / 1.34)  # fmt: skip
    width = 0.9 * spread * count**-0.2
    for place in (0, 100, 340, 400):
        assert found[place] == pytest.approx(slow_density(values, grid[place], width), rel=1e-9)
    # Nothing lies outside, even where values pile up at the end.
    assert np.trapezoid(found, grid) == pytest.approx(1.0, abs=2e-3)


def test_density_of_equal_values_is_a_finite_peak():
    found = space.density(np.full(10, 0.5), np.linspace(-1, 1, 2001))
    assert np.isfinite(found).all() and np.trapezoid(found, np.linspace(-1, 1, 2001)) == (
        pytest.approx(1.0, abs=1e-3)
    )


def test_kurtosis_against_its_definition(small_rng):
    for values in (small_rng.normal(size=40), small_rng.exponential(size=7), np.array([0.0, 1.0])):
        mean = sum(values) / len(values)
        second = sum((value - mean) ** 2 for value in values) / len(values)
        fourth = sum((value - mean) ** 4 for value in values) / len(values)
        assert space.kurtosis(values) == pytest.approx(fourth / second**2 - 3.0)
    # Two points are as flat as can be, a long tail is sharp, a normal distribution is 0.
    assert space.kurtosis(np.array([0.0, 1.0])) == pytest.approx(-2.0)
    assert space.kurtosis(small_rng.laplace(size=200_000)) == pytest.approx(3.0, abs=0.4)
    assert space.kurtosis(small_rng.normal(size=200_000)) == pytest.approx(0.0, abs=0.1)
    assert math.isnan(space.kurtosis(np.full(5, 0.3))) and math.isnan(space.kurtosis(np.empty(0)))


def test_random_cosines(small_rng):
    vectors = small_rng.normal(size=(3, 4)).astype(np.float32)
    vectors[2] = 0.0
    found, dropped = space.random_cosines(vectors, 9000, np.random.default_rng(1))
    one, other = vectors[0].astype(float), vectors[1].astype(float)
    wanted = one @ other / math.sqrt((one @ one) * (other @ other))
    # Two of the three pairs of different rows have the row of zeros; none is a row with itself.
    assert np.allclose(found, wanted) and dropped == pytest.approx(2 / 3, abs=0.02)
    assert dropped == 1.0 - len(found) / 9000
    # All ordered pairs are equally likely.
    angles = np.arange(5) * 0.4
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    found, _ = space.random_cosines(circle, 50_000, np.random.default_rng(2))
    for step, share in ((1, 8 / 20), (2, 6 / 20), (3, 4 / 20), (4, 2 / 20)):
        assert np.isclose(found, math.cos(0.4 * step)).mean() == pytest.approx(share, abs=0.01)
    for few in (np.ones((1, 3)), np.ones((0, 3)), np.ones((5, 0))):
        empty, share = space.random_cosines(few, 10, np.random.default_rng(0))
        assert len(empty) == 0 and share == 1.0


def test_projection_is_the_two_main_axes(small_rng):
    scale = np.array([3.0, 2.0, 0.1, 0.05, 0.01])
    vectors = small_rng.normal(size=(60, 5)) * scale
    vectors[7] = 0.0
    flat = space.projection(vectors.astype(np.float32), 1000, np.random.default_rng(0), 0)
    assert flat.rows.tolist() == [row for row in range(60) if row != 7]
    unit = vectors[flat.rows] / np.linalg.norm(vectors[flat.rows], axis=1, keepdims=True)
    centered = unit - unit.mean(axis=0)
    values, axes = np.linalg.eigh(centered.T @ centered)
    wanted = centered @ axes[:, [-1, -2]]
    for axis in range(2):
        sign = np.sign(wanted[:, axis] @ flat.points[:, axis])
        assert np.allclose(flat.points[:, axis], sign * wanted[:, axis], atol=1e-4)
    assert flat.explained_variance == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-4)
    fewer = space.projection(vectors, 10, np.random.default_rng(0), 0)
    assert len(fewer.rows) <= 10 and len(set(fewer.rows.tolist())) == len(fewer.rows)
    for nothing in (np.ones((9, 4)), np.zeros((9, 4)), np.ones((2, 4)), np.ones((9, 1))):
        assert space.projection(nothing, 100, np.random.default_rng(0), 0) is None


# Where it comes from, colors by a column, files.


def test_the_page_says_when_where_and_at_what_cost(tmp_path):
    files.write_json(
        tmp_path / "run.json",
        {
            "started": "2031-02-03T04:05:06+00:00", "command": f"pinsage-jax --where={HOSTILE[0]}",
            "versions": {"pinsage_jax": "9.9", "jax": "1.2.3", "python": "3.99"},
            "machine": {"cores": 7, "memory_bytes": 5 << 30, "processor": "Abacus",
                        "system": "Linux", "device": "TPU v5e"},
        },
    )  # fmt: skip
    costs = {"seconds": {"train": 600.0, "prepare": 20.0, "report": 9.0}, "pairs": 1234,
             "peak_memory_bytes": 3 << 30, "devices": 4}  # fmt: skip
    files.write_json(tmp_path / "costs.json", costs)
    source = read_source(small_config(tmp_path), ITEMS)
    lead, shown = run.origin(source), "".join(Page(run.provenance(source)).texts)
    assert lead == "trained 2031-02-03 04:05 UTC · pinsage_jax 9.9 · 10 min on 7 cores, TPU v5e"
    assert f"commandpinsage-jax --where={HOSTILE[0]}" in shown
    assert "Abacus, Linux, 7 cores, 5 GiB of memory, 4 x TPU v5e" in shown
    assert "pinsage_jax 9.9, jax 1.2.3, python 3.99" in shown or "jax 1.2.3" in shown
    assert "10 min: prepare 20 s, train 10 min" in shown and "1,234" in shown
    assert "does not say" not in shown
    for damaged in ("[]", "{", '{"started": 5, "machine": 3, "versions": []}'):
        (tmp_path / "run.json").write_text(damaged)
        (tmp_path / "costs.json").write_text('{"seconds": {"train": "x"}, "pairs": []}')
        source = read_source(small_config(tmp_path), ITEMS)
        assert "what it cost (costs.json" in run.provenance(source)
        assert "trained" not in run.origin(source) or "trained 5" in run.origin(source)


def colored_catalog():
    """A catalog with a column of hostile values, the last of them missing."""
    prepared = small_prepared()
    values = pa.array([*(HOSTILE[row % 3] for row in range(ITEMS - 1)), None], pa.large_string())
    columns = ItemColumns(
        prepared.item_ids, "item_id", {HOSTILE[1]: values.type}, lambda name: values
    )
    return dataclasses.replace(prepared, columns_file=columns)


def test_the_projection_is_colored_by_a_column_too(tmp_path):
    config = dataclasses.replace(
        small_config(tmp_path), report=ReportConfig(color_column=HOSTILE[1])
    )
    found = Page(page_text := written(tmp_path, colored_catalog(), config))
    assert f"PinSage by {HOSTILE[1]}" in found.section_texts["projection"]
    labels = [value for value in found.values("aria-label") if value.startswith("Projection")]
    assert len(labels) == 4 and sum("1 with other or none" in label for label in labels) == 2
    assert "<script" not in page_text and "onmouseover" not in " ".join(
        name for _, name, _ in found.attributes
    )
    drawn = {path.name for path in (tmp_path / FIGURES).iterdir()}
    assert {"projection-pinsage.svg", "projection-features-by-column.svg"} <= drawn
    without = dataclasses.replace(config, report=ReportConfig(color_column="price"))
    with pytest.raises(UserError, match=r"^--color_column=price is not a column"):
        written(tmp_path, colored_catalog(), without)
    # What was there stays whole.
    assert {path.name for path in (tmp_path / FIGURES).iterdir()} == drawn
    assert [path for path in tmp_path.iterdir() if ".tmp-" in path.name] == []


def test_every_chart_is_a_file_of_its_own(full):
    drawn = sorted((full[0] / FIGURES).iterdir())
    assert len(drawn) == Page(full[1]).tags.count("svg")
    names = {path.name for path in drawn}
    assert {"scores-all.svg", "hit-rate-by-k.svg", "learning-loss.svg", "coverage.svg",
            "similarity.svg", "projection-pinsage.svg", "degree-hit10.svg"} <= names  # fmt: skip
    for path in drawn:
        root = xml.etree.ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        background = root.find("{http://www.w3.org/2000/svg}rect")
        assert background.get("fill") == "#ffffff" and background.get("width") == "100%"
        assert re.fullmatch(r"[a-z0-9-]+\.svg", path.name)


def test_links_to_the_explorer_where_there_is_one(tmp_path, full):
    (tmp_path / FIGURES).mkdir()
    (tmp_path / FIGURES / "old.svg").write_text("old")
    write_report(small_config(tmp_path), small_prepared(), small_embeddings(), "explorer.html")
    found = Page((tmp_path / REPORT_FILE).read_text(encoding="utf-8"))
    links = [value for value in found.values("href") if value.startswith("explorer.html")]
    opened = [urllib.parse.unquote(link.partition("#")[2]) for link in links]
    ids = small_prepared().item_ids.ids.to_pylist()
    assert links[0] == "explorer.html" and len(opened) > 4 and set(opened[1:]) <= set(ids)
    assert all(re.fullmatch(r"explorer\.html#[\w.%~-]+", link) for link in links[1:])
    assert "explorer.html" not in full[1]
    # Charts of an earlier report do not stay.
    names = [path.name for path in (tmp_path / FIGURES).iterdir()]
    assert "old.svg" not in names and "similarity.svg" in names


def test_new_items_have_a_price(tmp_path):
    evaluation.evaluate(small_config(tmp_path), small_prepared(), small_embeddings())
    saved = files.read_json(tmp_path / "eval.json")
    del saved["checksum"]
    rates = {"hit@10": [0.25, 0.125, 0.5], "hit@100": [0.5, 0.25, 0.75]}
    saved["new_item_prices"] = [
        {"price": price, "level": 0.0, "warm": rates, "cold": rates} for price in (None, 0.0, 0.1)
    ]
    files.write_checked_json(tmp_path / "eval.json", saved)
    with figures.saved_in(tmp_path):
        found = Page(lists.lists(read_source(small_config(tmp_path), ITEMS)))
    labels = [value for value in found.values("aria-label") if value.startswith("Cold against")]
    # Prices of the same hits share a point.
    assert labels == ["Cold against warm hit@10. price in warm hits 0%, 10%: warm 0.250, cold "
                      "0.250; default: warm 0.250, cold 0.250."]  # fmt: skip
    assert "The price of new items" in "".join(found.texts)
    assert (tmp_path / "new-item-price.svg").exists()


def test_the_ranker_has_a_line_and_a_table_by_popularity_weight(tmp_path):
    evaluation.evaluate(small_config(tmp_path), small_prepared(), small_embeddings())
    saved = files.read_json(tmp_path / "eval.json")
    del saved["checksum"]
    statistics = saved["methods"]["pinsage"]["lists"]
    saved["methods"]["ranker"] = saved["methods"]["pinsage"]
    saved["ranker_popularity_weights"] = [
        {"weight": weight, "hit@10": {"all": hit}, "lists": statistics | {"coverage": coverage}}
        for weight, hit, coverage in ((0.0, 0.125, 0.75), (1.0, 0.25, 0.5))
    ]
    files.write_checked_json(tmp_path / "eval.json", saved)
    found = Page(lists.lists(read_source(small_config(tmp_path), ITEMS)))
    (label,) = [v for v in found.values("aria-label") if v.startswith("Hit-rate against coverage")]
    # Its own point would be the one of weight 1.
    assert label.count("anker") == 2
    assert "by popularity weight 0: 75.0% of the catalog, hit@10 0.125" in label
    assert "by the weight of popularity in its lists" in "".join(found.texts)


def test_small_kinds_are_folded(full):
    folded = re.findall(r"<details><summary>Kinds with fewer.*?</details>", full[1], re.DOTALL)
    assert len(folded) == 1 and folded[0].count("<table") == 3
    assert folded[0].count("<svg") == 3 and "(3)" in folded[0]
