"""A headless Chromium for tests and measurements: CHROMIUM in the environment, or `chromium`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
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


class Visit:
    """An open page, its errors and its requests; `offline`: the page itself is the only one."""

    def __init__(self, browser, address, viewport=WIDE, touch=False, offline=True, **context):
        self.origin, self.offline = address.split("#")[0], offline
        self.context = browser.new_context(viewport=viewport, has_touch=touch, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page.on("request", self._note)
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        self.page.goto(address)

    def __enter__(self):
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def __exit__(self, kind, *_):
        requests, errors = self.requests, self.errors
        self.context.close()
        if kind is None:
            assert errors == []
            assert all(url.startswith(self.origin) for url in requests), requests
            assert not self.offline or len(requests) == 1, requests

    def _note(self, request):
        # What is in the page itself is no request over a network.
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)
