"""The command line and the shell around the stages: flags, errors, lock, signals."""

import dataclasses
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
import types

import pytest
from absl import flags
from command_line import defined, parsed, run

import pinsage_jax
from benchmarks.arena.__main__ import parse as arena_options
from benchmarks.run import parse as benchmark_options
from pinsage_jax import cli
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files, logging_setup, signals, workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.flagfiles import shipped_flagfiles
from pinsage_jax.stages import modes

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGFILES = sorted((ROOT / "experiments").glob("*.flags"))
SECTIONS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.default)
}
FIELDS = [field for settings in SECTIONS.values() for field in dataclasses.fields(settings)]
SETTINGS = [
    (section, field.name, field.default)
    for section, settings in SECTIONS.items()
    for field in dataclasses.fields(settings)
]


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        parsed(*arguments)
    return str(caught.value)


@pytest.fixture
def stage(monkeypatch):
    """Stands in for the stages, by the name of the mode; `stage.calls` collects what was run."""
    fake = types.SimpleNamespace(calls=[])
    for mode in cli.MODES:
        setattr(fake, mode, lambda config, mode=mode: fake.calls.append((mode, config)))
    monkeypatch.setattr(modes, "stage", lambda mode: getattr(fake, mode))
    monkeypatch.setattr(modes, "require_extras", lambda config: None)
    # The handlers of this process belong to pytest.
    monkeypatch.setattr(logging_setup, "set_up", lambda verbosity: None)
    return fake


def one_sentence(text: str) -> str:
    """What `main` wrote to stderr: exactly one line that begins with 'error: '."""
    assert re.fullmatch(r"error: [^\n]+[.?]\n", text), text
    return text.removeprefix("error: ").strip()


# Flags and settings.


def test_every_setting_but_constants_is_a_flag_and_comes_back():
    names = [name for _, name, _ in SETTINGS]
    assert len(names) == len(set(names))
    constants = {field.name for field in FIELDS if field.metadata["level"] == "constant"}
    assert set(names) - constants <= set(defined()) and not constants & set(defined())
    assert {"mode", "workdir", "seed", "threads"} <= set(defined())


def test_without_flags_the_defaults_of_the_dataclasses_hold():
    config = parsed("--workdir=w", "--synthetic")
    assert (config.mode, config.workdir, config.seed, config.threads) == ("pipeline", "w", 0, None)
    for section, name, default in SETTINGS:
        value = getattr(getattr(config, section), name)
        assert value == (True if name == "synthetic" else default)
        assert type(value) is type(default)


