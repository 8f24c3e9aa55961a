"""experiments/debian.py on made-up package lists."""

import bz2
import functools
import http.server
import importlib.util
import lzma
import pathlib
import sys
import threading

import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Continuation lines, virtual packages (editor), alternatives, versions, architectures, build
# profiles, packages of another area (firmware), and fields that are missing.
OLD = {
    "binary-amd64/Packages": """\
Package: app
Source: apps (2:1.0-1)
Maintainer: Team Edit <team@lists.example>
Depends: libone (>= 1.2~), libtwo:any | libthree, editor | app-data,
 firmware, libc
Description: edits texts
Description-md5: aa
Tag: role::program, use::editing,
 works-with::text
Section: editors

Package: app-data
Source: apps
Pre-Depends: libone
Depends: libc
Description: data of app

Package: libone
Maintainer: Ann Lee <ann@one.example>
Depends: libc
Provides: editor
Section: libs
Description-md5: bb

Package: libtwo
Maintainer: ann@one.example
Depends: libc (= 2)
Description: two
Section: libs

Package: libthree
Maintainer: <three@example>
Depends: libc

Package: libc
Maintainer: C Team <c@example>

Package: tool
Depends: libc, libc (<< 3)
""",
    "source/Sources": """\
Package: apps
Maintainer: Team Edit <team@lists.example>
Uploaders: Ann Lee <ann@home.example>, "Wu, Bo" <bo@example>
Build-Depends: libone (>= 1) [linux-any] <!nocheck>, libtwo [!amd64] | libthree [amd64 i386],
 libc:native <!stage1> <!cross>, libnew [arm64]
Build-Depends-Indep: app-data
Files:
 0123 45 apps.dsc

Package: libtwo
Maintainer: ann@one.example
Extra-Source-Only: yes
Build-Depends: libone, libthree
""",
    "i18n/Translation-en": """\
Package: app
Description-md5: aa
Description-en: edits texts
 Long words: with a colon.
 .
 And a second part.

Package: libone
Description-md5: of-another-version
Description-en: something else
""",
}
NEW = {
    "binary-amd64/Packages": OLD["binary-amd64/Packages"]
    + """
Package: libnew
Maintainer: Ann Lee <ann@one.example>
Depends: libtwo (>= 1) | libthree
Description: new
Description-md5: dd

Package: app
Source: apps
Depends: libnew, libone
Description: edits more
""",
    "source/Sources": OLD["source/Sources"],
    "i18n/Translation-en": """\
Package: libnew
Description-md5: dd
Description-en: new
 Of this release.
""",
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("debian", ROOT / "experiments" / "debian.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["debian"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["debian"]


def write_lists(folder, **releases):
    for release, lists in releases.items():
        for name, text in lists.items():
            path = folder / "dists" / release / "main" / f"{name}.xz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(lzma.compress(text.encode()))
    return folder


@pytest.fixture
def mirror(tmp_path):
    return write_lists(tmp_path / "mirror", old=OLD, new=NEW)


def run(script, mirror, out, *more):
    # libc is in all collections of dependencies.
    script.main([str(out), f"--mirror={mirror}", "--releases=old,new", "--hubs=6", *more])
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted(out.glob("*.parquet"))}


def refusal(script, *arguments):
    with pytest.raises(SystemExit) as caught:
        script.main([str(argument) for argument in arguments])
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_edges_are_the_collections_of_the_older_release(script, mirror, tmp_path):
    members = {}
    for row in run(script, mirror, tmp_path / "out")["edges"]:
        assert row["collection_id"].startswith(f"{row['kind']}:")
        members.setdefault(row["collection_id"], []).append(row["item_id"])
    assert members == {
        "depends:app": ["app", "app-data", "libone", "libthree", "libtwo"],
        "depends:app-data": ["app-data", "libone"],
        "builds:apps": ["app-data", "libone", "libthree"],
        "maintains:Team Edit": ["app", "app-data"],
        "maintains:Ann Lee": ["app", "app-data", "libone"],
        "maintains:Wu, Bo": ["app", "app-data"],
    }


def test_items_are_the_packages_of_both(script, mirror, tmp_path):
    items = {row["item_id"]: row for row in run(script, mirror, tmp_path / "out")["items"]}
    assert list(items) == ["app", "app-data", "libnew", "libone", "libthree", "libtwo", "tool"]
    assert items["app"] == {
        "item_id": "app",
        "title": "edits texts",
        "description": "edits texts\nLong words: with a colon.\n\nAnd a second part.",
        "section": "editors",
        "tags": ["role::program", "use::editing", "works-with::text"],
        "source": "apps",
        "release": "old",
    }
    assert items["libnew"]["release"] == "new"
    assert items["libnew"]["description"] == "new\nOf this release."
    # The long description of another version is not this one's.
    assert (items["libone"]["title"], items["libone"]["description"]) == ("", "")
    assert items["libthree"]["section"] is None and items["libthree"]["tags"] == []


def test_several_releases_are_numbered_in_time(script, tmp_path):
    first = OLD | {
        "binary-amd64/Packages": """\
Package: app
Maintainer: Ann Lee <ann@one.example>
Depends: libone
Description: edited texts

Package: libone
Maintainer: Ann Lee <ann@one.example>

Package: gone
Depends: libone
"""
    }
    mirror = write_lists(tmp_path / "mirror", first=first, old=OLD, new=NEW)
    path = mirror / "dists" / "first" / "main" / "i18n" / "Translation-en"
    # Descriptions of older releases are compressed otherwise.
    path.with_suffix(".bz2").write_bytes(bz2.compress(OLD["i18n/Translation-en"].encode()))
    path.with_suffix(".xz").unlink()
    tables = run(script, mirror, tmp_path / "out", "--releases=first,old,new", "--hubs=7")
    times = {}
    for row in tables["edges"]:
        times.setdefault((row["item_id"], row["collection_id"]), []).append(row["time"])
    assert times["app", "depends:app"] == [1, 2] and times["gone", "depends:gone"] == [1]
    assert times["app", "maintains:Ann Lee"] == [1, 2]
    assert times["app-data", "depends:app"] == [2]
    items = {row["item_id"]: row for row in tables["items"]}
    assert (items["app"]["release"], items["app"]["title"]) == ("old", "edits texts")
    assert items["gone"]["release"] == "first" and items["libnew"]["release"] == "new"
    assert {"libtwo", "libthree", "libnew"} >= {
        row[side] for row in tables["eval_pairs"] for side in ("query_id", "target_id")
    }


def test_pairs_are_of_collections_that_only_the_newer_release_has(script, mirror, tmp_path):
    tables = run(script, mirror, tmp_path / "out")
    # depends:libnew alone is new; libnew itself is in no collection of the older release.
    linked = {row["item_id"] for row in tables["edges"]}
    pairs = [(row["query_id"], row["target_id"]) for row in tables["eval_pairs"]]
    assert len(pairs) == 2 and "libnew" not in linked
    queries = {query for query, _ in pairs}
    assert len(queries) == 1 and queries < {"libtwo", "libthree"}
    assert {target for _, target in pairs} == {"libtwo", "libthree", "libnew"} - queries
    fewer = run(script, mirror, tmp_path / "fewer", "--warm=0")
    assert [row["target_id"] for row in fewer["eval_pairs"]] == ["libnew"]


def test_packages_in_many_collections_are_left_out(script, mirror, tmp_path):
    whole = run(script, mirror, tmp_path / "whole", "--hubs=100")
    assert any(row["item_id"] == "libc" for row in whole["items"])
    pruned = run(script, mirror, tmp_path / "pruned")
    for name, columns in (("items", ["item_id"]), ("edges", ["item_id"]),
                          ("eval_pairs", ["query_id", "target_id"])):  # fmt: skip
        assert all(row[column] != "libc" for row in pruned[name] for column in columns)


def test_the_same_lists_give_the_same_bytes(script, mirror, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=mirror)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/"
        run(script, mirror, tmp_path / "one")
        run(script, address, tmp_path / "two")
        absent = refusal(script, tmp_path / "no", f"--mirror={address}", "--releases=old,newest")
    finally:
        server.shutdown()
        server.server_close()
    for name in ("edges", "items", "eval_pairs"):
        paths = (tmp_path / folder / f"{name}.parquet" for folder in ("one", "two"))
        assert len({path.read_bytes() for path in paths}) == 1
    assert "dists/newest/main" in absent and "not found" in absent and "--mirror" in absent


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "cut off"),
        (lambda path: path.write_bytes(b"<html>"), "damaged"),
        (lambda path: path.write_bytes(lzma.compress(b"\xff\xfe")), "cannot be read"),
        (lambda path: path.write_bytes(lzma.compress(b"<html>\n")), "Line 1"),
        (lambda path: path.write_bytes(lzma.compress(b"Package: a\n\n more\n")), "Line 3"),
        (lambda path: path.write_bytes(lzma.compress(b"Package: a\n\nVersion: 1\n")), "Line 3"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_bad_list_gives_one_sentence(script, mirror, tmp_path, spoil, said):
    path = mirror / "dists" / "new" / "main" / "source" / "Sources.xz"
    spoil(path)
    sentence = refusal(script, tmp_path / "out", f"--mirror={mirror}", "--releases=old,new")
    assert said in sentence and str(path) in sentence
    assert not (tmp_path / "out").exists()


def test_bad_arguments_give_one_sentence(script, tmp_path):
    assert "--releases=one" in refusal(script, tmp_path, "--releases=one")
    closed = refusal(script, tmp_path, "--mirror=http://127.0.0.1:9", "--releases=old,new")
    assert "127.0.0.1:9" in closed
