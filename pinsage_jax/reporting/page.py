"""HTML without a way to forget escaping: plain text in, escaped markup out.

Every function escapes what it is given unless it is `Html`, which only these
functions and the charts make; text of users (ids, titles, kinds, paths) can therefore be passed
anywhere.  The page that `document` makes needs no script and no network, and its
content security policy forbids both; explorer.py makes one with a script.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

_VOID = ("meta",)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# What every page of ours begins with: its colors, by day and by night, and its letters.
BASE_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #57606a; --paper: #ffffff;
  --line: #d0d7de; --panel: #f6f8fa; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #a3abb5;
  --paper: #14171a; --line: #3a424b; --panel: #1d2126; --link: #7ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
"""
_STYLE = """
header, nav, main, footer { max-width: 74rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 1.2rem 0 0.2rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }
h4 { font-size: 0.95rem; margin: 0 0 0.3rem; }
h1, h2, h3, h4, p, li, td, th, dd { overflow-wrap: anywhere; }
p, .note { max-width: 46rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0;
  margin: 0.6rem 0; }
nav a { display: inline-block; padding: 0.3rem 0; }
.note { color: var(--quiet); font-size: 0.9rem; }
.wide { overflow-x: auto; margin: 0.6rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; min-width: 18rem; }
caption > span { display: inline-block; position: sticky; left: 0;
  max-width: min(46rem, calc(100vw - 2rem)); }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.9rem 0.3rem 0;
  border-bottom: 1px solid var(--line); }
.numbers th, .numbers td { overflow-wrap: normal; white-space: nowrap; }
.numbers td, .numbers thead th + th { text-align: right; }
.numbers thead th { vertical-align: bottom; }
.numbers th:first-child { position: sticky; left: 0; background: var(--paper);
  padding-right: 1rem; }
.numbers tr.main > * { font-weight: 600; background: var(--panel); }
small { display: block; color: var(--quiet); font-weight: 400; font-size: 0.8rem; }
.figures { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure.single { max-width: 32rem; }
figcaption { font-weight: 600; font-size: 0.95rem; }
figcaption small { font-size: 0.85rem; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round;
  stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
.lists { display: grid; gap: 0.8rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.lists > div { background: var(--panel); border-radius: 0.4rem; padding: 0.7rem 0.9rem;
  min-width: 0; }
.lists ol { margin: 0; padding-left: 1.5rem; font-size: 0.92rem; }
.lists li { margin-bottom: 0.35rem; }
.lists p { margin: 0; }
@media (max-width: 40rem) { .numbers th:first-child { white-space: normal; max-width: 6.5rem;
    min-width: 5.5rem; padding-right: 0.6rem; } }
summary { cursor: pointer; padding: 0.3rem 0; }
footer { color: var(--quiet); font-size: 0.85rem; padding-bottom: 2rem; }
@media print { nav { display: none; } .wide { overflow: visible; } }
"""


class Html(str):
    """Markup that is safe to insert as it is."""


def text(value: object) -> Html:
    """`value` as markup: escaped, on one line, unless it is Html already.

    Control characters, which HTML forbids, and what UTF-8 cannot hold become U+FFFD.
    """
    if isinstance(value, Html):
        return value
    line = re.sub(r"\s+", " ", str(value))
    line = line.encode("utf-8", "replace").decode("utf-8")
    shown = ("\ufffd" if unicodedata.category(sign) == "Cc" else sign for sign in line)
    return Html(html.escape("".join(shown), quote=True))


def join(parts: Iterable[object], between: object = "") -> Html:
    """The parts one after another."""
    return Html(text(between).join(text(part) for part in parts))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """One element; an attribute `class_` or `aria_label` is written class or aria-label."""
    written = []
    for name, value in attributes.items():
        written.append(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"')
    opening = f"<{tag}{''.join(written)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(children)}</{tag}>")


def paragraph(*children: object) -> Html:
    """A paragraph of text."""
    return element("p", *children)


def note(*children: object) -> Html:
    """A paragraph in small print: definitions, limits, what is missing."""
    return element("p", *children, class_="note")


def foreign(value: object, longest: int = 160) -> Html:
    """Text of users: cut where it is very long, and kept from reordering its surroundings."""
    line = " ".join(str(value).split())
    if len(line) > longest:
        line = line[: longest - 3] + "..."
    return element("bdi", line)


def table(
    caption: object,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numbers: bool = False,
    main: int | None = None,
) -> Html:
    """A table whose first column names the rows; it scrolls by itself where it is too wide.

    Args:
      numbers: the other columns are numbers, aligned to the right and never broken.
      main: a row to set off.
    """
    body = []
    for place, row in enumerate(rows):
        cells = [element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])]
        body.append(element("tr", *cells, **({"class_": "main"} if place == main else {})))
    heading = element("tr", *(element("th", cell, scope="col") for cell in head))
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", heading),
        element("tbody", *body),
        **({"class_": "numbers"} if numbers else {}),
    )
    label = re.sub(r"<[^>]*>", " ", text(caption))
    # Only what can be focused can be scrolled by keyboard.
    return element("div", whole, class_="wide", role="region", tabindex="0", aria_label=Html(label))


def minus(numbers: str) -> str:
    """Numbers with the sign that is read as a minus, not a hyphen."""
    return numbers.replace("-", "\u2212")


def with_interval(value: str, low_to_high: str = "") -> Html:
    """A number and, in small print below, its interval."""
    return join((value, element("small", low_to_high) if low_to_high else ""))


def figure(svg: Html, title: object, about: object = "", *, single: bool = False) -> Html:
    """A picture under its title; `single` keeps one that stands alone from growing large."""
    caption = element("figcaption", title, element("small", about) if about else "")
    return element("figure", caption, svg, **({"class_": "single"} if single else {}))


def figures(*parts: Html) -> Html:
    """Pictures side by side where there is room."""
    return element("div", *parts, class_="figures")


def details(summary: object, *children: object) -> Html:
    """Something to unfold."""
    return element("details", element("summary", summary), *children)


def section(name: str, title: str, *children: object) -> Html:
    """A part of the page that `document` links to as #name."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def document(
    title: str, lead: object, sections: Sequence[tuple[str, str, Html]], footer: object
) -> str:
    """The page: `sections` are (name, title, what is in it)."""
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body = element(
        "body",
        element("header", element("h1", title), lead),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *(section(*part) for part in sections)),
        element("footer", footer),
    )
    return whole_page(title, _POLICY, BASE_STYLE + _STYLE, body)


def whole_page(title: str, policy: str, style: str, body: Html) -> str:
    """A file: `body` is the element of that name, `policy` the content security policy."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(
            '<meta http-equiv="Content-Security-Policy" '
            f'content="{html.escape(policy, quote=False)}">'
        ),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    whole = element("html", head, "", body, lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"
