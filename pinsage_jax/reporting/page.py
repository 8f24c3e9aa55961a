"""Builds HTML from plain text, which is always escaped.

Every function escapes its arguments unless they are `Html`, which only these functions and
the charts create.  Text of the catalog (ids, titles, kinds, paths) can therefore be passed
anywhere.  The page of `document` needs neither scripts nor the network, and its content
security policy forbids both; the page of explorer.py has a script.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

_VOID = ("meta",)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# Shared by all pages: colors for light and dark mode, and fonts.
BASE_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #57606a; --paper: #ffffff;
  --line: #d0d7de; --panel: #f6f8fa; --link: #0b5cad; --better: #116329; --worse: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --quiet: #a3abb5;
  --paper: #14171a; --line: #3a424b; --panel: #1d2126; --link: #7ab8ff; --better: #56d364;
  --worse: #ff9492; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
"""
_STYLE = """
header, .layout, footer { max-width: 86rem; margin: 0 auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 1.2rem 0 0.2rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }
main > section:first-child h2 { margin-top: 0.6rem; border-top: 0; padding-top: 0; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0.4rem; }
section, [id^="term-"] { scroll-margin-top: 3.2rem; }
h4 { font-size: 0.95rem; margin: 0 0 0.3rem; }
h1, h2, h3, h4, p, li, td, th, dd { overflow-wrap: anywhere; }
main p, .note { max-width: 46rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
/* The contents stay in view: a bar at the top, or a column beside a wide page. */
nav { position: sticky; top: 0; z-index: 2; margin: 0 -1rem; padding: 0 1rem;
  background: var(--paper); border-bottom: 1px solid var(--line); overflow-x: auto; }
nav ul { display: flex; gap: 0.2rem 1.2rem; list-style: none; padding: 0; margin: 0.3rem 0; }
nav a { display: inline-block; padding: 0.3rem 0; white-space: nowrap; text-decoration: none; }
nav a:hover { text-decoration: underline; }
@media (min-width: 68rem) {
  .layout { display: grid; grid-template-columns: 12.5rem minmax(0, 1fr); gap: 2.2rem; }
  nav { align-self: start; max-height: 100vh; margin: 0; padding: 0.6rem 0; border: 0;
    overflow-y: auto; }
  nav ul { display: block; }
  nav li { border-left: 2px solid var(--line); padding-left: 0.8rem; }
  nav a { white-space: normal; }
  section, [id^="term-"] { scroll-margin-top: 0.5rem; } }
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
.figures { display: grid; gap: 1.4rem 2rem; grid-template-columns: minmax(0, 1fr);
  margin: 0.6rem 0 1rem; }
.figures > * { max-width: 35rem; min-width: 0; }
@media (min-width: 52rem) { .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 0.95rem; }
figcaption small { font-size: 0.85rem; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round;
  stroke-linecap: butt; }
figure svg text { font-family: inherit !important; }
.cards { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
.cards > div { background: var(--panel); border-radius: 0.4rem; border-left: 0.3rem solid
  var(--quiet); padding: 0.8rem 1rem; min-width: 0; }
.cards > .better { border-color: var(--better); }
.cards > .worse { border-color: var(--worse); }
.cards h3 { margin: 0; }
.cards p { margin: 0.4rem 0 0; }
.cards .word { font-size: 1.35rem; font-weight: 600; margin: 0.1rem 0 0; }
.better .word { color: var(--better); }
.worse .word { color: var(--worse); }
dl { margin: 0.6rem 0; }
.terms > div { break-inside: avoid; }
@media (min-width: 52rem) { .terms { columns: 2; column-gap: 2rem; } }
dt { font-weight: 600; }
dd { margin: 0 0 0.6rem; max-width: 46rem; }
a.term { color: inherit; text-decoration: underline dotted; text-underline-offset: 0.15em; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
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
@media print { nav { display: none; } .layout { display: block; } .wide { overflow: visible; } }
"""


class Html(str):
    """Markup that is safe to insert without escaping."""


