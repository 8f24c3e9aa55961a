"""ablation/: the variants as data, numbers by hand, and two variants end to end."""

import csv
import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from absl import flags, logging
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax import cli
from pinsage_jax.ablation import ablation, comparison, trials, variants
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import SplitConfig, SyntheticCatalog, SyntheticConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import AblateConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.signals import Stopped
from pinsage_jax.graph.validation_split import ValidationSplit, validation_split
from pinsage_jax.stages.pipeline import ablate
from pinsage_jax.training.curriculum import Schedule, hard_negatives_in, hard_slots

DEFAULT = Config(mode="ablate", workdir="w", seed=0, threads=1)
ALL = {name: overrides for group in variants.VARIANTS.values() for name, overrides in group.items()}
# Variants that spell out what the default is.
LIKE_DEFAULT = {"T20", "K1", "hard_curriculum", "softmax"}


def value_of(config, name):
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


# The variants as data.


@pytest.mark.parametrize("name", ALL)
def test_a_variant_changes_what_it_claims_and_nothing_else(name):
    variant = variants.with_overrides(DEFAULT, ALL[name])
    for setting, value in ALL[name].items():
        found = value_of(variant, setting)
        assert found == value, setting
        # None is `auto`, which stands beside numbers.
        assert value is None or type(found) is type(value_of(DEFAULT, setting)), setting
    changed = {
        setting: value
        for setting, value in ALL[name].items()
        if value_of(DEFAULT, setting) != value
    }
    assert variants.differences(DEFAULT, variant) == changed
    assert bool(changed) == (name not in LIKE_DEFAULT)
    # One split, one catalog and one seed, or variants could not be compared.
    assert {setting.split(".")[0] for setting in ALL[name]} <= {
        "sampling", "model", "train", "embed",
    }  # fmt: skip
    assert re.fullmatch(r"[\w.]+", name)


def test_variants_differ_from_each_other():
    made = [variants.with_overrides(DEFAULT, o) for n, o in ALL.items() if n not in LIKE_DEFAULT]
    assert len(set(made)) == len(made)
    assert len(ALL) == sum(map(len, variants.VARIANTS.values()))
    assert not set(ALL) & {*variants.VARIANTS, variants.BASE, "all", "spectral"}


def test_additions_are_taken_away_one_at_a_time():
    assert all(len(overrides) == 1 for overrides in variants.VARIANTS["additions"].values())


def test_the_paper_group_switches_off_what_the_paper_flagfile_does():
    flag_values = flags.FlagValues()
    cli.define_flags(flag_values)
    path = pathlib.Path(__file__).parents[2] / "experiments" / "paper.flags"
    cli.parse_flags(flag_values, ["program", f"--flagfile={path}"])
    paper = cli.config_from_flags(flag_values)
    wanted = {name: value_of(paper, name) for name in variants.PAPER}
    assert ALL["paper_pinsage"] == {**wanted, "train.hard_max": paper.train.hard_max}
    # Whatever the flagfile changes is in the list, sizes and optimizer aside.
    kept = {
        "sampling.num_neighbors", "sampling.num_walks", "sampling.hard_walks",
        "model.num_layers", "model.hidden_dim", "model.layer_dim", "model.output_dim",
        "model.compute_dtype", "train.batch_size", "train.random_negatives", "train.epochs",
        "train.pairs_per_epoch", "train.warmup_epochs", "train.learning_rate", "train.decay",
        "train.adam_b2",
    }  # fmt: skip
    assert set(variants.differences(DEFAULT, paper)) <= set(variants.PAPER) | kept
    table = variants.VARIANTS["paper"]
    choices = [
        [overrides[f"{name}"] for name in ("model.pooling", "train.loss", "train.hard_start")]
        for overrides in table.values()
    ]
    assert choices == [
        ["max", "margin", "none"],
        ["mean", "margin", "none"],
        ["mean", "cross_entropy", "none"],
        ["mean", "margin", "curriculum"],
        ["importance", "margin", "curriculum"],
    ]