def other_value(field: dataclasses.Field):
    """An allowed value that is not the default."""
    default, meta = field.default, field.metadata
    if meta["choices"]:
        return next(choice for choice in meta["choices"] if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return f"other_{field.name}"
    if meta["auto"] is str:
        return f"other_{field.name}"
    if meta["auto"]:
        return meta["auto"](meta["low"] or 1)
    candidates = (default + 1, default - 1, default / 2, default + 0.01)
    for value in map(type(default), candidates):
        low = meta["low"] is None or value >= meta["low"]
        high = meta["high"] is None or value <= meta["high"]
        if value != default and low and high:
            return value
    raise AssertionError(field.name)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_flag_sets_its_own_field_and_no_other(section):
    for field in dataclasses.fields(SECTIONS[section]):
        if field.metadata["level"] == "constant":
            continue
        flag_values, value = defined(), other_value(field)
        cli.parse_flags(flag_values, ["program", f"--{field.name}={value}"])
        changed = {n for n in flag_values if flag_values[n].value != flag_values[n].default}
        assert changed == {field.name}
        assert flag_values[field.name].value == value
        assert type(flag_values[field.name].value) is type(value)


def test_flags_reach_their_sections():
    config = parsed(
        "--workdir=w", "--synthetic", "--seed=7", "--threads=2", "--num_neighbors=9",
        "--margin=0.25", "--nokeep_layers", "--pooling", "max", "--edges=a b.csv",
        "--mode=train", "--k=3",
    )  # fmt: skip
    assert (config.seed, config.threads, config.mode) == (7, 2, "train")
    assert config.sampling.num_neighbors == 9 and config.embed.keep_layers is False
    assert config.train.margin == 0.25 and config.model.pooling == "max"
    assert config.data.edges == "a b.csv" and config.evaluate.k == 3


def test_a_new_setting_and_a_new_section_need_no_change_here(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class FreshConfig:
        """A section that did not exist."""

        fresh_rate: float = cli.option(0.5, "A new setting.", low=0.0)

    @dataclasses.dataclass(frozen=True)
    class Larger(Config):
        fresh: FreshConfig = FreshConfig()
        plain: int = cli.option(3, "A setting outside the sections.", low=1)

    monkeypatch.setattr(cli, "Config", Larger)
    config = parsed("--workdir=w", "--synthetic", "--fresh_rate=0.75", "--plain=4")
    assert config.fresh.fresh_rate == 0.75 and config.plain == 4
    assert "fresh: a section that did not exist" in cli.help_text(defined(), full=True)
    assert refusal("--workdir=w", "--synthetic", "--plain=0") == "--plain=0 must be at least 1."


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert parsed("--workdir=~/runs", "--synthetic").workdir == "/somewhere/runs"


def test_parsing_leaves_the_global_flags_alone():
    before = set(flags.FLAGS)
    parsed("--workdir=w", "--synthetic")
    assert set(flags.FLAGS) == before


def test_help_names_every_flag_with_its_range():
    text = re.sub(r"\s+", " ", cli.help_text(defined(), full=True))
    for name in defined():
        assert re.search(rf"--(\[no\])?{name}: ", text), name
    assert "T: neighbors kept per node, by visit count. (at least 1, at most 1000)" in text
    assert "(importance | mean | max)" in text
    short = cli.help_text(defined(), full=False)
    assert "--mode" in short and "--helpfull" in short and "--num_neighbors" not in short


# Wrong flags.


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--sed=3"], "--sed is not a flag; did you mean --seed?"),
        (["--num_neighbor=3"], "--num_neighbor is not a flag; did you mean --num_neighbors?"),
        (["--nosynthetics"], "--nosynthetics is not a flag; did you mean --nosynthetic?"),
        (["--zzzzqqqq"], "--zzzzqqqq is not a flag; --helpfull lists them all."),
        (["--seed=3.5"], "--seed=3.5: a whole number is expected."),
        (["--seed="], "--seed=: a whole number is expected."),
        (["--margin=wide"], "--margin=wide: a number is expected."),
        (["--margin=nan"], "--margin=nan: a number is expected."),
        (["--margin=inf"], "--margin=inf: a number is expected."),
        (["--synthetic=maybe"], "--synthetic=maybe: true or false is expected."),
        (["--nosynthetic=1"], "--nosynthetic=1 does not take an argument."),
        (["--seed"], "Missing value for flag --seed."),
        (["--edges", "--synthetic"], "--edges has no value of its own; write --edges=VALUE."),
        (["--pooling=sum"], "--pooling=sum: one of importance, mean, max is expected."),
        (["--seed=-1"], "--seed=-1 must be at least 0."),
        (["--threads=-2"], "--threads=-2 must be at least 1."),
        (["--epochs=-1"], "--epochs=-1.0 must be at least 0.0."),
        (
            ["edges.csv"],
            "'edges.csv' is not a flag; every argument begins with two dashes, as in --seed=1.",
        ),
        (["--", "x"], "'x' is not a flag; every argument begins with two dashes, as in --seed=1."),
        (["--flagfile"], "--flagfile names no file; write --flagfile=PATH."),
        (["--flagfile="], "--flagfile names no file; write --flagfile=PATH."),
        (["--flagfile=none.flags"], "--flagfile=none.flags does not exist."),
        (["--flagfile=."], "--flagfile=. cannot be read (Is a directory)."),
    ],
)
def test_a_wrong_flag_is_reported_in_one_sentence(arguments, expected):
    assert refusal("--workdir=w", "--synthetic", *arguments) == expected


def test_the_first_word_is_a_mode(tmp_path):
    assert parsed("train", "--workdir=w", "--synthetic").mode == "train"
    flagfile = tmp_path / "some.flags"
    flagfile.write_text("--mode=report\n--workdir=w\n--synthetic\n")
    assert parsed("evaluate", f"--flagfile={flagfile}").mode == "evaluate"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serv", "--workdir=w"], "'serv' is not a mode; did you mean serve?"),
        (["--workdir=w", "serve"], "'serve' is a mode and comes first: pinsage-jax serve ..."),
        (["serve", "--mode=train"], "--mode=train does not go with 'serve'; name one mode."),
        (["edges.csv"], f"a mode in first place: {', '.join(cli.MODES)}."),
        (["--example=pintrest"], "is no flagfile of the package; did you mean pinterest?"),
        (
            ["--example="],
            f"is no flagfile of the package; there are: {', '.join(shipped_flagfiles())}.",
        ),
    ],
)
def test_a_wrong_mode_or_example_is_reported(arguments, expected):
    assert refusal(*arguments).endswith(expected)


