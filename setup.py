"""What pyproject.toml cannot say of the build; everything else is there.

The wheel gets the flagfiles of experiments/, which stay where they are, as package data for
`pinsage-jax --example=NAME`; and its description is README.md with absolute links.  They lead to
the URL `Repository` of pyproject.toml.  Without one, links into the repository keep their text,
and pictures are left out.
"""

import pathlib
import re
import shutil
import tomllib

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent
# Of a link into the repository.
_PATH = r"(?!https?://|mailto:)[^)\s]+"


class BuildWithFlagfiles(build_py):
    """Copies experiments/*.flags into the package that is built."""

    def run(self) -> None:
        super().run()
        # An editable installation reads them from the checkout.
        if not self.editable_mode:
            folder = pathlib.Path(self.build_lib) / "pinsage_jax" / "experiments"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for path in sorted((ROOT / "experiments").glob("*.flags")):
                shutil.copy(path, folder)


def description(readme: str, repository: str | None) -> str:
    """The text of a README with absolute links, or without those that were relative."""
    if repository:
        # Addresses of files and of pictures, at the usual hosts of repositories.
        readme = re.sub(rf"(!\[[^]]*\]\()({_PATH}\))", rf"\1{repository}/raw/HEAD/\2", readme)
        return re.sub(rf"(\]\()({_PATH}\))", rf"\1{repository}/blob/HEAD/\2", readme)
    # With its line, and with the heading of a table of pictures.
    pictures = rf"^(\|.*\|\n\|[-|]*\|\n)?.*!\[[^]]*\]\({_PATH}\).*\n+"
    readme = re.sub(pictures, "", readme, flags=re.MULTILINE)
    return re.sub(rf"\[([^]]*)\]\({_PATH}\)", r"\1", readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        cmdclass={"build_py": BuildWithFlagfiles},
        long_description=description(readme, project["urls"].get("Repository")),
        long_description_content_type="text/markdown",
    )
