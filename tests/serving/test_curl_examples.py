"""The curl commands of docs/explorer_and_serving.md, sent as curl would send them."""

import argparse
import importlib.util
import json
import pathlib
import re
import shlex
from urllib.parse import quote, urlsplit

import command_line
import pytest
from embedded_catalog import train_nothing
from fastapi.testclient import TestClient

from pinsage_jax.serving.app import make_app
from pinsage_jax.stages import serve

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explorer_and_serving.md"


def commands() -> list[list[str]]:
    """Arguments of every curl command of the page."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = []
    for block in blocks:
        for command in re.split(r"^(?=\w)", block.replace("\\\n", " "), flags=re.MULTILINE):
            words = shlex.split(command)
            if words[:1] == ["curl"]:
                found.append(words[1:])
    return found


def request_of(words: list[str]) -> tuple[str, str, dict[str, str], str | None]:
    """Method, path, headers and body of a curl command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--get", action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d", "--data", action="append", default=[])
    parser.add_argument("--data-urlencode", action="append", default=[])
    given = parser.parse_args(words)
    url = urlsplit(given.url)
    assert url.netloc == "127.0.0.1:8080"
    encoded = [text.partition("=") for text in given.data_urlencode]
    data = [f"{name}={quote(value)}" for name, _, value in encoded] + given.data
    path = url.path + (f"?{url.query}" if url.query else "")
    headers = dict(re.split(r":\s*", header, maxsplit=1) for header in given.H)
    if given.get:
        return "GET", f"{path}?{'&'.join(data)}", headers, None
    return ("POST" if data else "GET"), path, headers, "&".join(data) or None


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The service over the shop's tables, its network untrained."""
    spec = importlib.util.spec_from_file_location("week", ROOT / "experiments" / "shop_week.py")
    week = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(week)
    folder = tmp_path_factory.mktemp("shop")
    shop = week.Shop(folder, 60)
    shop.write("shop", shop.products, shop.baskets)
    tables = [f"--{name}={folder}/shop_{name}.parquet" for name in ("edges", "items")]
    config = command_line.parsed(*tables, f"--workdir={folder}/run", *week.SMALL)
    train_nothing(config)
    app = make_app(serve.load_service(config), threads=1)
    with TestClient(app, base_url="http://127.0.0.1:8080") as client:
        yield client


def test_every_endpoint_has_an_example(client):
    asked = {(method, path.partition("?")[0]) for method, path, *_ in map(request_of, commands())}
    offered = {
        (method.upper(), path)
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    assert offered <= asked


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1][:40])
def test_an_example_is_answered(client, words):
    method, path, headers, body = request_of(words)
    answer = client.request(method, path, headers=headers, content=body)
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] != "application/json":
        return
    found = answer.json()
    asked = json.loads(body) if body else {}
    for lists in found.get("items", [found]) if "/neighbors" in path else ():
        assert lists["neighbors"]
        names = asked.get("columns", re.findall("columns=(\\w+)", path))
        for entry in lists["neighbors"]:
            assert entry["title"] and list(entry.get("columns", {})) == names