def test_an_example_is_a_flagfile_of_the_package():
    assert parsed("--example=tiny") == parsed(f"--flagfile={ROOT}/experiments/tiny.flags")
    assert parsed("--example", "tiny", "--epochs=7").train.epochs == 7
    assert shipped_flagfiles().keys() == {path.stem for path in ROOT.glob("experiments/*.flags")}


@pytest.mark.parametrize("mode", cli.MODES)
def test_help_of_a_mode_shows_what_it_reads(mode):
    values = defined()
    cli.parse_flags(values, ["pinsage-jax", mode, "--help"])
    text = cli.answer(values)
    shown = set(re.findall(r"^ +(?:-\w,)?--(?:\[no\])?(\w+): ", text, re.MULTILINE))
    assert modes.TOPICS[mode][0] in text and {"workdir", "seed"} < shown
    assert shown < set(defined())
    sections = {name for names in modes.TOPICS[mode][1:] for name in names}
    assert sections <= {field.name for field in dataclasses.fields(Config)}
    # Nothing that the mode would warn of, and nothing is left out but that.
    readers = modes.readers()
    denied = {name for name in defined() if mode not in readers.get(name, (mode,))}
    whole = {
        field.name
        for section in modes.TOPICS[mode][1]
        for field in dataclasses.fields(getattr(Config, section))
    }
    assert not shown & denied and whole & set(defined()) - denied <= shown
    if mode == "serve":
        assert {"serve_host", "serve_port"} < shown and "epochs" not in shown


def test_what_is_missing_is_named():
    assert refusal("--synthetic").startswith("--workdir is required")
    assert refusal("--workdir=w").startswith("--edges is required")
    assert "--mode=evaluat: one of pipeline," in refusal("--mode=evaluat")


# Flagfiles.


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_every_flagfile_parses_and_fits(path):
    config = parsed(f"--flagfile={path}")
    assert config.mode == "pipeline"
    assert config.workdir == f"runs/{path.stem}"
    assert path.read_text().startswith("# "), "a flagfile begins with its purpose"


def test_the_flagfiles_are_all_there():
    names = {"citeulike", "paper", "pinterest", "pinterest_like", "tiny"}
    assert names <= {path.stem for path in FLAGFILES}


def test_the_paper_flagfile_has_the_sizes_of_the_paper():
    config = parsed(f"--flagfile={ROOT / 'experiments' / 'paper.flags'}")
    sampling, model, train = config.sampling, config.model, config.train
    assert (sampling.num_neighbors, sampling.hard_low, sampling.hard_high) == (50, 2000, 5000)
    assert (model.num_layers, model.hidden_dim, model.layer_dim) == (2, 2048, 1024)
    assert (train.loss, train.random_negatives, train.hard_max) == ("margin", 500, 6)
    assert (train.batch_size, train.hard_start, train.warmup_epochs) == (2048, "curriculum", 1.0)


def test_the_last_mention_wins_and_an_early_override_is_reported(tmp_path):
    (tmp_path / "a.flags").write_text("--seed=5\n--k=4\n")
    file = f"--flagfile={tmp_path / 'a.flags'}"
    for arguments, seed, lost in (
        (["--seed=1", file], 5, ["seed"]),
        ([file, "--seed=1"], 1, []),
        (["--seed=1", file, "--seed=2"], 2, ["seed"]),
        (["--threads=1", "--flagfile", str(tmp_path / "a.flags")], 5, []),
    ):
        flag_values = defined()
        assert cli.parse_flags(flag_values, ["program", *arguments]) == lost
        assert flag_values.seed == seed and flag_values.k == 4


def test_included_flagfiles_are_found_from_here_then_from_the_including_file(tmp_path, monkeypatch):
    away, here = tmp_path / "away", tmp_path / "here"
    (away / "sub").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    (away / "top.flags").write_text("--flagfile=sub/base.flags\n--k=3\n")
    (away / "sub" / "base.flags").write_text("--flagfile=leaf.flags\n--seed=4\n--k=2\n")
    (away / "sub" / "leaf.flags").write_text("--threads=6\n--seed=1\n")
    config = parsed("--workdir=w", "--synthetic", f"--flagfile={away / 'top.flags'}")
    assert (config.seed, config.threads, config.evaluate.k) == (4, 6, 3)
    # The current folder comes first, as in absl.
    (here / "leaf.flags").write_text("--threads=8\n")
    assert parsed("--workdir=w", "--synthetic", f"--flagfile={away / 'top.flags'}").threads == 8


