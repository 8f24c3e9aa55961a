"""Charts as inline SVG, drawn by matplotlib, and as files.

Charts are little wider than a phone's screen, so that their text is readable there; a wider
page shows two side by side.  Axes and text have the page's text color; the other colors are
legible on white and on black.  Text of the catalog in a legend is cut and made plain.

matplotlib is an optional dependency, so it is imported when a chart is drawn.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib.util
import io
import math
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pinsage_jax.core.errors import UserError
from pinsage_jax.reporting.page import Html, text

COLORS = (
    "#1f78c8", "#d55e00", "#2a9d6f", "#b8629a", "#8c7a1f", "#8a63d2", "#2c9aa8", "#c0504d",
    "#7f7f7f",
)  # fmt: skip
_DASHES = ("-", "--", "-.", ":")
_INK = "#010203"
_WIDTH = 4.6
_MAX_LABEL, _NARROW_LABEL = 28, 14
# Where the charts that are drawn are also saved; None: nowhere.
_folder: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar(
    "folder", default=None
)
_STYLE = {
    "font.size": 9.0,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "pinsage_jax",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a line chart, or the points of one metric.

    Attributes:
      label: name in the legend.
      x, y: float [n].
      low, high: float [n], bounds of intervals around y.
      fill: whether to shade the area between the line and 0.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    fill: bool = False


@dataclasses.dataclass(frozen=True)
class Points:
    """Points in a plane, each of which may have a name.

    Attributes:
      label: name in the legend.
      x, y: float [n].
      names: text beside each point; empty: none.
      bounds: (x low, x high, y low, y high), each float [n]; None: no intervals.
      line: whether to connect the points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str] = ()
    bounds: Sequence[Sequence[float]] | None = None
    line: bool = False


