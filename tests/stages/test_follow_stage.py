"""--mode=follow: a served workdir whose answers follow a folder of edges."""

import dataclasses
import json
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from embedded_catalog import embedded_catalog, write_csv

from pinsage_jax.config.search import ServeConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.stages import follow as stage
from pinsage_jax.stages.follow import Following


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return embedded_catalog(tmp_path_factory.mktemp("followed"))


def following(config, folder, **more) -> Following:
    serve = ServeConfig(follow=str(folder), serve_port=0, **more)
    return Following(dataclasses.replace(config, mode="follow", serve=serve))


def test_answers_follow_the_folder(catalog, tmp_path, caplog):
    config, vectors, _, _ = catalog
    live = following(config, tmp_path)
    service = live.load()
    np.testing.assert_array_equal(service._vectors, vectors)
    # An item without edges moves into the first collections.
    rows = [(f"c{c}", "i75") for c in (0, 0, 1)] + [("c9", "stranger")]
    write_csv(tmp_path / "1.csv", ["collection_id", "item_id"], rows)
    assert live.step() == 4 and live.step() == 0
    assert "stranger" in caplog.text
    row = service.row_of["i75"]
    assert service._degree[row] == 2
    moved = np.flatnonzero((service._vectors != vectors).any(axis=1))
    assert row in moved and live.total.embedded == len(moved) < 80
    assert service.neighbors("i75", 3)["neighbors"]
    # Started again it reads the log again, to the same vectors.
    again = following(config, tmp_path)
    np.testing.assert_allclose(again.load()._vectors, service._vectors, atol=1e-6)
    # A tolerance of all walks embeds nothing again but items that lose or get their first edges.
    lazy = following(config, tmp_path, follow_tolerance=1.0)
    assert lazy.load() and 1 <= lazy.total.embedded < live.total.embedded


def test_what_is_missing_is_said_first(catalog, tmp_path):
    config, _, _, _ = catalog
    with pytest.raises(UserError, match="is no folder"):
        following(config, tmp_path / "nowhere")
    for changed, words in (
        ({"serve": ServeConfig()}, "--follow is required"),
        ({"serve": ServeConfig(follow="-", serve_workers=2)}, "one process"),
        ({"sampling": dataclasses.replace(config.sampling, neighborhood="all"),
          "serve": ServeConfig(follow="-")}, "--neighborhood=items"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            dataclasses.replace(config, mode="follow", **changed).validate()


def test_the_stage_serves_and_follows(catalog, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    config, _, _, _ = catalog
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stop = threading.Event()
    monkeypatch.setattr(stage, "stop_requested", stop.is_set)
    serve = ServeConfig(follow=str(tmp_path), serve_port=port)
    settings = dataclasses.replace(config, mode="follow", serve=serve)
    thread = threading.Thread(target=stage.follow, args=(settings,))
    thread.start()

    def followed() -> int | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return json.load(answer)["followed"]["events"]
        except OSError:
            return None

    def wait_for(events: int) -> None:
        deadline = time.monotonic() + 60
        while followed() != events:
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.1)

    try:
        wait_for(0)
        write_csv(tmp_path / "1.csv", ["collection_id", "item_id"], [("c3", "i76")])
        wait_for(1)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
