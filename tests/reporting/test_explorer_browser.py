"""The explorer and the report in a real browser: search, click through, keyboard, phone.

Every page fails its test when the browser reports an error, and the explorer's when it
asks the network for anything.
"""

import base64
import json
import threading

import browser as browsers
import numpy as np
import pytest
from hostile_world import HOSTILE, ITEMS, small_config, small_embeddings, small_world

from pinsage_jax.evaluation.evaluate import evaluate
from pinsage_jax.reporting import explorer
from pinsage_jax.reporting.report import write_report
from pinsage_jax.reporting.sources import read_source
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.serving import server
from pinsage_jax.serving.app import make_app
from pinsage_jax.serving.service import Service

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    explorer.write_explorer(small_config(folder), small_world(), small_embeddings())
    evaluate(small_config(folder), small_world(), small_embeddings())
    write_report(small_config(folder), small_world(), small_embeddings())
    return folder


class Visit:
    """A page that is open, with what went wrong on it."""

    def __init__(self, browser, address, viewport=WIDE, touch=False, alone=True):
        self.origin, self.alone = address.split("#")[0], alone
        self.context = browser.new_context(viewport=viewport, has_touch=touch)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.wrong, self.asked = [], []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on(
            "console",
            lambda message: self.wrong.append(message.text) if message.type == "error" else None,
        )
        self.page.goto(address)

    def __enter__(self):
        self.page.wait_for_selector("body[data-ready]")
        return self.page

    def __exit__(self, kind, *_):
        asked, wrong = self.asked, self.wrong
        self.context.close()
        if kind is None:
            assert wrong == []
            assert all(url.startswith(self.origin) for url in asked), asked
            assert not self.alone or len(asked) == 1, asked


@pytest.fixture
def visit(browser, workdir):
    def opened(fragment="", **settings):
        return Visit(browser, f"{(workdir / 'explorer.html').as_uri()}{fragment}", **settings)

    return opened


def shown(text: str) -> str:
    """A title or id as the page shows it."""
    line = " ".join(text.split())
    return "".join("\ufffd" if ord(sign) < 32 or 127 <= ord(sign) < 160 else sign for sign in line)


def name_of(row: int) -> str:
    world = small_world()
    title = world.titles[row].as_py()
    return shown(title if title and title.strip() else world.item_ids.ids[row].as_py())


def ids_in(page, column: int) -> list[str]:
    """Ids that a list leads to, in its order."""
    addresses = page.locator(f"#lists > div:nth-child({column}) a").evaluate_all(
        "links => links.map((link) => decodeURIComponent(link.getAttribute('href').slice(1)))"
    )
    return addresses


def test_search_open_and_click_through(visit):
    ids = small_world().item_ids.ids.to_pylist()
    vectors = small_embeddings()
    near, scores = top_k(vectors, vectors, 10, np.arange(ITEMS))
    with visit() as page:
        page.fill("#words", "17 ")
        option = page.locator("#found li").first
        assert option.locator("bdi").first.text_content() == name_of(17)
        option.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[17])
        assert page.locator("#name").text_content() == name_of(17)
        assert ids_in(page, 1) == [ids[row] for row in near[17]]
        first = page.locator("#lists > div:nth-child(1) li small").first.text_content()
        assert first.startswith(f"{scores[17, 0]:.3f}")
        # Through to the third neighbor, and from it to its own first.
        page.locator("#lists > div:nth-child(1) a").nth(2).click()
        third = near[17, 2]
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[third])
        assert page.locator("#name").text_content() == name_of(third)
        page.locator("#lists > div:nth-child(1) a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[near[third, 0]])
        # Back, as in any page, and an address that can be kept.
        page.go_back()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[third])
        address = page.evaluate("location.hash")
    with visit(address) as page:
        assert page.locator("#name").text_content() == name_of(third)


def test_search_finds_what_a_plain_search_finds(visit):
    world = small_world()
    titles = [title or "" for title in world.titles.to_pylist()]
    ids = world.item_ids.ids.to_pylist()
    degree = world.graph.degree()[:ITEMS]
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
            page.fill("#words", words)
            page.wait_for_function(
                "count => document.querySelectorAll('#found li').length === count",
                arg=len(wanted),
            )
            found = page.locator("#found li > bdi").all_text_contents()
            assert found == wanted, words
            count = page.locator("#count").text_content()
            assert count.startswith("Nothing" if not ranked else f"{len(ranked)} found")


def test_by_keyboard_alone(visit):
    with visit() as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "words"
        page.keyboard.type("2 ")
        page.wait_for_selector("#found li")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        chosen = page.locator('#found li[aria-selected="true"]')
        active = page.get_attribute("#words", "aria-activedescendant")
        assert chosen.count() == 1 and chosen.get_attribute("id") == active == "found-0"
        wanted = chosen.locator("bdi").first.text_content()
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.activeElement.id === 'name'")
        assert page.locator("#name").text_content() == wanted
        assert page.locator("#found").is_hidden()
        # From the heading the next stop is the first neighbor.
        page.keyboard.press("Tab")
        link = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "text => document.getElementById('name').textContent === text", arg=link
        )
        page.keyboard.press("/")
        page.keyboard.type("1")
        page.wait_for_selector("#found li")
        page.keyboard.press("Escape")
        assert page.locator("#found").is_hidden()


