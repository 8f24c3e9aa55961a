"""The documents as a site (extra `docs`): whole, without broken links, and loading nothing.

Sphinx itself fails for links between pages that lead nowhere; what it made is read here.
"""

import html.parser
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import browser as browsers
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site" / "conf.py")
conf = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conf)


def build(root: pathlib.Path, out: pathlib.Path) -> subprocess.CompletedProcess:
    """Builds the site of a folder as docs/README.md says; warnings are errors."""
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", root / "docs" / "site", root, out]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Page(html.parser.HTMLParser):
    """What a page links to, what a browser loads for it, and the anchors it has."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link":
            # Not the addresses of other pages, which are followed only if a reader asks.
            if found.get("rel") not in ("next", "prev", "index", "search"):
                self.loads.append(found["href"])
        else:
            self.loads += [found[name] for name in ("src", "srcset", "data") if found.get(name)]
        self.loads += re.findall(r"url\(['\"]?([^)'\"]*)", found.get("style") or "")


def from_elsewhere(addresses) -> list[str]:
    """Addresses that are not of files of the site."""
    return [found for found in addresses if re.match(r"(?!data:)(\w+:|//)", found)]


def test_the_reader_of_pages_finds_what_is_loaded():
    page = Page(
        '<link rel="stylesheet" href="https://a.org/x.css"><link rel="next" href="b.html">'
        '<script src="//c.org/x.js"></script><img src="data:image/png;base64,AA">'
        '<a href="d#e" id=f><p style="background: url(http://g.org/h.png)">'
        '<iframe src="i.html"></iframe>'
    )
    assert page.loads == [
        *("https://a.org/x.css", "//c.org/x.js", "data:image/png;base64,AA"),
        *("http://g.org/h.png", "i.html"),
    ]
    assert from_elsewhere(page.loads) == [page.loads[0], page.loads[1], page.loads[3]]
    assert page.links == ["d#e"] and "f" in page.ids


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    loads = {load for path in pages for load in Page(path.read_text(encoding="utf-8")).loads}
    assert len(loads) > 5 and from_elsewhere(loads) == []
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert from_elsewhere(re.findall(r"url\(\s*['\"]?([^)'\"]*)", text)) == [], path
        assert "@import" not in text, path


def test_every_link_inside_the_site_leads_to_a_place(site):
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    seen = 0
    for path, page in pages.items():
        for link in {*page.links, *page.loads}:
            if re.match(r"\w+:", link):
                continue
            name, _, anchor = link.partition("#")
            name = urllib.parse.unquote(name.partition("?")[0])
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), f"{path.name} links to {link}"
            if anchor and target in pages:
                assert urllib.parse.unquote(anchor) in pages[target].ids, f"{path.name}: {link}"
                seen += 1
    assert seen > 200


def test_the_contents_are_those_of_the_index_of_documents(site):
    groups = conf.contents((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    assert [caption for caption, _ in groups][:3] == ["Start", "Your data", "Lists"]
    names = [name for _, pages in groups for name in pages]
    assert len(set(names)) == len(names)
    home = (site / "index.html").read_text(encoding="utf-8")
    sidebar = re.findall(r'class="toctree-l1[^"]*"><a[^>]*href="([^"]*)\.html"', home)
    assert sidebar == names
    written = {str(path.relative_to(site))[:-5] for path in site.rglob("*.html")}
    assert written == {*names, "README", "docs/README", "index", "genindex", "search"}


def test_flags_keep_their_hyphens(site):
    for name in ("docs/flags", "docs/your_data", "README"):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert re.search(r"--\w", text) and not re.search(r"[\u2013\u2014]\w", text)


def test_a_notebook_is_a_page(site):
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"text": ["2\n"]}]},
        {"cell_type": "code", "source": ["x = 3"], "outputs": []},
    ]
    assert conf.notebook_page({"cells": cells}) == (
        "# A\nb\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n```python\nx = 3\n```\n"
    )
    for path in (ROOT / "docs" / "tutorials").glob("*.ipynb"):
        page = (site / "docs" / "tutorials" / f"{path.stem}.html").read_text(encoding="utf-8")
        code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert page.count("highlight-python") == len(code)


def test_broken_links_are_errors(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    (tmp_path / "docs" / "README.md").write_text("# D\n\n## G\n\n| [a](a.md) | a |\n")
    (tmp_path / "docs" / "a.md").write_text("# Some page\n")
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Top\n\nSee [this](docs/a.md#some-page), [that](docs/a.md), [here](#top).\n"
    )
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    broken = ("docs/none.md", "docs/a.md#none", "#nowhere")
    readme.write_text("# Top\n\n" + "".join(f"- [this]({link})\n" for link in broken))
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    for number in range(3):
        assert f"README.md:{3 + number}: WARNING" in done.stderr


@pytest.mark.browser
def test_the_search_runs_from_files_without_a_network(site, browser):
    page = browser.new_page(viewport=browsers.WIDE)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto((site / "index.html").as_uri())
    page.locator("input[name=q]").first.fill("popularity_weight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results li a", has_text="Flags by topic").first.click()
    page.wait_for_selector("h1:has-text('Flags by topic')")
    assert errors == []
    assert all(url.startswith("file:") for url in requests) and len(requests) > 5


@pytest.mark.browser
def test_pages_with_wide_tables_are_as_wide_as_the_window(site, browser):
    for viewport in (browsers.WIDE, browsers.PHONE):
        page = browser.new_page(viewport=viewport)
        for name in ("index", "BUILD_NOTES", "docs/flags"):
            page.goto((site / f"{name}.html").as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= viewport["width"], name


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_break_no_rule_of_accessibility(site, browser, scheme):
    pytest.importorskip("axe_playwright_python")
    for viewport in (browsers.WIDE, browsers.PHONE):
        page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        for name in ("index", "docs/python"):
            page.goto((site / f"{name}.html").as_uri())
            assert browsers.violations(page) == [], name
