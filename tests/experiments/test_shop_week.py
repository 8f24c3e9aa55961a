"""experiments/shop_week.py at its smallest, as a user runs it."""

import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "shop_week.py"


def test_a_shop_lives_through_its_week(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "shop", "--products=120", "--hours=1", "--no-report"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the week is over" in done.stdout and "NOT" not in done.stdout
    for said in ("two processes", "an hour", "a night", "an accident", "not valid JSON"):
        assert said in done.stdout
