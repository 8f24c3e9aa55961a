"""A headless Chromium for tests and measurements: CHROMIUM in the environment, or `chromium`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

# The sandbox needs rights that a container's root does not have.
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def executable() -> str:
    """Path of the browser; a RuntimeError says what to install."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        raise RuntimeError(
            "There is no browser: install Debian's chromium, or name one in the environment "
            "variable CHROMIUM."
        )
    return found


@contextlib.contextmanager
def launched() -> Iterator:
    """A playwright Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def violations(page) -> list[str]:
    """What axe-core finds inaccessible on an open page: rule, element and what is wrong."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 5, "axe-core did not run"
    return [
        f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