def test_names_and_groups_choose():
    chosen = variants.chosen_variants
    assert list(chosen("all")) == ["base", *ALL]
    assert list(chosen("K2, T10,layers")) == ["base", "T10", "K0", "K1", "K2"]
    assert list(chosen("base")) == list(chosen("")) == ["base"]


def test_the_error_of_an_unknown_variant_lists_the_known_ones(tmp_path):
    config = dataclasses.replace(
        DEFAULT, workdir=str(tmp_path), ablate=AblateConfig(ablate_variants="K0,max")
    )
    with pytest.raises(UserError) as caught:
        ablate(config)
    message = str(caught.value)
    assert message.startswith("--ablate_variants=max is not a variant") and "\n" not in message
    assert all(name in message for name in (*ALL, *variants.VARIANTS, "all"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epochs", [0.5, 5.0])
def test_fewer_steps_pass_through_the_whole_schedule(epochs):
    config = dataclasses.replace(
        DEFAULT, train=TrainConfig(epochs=epochs), ablate=AblateConfig(ablate_steps=50)
    )
    train = variants.base_settings(config, 1_000_000).train
    schedule = Schedule.from_config(train, train.pairs_per_epoch)
    assert schedule.total == 50
    assert schedule.total / schedule.steps_per_epoch == pytest.approx(epochs, rel=1e-3)
    last = (schedule.total - 1) * train.batch_size // train.pairs_per_epoch
    assert (
        hard_negatives_in(last, train)
        == hard_slots(train, train.pairs_per_epoch)
        == (4 if epochs == 5.0 else 0)
    )
    assert variants.base_settings(DEFAULT, 1_000_000) == DEFAULT


def test_fewer_steps_of_a_run_by_steps_pass_through_as_many_epochs():
    train = TrainConfig(batch_size=100, max_steps=80)
    config = dataclasses.replace(DEFAULT, train=train, ablate=AblateConfig(ablate_steps=40))
    # 80 steps of 100 pairs are 8 epochs of 1000, whatever --epochs says.
    assert variants.base_settings(config, 1000).train.pairs_per_epoch == 500


# Scores, with embeddings in place of a training.


def slow_ranks(vectors, pairs):
    ranks = []
    for query, target in pairs:
        scores = vectors @ vectors[query]
        others = np.delete(scores, [query, target])
        greater, equal = (others > scores[target]).sum(), (others == scores[target]).sum()
        ranks.append(1 + greater + -(-equal // 2))
    return np.array(ranks)


class Bench:
    """A small catalog, and embeddings that depend on the number of layers K alone."""

    def __init__(self, tmp_path, rng, chosen="K0,K1,margin", source="validation", seeds=1):
        graph = random_graph(rng, num_items=40, num_collections=12, edges=150)
        pairs = np.array([(q, t) for q in range(12) for t in (q + 1, q + 2, 39)], np.int32)
        kinds = np.array(["cold" if t == 39 else "warm" for _, t in pairs])
        self.prepared = make_prepared(graph, eval_pairs=pairs[::2], eval_kinds=kinds[::2].tolist())
        self.prepared.manifest["fingerprint"] = "data"
        train_graph = graph.without(collections=np.array([3], np.int32))
        none = np.empty(0, np.int32)
        # A repeated pair counts once.
        repeated, repeated_kinds = np.r_[pairs, pairs[:1]], np.r_[kinds, kinds[:1]]
        self.split = ValidationSplit(train_graph, none, none, repeated, repeated_kinds)
        self.pairs, self.kinds, self.calls = pairs, kinds, []
        self.vectors = rng.integers(-2, 3, (6, 40, 3)).astype(np.float32)
        self.noise = rng.normal(0, 0.7, (9, 40, 3)).astype(np.float32)
        self.config = dataclasses.replace(
            make_config(tmp_path, bootstrap=40),
            model=ModelConfig(spectral_dim=0),
            ablate=AblateConfig(ablate_variants=chosen, ablate_pairs=source, seeds=seeds),
        )

    def embeddings(self, variant, graph):
        self.calls.append((pathlib.Path(variant.workdir).name, graph))
        vectors = self.vectors[variant.model.num_layers]
        number = variant.seed - 3  # The run's own seed adds nothing.
        return vectors + number * self.noise[number], {"cold_start_bias": 0.5}

    def run(self, untrained=None):
        return ablation.ablate(self.config, self.prepared, self.split, self.embeddings, untrained)


def test_scores_and_differences_by_hand(tmp_path, small_rng, capsys):
    bench = Bench(tmp_path, small_rng)
    result = bench.run()
    assert json.loads((tmp_path / "ablate.json").read_text()) == result
    assert (result["pairs_from"], result["pairs"]) == ("validation", 36)
    assert [name for name, _ in bench.calls] == ["base", "K0", "margin"]
    assert all(graph is bench.split.train_graph for _, graph in bench.calls)
    assert list(result["kinds"]) == ["all", "warm", "cold"]
    ranks = {"base": slow_ranks(bench.vectors[1], bench.pairs)}
    ranks |= {"K0": slow_ranks(bench.vectors[0], bench.pairs)}
    ranks |= {"K1": ranks["base"], "margin": ranks["base"]}
    for kind, scored in result["kinds"].items():
        mask = np.ones(36, bool) if kind == "all" else bench.kinds == kind
        assert scored["pairs"] == mask.sum() and scored["queries"] == 12
        assert list(scored["variants"]) == list(ranks)
        for name, values in scored["variants"].items():
            variant, base = ranks[name][mask], ranks["base"][mask]
            measures = {
                "hit@10": lambda r: (r <= 10).mean(),
                "hit@100": lambda r: (r <= 100).mean(),
                "mrr": lambda r: (1 / r).mean(),
                "scaled_mrr": lambda r: (1 / np.ceil(r / 100)).mean(),
            }
            assert set(values["metrics"]) == set(values["minus_base"]) == set(measures)
            for metric, of in measures.items():
                found, gap = values["metrics"][metric], values["minus_base"][metric]
                assert found["value"] == pytest.approx(of(variant))
                assert gap["value"] == pytest.approx(of(variant) - of(base))
                assert found["low"] <= found["value"] <= found["high"]
                # The same queries are drawn for both, so equal ranks differ by nothing.
                if name != "K0":
                    assert (gap["low"], gap["high"]) == (0.0, 0.0)
    gap = result["kinds"]["all"]["variants"]["K0"]["minus_base"]["hit@10"]
    assert gap["low"] < gap["value"] < gap["high"]
    assert result["variants"]["K1"]["same_as"] == "base"
    assert result["variants"]["K0"]["settings"] == {"model.num_layers": 0}
    assert result["variants"]["K0"]["cold_start_bias"] == 0.5

    text = capsys.readouterr().out
    table = text[text.index("all pairs (36)") :].split("\n\n")[0].splitlines()
    assert table[0].split("  ")[0] == "all pairs (36)" and table[0].endswith("minutes")
    assert [line.split()[0] for line in table[1:]] == ["base", "K0", "K1", "margin"]
    shown = result["kinds"]["all"]["variants"]["K0"]
    for group, sign in (("metrics", ""), ("minus_base", "+")):
        for metric in ("hit@10", "hit@100"):
            assert f"{shown[group][metric]['value']:{sign}.3f} [" in table[2]
    assert "+" not in table[1] and table[3].endswith("as base")
    assert "kind warm (24)" in text and "kind cold (12)" in text
    assert re.search(r"^  K0 +num_layers=0$", text, re.M)
    assert re.search(r"^  K1 +\(as base\)$", text, re.M)


@pytest.mark.parametrize("width", [50, 80, 200])
def test_on_a_terminal_the_tables_fit_it(width, tmp_path, small_rng, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    result = Bench(tmp_path, small_rng).run()
    text = capsys.readouterr().out
    tables = text[text.index("Settings that differ") :].splitlines()
    assert max(map(len, tables)) <= width
    head, base, variant = text[text.index("all pairs (36)") :].splitlines()[:3]
    shown = result["kinds"]["all"]["variants"]["K0"]
    values = [f"{shown['metrics'][name]['value']:.3f}" for name in ("hit@10", "hit@100")]
    assert head.split()[3:5] == ["hit@10", "hit@100"] and variant.split()[1:3] == values
    assert head.endswith("minutes") == (width == 200)
    difference = f"{shown['minus_base']['hit@10']['value']:+.3f} ["
    assert (difference in variant) == ("variant - base, hit@10" in head) == (width >= 80)
    assert base.startswith("base") and "ablate.json" in text


def test_finished_variants_are_not_trained_again(tmp_path, small_rng, monkeypatch):
    bench = Bench(tmp_path, small_rng)
    first = bench.run()
    bench.calls.clear()
    # Settings that change no result start no new training.
    bench.config = dataclasses.replace(bench.config, threads=1, train=TrainConfig(prefetch=0))
    assert bench.run() == first and bench.calls == []

    stale = tmp_path / "ablate" / "K0" / "checkpoints"
    stale.mkdir()
    bench.config = dataclasses.replace(bench.config, train=TrainConfig(loss="margin"))
    again = bench.run()
    assert [name for name, _ in bench.calls] == ["base", "K0"]
    assert again["variants"]["margin"]["same_as"] == "base" and not stale.exists()

    # A variant that was interrupted goes on in its folder.
    bench.calls.clear()
    (tmp_path / "ablate" / "K0" / "ranks.npy").unlink()
    stale.mkdir()
    bench.run()
    assert [name for name, _ in bench.calls] == ["K0"] and stale.exists()

    # Other data means other ranks.
    bench.calls.clear()
    bench.prepared.manifest["fingerprint"] = "other data"
    bench.run()
    assert [name for name, _ in bench.calls] == ["base", "K0"]

    bench.calls.clear()
    bench.config = dataclasses.replace(bench.config, seed=4)
    monkeypatch.setattr(ablation, "raise_if_stopped", lambda: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        bench.run()
    assert [name for name, _ in bench.calls] == ["base"]


def test_evaluation_pairs_are_scored_over_the_whole_graph(tmp_path, small_rng):
    bench = Bench(tmp_path, small_rng, chosen="base", source="eval")
    result = bench.run()
    assert (result["pairs_from"], result["pairs"]) == ("eval", 18)
    assert bench.calls[0][1] is bench.prepared.graph
    found = result["kinds"]["all"]["variants"]["base"]["metrics"]["mrr"]["value"]
    assert found == pytest.approx((1 / slow_ranks(bench.vectors[1], bench.pairs[::2])).mean())


@pytest.mark.parametrize(("source", "flag"), [("eval", "eval_pairs"), ("validation", "validation")])
def test_without_pairs_there_is_nothing_to_compare(tmp_path, small_rng, source, flag):
    bench = Bench(tmp_path, small_rng, source=source)
    bench.prepared = dataclasses.replace(bench.prepared, eval_pairs=np.empty((0, 2), np.int32))
    bench.split = dataclasses.replace(bench.split, pairs=np.empty((0, 2), np.int32))
    with pytest.raises(UserError, match=f"no pair on which to compare variants; .*--{flag}"):
        bench.run()
    assert bench.calls == []


def test_a_failing_variant_is_named(tmp_path, small_rng):
    bench = Bench(tmp_path, small_rng)
    bench.embeddings = lambda variant, graph: (_ for _ in ()).throw(UserError("Too much."))
    with pytest.raises(UserError, match=r"^Variant base: Too much\.$"):
        bench.run()
    assert not (tmp_path / "ablate.json").exists()


# Several seeds.


def test_means_deviations_and_paired_intervals_over_seeds_by_hand(tmp_path, small_rng, capsys):
    bench = Bench(tmp_path, small_rng, chosen="K0", seeds=3)
    formats = dataclasses.replace(bench.config.evaluate, tables="csv,latex")
    bench.config = dataclasses.replace(bench.config, evaluate=formats)
    result = bench.run()
    folder = tmp_path / "ablate"
    assert result["seeds"] == [3, 4, 5] and "queries and seeds" in result["interval"]
    # All variants of a seed come before the next seed.
    assert [name for name, _ in bench.calls] == ["base", "K0"] * 3
    places = {"base": ["base", "seed4/base", "seed5/base"], "K0": ["K0", "seed4/K0", "seed5/K0"]}
    ranks = {n: [np.load(folder / p / "ranks.npy") for p in ps] for n, ps in places.items()}
    hits = {n: [float((rank <= 10).mean()) for rank in found] for n, found in ranks.items()}
    assert len({*hits["K0"]}) > 1 and len({*hits["base"]}) > 1
    found = result["kinds"]["all"]["variants"]["K0"]
    for part, by_seed in (
        ("metrics", hits["K0"]),
        ("minus_base", [a - b for a, b in zip(hits["K0"], hits["base"])]),
    ):
        values = found[part]["hit@10"]
        assert values["by_seed"] == pytest.approx(by_seed)
        assert values["value"] == pytest.approx(np.mean(by_seed))
        assert values["deviation"] == pytest.approx(np.std(by_seed, ddof=1))
        assert values["low"] < values["value"] < values["high"]
    assert all(
        0 <= values["metrics"][metric]["low"] <= values["metrics"][metric]["high"] <= 1
        for scored in result["kinds"].values()
        for values in scored["variants"].values()
        for metric in ("hit@10", "hit@100", "mrr")
    )
    assert all(
        values["minus_base"][metric][name] == 0.0
        for values in [result["kinds"]["all"]["variants"]["base"]]
        for metric in ("hit@10", "mrr")
        for name in ("value", "low", "high", "deviation")
    )
    runs = result["variants"]["K0"]["runs"]
    assert [run["seed"] for run in runs] == [3, 4, 5]
    printed = capsys.readouterr().out
    assert "seeds (3, 4, 5); behind ±" in printed
    # --tables: the same numbers in the other formats.
    with open(tmp_path / "tables" / "ablation.csv", encoding="utf-8", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["metric"] == "hit@10"]
    row = next(r for r in rows if (r["kind"], r["variant"]) == ("all", "K0"))
    values = found["metrics"]["hit@10"]
    assert [float(row[part]) for part in ("value", "low", "high", "deviation")] == [
        values[part] for part in ("value", "low", "high", "deviation")
    ]
    assert row["seeds"] == "3" and {r["variant"] for r in rows} == {"base", "K0"}
    latex = (tmp_path / "tables" / "ablation.tex").read_text(encoding="utf-8")
    cell = f"{values['value']:.3f} $\\pm${values['deviation']:.3f}"
    assert cell in latex and r"num\_layers=0" in latex and "variant - base" in latex
    # The pairs are the same for all seeds: one graph embedded by all.
    assert all(graph is bench.split.train_graph for _, graph in bench.calls)


def test_intervals_over_seeds_are_as_wide_as_seeds_and_queries_vary(small_rng):
    """Against a normal model: a seed's effect on all ranks, a query's, and noise."""
    queries, seeds = np.arange(4000), 5
    shift = np.array([0.30, 0.34, 0.38, 0.42, 0.46])
    ranks = np.where(small_rng.random((seeds, 4000)) < shift[:, None], 1, 500)
    pairs = trials.Pairs(
        "validation", None, np.stack([queries, queries], 1).astype(np.int32), np.full(4000, "x")
    )
    base = np.full((seeds, 4000), 500)
    found = comparison.compare({"base": base, "other": ranks}, {}, pairs, 4000, 0)
    values = found["all"]["variants"]["other"]["minus_base"]["hit@10"]
    by_seed = (ranks <= 10).mean(axis=1)
    of_queries = (ranks <= 10).mean(axis=0).std() / np.sqrt(4000)
    expected = 1.96 * np.sqrt(by_seed.var(ddof=1) / seeds + of_queries**2)
    assert (values["high"] - values["low"]) / 2 == pytest.approx(expected, rel=0.06)
    # One seed alone says nothing of their variation.
    one = comparison.compare({"base": base[:1], "other": ranks[:1]}, {}, pairs, 4000, 0)
    narrow = one["all"]["variants"]["other"]["minus_base"]["hit@10"]
    assert narrow["high"] - narrow["low"] < (values["high"] - values["low"]) / 2
    assert "deviation" not in narrow


def test_an_ablation_of_seeds_that_was_killed_goes_on(tmp_path, small_rng, monkeypatch, caplog):
    bench = Bench(tmp_path, small_rng, chosen="K0,K1", seeds=3)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stops = iter([False, False, True])
        patched.setattr(
            ablation, "raise_if_stopped", lambda: next(stops) and (_ for _ in ()).throw(Stopped)
        )
        bench.run()
    assert len(bench.calls) == 3 and not (tmp_path / "ablate.json").exists()
    # With the seed that is whole there is a table already.
    seeds = bench.config.ablate
    bench.config = dataclasses.replace(bench.config, ablate=dataclasses.replace(seeds, seeds=1))
    assert len(bench.run()["seeds"]) == 1 and len(bench.calls) == 3
    bench.config = dataclasses.replace(bench.config, ablate=seeds)
    notes = []
    monkeypatch.setattr(ablation.Progress, "note", lambda self, text: notes.append(text))
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO"):
        result = bench.run()
    assert [name for name, _ in bench.calls[3:]] == ["K0", "base", "K0"]
    assert "2 variants, 3 seeds: 6 trainings, 3 of them finished before" in caplog.text
    assert notes[3] == "variant 2 of 2, seed 2 of 3: K0" and len(notes) == 6
    # As if it had never been killed, but for the minutes.
    fresh = Bench(tmp_path / "fresh", np.random.default_rng(20180610), chosen="K0,K1", seeds=3)
    assert fresh.run()["kinds"] == result["kinds"]


def test_another_seed_of_the_run_is_another_split(tmp_path, small_rng):
    bench = Bench(tmp_path, small_rng, chosen="base", seeds=3)
    bench.run()
    bench.config = dataclasses.replace(bench.config, seed=4)
    bench.run()
    # Seed 5 was trained without the pairs of seed 3; those of seed 4 are others.
    assert len(bench.calls) == 3 + 3


@pytest.mark.parametrize("learns", [True, False])
def test_a_warning_where_nothing_was_learned(tmp_path, small_rng, capsys, caplog, learns):
    bench = Bench(tmp_path, small_rng, chosen="K0")
    if learns:
        # Items beside each other on an arc, where most pairs are.
        angle = 0.05 * np.arange(40)
        bench.vectors[:] = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    noise = small_rng.normal(size=(40, 3)).astype(np.float32)
    calls = []
    if not learns:
        bench.vectors[:] = noise

    def untrained(variant, graph):
        calls.append(variant.workdir)
        return noise, {}

    result = bench.run(untrained)
    text = capsys.readouterr().out
    shown = result["kinds"]["all"]["references"]
    assert shown["untrained"]["metrics"]["mrr"]["value"] == pytest.approx(
        (1 / slow_ranks(noise, bench.pairs)).mean()
    )
    assert re.search(r"^untrained +0\.\d+ .* no training$", text, re.M)
    assert ("untrained" in result["not_above"]) == (not learns)
    assert ("nothing was learned" in text) == ("nothing was learned" in caplog.text) == (not learns)
    # It is not computed again either.
    bench.run(untrained)
    assert len(calls) == 1


# End to end.


def test_two_variants_of_a_generated_world(tmp_path, capsys):
    config = Config(
        mode="ablate",
        workdir=str(tmp_path / "run"),
        seed=0,
        threads=1,
        synthetic=SyntheticConfig(
            True,
            synthetic_catalog=SyntheticCatalog(
                items=150, collections=40, edges=1200, topics=6, pairs=100, visual_dim=8, text_dim=4
            ),
        ),
        sampling=SamplingConfig(
            num_neighbors=5, num_walks=20, content_neighbors=0
        ),
        model=ModelConfig(hidden_dim=8, layer_dim=8, output_dim=8, spectral_dim=4),
        # One withheld collection repeats no pair, so that training scores the same ones.
        split=SplitConfig(validation_collections=0.02, validation_cold_items=0.2),
        train=TrainConfig(
            batch_size=32, random_negatives=16, epochs=3.0, validate_every=2, devices=1,
            prefetch=0, hard_start="none",
        ),
        embed=EmbedConfig(embed_block=256, embed_walks=30),
        evaluate=EvalConfig(bootstrap=20),
        ablate=AblateConfig(ablate_variants="no_spectral_features", ablate_steps=3, seeds=2),
    )  # fmt: skip
    result = ablate(config)
    folder = tmp_path / "run"
    prepared = open_prepared(folder)
    held = validation_split(prepared.graph, config.split, config.seed, prepared.train_pairs)
    assert result["pairs"] == len(held.pairs) == len(np.unique(held.pairs, axis=0))
    text = capsys.readouterr().out
    for name in ("base", "no_spectral_features"):
        part = folder / "ablate" / name
        assert (part / "prepared").resolve() == (folder / "prepared").resolve()
        assert (part / "spectral").is_symlink() == (name != "no_spectral_features")
        assert result["variants"][name]["checkpoint_step"] in (2, 3)
        lines = (part / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(line)["step"] for line in lines) == 3
        # Validation in training ranks the same pairs over the same graph.
        variant = files.read_json(part / "variant.json")
        best = [json.loads(line) for line in lines]
        best = [e for e in best if e["step"] == variant["checkpoint_step"] and "warm_hit@10" in e]
        assert best[-1]["cold_start_bias"] == variant["cold_start_bias"]
        warm = result["kinds"]["warm"]["variants"][name]["metrics"]["hit@10"]["value"]
        assert warm == pytest.approx(best[-1]["warm_hit@10"])
        assert re.search(rf"^  {name} ", text, re.M)
    # The second seed has other walks and parameters, and the pairs of the first.
    part = folder / "ablate" / "seed1" / "base"
    assert (part / "prepared").resolve() == (folder / "prepared").resolve()
    variant = files.read_json(part / "variant.json")
    lines = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    best = [e for e in lines if e["step"] == variant["checkpoint_step"] and "warm_hit@10" in e]
    warm = result["kinds"]["warm"]["variants"]["base"]["metrics"]["hit@10"]["by_seed"]
    assert warm[1] == pytest.approx(best[-1]["warm_hit@10"])
    assert not np.array_equal(
        np.load(part / "ranks.npy"), np.load(folder / "ablate" / "base" / "ranks.npy")
    )
    references = result["kinds"]["all"]["references"]
    assert list(references) == ["untrained", "content"]
    for values in references.values():
        assert "deviation" not in values["metrics"]["hit@10"]
    base, without = (
        np.load(folder / "ablate" / n / "ranks.npy") for n in ("base", "no_spectral_features")
    )
    assert not np.array_equal(base, without)

    before = {path: path.stat().st_mtime_ns for path in (folder / "ablate").rglob("*.npy")}
    assert ablate(config) == result
    assert {path: path.stat().st_mtime_ns for path in (folder / "ablate").rglob("*.npy")} == before
