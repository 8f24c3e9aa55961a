"""What is built and published: flagfiles in the wheel, its description, its extras."""

import importlib.util
import pathlib
import re
import tomllib

import pytest
from setuptools.dist import Distribution

from pinsage_jax.core import flagfiles

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def build():
    """The module setup.py, without running it."""
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("editable", [False, True])
def test_the_build_copies_the_flagfiles_into_the_package(build, tmp_path, editable, monkeypatch):
    command = build.BuildWithFlagfiles(Distribution({"packages": []}))
    command.ensure_finalized()
    command.build_lib, command.editable_mode = str(tmp_path), editable
    command.run()
    built = sorted(tmp_path.rglob("*.flags"))
    source = sorted((ROOT / "experiments").glob("*.flags"))
    assert [p.name for p in built] == ([] if editable else [p.name for p in source])
    if built:
        # What an installed package finds.
        installed = tmp_path / "pinsage_jax"
        folders = (installed / "experiments", tmp_path / "experiments")
        monkeypatch.setattr(flagfiles, "_SHIPPED", folders)
        assert flagfiles.shipped_flagfile("tiny") in built
        assert built[-1].read_bytes() == source[-1].read_bytes()


README = (ROOT / "README.md").read_text()


def test_the_published_description_has_no_relative_link(build):
    home = "https://b.org/p"
    for repository in (None, home):
        text = build.description(README, repository)
        targets = re.findall(r"\]\(([^)]*)\)", text)
        assert [target for target in targets if not target.startswith("https://")] == []
        assert "docs/your_data.md" in text and "# pinsage_jax" in text
    assert "![" in README and "![" not in build.description(README, None)
    # Every file that is linked to exists.
    for kind, path in re.findall(rf"\]\({home}/(blob|raw)/HEAD/([^)#]*)", text):
        assert (ROOT / path).exists() and (kind == "raw") == path.endswith(".png")


@pytest.mark.parametrize(
    "written, without, absolute",
    [
        ("![a](x.png)\n\nSee.", "See.", "![a](https://b.org/raw/HEAD/x.png)\n\nSee."),
        ("[a](d.md#e) [b](https://c.org).", "a [b](https://c.org).",
         "[a](https://b.org/blob/HEAD/d.md#e) [b](https://c.org)."),
        ("Two:\n\n| a | b |\n|---|---|\n| ![a](x.png) | ![b](y.png) |\n\nSee.", "Two:\n\nSee.",
         "Two:\n\n| a | b |\n|---|---|\n| ![a](https://b.org/raw/HEAD/x.png) | "
         "![b](https://b.org/raw/HEAD/y.png) |\n\nSee."),
        ("| a |\n|---|\n| [b](c.md) |\n", "| a |\n|---|\n| b |\n",
         "| a |\n|---|\n| [b](https://b.org/blob/HEAD/c.md) |\n"),
    ],
)  # fmt: skip
def test_links_of_a_description(build, written, without, absolute):
    assert build.description(written, None) == without
    assert build.description(written, "https://b.org") == absolute


def test_the_readme_names_every_extra_of_a_user():
    (table,) = re.findall(r"^## Extras\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row)]
    assert named[-1] == "all" and sorted(named[:-1]) == sorted(extras_of_users())


def extras_of_users() -> set[str]:
    own = {"all", "arena", "docs", "dev", "aot-tpu", "aot-cuda"}
    own |= {"test", "test-browser", "test-spark", "test-stores"}
    return PROJECT["optional-dependencies"].keys() - own


def test_the_extra_all_holds_every_extra_of_a_user():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    # Without PyTorch, of several gigabytes.
    wanted = extras_of_users() - {"text-encoder"}
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == wanted
