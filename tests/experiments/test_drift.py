"""experiments/drift.py at a small size: ages help, and validation by time says so."""

import importlib.util
import pathlib

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "drift.py"


def test_where_tastes_change_new_edges_tell_more(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("drift", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main([str(tmp_path), "--items=200", "--baskets=1500", "--half_lives=0,8"])
    (evaluation, by_time, at_random), (later, later_by_time, later_at_random) = found.values()
    assert later > 1.3 * evaluation and later_by_time > 1.3 * by_time
    # Pairs of any day are best asked of all days alike.
    assert later_at_random < at_random
    assert "validation by time" in capsys.readouterr().out
