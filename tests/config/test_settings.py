"""Levels of flags, `auto`, presets, and the sizes of the synthetic catalog."""

import dataclasses
import json
import pathlib
import re

import command_line
import pytest
from command_line import defined

import pinsage_jax
from pinsage_jax import cli
from pinsage_jax.config.data import SIZES, SyntheticCatalog, SyntheticConfig, catalog_of_size
from pinsage_jax.config.fields import with_saved
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.presets import PRESETS, SCALED
from pinsage_jax.config.settings import Config, path_of, remembered_values
from pinsage_jax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
AUTO = (
    "threads", "pairs_per_epoch", "max_steps", "devices", "validate_every", "checkpoint_every",
    "producers", "embed_walks", "cold_start_bias", "export_dim", "split_cut", "title_column",
    "ablate_steps",
)  # fmt: skip


def parsed(*arguments: str) -> Config:
    return command_line.parsed("--workdir=w", "--synthetic", *arguments)


def fields():
    return {
        field.name: field
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for field in dataclasses.fields(section.default)
    }


def values_of(config: Config) -> dict:
    return {
        name: value
        for section in dataclasses.asdict(config).values()
        if isinstance(section, dict)
        for name, value in section.items()
    }


# Levels.

# Abilities that came after the flags were sorted into levels; a research switch is a constant of
# its dataclass and never stands here.
LATER: frozenset[str] = frozenset(
    {
        "accelerator_kernels",
        "allow_items",
        "block_items",
        "boost",
        # Which column is worth a look, nobody but the user knows.
        "color_column",
        # What fits an accelerator, and when to look at it.
        "device_features_dtype",
        "input_dim",
        "profile_steps",
        # Where vectors go (--mode=export).
        "check",
        "export_columns",
        "export_folder",
        "export_model",
        "export_table",
        "hub_license",
        "hub_repo",
        "to",
        "unit_length",
        "example",
        # Where edges arrive, and how fresh answers must be.
        "follow",
        "follow_tolerance",
        # What an edge is and how old edges count, nobody but the user knows.
        "half_life",
        "kind_column",
        "kind_weights",
        "image_column",
        # Encoders in place of TF-IDF.
        "image_columns",
        "image_encoder",
        "text_encoder",
        "image_hosts",
        "init_from",
        "local_device_ids",
        "map_layout",
        "one_per",
        "new_item_price",
        "patience",
        "popularity_weight",
        "preset_scale",
        "queries",
        "refit",
        "related_by",
        "retrain",
        "show_columns",
        "seeds",
        # Where a catalog lies that no one machine opens.
        "spark_tables",
        # How many processes a server has is a matter of the machine, like its port.
        "serve_workers",
        "tables",
        "tracker",
        "where",
    }
)


def shown(text: str) -> set[str]:
    return set(re.findall(r"^ +(?:-\w,)?--(?:\[no\])?(\w+): ", text, re.MULTILINE))


def test_help_shows_the_basic_flags_and_helpfull_all():
    basic = {name for name in defined() if cli.level_of(name) == "basic"}
    assert 20 <= len(basic) <= 35 and set(defined()) >= LATER
    assert len(set(defined()) - LATER) < 115
    assert shown(cli.help_text(defined(), full=False)) == basic
    assert shown(cli.help_text(defined(), full=True)) == set(defined())


def test_the_reference_marks_the_level_of_every_flag():
    rows = re.findall(
        r"^\| `--(\w+)` \| (\w+) \|", (ROOT / "docs" / "flags.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == {name: cli.level_of(name) for name in defined()}
    assert len(rows) == len(defined())


def test_constants_have_no_flag_but_python_sets_them():
    constants = {name for name, field in fields().items() if field.metadata["level"] == "constant"}
    assert {"hard_scale", "adam_b2", "pair_power"} <= constants
    assert not constants & set(defined())
    with pytest.raises(UserError, match=r"^--adam_b2 is not a flag"):
        parsed("--adam_b2=0.9")
    assert pinsage_jax.settings("w", adam_b2=0.9).train.adam_b2 == 0.9
    with pytest.raises(UserError, match=r"^adam_b2=2\.0 must be at most"):
        pinsage_jax.settings("w", adam_b2=2.0)


# The program decides.


@pytest.mark.parametrize("name", AUTO)
def test_auto_is_text_on_the_command_line_and_none_in_python(name):
    assert defined()[name].value == ("auto" if name != "embed_walks" else 1000)
    found = {**values_of(parsed(f"--{name}=auto")), "threads": parsed(f"--{name}=auto").threads}
    assert found[name] is None
    for value in (None, "auto"):
        made = pinsage_jax.settings("w", **{name: value})
        assert {**values_of(made), "threads": made.threads}[name] is None


def test_every_setting_that_the_program_may_choose_is_auto():
    names = {name for name, field in fields().items() if field.metadata["auto"]}
    assert set(AUTO) - {"threads"} <= names
    for name in names & set(defined()):
        assert "auto: " in fields()[name].metadata["help"], name


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("--max_steps=soon", "--max_steps=soon: a whole number or auto is expected."),
        ("--max_steps=0", "--max_steps=0 must be at least 1."),
        ("--cold_start_bias=much", "--cold_start_bias=much: a number or auto is expected."),
        ("--cold_start_bias=-1", "--cold_start_bias=-1.0 must be at least 0.0."),
    ],
)
def test_what_is_neither_a_value_nor_auto(argument, sentence):
    with pytest.raises(UserError) as caught:
        parsed(argument)
    assert str(caught.value) == sentence


