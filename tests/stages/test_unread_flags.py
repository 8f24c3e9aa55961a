"""Flags that a mode does not read are named in one warning, and nothing else is."""

import dataclasses
import pathlib
import re
import shlex

import pytest
from command_line import defined, run

from pinsage_jax import cli
from pinsage_jax.config.settings import Config, all_settings
from pinsage_jax.stages import modes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def warned(caplog, *arguments: str) -> list[str]:
    flag_values = defined()
    overruled = cli.parse_flags(flag_values, ["program", *arguments])
    caplog.clear()
    with caplog.at_level("WARNING", "absl"):
        cli.warn_of_ignored(flag_values, ["program", *arguments], overruled)
    return caplog.messages


@pytest.mark.parametrize(
    "arguments, unread",
    [
        (("--mode=serve", "--k=3", "--query=a"), "--mode=serve does not read --k or --query."),
        (("serve", "--k", "3"), "--mode=serve does not read --k."),
        (("--mode=recommend", "--queries=q.csv"), "--mode=recommend does not read --queries."),
        (("--mode=evaluate", "--where=x", "--serve_port=1"),
         "--mode=evaluate does not read --where or --serve_port."),
        (("--mode=embed", "--epochs=3", "--noforecast"),
         "--mode=embed does not read --epochs or --noforecast."),
        (("--split_by=time", "--edges=e"), "--mode=pipeline does not read --split_by."),
    ],
)  # fmt: skip
def test_a_flag_that_is_not_read_is_named(caplog, arguments, unread):
    assert warned(caplog, *arguments, "--workdir=w") == [unread]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mode=neighbors", "--k=3", "--query=a", "--where=x", "--search=hnsw32:64"),
        ("--mode=prepare", "--edges=e", "--epochs=3", "--baselines=all"),
        ("--mode=serve", "--serve_port=0", "--search=hnsw32:64", "--threads=2", "--seed=1"),
        ("--mode=embed", "--cpu_kernels=off", "--engine=spark"),
        ("--epochs=3", "--tables=csv", "--retrain"),
    ],
)
def test_a_flag_that_is_read_is_not(caplog, arguments):
    assert warned(caplog, *arguments, "--workdir=w") == []


def test_lines_of_a_flagfile_are_for_every_mode(caplog, tmp_path):
    (tmp_path / "a.flags").write_text("--epochs=3\n--k=4\n")
    assert warned(caplog, f"--flagfile={tmp_path}/a.flags", "--mode=index", "--workdir=w") == []


def test_the_program_warns(trained, capfd):
    assert (
        run(f"--workdir={trained.workdir}", "--mode=neighbors", "--query=none", "--epochs=1") == 2
    )
    assert "warning: --mode=neighbors does not read --epochs." in capfd.readouterr().err


def test_the_tables_name_flags_and_modes():
    assert set(modes.READERS) <= all_settings() & set(defined())
    assert set(modes.READERS_OF_SECTIONS) <= {field.name for field in dataclasses.fields(Config)}
    for readers in (*modes.READERS.values(), *modes.READERS_OF_SECTIONS.values()):
        assert set(readers) <= set(modes.MODULES)


def commands() -> list[str]:
    """Every command line of the program in the pages."""
    found = set()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found |= set(re.findall(r"-m pinsage_jax(?:\.main)? (--[^`\n&#|]*)", text))
    return sorted(found)


def test_no_command_of_the_pages_holds_a_flag_that_is_not_read(caplog, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands()) > 20
    for command in commands():
        words = [word for word in shlex.split(command) if word.startswith("--")]
        assert warned(caplog, *words) == [], command