def test_comments_blank_lines_and_line_ends_are_understood(tmp_path):
    text = (
        "\ufeff# one\r\n\r\n  // two\r\n   # three\r\n"
        "  --seed=3  \r\n--synthetic\r\n--nokeep_layers\r\n"
    )
    (tmp_path / "a.flags").write_text(text, encoding="utf-8", newline="")
    config = parsed("--workdir=w", f"--flagfile={tmp_path / 'a.flags'}")
    assert config.seed == 3 and config.synthetic.synthetic


def test_a_file_included_twice_is_no_circle(tmp_path):
    (tmp_path / "leaf.flags").write_text("--seed=3\n")
    (tmp_path / "a.flags").write_text("--flagfile=leaf.flags\n--flagfile=leaf.flags\n")
    assert parsed("--workdir=w", "--synthetic", f"--flagfile={tmp_path / 'a.flags'}").seed == 3


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "--k=3\n\nseed=5\n",
            "{file}, line 3: 'seed=5' is not a flag; write it as --flag=value or begin it with #.",
        ),
        ("--\n--k=3\n", "{file}, line 1: '--' is not a flag;"),
        ("--seed 5\n", "{file}, line 1: '--seed 5' is not one --flag=value;"),
        ("--edges=a.csv # mine\n", "{file}, line 1: '--edges=a.csv # mine' is not one"),
        ("--sed=5\n", "--sed ({file}, line 1) is not a flag; did you mean --seed?"),
        ("#\n--seed=x\n", "--seed=x ({file}, line 2): a whole number is expected."),
        ("--flagfile=gone.flags\n", "{file}, line 1 includes gone.flags, which does not exist."),
        ("--flagfile=a.flags\n", "{file}, line 1 includes {file}, which includes itself."),
        ("--flagfile=\n", "{file}, line 1: --flagfile names no file;"),
    ],
)
def test_a_wrong_line_of_a_flagfile_is_named(tmp_path, text, expected):
    file = tmp_path / "a.flags"
    file.write_text(text)
    message = refusal("--workdir=w", "--synthetic", f"--flagfile={file}")
    assert message.startswith(expected.format(file=file)), message


def test_a_flagfile_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.flags").write_bytes(b"\x80\xff\x00")
    message = refusal(f"--flagfile={tmp_path / 'a.flags'}")
    assert message.endswith("cannot be read (not UTF-8 text).")


# The program.


@pytest.mark.parametrize("mode", cli.MODES)
def test_the_mode_picks_the_stage(stage, tmp_path, mode):
    needed = ("--synthetic", "--edges=e", "--query=a", "--target=b", "--compare_with=c")
    needed += ("--to=qdrant",) if mode == "export" else ()
    needed += ("--follow=f",) if mode == "follow" else ()
    (tmp_path / "w").mkdir()
    assert run(*needed, f"--workdir={tmp_path / 'w'}", f"--mode={mode}") == 0
    assert [name for name, _ in stage.calls] == [mode]
    assert stage.calls[0][1].workdir == str(tmp_path / "w")


def test_errors_of_a_stage_are_one_sentence_and_bugs_are_not(stage, tmp_path, capfd):
    def wrong_input(config):
        raise UserError("row 3 of edges.csv has no item_id; remove it.")

    def bug(config):
        raise ZeroDivisionError("ours")

    stage.train, stage.embed = wrong_input, bug
    before = signal.getsignal(signal.SIGINT)
    assert run("--mode=train", f"--workdir={tmp_path}") == 2
    expected = "row 3 of edges.csv has no item_id; remove it."
    assert one_sentence(capfd.readouterr().err) == expected
    with pytest.raises(ZeroDivisionError):
        run("--mode=embed", f"--workdir={tmp_path}")
    # Neither leaves the workdir locked or the signals taken over.
    assert run("--mode=evaluate", f"--workdir={tmp_path}") == 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("mode", ["pipeline", "neighbors"])
