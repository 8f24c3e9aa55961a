"""The explorer in a real browser: search, links, keyboard, phone.

A test fails if the browser reports an error on the page, or if the page makes any network
request.
"""

import base64
import json
import threading

import numpy as np
import pytest
from browser import PHONE, Visit
from hostile_catalog import HOSTILE, ITEMS, small_config, small_embeddings, small_prepared

from pinsage_jax.explorer import explorer
from pinsage_jax.reporting.sources import read_source
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.serving import server
from pinsage_jax.serving.app import make_app
from pinsage_jax.serving.service import Service

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    explorer.write_explorer(small_config(folder), small_prepared(), small_embeddings())
    return folder


@pytest.fixture
def visit(browser, workdir):
    def opened(fragment="", **settings):
        return Visit(browser, f"{(workdir / 'explorer.html').as_uri()}{fragment}", **settings)

    return opened


def displayed(text: str) -> str:
    """A title or id as the page displays it."""
    line = " ".join(text.split())
    return "".join("\ufffd" if ord(sign) < 32 or 127 <= ord(sign) < 160 else sign for sign in line)


def name_of(row: int) -> str:
    prepared = small_prepared()
    title = prepared.titles[row].as_py()
    return displayed(title if title and title.strip() else prepared.item_ids.ids[row].as_py())


def ids_in(page, column: int) -> list[str]:
    """Ids of the links of a list, in order."""
    addresses = page.locator(f"#neighbors > div:nth-child({column}) a").evaluate_all(
        "links => links.map((link) => decodeURIComponent(link.getAttribute('href').slice(1)))"
    )
    return addresses


def test_search_open_and_click_through(visit):
    ids = small_prepared().item_ids.ids.to_pylist()
    vectors = small_embeddings()
    near, scores = top_k(vectors, vectors, 10, np.arange(ITEMS))
    with visit() as page:
        page.fill("#search-field", "17 ")
        option = page.locator("#results li").first
        assert option.locator("bdi").first.text_content() == name_of(17)
        option.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[17])
        assert page.locator("#item-title").text_content() == name_of(17)
        assert ids_in(page, 1) == [ids[row] for row in near[17]]
        first = page.locator("#neighbors > div:nth-child(1) li small").first.text_content()
        assert first.startswith(f"{scores[17, 0]:.3f}")
        # Click the third neighbor, and then its first neighbor.
        page.locator("#neighbors > div:nth-child(1) a").nth(2).click()
        third = near[17, 2]
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[third])
        assert page.locator("#item-title").text_content() == name_of(third)
        page.locator("#neighbors > div:nth-child(1) a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[near[third, 0]])
        # The browser's Back works, and the address can be saved.
        page.go_back()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[third])
        address = page.evaluate("location.hash")
    with visit(address) as page:
        assert page.locator("#item-title").text_content() == name_of(third)


def test_search_finds_what_a_plain_search_finds(visit):
    prepared = small_prepared()
    titles = [title or "" for title in prepared.titles.to_pylist()]
    ids = prepared.item_ids.ids.to_pylist()
    degree = prepared.graph.degree()[:ITEMS]
    with visit() as page:
        for words in ("1", "SCRIPT", "lines two", "id 3", 'x= "on', "nothing like it", ids[5]):
            whole = words.strip().lower()
            parts = whole.split()
            ranked = []
            for row, (name, title) in enumerate(zip(ids, titles)):
                low, text = name.lower(), title.lower()
                if all(part in low or part in text for part in parts):
                    starts = (low == whole, low.startswith(whole), text.startswith(whole), True)
                    ranked.append((starts.index(True), -degree[row], row))
            wanted = [name_of(row) for *_, row in sorted(ranked)][:20]
            page.fill("#search-field", words)
            page.wait_for_function(
                "count => document.querySelectorAll('#results li').length === count",
                arg=len(wanted),
            )
            found = page.locator("#results li > bdi").all_text_contents()
            assert found == wanted, words
            count = page.locator("#result-count").text_content()
            items = "1 item" if len(ranked) == 1 else f"{len(ranked)} items"
            assert count.startswith("No item found" if not ranked else f"{items} found")


def test_by_keyboard_alone(visit):
    with visit() as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search-field"
        page.keyboard.type("2 ")
        page.wait_for_selector("#results li")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        chosen = page.locator('#results li[aria-selected="true"]')
        active = page.get_attribute("#search-field", "aria-activedescendant")
        assert chosen.count() == 1 and chosen.get_attribute("id") == active == "result-0"
        wanted = chosen.locator("bdi").first.text_content()
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.id === 'item-title'")
        assert page.locator("#item-title").text_content() == wanted
        assert page.locator("#results").is_hidden()
        # From the heading, Tab leads to the first neighbor.
        page.keyboard.press("Tab")
        link = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "text => document.getElementById('item-title').textContent === text", arg=link
        )
        page.keyboard.press("/")
        page.keyboard.type("1")
        page.wait_for_selector("#results li")
        page.keyboard.press("Escape")
        assert page.locator("#results").is_hidden()


