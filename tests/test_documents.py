"""The documents: up to date where they are generated, short, and without broken references."""

import dataclasses
import importlib.util
import pathlib
import re
import tomllib

import pytest
from source_rules import ORDER

import pinsage_jax
from pinsage_jax.config.presets import PAPER
from pinsage_jax.core.flagfiles import RUN_FLAGS
from pinsage_jax.stages import modes

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def flags_script():
    """docs/flags.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_flags", ROOT / "docs" / "flags.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_values_in_the_notes_are_those_of_the_settings():
    notes = text_of("BUILD_NOTES.md")
    assert flags_script().notes(notes) == notes, "run python docs/flags.py BUILD_NOTES.md"


def test_the_page_of_the_object_is_that_of_its_docstrings():
    spec = importlib.util.spec_from_file_location("docs_python", ROOT / "docs" / "python.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.text() == text_of("docs/python.md"), "run python docs/python.py > docs/python.md"


def test_values_are_filled_in_by_column():
    table = (
        "| a | setting | default | paper |\n|---|---|---|---|\n| x | `--margin`, `--keep_layers` |"
    )
    filled = flags_script().notes(f"{table} old | old |\n\n| default |\n| old |\n")
    assert filled.endswith(
        "| x | `--margin`, `--keep_layers` | 0.1, off | 0.1, off |\n\n| default |\n| old |\n"
    )
    assert "2, 2,048" in flags_script().notes(
        f"{table.splitlines()[0]}\n| x | `--num_layers`, `model.hidden_dim` | | |\n"
    )
    constant = flags_script().notes(
        f"{table.splitlines()[0]}\n| x | `sampling.content_links.MAX_CANDIDATES` | | |\n"
    )
    assert "| 65,536 | 65,536 |" in constant
    for wrong in ("`--no_such_setting`", "`model.no_such_field`", "no name"):
        with pytest.raises((ValueError, AttributeError)):
            flags_script().notes(f"{table.splitlines()[0]}\n| x | {wrong} | | |\n")


def test_the_notes_name_every_deviation_of_the_method():
    default = flags_script()._config()
    deviations = text_of("BUILD_NOTES.md").split("## Deviations", 1)[1].split("\n## ", 1)[0]
    named = {name.lstrip("-").split(".")[-1] for name in re.findall(r"`([^`]+)`", deviations)}
    sections = [getattr(default, field.name) for field in dataclasses.fields(default)]
    values = dict(pair for part in sections for pair in getattr(part, "__dict__", {}).items())
    differing = {name for name, value in PAPER.method.items() if values[name] != value}
    assert differing and differing <= named


@pytest.mark.parametrize("name, most", [("BUILD_NOTES.md", 300), ("README.md", 200)])
def test_lengths(name, most):
    assert len(text_of(name).splitlines()) <= most


def heading_ids(text: str) -> set[str]:
    """Anchors of a page as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_between_pages_resolve(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in heading_ids(page.read_text(encoding="utf-8")), f"{name}: {target}"


# A file in a code span, such as `sampling/kernels.py`.
MENTIONED = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|flags|toml))`")
# The program writes it into a workdir.
WRITTEN = f"WORKDIR/{RUN_FLAGS}"
BASES = (ROOT, ROOT / "pinsage_jax", ROOT / "docs")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_files_that_pages_name_exist(name):
    folders = {*BASES, *(base / path for base in BASES for path in folders_named(text_of(name)))}
    missing = [
        path
        for path in MENTIONED.findall(text_of(name))
        if path != WRITTEN and not any((folder / path).exists() for folder in folders)
    ]
    assert missing == []


def folders_named(text: str) -> list[str]:
    """Folders in code spans: a table of a folder names its files without it."""
    return re.findall(r"`((?:[\w.-]+/)+)`", text)


def test_the_architecture_names_every_folder_in_import_order():
    table = re.findall(r"^\| `(\w+)/` \|", text_of("docs/architecture.md"), re.MULTILINE)
    folders = [name for names in ORDER for name in names]
    assert table == [name for name in folders if (ROOT / "pinsage_jax" / name).is_dir()]


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", text_of("docs/README.md")))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert linked == pages


def test_the_readme_names_every_mode():
    named = set(re.findall(r"(?:`|--mode=)(\w+)", text_of("README.md")))
    assert set(modes.MODULES) <= named


def project() -> dict:
    """pyproject.toml."""
    return tomllib.loads(text_of("pyproject.toml"))


def test_versions_agree():
    headings = re.findall(r"^## (.*)$", text_of("CHANGELOG.md"), re.MULTILINE)
    newest, *released = [re.match(r"(\d+\.\d+\.\d+) (.*)$", heading) for heading in headings]
    development = pinsage_jax.__version__.endswith(".dev0")
    assert newest[1] == pinsage_jax.__version__.removesuffix(".dev0")
    assert (newest[2] == "(unreleased)") == development
    last = released[0] if development else newest
    assert re.fullmatch(r"- \d{4}-\d\d-\d\d", last[2])
    cited = f'version: {last[1]}\ndate-released: "{last[2][2:]}"\n'
    assert cited in text_of("CITATION.cff")


def test_python_versions_agree():
    classified = [
        entry.rpartition(" ")[2]
        for entry in project()["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", entry)
    ]
    low, high = re.fullmatch(
        r">=3\.(\d+),<3\.(\d+)", project()["project"]["requires-python"]
    ).groups()
    assert classified == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert f"Python {', '.join(classified[:-1])} or {classified[-1]}" in text_of("README.md")


def test_the_package_ships_its_types():
    assert (ROOT / "pinsage_jax" / "py.typed").exists()
    assert "py.typed" in project()["tool"]["setuptools"]["package-data"]["pinsage_jax"]
