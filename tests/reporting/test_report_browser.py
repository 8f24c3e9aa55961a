"""The report in a real browser: its layout, accessibility, links, and titles that stay text."""

import contextlib

import browser as browsers
import pytest
from browser import PHONE, WIDE
from hostile_catalog import small_config, small_embeddings, small_prepared

from pinsage_jax.evaluation.evaluate import evaluate
from pinsage_jax.reporting.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    evaluate(small_config(folder), small_prepared(), small_embeddings())
    (folder / "explorer.html").write_text("<!DOCTYPE html><title>explorer</title>")
    write_report(small_config(folder), small_prepared(), small_embeddings(), "explorer.html")
    return folder


@contextlib.contextmanager
def opened(browser, workdir, viewport, scheme="light"):
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    page.goto((workdir / "report.html").as_uri())
    yield page
    context.close()


def test_the_report_is_as_wide_as_the_window(browser, workdir):
    for viewport in (WIDE, PHONE):
        context = browser.new_context(viewport=viewport)
        page = context.new_page()
        requests = []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.goto((workdir / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.locator("figure svg").count() >= 5
        for caption in page.locator("caption > span").all():
            box = caption.bounding_box()
            assert box["x"] + box["width"] <= viewport["width"]
        assert len([url for url in requests if not url.startswith("data:")]) == 1
        context.close()


def test_hostile_titles_are_text_in_the_report(browser, workdir):
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    errors = []
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((workdir / "report.html").as_uri())
    # Handlers of load and mouse events in a title would run now.
    page.mouse.move(300, 300)
    text = page.locator("body").text_content()
    assert "<script>alert(1)</script>" in text and "</style><h1>broken" in text
    assert page.locator("h1").count() == 1
    assert page.locator("script:has-text('alert'), img, iframe, svg[onload]").count() == 0
    handlers = "() => [...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert [name for name in page.evaluate(handlers) if name.startswith("on")] == []
    assert errors == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_inaccessible(browser, workdir, viewport, scheme):
    with opened(browser, workdir, viewport, scheme) as page:
        # What is folded counts, too.
        page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert browsers.violations(page) == []


def test_figures_stand_in_pairs_where_there_is_room(browser, workdir):
    for viewport, columns in ((WIDE, 2), (PHONE, 1)):
        with opened(browser, workdir, viewport) as page:
            boxes = [one.bounding_box() for one in page.locator("#degree figure").all()]
            assert len(boxes) == 2
            assert len({round(box["x"]) for box in boxes}) == columns
            assert len({round(box["y"]) for box in boxes}) == 3 - columns


def test_the_contents_stay_in_view(browser, workdir):
    for viewport in (WIDE, PHONE):
        with opened(browser, workdir, viewport) as page:
            page.locator("nav a", has_text="Projection").click()
            # The heading is in view below the bar of contents, or beside the column.
            title = page.locator("#projection-title").bounding_box()
            contents = page.locator("nav").bounding_box()
            assert 0 <= title["y"] < viewport["height"] and page.evaluate("scrollY") > 1000
            assert 0 <= contents["y"] < 20
            beside = contents["x"] + contents["width"] <= title["x"]
            assert beside == (viewport == WIDE)
            assert beside or contents["y"] + contents["height"] <= title["y"]


def test_small_kinds_open_on_a_click_and_terms_lead_to_the_glossary(browser, workdir):
    with opened(browser, workdir, PHONE) as page:
        folded = page.locator("details", has_text="Kinds with fewer than").first
        chart = folded.locator("figure").first
        assert not chart.is_visible()
        folded.locator("summary").click()
        assert chart.is_visible()
        term = page.locator("#verdict a.term", has_text="paired difference")
        assert "same pairs" in term.get_attribute("title")
        term.click()
        box = page.locator("#term-paired-difference").bounding_box()
        assert 0 <= box["y"] < PHONE["height"]


def test_the_explorer_is_one_click_away(browser, workdir):
    with opened(browser, workdir, WIDE) as page:
        page.locator("header a", has_text="Explore").click()
        page.wait_for_url("**/explorer.html")
        page.go_back()
        page.locator("#examples h3 a").first.click()
        page.wait_for_url("**/explorer.html#*")
