"""The report in a real browser: its width, and titles that stay text."""

import browser as browsers
import pytest
from hostile_catalog import small_config, small_embeddings, small_prepared

from pinsage_jax.evaluation.evaluate import evaluate
from pinsage_jax.reporting.report import write_report

pytestmark = pytest.mark.browser

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    evaluate(small_config(folder), small_prepared(), small_embeddings())
    write_report(small_config(folder), small_prepared(), small_embeddings())
    return folder


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