def test_hostile_titles_are_text(visit):
    with (opened := visit()) as page:
        for row in range(len(HOSTILE)):
            page.evaluate("id => { location.hash = '#' + encodeURIComponent(id) }",
                          small_world().item_ids.ids[row].as_py())  # fmt: skip
            page.wait_for_function(
                "text => document.getElementById('name').textContent === text", arg=name_of(row)
            )
        assert page.locator("h1").count() == 1 and page.locator("img, svg, iframe").count() == 0
        assert page.locator("script").count() == 2
        # Not even a script that somebody manages to add would run.
        page.evaluate(
            "() => { const made = document.createElement('script');"
            "made.textContent = 'window.ran = true'; document.body.append(made) }"
        )
        assert page.evaluate("window.ran") is None
        assert "Content Security Policy" in opened.wrong.pop()


def test_an_address_of_no_item_is_told(visit):
    with visit("#%E0%A4%A") as page:
        assert page.locator("#name").text_content() == "There is no such item"
        assert "%E0%A4%A" in page.locator("#details").text_content()
        page.click("#any")
        page.wait_for_selector("#lists li")


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
        # Where the item shown is, found by what the page says is under the pointer.
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
        assert page.locator("#under").text_content() == name_of(row)
        page.mouse.click(left, top)
        wanted = small_world().item_ids.ids[row].as_py()
        page.wait_for_function("id => document.body.dataset.item === id", arg=wanted)
        before = canvas.screenshot()
        page.click("#closer")
        page.wait_for_timeout(100)
        assert canvas.screenshot() != before
        # The item shown is now in the middle; dragging moves it.
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        assert page.locator("#under").text_content() == name_of(row)
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1] + 40, steps=3)
        page.mouse.up()
        assert page.evaluate("document.body.dataset.item") == wanted
        page.mouse.move(middle[0] + 60, middle[1] + 40)
        assert page.locator("#under").text_content() == name_of(row)


def test_on_a_phone(visit):
    with visit(viewport=PHONE, touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.locator("#words").tap()
        page.keyboard.type("5")
        page.wait_for_selector("#found li")
        box = page.locator("#found").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        page.locator("#found li").first.tap()
        page.wait_for_function("() => document.activeElement.id === 'name'")
        name = page.locator("#name").text_content()
        page.locator("#lists a").first.tap()
        page.wait_for_function(
            "text => document.getElementById('name').textContent !== text", arg=name
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # Fingers hit what is at least 24 pixels high.
        heights = page.locator("button, input, #lists a").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().height)"
        )
        assert min(heights) >= 24


@pytest.fixture
def served(tmp_path):
    """The address of a server."""
    source = read_source(small_config(tmp_path), ITEMS)
    service = Service(source, small_world(), small_embeddings(), None, None)
    stop, listener = threading.Event(), server.bound("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    worker = threading.Thread(target=server.run, args=(make_app(service, 2), listener, stop.is_set))
    worker.start()
    yield address
    stop.set()
    worker.join(60)
    assert not worker.is_alive()


def test_the_served_explorer(browser, served):
    ids = small_world().item_ids.ids.to_pylist()
    vectors = small_embeddings()
    near = top_k(vectors, vectors, 10, np.arange(ITEMS))[0]
    with (opened := Visit(browser, served, alone=False)) as page:
        assert page.locator("#map").is_visible()
        page.fill("#words", "17 ")
        page.wait_for_selector("#found li")
        page.keyboard.press("Enter")
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[17])
        assert page.locator("#name").text_content() == name_of(17)
        assert ids_in(page, 1) == [ids[row] for row in near[17]]
        page.locator("#lists > div:nth-child(1) a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=ids[near[17, 0]])
        page.evaluate("location.hash = '#nobody'")
        page.wait_for_function(
            "() => document.getElementById('name').textContent === 'There is no such item'"
        )
        # What the browser says about an answer of 404.
        assert "404" in opened.wrong.pop()


@pytest.mark.parametrize("bare", ["titles", "edges", "map"])
def test_where_something_is_missing(browser, tmp_path, bare):
    world = small_world(titles=bare != "titles", edges=bare != "edges")
    vectors = np.ones((ITEMS, 6), np.float32) if bare == "map" else small_embeddings()
    explorer.write_explorer(small_config(tmp_path), world, vectors)
    with Visit(browser, (tmp_path / "explorer.html").as_uri()) as page:
        assert page.locator("#lists > div").count() == 3
        assert page.locator("#map").is_visible() == (bare != "map")
        if bare == "edges":
            assert "no walk leaves it" in page.locator("#lists").text_content()
        if bare == "titles":
            assert page.locator("#name").text_content().startswith("id ")


def test_the_report_is_as_wide_as_the_window(browser, workdir):
    for viewport in (WIDE, PHONE):
        context = browser.new_context(viewport=viewport)
        page = context.new_page()
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((workdir / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.locator("figure svg").count() >= 5
        for caption in page.locator("caption > span").all():
            box = caption.bounding_box()
            assert box["x"] + box["width"] <= viewport["width"]
        assert len([url for url in asked if not url.startswith("data:")]) == 1
        context.close()


def test_hostile_titles_are_text_in_the_report(browser, workdir):
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    wrong = []
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((workdir / "report.html").as_uri())
    # Whatever a title would do on loading or under the mouse has had its chance.
    page.mouse.move(300, 300)
    text = page.locator("body").text_content()
    assert "<script>alert(1)</script>" in text and "</style><h1>broken" in text
    assert page.locator("h1").count() == 1
    assert page.locator("script:has-text('alert'), img, iframe, svg[onload]").count() == 0
    handlers = "() => [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert [name for name in page.evaluate(handlers) if name.startswith("on")] == []
    assert wrong == []
    context.close()