def test_a_workdir_that_cannot_be_written_is_refused(stage, tmp_path, capfd, mode):
    (tmp_path / "file").write_text("kept")
    below = "cannot be written (Not a directory); name another folder."
    absent = "cannot be written (No such file or directory); name another"
    if mode == "neighbors":
        below = absent = "does not exist; name the folder of a run, or make one with --mode=pipe"
    for path, reason in (
        (tmp_path / "file", "is a file; name a folder."),
        (tmp_path / "file" / "below", below),
        ("/proc/nothing/here", absent),
    ):
        assert run("--synthetic", f"--mode={mode}", f"--workdir={path}") == 2
        assert one_sentence(capfd.readouterr().err).startswith(f"--workdir={path} {reason}")
    assert stage.calls == []
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("mode", cli.MODES)
def test_only_modes_that_begin_a_run_make_its_folder(stage, tmp_path, capfd, mode):
    needed = ("--synthetic", "--edges=e", "--query=a", "--target=b", "--compare_with=c")
    needed += ("--to=qdrant",) if mode == "export" else ()
    needed += ("--follow=f",) if mode == "follow" else ()
    path = tmp_path / "typo" / "w"
    if mode in modes.BEGINNING:
        setattr(stage, mode, lambda config: (path / "made").mkdir())
    code = run(*needed, f"--workdir={path}", f"--mode={mode}")
    assert code == (0 if mode in modes.BEGINNING else 2)
    if code:
        assert "typo/w does not exist; name the folder of a run" in capfd.readouterr().err
    assert (tmp_path / "typo").exists() == (code == 0)


def test_a_refused_command_leaves_nothing_behind(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging_setup, "set_up", lambda verbosity: None)
    (tmp_path / "edges.csv").write_text("a,b\nx,y\n")
    for arguments, sentence in (
        (["--edges=none.csv"], "--edges=none.csv does not exist"),
        ([f"--edges={tmp_path / 'edges.csv'}"], "has no column"),
        ([f"--edges={tmp_path / 'edges.csv'}", "--mode=prepare"], "has no column"),
        (["--edges=none.csv", "--mode=split"], "none.csv does not exist"),
        (["--edges=none.csv", "--init_from=nowhere"], "nowhere"),
        (["--edges=none.csv", "--retrain"], "--edges=none.csv does not exist"),
        (["--epochs=-1", "--synthetic"], "--epochs=-1.0 must be at least 0.0."),
    ):
        assert run(*arguments, f"--workdir={tmp_path / 'new' / 'w'}") == 2
        assert sentence in one_sentence(capfd.readouterr().err.splitlines(keepends=True)[-1])
        assert not (tmp_path / "new").exists(), arguments
    # A folder that was there stays, and so does what a command has written.
    (tmp_path / "mine").mkdir()
    assert run("--edges=none.csv", f"--workdir={tmp_path / 'mine'}") == 2
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--synthetic", "--tracker=tensorboard"], "--tracker=tensorboard needs tensorboardX: "
         "pip install 'pinsage-jax[tensorboard]'."),
        (["--mode=ablate", "--synthetic", "--tracker=mlflow"], "--tracker=mlflow needs mlflow: "
         "pip install 'pinsage-jax[mlflow]'."),
        (["--synthetic", "--tracker=wandb"], "--tracker=wandb needs wandb: pip install "
         "'pinsage-jax[wandb]'."),
        (["--mode=report"], "--mode=report needs matplotlib: pip install 'pinsage-jax[report]'."),
        (["--mode=embed", "--engine=spark"], "--engine=spark needs pyspark: pip install "
         "'pinsage-jax[spark]'."),
        (["--mode=graph_tables", "--edges=e"], "--mode=graph_tables needs pyspark: pip install "
         "'pinsage-jax[spark]'."),
        (["--mode=index"], "--mode=index needs faiss: pip install 'pinsage-jax[ann]'."),
        (["--mode=neighbors", "--search=hnsw32:64"], "--search=hnsw32:64 needs faiss: pip install "
         "'pinsage-jax[ann]'."),
        (["--mode=serve"], "--mode=serve needs fastapi: pip install 'pinsage-jax[serve]'."),
        (["--synthetic", "--baselines=walk, als"], "--baselines=als needs implicit: pip install "
         "'pinsage-jax[als]'."),
    ],
)  # fmt: skip
def test_extras_that_are_missing_are_asked_for_before_any_work(
    tmp_path, capfd, monkeypatch, arguments, sentence
):
    monkeypatch.setattr(logging_setup, "set_up", lambda verbosity: None)
    monkeypatch.setattr(modes.importlib.util, "find_spec", lambda name: None)
    assert run(*arguments, f"--workdir={tmp_path / 'w'}") == 2
    assert one_sentence(capfd.readouterr().err) == sentence
    assert not (tmp_path / "w").exists()


def test_what_a_command_does_not_need_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(modes.importlib.util, "find_spec", lambda name: None)
    for mode in ("pipeline", "evaluate", "neighbors", "recommend", "embed", "train", "doctor"):
        modes.require_extras(parsed(f"--mode={mode}", "--workdir=w", "--synthetic"))
    modes.require_extras(parsed("--workdir=w", "--synthetic", "--baselines=all"))