def test_python_takes_none_where_the_choice_is_a_word():
    made = pinsage_jax.settings("w", neighbor_embeddings=None, text_columns=None)
    assert (made.model.neighbor_embeddings, made.data.text_columns) == ("auto", "auto")
    with pytest.raises(UserError, match=r"^--pooling=None must be of type str"):
        pinsage_jax.settings("w", pooling=None)
    with pytest.raises(UserError, match=r"^--max_steps='3' must be of type int or 'auto'"):
        pinsage_jax.settings("w", max_steps="3")


def test_what_a_checkpoint_remembers_fills_settings_in():
    saved = json.loads(json.dumps(dataclasses.asdict(parsed("--max_steps=7", "--seed=3"))))
    assert saved["train"]["devices"] is None and saved["threads"] is None
    found = with_saved(parsed("--devices=2", "--threads=4"), saved, keep=("threads",))
    assert found.train.max_steps == 7 and found.train.devices is None
    assert (found.seed, found.threads) == (3, 4)
    # A value of another type is passed over.
    saved["train"]["max_steps"] = "many"
    assert with_saved(parsed("--max_steps=5"), saved).train.max_steps == 5


# Presets.


def test_a_preset_sets_what_it_holds():
    paper = values_of(parsed("--preset=paper"))
    wanted = PRESETS["paper"].values
    assert {name: paper[name] for name in wanted} == wanted
    assert {path_of(name).split(".")[1] for name in wanted} == set(wanted)
    plain = values_of(parsed())
    assert {name for name in paper if paper[name] != plain[name]} <= set(wanted)
    assert pinsage_jax.settings("w", preset="paper").model == parsed("--preset=paper").model


@pytest.mark.parametrize(
    "arguments",
    [
        ("--preset=paper", "--num_layers=1", "--popularity_bias"),
        ("--num_layers=1", "--popularity_bias", "--preset=paper"),
        ("--popularity_bias", "--preset=paper", "--num_layers=1"),
    ],
)
def test_flags_override_the_preset_wherever_they_stand(arguments, tmp_path):
    config = parsed(*arguments)
    assert config.model.num_layers == 1 and config.model.popularity_bias
    assert config.model.hidden_dim == 2048
    (tmp_path / "a.flags").write_text("\n".join(arguments))
    assert parsed(f"--flagfile={tmp_path / 'a.flags'}").model == config.model
    # Even a value that is the default of the flag.
    assert config.model.num_layers == ModelConfig().num_layers
    made = pinsage_jax.settings("w", preset="paper", num_layers=1, popularity_bias=True)
    assert made.model == config.model


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.1, 0.37, 0.5, 1.0])
def test_a_scaled_preset_keeps_its_ratios(scale):
    whole, found = (
        values_of(parsed("--preset=paper")),
        values_of(parsed("--preset=paper", f"--preset_scale={scale}")),
    )
    scaled = {name for _, names in SCALED for name in names}
    # What is no size is that of the paper.
    assert {name for name in whole if whole[name] != found[name]} == (
        scaled if scale < 1 else set()
    )
    assert found["hidden_dim"] == 2 * found["layer_dim"] == 2 * found["output_dim"]
    assert found["num_walks"] == 10 * found["num_neighbors"] > 0
    steps = [values["pairs_per_epoch"] / values["batch_size"] for values in (whole, found)]
    assert steps[1] == pytest.approx(steps[0], rel=1e-3)
    # Whole numbers, of devices and tiles too.
    assert found["batch_size"] % 8 == found["layer_dim"] % 8 == 0
    if scale >= 0.1:
        for multiple, names in SCALED:
            for name in names:
                expected = scale * whole[name]
                assert found[name] == pytest.approx(expected, rel=0.04, abs=multiple / 2), name
    negatives = found["batch_size"] * 500 / 2048
    assert found["random_negatives"] == max(1, round(negatives))