def text(value: object) -> Html:
    """`value` as markup: escaped and on one line, unless it is Html already.

    Control characters, which HTML forbids, become U+FFFD; what UTF-8 cannot encode becomes ?.
    """
    if isinstance(value, Html):
        return value
    line = re.sub(r"\s+", " ", str(value))
    line = line.encode("utf-8", "replace").decode("utf-8")
    characters = ("\ufffd" if unicodedata.category(char) == "Cc" else char for char in line)
    return Html(html.escape("".join(characters), quote=True))


def join(parts: Iterable[object], between: object = "") -> Html:
    """Concatenates the parts, with `between` as separator."""
    return Html(text(between).join(text(part) for part in parts))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """An element; an attribute named `class_` or `aria_label` becomes class or aria-label."""
    written = []
    for name, value in attributes.items():
        written.append(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"')
    opening = f"<{tag}{''.join(written)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(children)}</{tag}>")


def paragraph(*children: object) -> Html:
    """A paragraph of text."""
    return element("p", *children)


def note(*children: object) -> Html:
    """A paragraph in small print, for definitions, limits and missing data."""
    return element("p", *children, class_="note")


def user_text(value: object, max_length: int = 160) -> Html:
    """Text of the catalog: truncated, and isolated so that right-to-left text reorders no other."""
    line = " ".join(str(value).split())
    if len(line) > max_length:
        line = line[: max_length - 3] + "..."
    return element("bdi", line)


def table(
    caption: object,
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numbers: bool = False,
    main: int | None = None,
) -> Html:
    """A table whose first column names the rows; if it is too wide, it scrolls horizontally.

    Args:
      caption: title of the table.
      head: titles of the columns.
      rows: cells of each row.
      numbers: whether the other columns are numbers, right-aligned and on one line.
      main: index of a row to highlight.
    """
    body = []
    for index, row in enumerate(rows):
        cells = [element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])]
        body.append(element("tr", *cells, **({"class_": "main"} if index == main else {})))
    heading = element("tr", *(element("th", cell, scope="col") for cell in head))
    content = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", heading),
        element("tbody", *body),
        **({"class_": "numbers"} if numbers else {}),
    )
    label = re.sub(r"<[^>]*>", " ", text(caption))
    # Only an element that can have the focus can be scrolled by keyboard.
    attributes = {"class_": "wide", "role": "region", "tabindex": "0", "aria_label": Html(label)}
    return element("div", content, **attributes)


def minus(numbers: str) -> str:
    """Replaces hyphens by minus signs, which screen readers read as such."""
    return numbers.replace("-", "\u2212")


def with_interval(value: str, small_print: str = "") -> Html:
    """A number and, in small print below it, its interval."""
    return join((value, element("small", small_print) if small_print else ""))


def figure(svg: Html, title: object, subtitle: object = "") -> Html:
    """A chart below its title."""
    caption = element("figcaption", title, element("small", subtitle) if subtitle else "")
    return element("figure", caption, svg)


def figures(*parts: Html) -> Html:
    """Charts, and tables that belong to them: two beside each other where there is room."""
    return element("div", *(element("div", part) for part in parts), class_="figures")


def details(summary: object, *children: object) -> Html:
    """Content that is collapsed until its summary is clicked."""
    return element("details", element("summary", summary), *children)


def section(name: str, title: str, *children: object) -> Html:
    """A section of the page; `document` links to it as #name."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def document(
    title: str, lead: object, sections: Sequence[tuple[str, str, Html]], footer: object
) -> str:
    """A page with a table of contents that stays in view.

    Args:
      title: title of the page.
      lead: content below the title.
      sections: (name, title, content) of each section.
      footer: content at the end.
    """
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body = element(
        "body",
        element("header", element("h1", title), lead),
        element(
            "div",
            element("nav", element("ul", *links), aria_label="Sections"),
            element("main", *(section(*part) for part in sections)),
            class_="layout",
        ),
        element("footer", footer),
    )
    return html_file(title, _POLICY, BASE_STYLE + _STYLE, body)


def html_file(title: str, policy: str, style: str, body: Html) -> str:
    """The text of an HTML file.

    Args:
      title: title of the page.
      policy: its content security policy.
      style: its style sheet.
      body: its body element.
    """
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
    root = element("html", head, "", body, lang="en")
    return f"<!DOCTYPE html>\n{root}\n"