def test_one_run_at_a_time(stage, tmp_path, capfd):
    inner = []
    stage.train = lambda config: inner.append(run("--mode=embed", f"--workdir={tmp_path}"))
    assert run("--mode=train", f"--workdir={tmp_path}") == 0
    assert inner == [2] and stage.calls == []
    message = one_sentence(capfd.readouterr().err)
    expected = f"--workdir={tmp_path} is in use by process {os.getpid()}; "
    assert message.startswith(expected), message
    assert run("--mode=embed", f"--workdir={tmp_path}") == 0


def test_another_process_keeps_the_lock_until_it_ends(tmp_path):
    script = "import sys; from pinsage_jax.core import workdir\nwith workdir.locked(sys.argv[1]): print('in', flush=True); sys.stdin.read()"  # noqa: E501
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with holder:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid};"):
            workdir.locked(tmp_path).__enter__()
        holder.kill()
        holder.wait()
    # Killed in the middle, and yet no stale lock; a longer id left behind is overwritten.
    (tmp_path / workdir.LOCK).write_text("123456789012\n")
    with workdir.locked(tmp_path) as folder:
        assert (folder / workdir.LOCK).read_text() == f"{os.getpid()}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [workdir.LOCK]


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with workdir.locked(tmp_path) as folder:
        assert folder == tmp_path


def test_help_needs_nothing_else(stage, capfd):
    assert run("--help") == 0
    assert "--workdir" in capfd.readouterr().out
    assert run("-h") == 0
    assert run("--helpfull") == 0
    assert "--num_neighbors" in capfd.readouterr().out
    assert stage.calls == []


def test_the_version_needs_nothing_else(stage, capfd):
    assert run("--version") == 0
    assert capfd.readouterr().out == f"pinsage_jax {pinsage_jax.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", pinsage_jax.__version__)
    assert stage.calls == []


# As a program of its own.