def test_the_page_says_what_a_tenth_is():
    page = (ROOT / "docs" / "for_researchers.md").read_text()
    whole, tenth = (
        values_of(parsed("--preset=paper")),
        values_of(parsed("--preset=paper", "--preset_scale=0.1")),
    )
    for _, names in SCALED:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{names[0]}`"))
        cells = row.split(" | ")
        order = re.findall(r"`(\w+)`", cells[0])
        assert set(order) == set(names)
        for cell, values in zip(cells[2:], (whole, tenth)):
            assert cell.strip(" |") == ", ".join(
                f"{values[name]:,}" if values[name] > 9999 else str(values[name]) for name in order
            )


def test_a_scale_gives_way_to_flags_and_is_remembered(tmp_path):
    arguments = ("--preset=paper", "--preset_scale=0.1", "--layer_dim=48")
    config = command_line.parsed(f"--workdir={tmp_path}", "--synthetic", *arguments)
    assert (config.model.layer_dim, config.model.output_dim, config.preset_scale) == (48, 104, 0.1)
    made = pinsage_jax.settings("w", preset="paper", preset_scale=0.1, layer_dim=48)
    assert made.model == config.model and made.train == config.train
    remembered = remembered_values(config)
    assert {name: remembered[name] for name in ("preset", "preset_scale", "layer_dim")} == {
        "preset": "paper", "preset_scale": 0.1, "layer_dim": 48,
    }  # fmt: skip
    assert "output_dim" not in remembered and "batch_size" not in remembered


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--preset_scale=0.1",), "--preset_scale=0.1 scales a preset; add --preset=paper."),
        (("--preset=paper", "--preset_scale=0"), "--preset_scale=0.0 must be at least 0.001."),
        (("--preset=paper", "--preset_scale=2"), "--preset_scale=2.0 must be at most 1.0."),
    ],
)
def test_scales_that_are_refused(arguments, sentence):
    with pytest.raises(UserError) as caught:
        parsed(*arguments)
    assert str(caught.value) == sentence


def test_an_unknown_preset_is_named():
    with pytest.raises(UserError, match=r"^--preset=papers: one of none, paper is expected"):
        parsed("--preset=papers")
    with pytest.raises(UserError, match=r"^--preset=papers is not one of none, paper"):
        pinsage_jax.settings("w", preset="papers")


# The synthetic catalog.


def test_the_flagfiles_generate_their_catalogs():
    sizes = {}
    for name in ("tiny", "pinterest_like", "paper"):
        config = parsed(f"--flagfile={ROOT / 'experiments' / name}.flags")
        assert config.synthetic.synthetic
        sizes[name] = dataclasses.asdict(config.synthetic.chosen)
    usual = {
        "items": 10_000, "collections": 2_500, "edges": 100_000, "topics": 64, "styles": 4,
        "visual_dim": 64, "text_dim": 32, "noise": 0.85, "noise_boards": 0.1, "isolated": 0.05,
        "pairs": 4_000, "seed": 0, "number_ids": False, "names": True,
    }  # fmt: skip
    assert sizes["pinterest_like"] == usual
    assert sizes["tiny"] == {
        **usual, "items": 600, "collections": 150, "edges": 5_000, "topics": 12, "styles": 3,
        "pairs": 600,
    }  # fmt: skip
    assert sizes["paper"] == {
        **usual, "items": 1_000_000, "collections": 250_000, "edges": 20_000_000,
        "visual_dim": 256, "text_dim": 64, "pairs": 200_000,
    }  # fmt: skip


def test_any_number_of_items_and_edges():
    assert catalog_of_size("10000x100000") == SIZES["small"] == SyntheticCatalog()
    found = parsed("--synthetic_size=400x3000").synthetic.chosen
    assert (found.items, found.edges, found.collections) == (400, 3000, 100)
    assert catalog_of_size("20x30").collections == 5 and catalog_of_size("20x30").topics == 2
    own = SyntheticCatalog(items=50, collections=9, edges=90)
    assert SyntheticConfig(True, synthetic_catalog=own).chosen == own
    assert pinsage_jax.settings("w", synthetic_catalog=own).synthetic.chosen == own


@pytest.mark.parametrize(
    "size, sentence",
    [
        ("big", "--synthetic_size=big is not one of tiny, small, large or ITEMSxEDGES, such as"),
        ("10x", "--synthetic_size=10x is not one of tiny, small, large or ITEMSxEDGES"),
        ("5x30", "--synthetic_size=5x30: items=5 must be at least 20."),
        ("50x3", "--synthetic_size=50x3: edges=3 must be at least 20."),
    ],
)
def test_a_size_that_is_none(size, sentence):
    with pytest.raises(UserError) as caught:
        parsed(f"--synthetic_size={size}")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "flag",
    [
        "--where=price < 3", "--boost=1 + sale", "--one_per=brand", "--block_items=a,b",
        "--allow_items=a.csv", "--min_degree=2", "--diversity=0.5", "--exclude_seen=on",
        "--one_per_collection=True",
    ],
)  # fmt: skip
def test_the_server_refuses_rules_that_it_would_ignore(flag):
    with pytest.raises(UserError) as caught:
        parsed("--mode=serve", flag)
    assert str(caught.value).startswith(f"{flag} does not go with --mode=serve, whose requests")
    parsed("--mode=neighbors", flag)


def test_the_server_takes_the_flags_that_it_follows():
    followed = ("--search=hnsw32:64", "--related_by=vectors", "--popularity_weight=0.5")
    assert parsed("--mode=serve", *followed, "--min_degree=0").search.popularity_weight == 0.5
    with pytest.raises(UserError, match=r"^--min_degree=2, --where=price < 3 does not go with"):
        parsed("--mode=serve", "--where=price < 3", "--min_degree=2")