@contextlib.contextmanager
def saved_in(folder: pathlib.Path) -> Iterator[None]:
    """Also saves every chart of the block in a folder, as NAME.svg on white."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require() -> None:
    """Checks that matplotlib is installed.

    Raises:
      UserError: it is missing; the message says how to install it.
    """
    if not available():
        raise UserError("The report needs matplotlib: pip install 'pinsage-jax[report]'.")


def line_chart(
    name: str,
    alt: str,
    series: Sequence[Series],
    x_label: str,
    *,
    percent: bool = False,
    x_ticks: Sequence[float] | None = None,
    from_zero: bool = True,
    mark: float | None = None,
) -> Html:
    """A line chart.

    Args:
      name: prefix of the ids in the chart; letters, unique on the page.
      alt: description of the chart for screen readers.
      series: the lines.
      x_label: label of the horizontal axis.
      percent: whether the vertical axis is in percent.
      x_ticks: the ticks of a logarithmic horizontal axis; None: a linear axis.
      from_zero: whether the vertical axis starts at 0.
      mark: x of a vertical line.
    """

    def draw(figure, axes):
        from matplotlib import ticker

        for number, line in enumerate(series):
            marker = "o" if len(line.x) <= 12 else None
            # The first line, PinSage, is thicker and drawn on top of the others.
            axes.plot(line.x, line.y, _DASHES[number % 4], color=_color(number), marker=marker,
                      linewidth=1.4 if number else 2.0, zorder=3 if number else 4,
                      label=line.label)  # fmt: skip
            if line.fill:
                axes.fill_between(line.x, line.y, color=_color(number), alpha=0.15, linewidth=0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
        if x_ticks is not None:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        if mark is not None:
            axes.axvline(mark, color=_INK, alpha=0.5, linewidth=1.0, linestyle=":")
        if from_zero:
            axes.set_ylim(bottom=0.0)
        if percent:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.set_xlabel(x_label)
        _legend(figure, axes, len(series))

    legend_rows = math.ceil(len(series) / _legend_columns(len(series))) if len(series) > 1 else 0
    return _draw(name, alt, 2.3 + 0.19 * legend_rows, draw)


def interval_chart(
    name: str, alt: str, labels: Sequence[str], series: Sequence[Series], x_label: str
) -> Html:
    """A chart with one row per label: points with intervals on a horizontal axis from 0.

    Args:
      name: prefix of the ids in the chart; letters, unique on the page.
      alt: description of the chart for screen readers.
      labels: the rows.
      series: y has one value per label; x is ignored.
      x_label: label of the horizontal axis.
    """

    def draw(figure, axes):
        rows = np.arange(len(labels), dtype=float)
        shift = 0.26 if len(series) > 1 else 0.0
        for number, points in enumerate(series):
            positions = rows + shift * (number - (len(series) - 1) / 2)
            value = np.asarray(points.y, float)
            error = None
            if points.low is not None and points.high is not None:
                # By rounding, a bound may lie on the wrong side of the value.
                low, high = np.asarray(points.low, float), np.asarray(points.high, float)
                error = np.maximum(np.stack([value - low, high - value]), 0.0)
            axes.errorbar(value, positions, xerr=error, fmt="os^D"[number % 4],
                          color=_color(number), linewidth=1.4, label=points.label)  # fmt: skip
        axes.set_yticks(rows, labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlim(left=0.0)
        axes.set_xlabel(x_label)
        _legend(figure, axes, len(series))

    each = 0.24 if len(series) <= 1 else 0.14 * len(series) + 0.16
    return _draw(name, alt, 0.85 + each * len(labels), draw)


def plane_chart(name: str, alt: str, groups: Sequence[Points], x_label: str, y_label: str) -> Html:
    """A chart of named points in a plane, both axes in percent.

    Args:
      name: prefix of the ids in the chart; letters, unique on the page.
      alt: description of the chart for screen readers.
      groups: the points, each group in one color.
      x_label, y_label: labels of the axes.
    """

    def draw(figure, axes):
        from matplotlib import ticker

        for number, points in enumerate(groups):
            x, y = np.asarray(points.x, float), np.asarray(points.y, float)
            errors: dict[str, np.ndarray] = {}
            if points.bounds is not None:
                left, right, low, high = (np.asarray(bound, float) for bound in points.bounds)
                # By rounding, a bound may lie on the wrong side of the value.
                errors["xerr"] = np.maximum(np.stack([x - left, right - x]), 0.0)
                errors["yerr"] = np.maximum(np.stack([y - low, high - y]), 0.0)
            axes.errorbar(x, y, **errors, fmt="os^Dv"[number % 5], markersize=5.0,
                          linestyle="-" if points.line else "none", elinewidth=0.7,
                          color=_color(number), label=points.label)  # fmt: skip
            for place, named in enumerate(points.names):
                axes.annotate(named, (x[place], y[place]), (5.0, 5.0), fontsize=7.5,
                              textcoords="offset points", color=_INK)  # fmt: skip
        axes.margins(0.1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.set_xlim(left=max(axes.get_xlim()[0], -0.01))
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.005))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(figure, axes, len(groups))

    rows = math.ceil(len(groups) / _legend_columns(len(groups))) if len(groups) > 1 else 0
    return _draw(name, alt, 2.9 + 0.19 * rows, draw)


def scatter_chart(
    name: str,
    alt: str,
    points: np.ndarray,
    group: np.ndarray,
    labels: Sequence[str],
) -> Html:
    """A scatter chart without axes, its dots colored by group.

    Args:
      name: prefix of the ids in the chart; letters, unique on the page.
      alt: description of the chart for screen readers.
      points: float [n, 2].
      group: int [n], indices into `labels`.
      labels: names of the groups; text of the catalog is allowed.
    """
    labels = [_plain(label) for label in labels]

    def draw(figure, axes):
        # In the order of the points, so that no group hides the others.  As a bitmap,
        # thousands of dots take fewer bytes than as shapes.
        axes.scatter(points[:, 0], points[:, 1], s=6.0, c=[_color(number) for number in group],
                     alpha=0.8, linewidths=0, rasterized=True)  # fmt: skip
        for number, label in enumerate(labels):
            axes.scatter([], [], s=6.0, color=_color(number), label=label)
        axes.set_axis_off()
        axes.set_aspect("equal", "datalim")
        _legend(figure, axes, len(labels), 2.0, columns)

    columns = 2 if max(map(len, labels)) > _NARROW_LABEL else _legend_columns(len(labels))
    return _draw(name, alt, 3.4 + 0.19 * math.ceil(len(labels) / columns), draw)


def _plain(label: str) -> str:
    """A label without what a chart cannot show: control and format characters, quotes."""
    kept = ("'" if sign == '"' else sign for sign in " ".join(label.split())
            if unicodedata.category(sign)[0] != "C")  # fmt: skip
    line = "".join(kept) or "?"
    # matplotlib leaves a label that begins with an underscore out of the legend.
    line = f" {line}" if line.startswith("_") else line
    return line if len(line) <= _MAX_LABEL else f"{line[: _MAX_LABEL - 3]}..."


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _legend_columns(count: int) -> int:
    return 2 if count == 4 else min(count, 3)


def _legend(figure, axes, count: int, scale: float = 1.0, columns: int | None = None) -> None:
    if count > 1:
        columns = columns or _legend_columns(count)
        figure.legend(loc="outside lower center", ncols=columns, markerscale=scale)


def _draw(name: str, alt: str, height: float, draw) -> Html:
    """Calls `draw(figure, axes)` on an empty chart of `height` inches; returns it as SVG."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The chart must depend neither on the user's matplotlibrc nor on a display.
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Text has the fonts of the reader, which have signs that matplotlib's lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_STYLE)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained", dpi=150)
        FigureCanvasSVG(figure)
        draw(figure, figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    if (folder := _folder.get()) is not None:
        (folder / f"{name}.svg").write_text(_on_white(buffer.getvalue()), encoding="utf-8")
    return _inline(buffer.getvalue(), name, alt)


def _on_white(svg: str) -> str:
    """matplotlib's SVG file with a white background."""
    end = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:end]}\n <rect width="100%" height="100%" fill="#ffffff"/>{svg[end:]}'


def _inline(svg: str, name: str, alt: str) -> Html:
    """Turns matplotlib's SVG file into an element of a page: no URLs, ids unique on the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style sheet would apply to the whole page.
    svg = re.sub(r"<style\b.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"""(?:url\(|href=")#([^)"]+)""", svg))

    def prefixed(match: re.Match) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]*)"', prefixed, svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace(_INK, "currentColor")
    found = re.search(r'viewBox="[^"]*"', svg)
    assert found is not None, "Matplotlib's SVG has a view box"
    box = found[0]
    body = svg[svg.index(">") + 1 :]
    return Html(f'<svg {box} role="img" aria-label="{text(alt)}">{body}')