def test_hostile_titles_are_text(visit):
    with (opened := visit()) as page:
        for row in range(len(HOSTILE)):
            page.evaluate("id => { location.hash = '#' + encodeURIComponent(id) }",
                          small_prepared().item_ids.ids[row].as_py())  # fmt: skip
            page.wait_for_function(
                "text => document.getElementById('item-title').textContent === text",
                arg=name_of(row),
            )
        assert page.locator("h1").count() == 1 and page.locator("img, svg, iframe").count() == 0
        assert page.locator("script").count() == 2
        # The policy also blocks a script that is added later.
        page.evaluate(
            "() => { const made = document.createElement('script');"
            "made.textContent = 'window.ran = true'; document.body.append(made) }"
        )
        assert page.evaluate("window.ran") is None
        assert "Content Security Policy" in opened.errors.pop()


def test_an_address_of_an_unknown_item(visit):
    with visit("#%E0%A4%A") as page:
        assert page.locator("#item-title").text_content() == "Item not found"
        assert "%E0%A4%A" in page.locator("#details").text_content()
        page.click("#random")
        page.wait_for_selector("#neighbors li")


def test_the_map(visit):
    with visit() as page:
        canvas = page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        painted = (
            "() => { const c = document.getElementById('canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n }"
        )
        assert page.evaluate(painted) > ITEMS
        # The dot of an item, recognized by the name that is displayed under the pointer.
        box = canvas.bounding_box()
        data = json.loads(page.locator("#data").text_content())
        x, y = (
            np.frombuffer(base64.b64decode(data["map"][axis]["data"]), "<u2").astype(float)
            for axis in "xy"
        )
        row = 11
        unit = min(box["width"], box["height"]) * 0.96 / 65535
        left = box["x"] + box["width"] / 2 + (x[row] - 65535 / 2) * unit
        top = box["y"] + box["height"] / 2 - (y[row] - 65535 / 2) * unit
        page.mouse.move(left, top)
        assert page.locator("#tooltip bdi").first.text_content() == name_of(row)
        page.mouse.click(left, top)
        wanted = small_prepared().item_ids.ids[row].as_py()
        page.wait_for_function("id => document.body.dataset.item === id", arg=wanted)
        before = canvas.screenshot()
        page.click("#zoom-in")
        page.wait_for_timeout(100)
        assert canvas.screenshot() != before
        # The current item is now in the center; dragging moves it.
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        assert page.locator("#tooltip bdi").first.text_content() == name_of(row)
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1] + 40, steps=3)
        page.mouse.up()
        assert page.evaluate("document.body.dataset.item") == wanted
        page.mouse.move(middle[0] + 60, middle[1] + 40)
        assert page.locator("#tooltip bdi").first.text_content() == name_of(row)


def test_on_a_phone(visit):
    with visit(viewport=PHONE, touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.locator("#search-field").tap()
        page.keyboard.type("5")
        page.wait_for_selector("#results li")
        box = page.locator("#results").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        page.locator("#results li").first.tap()
        page.wait_for_function("() => document.activeElement.id === 'item-title'")
        name = page.locator("#item-title").text_content()
        page.locator("#neighbors a").first.tap()
        page.wait_for_function(
            "text => document.getElementById('item-title').textContent !== text", arg=name
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # Touch targets must be at least 24 pixels high.
        heights = page.locator("button, input, #neighbors a").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().height)"
        )
        assert min(heights) >= 24


@pytest.fixture
def served(tmp_path):
    """The address of a server."""
    source = read_source(small_config(tmp_path), ITEMS)
    service = Service(source, small_prepared(), small_embeddings(), None, None)
    stop, listener = threading.Event(), server.listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    worker = threading.Thread(target=server.run, args=(make_app(service, 2), listener, stop.is_set))
    worker.start()
    yield address
    stop.set()
    worker.join(60)
    assert not worker.is_alive()


def test_the_served_explorer(browser, served):
    ids = small_prepared().item_ids.ids.to_pylist()
    vectors = small_embeddings()
    near = top_k(vectors, vectors, 10, np.arange(ITEMS))[0]
    with (opened := Visit(browser, served, offline=False)) as page:
        assert page.locator("#map").is_visible()
        page.fill("#search-field", "17 ")
        page.wait_for_selector("#results li")
        page.keyboard.press("Enter")
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[17])
        assert page.locator("#item-title").text_content() == name_of(17)
        assert ids_in(page, 1) == [ids[row] for row in near[17]]
        page.locator("#neighbors > div:nth-child(1) a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[near[17, 0]])
        page.evaluate("location.hash = '#nobody'")
        page.wait_for_function(
            "() => document.getElementById('item-title').textContent === 'Item not found'"
        )
        # The browser reports the response of status 404.
        assert "404" in opened.errors.pop()


@pytest.mark.parametrize("absent", ["titles", "edges", "map"])
def test_where_something_is_missing(browser, tmp_path, absent):
    prepared = small_prepared(titles=absent != "titles", edges=absent != "edges")
    vectors = np.ones((ITEMS, 6), np.float32) if absent == "map" else small_embeddings()
    explorer.write_explorer(small_config(tmp_path), prepared, vectors)
    with Visit(browser, (tmp_path / "explorer.html").as_uri()) as page:
        assert page.locator("#neighbors > div").count() == (2 if absent == "edges" else 3)
        assert page.locator("#map").is_visible() == (absent != "map")
        if absent == "edges":
            assert "no walk leaves it" in page.locator("#folded").text_content()
        if absent == "titles":
            assert page.locator("#item-title").text_content().startswith("id ")
