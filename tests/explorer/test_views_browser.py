"""What the explorer shows beside neighbors, in a browser: pictures, colors, collections, thumbs."""

import dataclasses
import json
import pathlib
import urllib.parse

import browser as browsers
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from browser import PHONE, Visit
from hostile_catalog import ITEMS, small_config, small_embeddings, small_prepared
from item_tables import with_columns

import pinsage_jax
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.search import ExplorerConfig
from pinsage_jax.data.pairs_table import read_pairs
from pinsage_jax.data.tables import open_table
from pinsage_jax.explorer import explorer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.graph.csr import Graph

pytestmark = pytest.mark.browser

HOST = "https://img.example.com"
ROUTES = ("", "#/collection/c1", "#/review/worst", "#/review/new", "#/thumbs")
IDS = small_prepared().item_ids.ids.to_pylist()


def write_page(folder: pathlib.Path, pictures: list, hosts: str = "") -> str:
    """The address of the page of a catalog with columns and pictures."""
    PIL.Image.new("RGB", (50, 50), "#204060").save(folder / "a.png")
    titles = [f"Crème brûlée {row}" if row < 12 else f"neural lamp {row}" for row in range(ITEMS)]
    prepared = with_columns(
        dataclasses.replace(small_prepared(), titles=pa.array(titles, pa.large_string())),
        brand=[None if row == 5 else f"<b>{row % 4}" for row in range(ITEMS)],
        price=np.linspace(1, 9, ITEMS).tolist(),
        picture=[*pictures, *[None] * (ITEMS - len(pictures))],
    )
    config = dataclasses.replace(
        small_config(folder),
        data=DataConfig(data_dir=str(folder)),
        explorer=ExplorerConfig(
            show_columns="brand,price", image_column="picture", image_hosts=hosts
        ),
    )
    path = explorer.write_explorer(config, prepared, small_embeddings())
    assert path is not None
    return path.as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page that loads nothing."""
    return write_page(tmp_path_factory.mktemp("run"), ["a.png"] * 9)


def item_address(row: int) -> str:
    return f"#{urllib.parse.quote(IDS[row], safe='')}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_breaks_a_rule_of_accessibility(browser, address, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for viewport in (browsers.WIDE, PHONE):
        for route in ROUTES:
            with Visit(browser, address + route, viewport, color_scheme=scheme) as page:
                if not route:
                    page.locator(".thumbs button").first.click()
                    page.locator("#collections summary").click()
                found = axe.Axe().run(page).response
                assert len(found["passes"]) > 15
                assert [rule["id"] for rule in found["violations"]] == [], route
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= viewport["width"]


def test_columns_stand_beside_items(browser, address):
    with Visit(browser, address + item_address(7)) as page:
        shown = page.locator("#columns > div").all_text_contents()
        assert shown[0] == "brand<b>3" and shown[1].startswith("price3.43")
        assert "<b>" in page.locator("#neighbors li small").first.text_content()
        page.evaluate("address => { location.hash = address }", item_address(5))
        page.wait_for_function("id => document.body.dataset.item === id", arg=IDS[5])
        assert page.locator("#columns > div").all_text_contents()[0].startswith("price")
        assert page.locator("#columns b").count() == 0


def test_pictures_of_the_named_host_and_inside_the_page_alone(browser, tmp_path):
    pictures = ["a.png", f"{HOST}/1.png", "https://other.example.com/2.png"]
    address = write_page(tmp_path, pictures, "img.example.com")
    for row, wanted in ((0, "data:image/webp"), (1, f"{HOST}/1.png"), (2, None)):
        opened = Visit(browser, "about:blank", offline=False)
        opened.origin = ""
        opened.context.route(
            f"{HOST}/**",
            lambda route: route.fulfill(content_type="image/svg+xml", body=(
                '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')),
        )  # fmt: skip
        opened.page.goto(address + item_address(row))
        with opened as page:
            pictures = page.locator("#picture img")
            assert pictures.count() == (wanted is not None)
            if wanted:
                assert pictures.get_attribute("src").startswith(wanted)
                page.wait_for_function("document.querySelector('#picture img').naturalWidth > 0")
            assert not any("other.example.com" in url for url in opened.requests)
            # The policy keeps other hosts out whatever the script does.
            page.evaluate(
                "() => { const made = new Image(); made.src = 'https://other.example.com/x.png';"
                "document.body.append(made) }"
            )
            page.wait_for_timeout(100)
            assert "Content Security Policy" in opened.errors.pop()


def test_the_map_is_colored_by_any_column(browser, address):
    with Visit(browser, address) as page:
        names = page.locator("#color-by option").all_text_contents()
        assert names[:3] == ["number of collections", "brand", "price"]
        canvas = page.locator("#canvas")
        before = canvas.screenshot()
        page.select_option("#color-by", label="brand")
        page.wait_for_timeout(100)
        legend = page.locator("#legend > span").all_text_contents()
        assert sorted(legend) == ["<b>0", "<b>1", "<b>2", "<b>3", "no value"]
        by_brand = canvas.screenshot()
        page.select_option("#color-by", label="price")
        page.wait_for_timeout(100)
        assert page.locator("#legend .ends span").all_text_contents()[1] == "5"
        assert len({before, by_brand, canvas.screenshot()}) == 3
        assert "nearest on the map" in page.locator("#map-note").text_content()


def test_the_tooltip_is_at_the_pointer_and_inside_the_map(browser, address):
    with Visit(browser, address) as page:
        canvas = page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        box, tooltip = canvas.bounding_box(), page.locator("#tooltip")
        assert tooltip.is_hidden()
        seen = 0
        for left in range(0, int(box["width"]), 60):
            for top in (box["height"] * share for share in (0.2, 0.5, 0.8)):
                x, y = box["x"] + left, box["y"] + top
                page.mouse.move(x, y)
                if tooltip.is_hidden():
                    continue
                seen += 1
                found = tooltip.bounding_box()
                assert box["x"] <= found["x"] and found["y"] >= box["y"]
                assert found["x"] + found["width"] <= box["x"] + box["width"] + 1
                near = (found["x"] - 20 <= x <= found["x"] + found["width"] + 20,
                        found["y"] - 20 <= y <= found["y"] + found["height"] + 20)  # fmt: skip
                assert all(near)
        assert seen > 0
        page.mouse.move(5, 5)
        assert tooltip.is_hidden()


def test_search_without_accents_and_with_a_typo(browser, address):
    with Visit(browser, address) as page:
        for typed, count, similar in (
            ("creme brulee", 12, False), ("CRÈME", 12, False), ("nueral", 12, True),
            ("nerual lmap", 12, True), ("lmp", 0, False), ("((((", 0, False),
        ):  # fmt: skip
            page.fill("#search-field", typed)
            page.wait_for_function(
                "n => document.querySelectorAll('#results li').length === n", arg=min(count, 20)
            )
            message = page.locator("#result-count").text_content()
            assert message.startswith(f"{count} items" if count else "No item"), typed
            assert ("similar" in message) == similar


def test_an_item_leads_to_its_collections_and_they_to_their_items(browser, address):
    graph: Graph = small_prepared().graph
    row = int(np.argmax(graph.degree()[:ITEMS]))
    holders = [f"c{node - ITEMS}" for node in graph.neighbors(row)]
    with Visit(browser, address + item_address(row)) as page:
        page.locator("#collections summary").click()
        assert page.locator("#collections a").all_text_contents() == holders
        page.locator("#collections a").first.click()
        page.wait_for_function(
            "name => document.getElementById('item-title').textContent === `Collection ${name}`",
            arg=holders[0],
        )
        members = graph.neighbors(ITEMS + int(holders[0][1:]))
        links = page.locator("#neighbors a").evaluate_all(
            "links => links.map((link) => decodeURIComponent(link.getAttribute('href').slice(1)))"
        )
        assert links == [IDS[member] for member in members]
        page.locator("#neighbors a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=IDS[members[0]])
    with Visit(browser, address + "#/collection/nobody") as page:
        assert page.locator("#item-title").text_content() == "Collection not found"


def test_the_lists_for_review(browser, address):
    with Visit(browser, address) as page:
        page.get_by_role("link", name="Lists for review").click()
        page.wait_for_selector(".tabs a")
        tabs = page.locator(".tabs a").all_text_contents()
        assert tabs == ["Worst ranked", "Far from all", "New", "Most listed"]
        assert "target ranks" in page.locator("#neighbors li small").first.text_content()
        page.locator(".tabs a", has_text="New").click()
        page.wait_for_function("() => document.querySelectorAll('#neighbors li').length === 4")
        page.locator("#neighbors a").first.click()
        page.wait_for_function("id => document.body.dataset.item === id", arg=IDS[3])
        # A new item has no walk: the method is a line, and its column is not there.
        assert page.locator("#neighbors > div").count() == 2
        assert "Walk: The item has no edges" in page.locator("#folded").text_content()


def saved(page, label: str, folder: pathlib.Path) -> pathlib.Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def give_thumbs(page) -> tuple[str, list[str]]:
    """Thumbs up for the first and third neighbor, down for the second; the item and those."""
    targets = page.locator("#neighbors > div:nth-child(1) a").evaluate_all(
        "links => links.map((link) => decodeURIComponent(link.getAttribute('href').slice(1)))"
    )[:3]
    for place, label in enumerate(("Thumbs up", "Thumbs down", "Thumbs up")):
        entry = page.locator("#neighbors > div:nth-child(1) li").nth(place)
        chosen = entry.get_by_role("button", name=label)
        chosen.click()
        assert chosen.get_attribute("aria-pressed") == "true"
    return page.evaluate("document.body.dataset.item"), targets


def test_thumbs_of_hostile_ids_are_read_as_evaluation_pairs(browser, address, tmp_path):
    # It is loaded twice.
    with Visit(browser, address + item_address(6), offline=False, accept_downloads=True) as page:
        # The other thumb takes the place of the first, and a second click takes it back.
        entry = page.locator("#neighbors > div:nth-child(1) li").first
        for label in ("Thumbs down", "Thumbs up", "Thumbs up"):
            entry.get_by_role("button", name=label).click()
        assert page.locator("#thumbs-link").text_content() == "Thumbs (0)"
        query, targets = give_thumbs(page)
        assert page.locator("#thumbs-link").text_content() == "Thumbs (3)"
        page.reload()
        page.wait_for_selector("body[data-ready]")
        page.locator("#thumbs-link").click()
        page.wait_for_selector("#neighbors li")
        files = [saved(page, f"Save thumbs {way}", tmp_path) for way in ("up", "down")]
        both = json.loads(saved(page, "Save both", tmp_path).read_text(encoding="utf-8"))
        page.get_by_role("button", name="Remove").first.click()
        assert page.locator("#thumbs-link").text_content() == "Thumbs (2)"
    assert [path.name for path in files] == ["thumbs_up.csv", "thumbs_down.csv"]
    prepared, found = small_prepared(), []
    for path in files:
        table = open_table(path, "eval_pairs", DataConfig())
        pairs = read_pairs(table, prepared.item_ids, prepared.graph.degree())
        names = [[IDS[row] for row in pair] for pair in pairs.pairs]
        found += [[*pair, str(kind)] for pair, kind in zip(names, pairs.kinds)]
    up, down = (
        [[query, targets[place], "thumbs_up"] for place in (0, 2)],
        [[query, targets[1], "thumbs_down"]],
    )
    assert found == [*up, *down]
    assert list(both) == ["query_id", "target_id", "kind"]
    assert sorted(zip(*both.values())) == sorted(map(tuple, found))


def test_an_evaluation_takes_the_saved_thumbs(browser, trained, tmp_path):
    prepared = open_prepared(trained.workdir)
    config = dataclasses.replace(trained, workdir=str(tmp_path))
    path = explorer.write_explorer(config, prepared, load_embeddings(trained.workdir, prepared))
    with Visit(browser, path.as_uri(), accept_downloads=True) as page:
        give_thumbs(page)
        page.locator("#thumbs-link").click()
        page.wait_for_selector("#neighbors li")
        table = saved(page, "Save thumbs up", tmp_path)
        both = json.loads(saved(page, "Save both", tmp_path).read_text(encoding="utf-8"))
    model = pinsage_jax.PinSage.load(trained.workdir)
    scores = model.evaluate(table)
    assert scores["pairs"] == 2
    # They are the first and the third neighbor.
    assert scores["methods"]["pinsage"]["overall"]["all"]["metrics"]["hit@10"]["value"] == 1.0
    assert set(model.evaluate(both)["methods"]["pinsage"]["by_kind"]) == {
        "thumbs_up",
        "thumbs_down",
    }
