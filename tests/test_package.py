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
        assert flagfiles.shipped_flagfile("tiny") == built[-1]
        assert built[-1].read_bytes() == source[-1].read_bytes()


def test_the_published_description_has_no_relative_link(build):
    text = build.description((ROOT / "README.md").read_text())
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "docs/your_data.md" in text and "# pinsage_jax" in text
    made = build.description("![a](docs/x.png)\n\nSee [this](docs/a.md) and [that](https://b.org).")
    assert made == "See this and [that](https://b.org)."


def test_the_extra_all_holds_every_extra_of_a_user():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    others = {"all", "test", "test-browser", "test-stores", "docs", "dev", "aot-tpu", "aot-cuda"}
    assert named == extras.keys() - others
