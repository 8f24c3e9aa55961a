"""What a person sees while a command runs: bars, log lines, and both on one terminal."""

import io
import re
import sys

import pytest
from absl import logging

from pinsage_jax import cli
from pinsage_jax.core import logging_setup, progress
from pinsage_jax.core.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True

    def screen(self):
        """The lines that are left to see: a carriage return begins a line again."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return [line for line in lines if line]


@pytest.fixture
def logged(monkeypatch):
    """Sets logging up for another stderr, and takes it back."""
    handler = logging.get_absl_handler()
    before, emit = handler.formatter, vars(handler.python_handler).get("emit")

    def set_up(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        cli.free_global_flags()
        logging_setup.set_up("info")
        return stream

    yield set_up
    handler.setFormatter(before)
    if emit is None:
        del handler.python_handler.emit


def emit(text):
    """A line of this program: others are shown as warnings only."""
    record = logging.get_absl_logger().makeRecord(
        "absl", 20, logging_setup.__file__, 1, text, (), None
    )
    logging.get_absl_handler().handle(record)


def test_log_lines_go_above_the_bar_and_a_full_bar_stays_once(logged):
    terminal = logged(Terminal())
    with Progress(total=4, unit="step", name="training") as bar:
        for number in range(4):
            bar.update()
            emit(f"line {number}")
    screen = terminal.screen()
    lines = [re.sub(r"^[0-9:]+ ", "", line) for line in screen]
    assert lines[:4] == ["line 0", "line 1", "line 2", "line 3"]
    assert len(lines) == 5 and lines[4].startswith("training: 100%") and "4.00/4.00" in lines[4]


def test_a_bar_that_is_left_in_the_middle_goes(logged):
    terminal = logged(Terminal())
    with pytest.raises(KeyError), Progress(total=4, unit="step", name="training") as bar:
        bar.update()
        raise KeyError
    assert terminal.screen() == []


def test_a_full_bar_below_another_goes(logged):
    logged(Terminal())
    with Progress(total=2, unit="training", name="ablate") as longer:
        for _ in range(2):
            with Progress(total=3, unit="step", name="training") as bar:
                bar.update(3)
            longer.update()
            assert bar._bar.leave is False
    assert longer._bar.leave is True


def test_before_the_first_unit_no_time_is_forecast(logged, monkeypatch):
    stream = logged(io.StringIO())
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with pytest.raises(KeyError), Progress(total=4, unit="training", name="ablate"):
        now[0] = 30.0
        raise KeyError
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("ablate: 0/4 training")


def test_elsewhere_the_end_is_one_line(logged, monkeypatch):
    lines = []
    monkeypatch.setattr(progress.logging, "info", lambda text, *a: lines.append(text % a))
    times = iter(range(0, 1000, 15))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))
    logged(io.StringIO())
    with Progress(total=4, unit="node", name="sampling") as shown:
        for _ in range(4):
            shown.update()
    assert len(lines) == 2 and lines[0].startswith("sampling: 2/4 node, ")
    assert re.fullmatch(r"sampling: 4 node in \d+ s, [\d.]+/s", lines[1])