def program(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pinsage_jax.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--flagfile=experiments/tiny.flags", "--epoch=3"],
        ["--flagfile=experiments/tiny.flags", "epochs=3"],
        ["--flagfile=experiments/none.flags"],
        ["--synthetic", "--workdir=README.md"],
    ],
)
def test_the_program_ends_with_2_and_one_sentence(arguments):
    result = program(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    one_sentence(result.stderr)


@pytest.mark.parametrize("module", ["pinsage_jax", "pinsage_jax.main"])
def test_the_package_is_a_program_too(module):
    command = [sys.executable, "-m", module]
    shown = subprocess.run(
        [*command, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == f"pinsage_jax {pinsage_jax.__version__}\n"
    wrong = subprocess.run(
        [*command, "--epoch=3"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2
    one_sentence(wrong.stderr)


def test_the_installed_command_is_the_same_program():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"pinsage-jax": "pinsage_jax.main:run"}
    assert project["project"]["dynamic"] == ["version", "readme"]
    source = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert source == "pinsage_jax.core.version.__version__"


def test_wrong_flags_are_reported_before_anything_heavy_is_loaded():
    script = textwrap.dedent("""
        import sys
        from pinsage_jax import main
        wrong = ["--synthetic", "--workdir=README.md"]
        for arguments in (["--sed=3"], ["--helpfull"], ["--version"], wrong):
            main.main(["program", *arguments])
        heavy = {"jax", "flax", "numba", "sklearn", "pyarrow", "numpy"} & set(sys.modules)
        sys.exit(f"loaded {heavy}" if heavy else 0)
    """)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_a_reader_that_leaves_is_no_error():
    # The reader's end is closed before a word is written.
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pinsage_jax.main", "--helpfull"]
    result = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert result.returncode == 141 and result.stderr == b""


SIGNALED = """
import sys, time
from pinsage_jax import main
from pinsage_jax.core import signals
from pinsage_jax.stages import modes

def polite(config):
    print("ready", flush=True)
    while not signals.stop_requested():
        time.sleep(0.01)
    open(config.workdir + "/checkpoint", "w").close()

def between(config):
    print("ready", flush=True)
    while True:
        signals.raise_if_stopped()
        time.sleep(0.01)

def deaf(config):
    print("ready", flush=True)
    while not signals.stop_requested():
        time.sleep(0.01)
    print("asked", flush=True)
    try:
        time.sleep(60)
    finally:
        open(config.workdir + "/unwound", "w").close()

modes.stage = {"train": polite, "prepare": between, "embed": deaf}.__getitem__
main.run()
"""


def signaled(workdir: pathlib.Path, mode: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        SIGNALED,
        "--synthetic",
        f"--workdir={workdir}",
        f"--mode={mode}",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["train", "prepare"])
def test_the_first_signal_lets_the_step_end(tmp_path, mode, number):
    with signaled(tmp_path, mode) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert (tmp_path / "checkpoint").exists() == (mode == "train")
    assert "stopping after the current step" in errors and "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(tmp_path, number):
    with signaled(tmp_path, "embed") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert not (tmp_path / "unwound").exists()
    assert "Traceback" not in errors


def test_signals_go_back_to_whoever_had_them():
    before = signal.getsignal(signal.SIGTERM)
    signals.install()
    try:
        assert not signals.stop_requested() and signals.exit_code() == 0
        signals.raise_if_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop_requested() and signals.exit_code() == 143
        with pytest.raises(signals.Stopped):
            signals.raise_if_stopped()
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not signals.stop_requested()


# Messages.


SPEAKING = """
import logging as standard
from absl import logging
from pinsage_jax import main
from pinsage_jax.core import logging_setup
from pinsage_jax.stages import modes

def train(config):
    logging.info("of a library")
    logging.warning("a %s of a library", "warning")
    standard.getLogger("jax._src.xla_bridge").info("of another library")
    # As if it were a line of the package.
    for call in ("info('of ours')", "debug('of little use')"):
        exec(compile(f"logging.{call}", logging_setup.__file__, "exec"), {"logging": logging})

modes.stage = {"train": train}.__getitem__
main.run()
"""


@pytest.mark.parametrize("verbosity", ["debug", "info", "warning"])
def test_libraries_are_quiet_and_we_are_not(tmp_path, verbosity):
    (tmp_path / "a.flags").write_text("--mode=train\n--epochs=4\n")
    arguments = [f"--workdir={tmp_path}", "--epochs=3", f"--flagfile={tmp_path / 'a.flags'}"]
    command = [sys.executable, "-c", SPEAKING, *arguments, f"--verbosity={verbosity}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    clocks, texts = zip(*(line.split(" ", 1) for line in result.stderr.splitlines()), strict=True)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", clock) for clock in clocks)
    lines = ["warning: --epochs before --flagfile has no effect; put it after."]
    lines += ["warning: a warning of a library"]
    lines += ["of ours"] * (verbosity != "warning") + ["of little use"] * (verbosity == "debug")
    lines += [f"next: --workdir={tmp_path} --mode=embed"] * (verbosity != "warning")
    assert list(texts) == lines


# The documents.


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_begins_with_two_commands_that_set_everything_up():
    run, test = [line for line in readme_commands() if line.startswith("python3 -m venv")]
    assert readme_commands()[:2] == [run, test]
    setup = "python3 -m venv .venv && .venv/bin/pip install "
    assert run.startswith(setup) and test.startswith(setup)
    assert run.endswith("-m pinsage_jax.main --flagfile=experiments/pinterest_like.flags")
    assert test.endswith("-e '.[test]' && .venv/bin/python -m pytest")


DOCUMENTS = [
    "README.md",
    "BUILD_NOTES.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]


def test_the_flag_reference_is_up_to_date():
    made = subprocess.run(
        [sys.executable, "docs/flags.py"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert made.stdout == (ROOT / "docs" / "flags.md").read_text(), "run docs/flags.py"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if "--" in (ROOT / name).read_text()])
def test_the_documents_name_flags_that_exist(name):
    known = set(defined()) | {"flagfile", "flag"} | {f"no{flag}" for flag in defined()}
    known |= set(vars(benchmark_options([]))) | set(vars(arena_options(["--workdir=runs/mine"])))
    # Commands of other programs have flags of their own, and so has the compiler.
    programs = r"spark-class|spark\.standalone|curl|docker compose|redis-cli|experiments/\w+\.py"
    others = re.compile(rf".*\b({programs})\b.*|\bXLA_FLAGS=\S+")
    text = (ROOT / name).read_text().replace("\\\n", "")
    if name == "CHANGELOG.md":
        # Released versions had flags of their own.
        text = re.split(r"^## .*\d{4}-\d\d-\d\d$", text, flags=re.MULTILINE)[0]
    mentioned = set(re.findall(r"(?<![\w-])--([a-z]\w*)", others.sub("", text)))
    assert {flag for flag in mentioned if flag not in known and not flag.endswith("_")} == set()


def test_commands_of_the_readme_parse():
    for line in readme_commands():
        if "pinsage_jax.main" in line:
            arguments = line.split("pinsage_jax.main", 1)[1].split()
            parsed(*(a.replace("=experiments/", f"={ROOT}/experiments/") for a in arguments))


@pytest.fixture
def ci(tmp_path):
    """Runs .ci/run with stand-ins for pip and Python; nothing is installed.

    Returns:
      function(pythons=(), **environment) -> (result, lines of what was called).
    """

    def run(pythons=(), **environment):
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        log = tmp_path / "log"
        # What runs beside the rest has a file of its own.
        newest = tmp_path / "log-newest"
        log.unlink(missing_ok=True)
        newest.unlink(missing_ok=True)
        stand_in = (
            "#!/bin/bash\n"
            '[ "$2" = venv ] || exit 0\n'
            f'log={log}; [ "${{0##*/}}" = python3 ] || log={log}-newest\n'
            'echo "$(basename "$0") $*" >> $log\nmkdir -p "$3/bin"\n'
            f"for tool in pip python; do cat > \"$3/bin/$tool\" <<'END'\n"
            "#!/bin/bash\n"
            f'log={log}; case "$0" in */newest/*) log={log}-newest;; esac\n'
            'echo "$(basename "$0") $* in $PWD" >> $log\n'
            'for a in "$@"; do case "$a" in --workdir=*) d="${a#--workdir=}";\n'
            'mkdir -p "$d/embeddings"; for f in eval.json embeddings/_manifest.json '
            'related_items.parquet; do echo x > "$d/$f"; done;; esac; done\n'
            'case "$*" in *pytest*) exit ${TESTS_EXIT:-0};; *version_info*) echo 3.11;; esac\n'
            'END\nchmod +x "$3/bin/$tool"; done\n'
        )
        for name in ("python3", "python3.12", "python3.13"):
            there = name == "python3" or name in pythons
            (tools / name).write_text(stand_in if there else "#!/bin/bash\nexit 127\n")
            (tools / name).chmod(0o755)
        # Any program stands in for the browser, which would be installed where there is none.
        path = f"{tools}:{os.environ['PATH']}"
        environment = {"PATH": path, "CHROMIUM": "true", "PYENV_ROOT": str(tools), **environment}
        result = subprocess.run(
            [ROOT / ".ci" / "run"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = log.read_text().splitlines()
        return result, lines + (newest.read_text().splitlines() if newest.exists() else [])

    return run


def test_ci_finds_the_commands_of_the_readme(ci):
    result, lines = ci()
    assert result.returncode == 0, result.stderr
    checks = [f"python -m {check}" for check in ("ruff check", "ruff format --check", "mypy")]
    wanted = ["pip install -e .[test]", "python -m pytest", *checks, "pip install .[report]"]
    places = [lines.index(f"{command} in {ROOT}") for command in wanted]
    assert places == sorted(places) and places[:2] == [1, 2]
    # Then the program, as installed and from another folder.
    flagfile = f"--flagfile={ROOT}/experiments/tiny.flags"
    program = lines[places[-1] + 1]
    assert program.startswith(f"python -m pinsage_jax.main {flagfile} --workdir=")
    assert not program.endswith(f" in {ROOT}")
    assert ci(TESTS_EXIT="1")[0].returncode != 0


@pytest.mark.parametrize("pythons", [["python3.12", "python3.13"], ["python3.12"], []])
def test_ci_tries_the_newest_other_python(pythons, ci):
    result, lines = ci(pythons)
    assert result.returncode == 0, result.stderr
    sentence = "there is no other of python3.13 and python3.12"
    assert (sentence in result.stdout, sentence in result.stderr) == (not pythons,) * 2
    venvs = [place for place, line in enumerate(lines) if re.match(r"python\S* -m venv", line)]
    assert [lines[place].split()[0] for place in venvs[2:]] == pythons[-1:]
    if pythons:
        install, tests, program = lines[venvs[-1] + 1 :]
        assert re.fullmatch(r"pip install -q \.\[test\] in /\S+/source", install)
        assert re.fullmatch(r"python -m pytest -n 0 tests/cpu .* in /\S+/source", tests)
        assert re.match(
            r"python -m pinsage_jax.main \S+/tiny.flags --workdir=\S+-newest in", program
        )
        for path in re.findall(r" (tests/\S+)", tests):
            assert (ROOT / path).exists()


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    (tmp_path / "prepared").mkdir()
    for name in ("prepared.tmp-12", "prepared.tmp-old-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("half")
    for name in ("eval.json.tmp-7", "mine.tmp-x", "eval.json"):
        (tmp_path / name).write_text("{}")
    assert files.remove_temporary_files(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "eval.json", "mine.tmp-x", "prepared",
    ]  # fmt: skip
