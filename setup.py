"""What pyproject.toml cannot say of the build; everything else is there.

The wheel gets the flagfiles of experiments/, which stay where they are, as package data for
`pinsage-jax --example=NAME`; and its description is README.md without what only a checkout
can show: links into the repository keep their text, and pictures are left out.
"""

import pathlib
import re
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent
_RELATIVE = r"\((?!https?://|mailto:)[^)\s]+\)"


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


def description(readme: str) -> str:
    """The text of a README without pictures and links of relative paths."""
    readme = re.sub(rf"^!\[[^]]*\]{_RELATIVE}\n+", "", readme, flags=re.MULTILINE)
    return re.sub(rf"\[([^]]*)\]{_RELATIVE}", r"\1", readme)


if __name__ == "__main__":
    setup(
        cmdclass={"build_py": BuildWithFlagfiles},
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
