"""Tables for PinSage from the package lists of Debian releases, split by time.

    python experiments/debian.py [FOLDER] [--mirror=ADDRESS] [--releases=bookworm,trixie]

Packages are the items.  A package and what it depends on are a collection (kind `depends`), what
a source is built with is one (`builds`), and what a person or team looks after is one
(`maintains`).  FOLDER (data/debian) gets

    edges.parquet       item_id, collection_id, kind, time: the collections of all releases but the
                        newest; time numbers the releases from 1, and an edge of several is in
                        as many rows
    items.parquet       item_id, title, description, section, tags, source, release: the packages
                        of all releases; those that only the newest has are in no collection
    eval_pairs.parquet  query_id, target_id: two packages of a collection that only the newest
                        release has, the first of them in a collection of an older one, too

Packages in more collections than --hubs are left out, such as libc6: nearly all packages have
them in common.  --mirror names a mirror, or a folder with dists/RELEASE/main/... as a mirror has
it; of the archive only the area main is read.  Two releases take about a minute, most of it for
reading 50 MB of compressed lists.  The same lists give the same tables.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import dataclasses
import hashlib
import http.client
import lzma
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

MIRROR = "https://deb.debian.org/debian"
KINDS = ("depends", "builds", "maintains")
_DEPENDS = ("Pre-Depends", "Depends")
_BUILDS = ("Build-Depends", "Build-Depends-Indep", "Build-Depends-Arch")
_FIELDS = frozenset(
    ("Package", "Source", "Maintainer", "Uploaders", "Section", "Tag", "Description",
     "Description-md5", "Description-en", "Extra-Source-Only", *_DEPENDS, *_BUILDS)
)  # fmt: skip
# Name, architecture qualifier, version, architectures, build profiles, as in Debian Policy 7.1:
# "libfoo-dev:any (>= 1.2~) [linux-any !i386] <!nocheck>".
_RELATION = re.compile(
    r"([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\([^)]*\))?\s*(?:\[([^]]*)\])?\s*(?:<[^>]*>\s*)*"
)
_PERSON = re.compile(r"([^<>]*)<([^<>]*)>")

Paragraph = dict[str, str]
# Packages of each collection, by (kind, name of the collection).
Members = Mapping[tuple[str, str], set[str]]


@dataclasses.dataclass(frozen=True)
class Release:
    """What the lists of one release say.

    Attributes:
      packages: the paragraph of each package in Packages, by name.
      texts: long descriptions by package and Description-md5.
      members: the collections.
    """

    packages: Mapping[str, Paragraph]
    texts: Mapping[tuple[str, str], str]
    members: Members


def stop(sentence: str) -> SystemExit:
    """The end of the script with one sentence and exit code 1."""
    return SystemExit(sentence)


# Reading lists.


def read_list(mirror: str, release: str, name: str) -> Iterator[Paragraph]:
    """The paragraphs of dists/RELEASE/main/NAME of a mirror or a folder.

    The list is NAME.xz or, as descriptions of older releases are, NAME.bz2.

    Raises:
      SystemExit: the list is not there, cut off, or no list of packages.
    """
    place = f"{mirror.rstrip('/')}/dists/{release}/main/{name}.xz"
    try:
        try:
            text = lzma.decompress(fetch(place)).decode()
        except (FileNotFoundError, urllib.error.HTTPError) as absent:
            try:
                packed = fetch(place.removesuffix("xz") + "bz2")
            except OSError:
                raise absent from None
            text = bz2.decompress(packed).decode()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise stop(
            f"{place} cannot be read ({reason}); name another mirror or folder with --mirror, or "
            "other releases with --releases."
        ) from None
    except (lzma.LZMAError, EOFError) as error:
        raise stop(f"{place} is damaged or cut off ({error}); fetch it again.") from None
    return paragraphs(text, place)


def fetch(place: str) -> bytes:
    """The contents of an address or a file."""
    if not re.match("https?://", place):
        return pathlib.Path(place).read_bytes()
    with urllib.request.urlopen(place, timeout=60) as answer:
        return answer.read()


def paragraphs(text: str, place: str) -> Iterator[Paragraph]:
    """The paragraphs of a control file, of each the fields that are read here.

    Lines that begin with a blank go on with the field above them; a missing field is not in
    the result.

    Raises:
      SystemExit: a line is neither a field nor goes on with one, or a paragraph names no package.
    """
    fields: dict[str, list[str]] = {}
    lines: list[str] | None = None
    begin = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if not line.strip():
            if lines is not None and "Package" not in fields:
                raise stop(f"Line {begin} of {place} begins a paragraph without a field Package.")
            if lines is not None:
                yield {key: "\n".join(values) for key, values in fields.items()}
            fields, lines, begin = {}, None, number + 1
        elif line[0] in " \t":
            if lines is None:
                raise stop(f"Line {number} of {place} goes on with a field that there is not.")
            lines.append(line.strip())
        else:
            key, colon, value = line.partition(":")
            if not colon:
                raise stop(f"Line {number} of {place} is no field of a package list.")
            lines = [value.strip()]
            if key in _FIELDS:
                fields[key] = lines


def relations(fields: Paragraph, names: Iterable[str], architecture: str) -> set[str]:
    """Names of packages that relationship fields ask for on an architecture.

    Of alternatives ("a | b") all are named; versions and build profiles are left out.
    """
    found = set()
    for name in names:
        for relation in re.split("[,|]", fields.get(name, "")):
            match = _RELATION.fullmatch(relation.strip())
            if match and _holds_on(match[2], architecture):
                found.add(match[1])
    return found


def _holds_on(restriction: str | None, architecture: str) -> bool:
    """Whether "[...]" of a relationship holds; None: it has none."""
    if not (restriction or "").strip():
        return True
    fitting = {architecture, "any", "linux-any", f"any-{architecture}", f"linux-{architecture}"}
    words = str(restriction).split()
    if words[0].startswith("!"):
        return not fitting.intersection(word.lstrip("!") for word in words)
    return bool(fitting.intersection(words))


def people(text: str) -> list[str]:
    """Names in Maintainer or Uploaders; the address of whoever gives no name."""
    found = _PERSON.findall(text)
    if not found:
        return [text.strip()] if text.strip() else []
    names = ((name.strip(" ,\n").strip('"'), address.strip()) for name, address in found)
    return [" ".join(name.split()) or address for name, address in names]


def long_texts(translations: Iterable[Paragraph]) -> dict[tuple[str, str], str]:
    """Descriptions by package and Description-md5; a lone full stop is an empty line."""
    texts = {}
    for fields in translations:
        lines = fields.get("Description-en", "").split("\n")
        text = "\n".join("" if line == "." else line for line in lines)
        texts[fields["Package"], fields.get("Description-md5", "")] = text
    return texts


def read_release(mirror: str, release: str, architecture: str) -> Release:
    """The three lists of a release: packages, sources, descriptions."""
    packages = {
        fields["Package"]: fields
        for fields in read_list(mirror, release, f"binary-{architecture}/Packages")
    }
    sources = {
        fields["Package"]: fields
        for fields in read_list(mirror, release, "source/Sources")
        # Kept only because other packages were built with them.
        if fields.get("Extra-Source-Only") != "yes"
    }
    texts = long_texts(read_list(mirror, release, "i18n/Translation-en"))
    members: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for name, fields in packages.items():
        members["depends", name] = {name, *relations(fields, _DEPENDS, architecture)}
        # Uploaders are in Sources alone.
        source = sources.get(source_of(fields), fields)
        for field in ("Maintainer", "Uploaders"):
            for person in people(source.get(field, "")):
                members["maintains", person].add(name)
    for name, fields in sources.items():
        members["builds", name] = relations(fields, _BUILDS, architecture)
    # Names that no package has are virtual packages, or of another area or architecture.
    known = packages.keys()
    members = {key: found for key, names in members.items() if len(found := names & known) > 1}
    print(f"{release}: {len(packages):,} packages, {len(members):,} collections", flush=True)
    return Release(packages, texts, members)


def source_of(fields: Paragraph) -> str:
    """The source of a package: "Source: name (version)", or its own name."""
    return fields.get("Source", fields["Package"]).split(" ")[0]


# Making tables.


def without_hubs(releases: Iterable[Release], limit: int) -> tuple[set[str], list[dict]]:
    """Packages in more than `limit` collections of a release, and the collections without them."""
    releases = list(releases)
    hubs = set()
    for release in releases:
        degree = collections.Counter(name for names in release.members.values() for name in names)
        hubs |= {name for name, count in degree.items() if count > limit}
    left = [
        {key: rest for key, names in release.members.items() if len(rest := names - hubs) > 1}
        for release in releases
    ]
    return hubs, left


def edges_table(releases: Iterable[Members]) -> pa.Table:
    """The edges in the order of releases, kinds, collections and packages."""
    rows = [
        (name, f"{kind}:{collection}", kind, number)
        for number, members in enumerate(releases, start=1)
        for kind, collection in sorted(members, key=lambda key: (KINDS.index(key[0]), key[1]))
        for name in sorted(members[kind, collection])
    ]
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    names = ("item_id", "collection_id", "kind")
    table = {key: pa.array(column, pa.string()) for key, column in zip(names, columns)}
    return pa.table({**table, "time": pa.array(columns[-1], pa.int64())})


def items_table(releases: Mapping[str, Release], hubs: set[str]) -> pa.Table:
    """The packages of all releases, and what the last release before the newest says of each."""
    *older, newest = releases
    last = {package: newest for package in releases[newest].packages}
    last |= {package: name for name in older for package in releases[name].packages}
    rows = []
    for package in sorted(last.keys() - hubs):
        release, name = releases[last[package]], last[package]
        fields = release.packages[package]
        title = fields.get("Description", "").split("\n")[0]
        text = release.texts.get((package, fields.get("Description-md5", "")), "")
        tags = [tag.strip() for tag in fields.get("Tag", "").split(",") if tag.strip()]
        rows.append((package, title, text or title, fields.get("Section"), tags,
                     source_of(fields), name))  # fmt: skip
    schema = pa.schema(
        [("item_id", pa.string()), ("title", pa.string()), ("description", pa.string()),
         ("section", pa.string()), ("tags", pa.list_(pa.string())), ("source", pa.string()),
         ("release", pa.string())]
    )  # fmt: skip
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def pairs_table(
    older: list[Members], newer: Members, limit: int, counts: tuple[int, int]
) -> pa.Table:
    """Pairs of packages in collections of `newer` that no older release has.

    A collection gives at most one pair with a target in a collection of an older release and
    one with a target in none; queries are always in one.  Which pair, and which collections,
    is decided by hashes of their names.

    Args:
      limit: collections of more packages are left out on both sides.
      counts: most pairs with targets in a collection of an older release, and in none.
    """
    before: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for members in older:
        for key, names in members.items():
            before[key] |= names
    linked = set().union(*(names for names in before.values() if len(names) <= limit))
    drawn: tuple[list, list] = ([], [])
    for key, names in newer.items():
        queries = sorted(names & linked, key=lambda name: _hash("query", *key, name))
        if key in before or len(names) > limit or not queries:
            continue
        for pairs, targets in zip(drawn, (names & linked, names - linked), strict=True):
            targets = targets - {queries[0]}
            if targets:
                target = min(targets, key=lambda name: _hash("target", *key, name))
                pairs.append((_hash("pair", *key), queries[0], target))
    rows = sorted(
        {
            pair[1:]
            for pairs, most in zip(drawn, counts, strict=True)
            for pair in sorted(pairs)[:most]
        }
    )
    queries, targets = ([row[side] for row in rows] for side in (0, 1))
    return pa.table({"query_id": pa.array(queries, pa.string()), "target_id": targets})


def _hash(*words: str) -> bytes:
    """A number that the words decide alone, the same on every machine."""
    return hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()


def main(arguments: list[str] | None = None) -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="data/debian", type=pathlib.Path)
    parser.add_argument("--mirror", default=MIRROR, help="address of a mirror, or a folder")
    parser.add_argument("--releases", default="bookworm,trixie", help="in the order of time")
    parser.add_argument("--architecture", default="amd64")
    parser.add_argument("--hubs", type=int, default=200, help="most collections of a package")
    parser.add_argument("--warm", type=int, default=4000, help="most pairs of known targets")
    parser.add_argument("--cold", type=int, default=2000, help="most pairs of new targets")
    given = parser.parse_args(arguments)
    names = tuple(given.releases.split(","))
    if len(names) < 2 or len(set(names)) < len(names):
        raise stop(f"--releases={given.releases} must be two or more, as in bookworm,trixie.")
    releases = {name: read_release(given.mirror, name, given.architecture) for name in names}
    hubs, (*before, after) = without_hubs(releases.values(), given.hubs)
    tables = {
        "edges": edges_table(before),
        "items": items_table(releases, hubs),
        "eval_pairs": pairs_table(before, after, given.hubs, (given.warm, given.cold)),
    }
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"{len(hubs):,} packages in more than {given.hubs:,} collections are left out")
    for name, table in tables.items():
        path = given.folder / f"{name}.parquet"
        pq.write_table(table, path)
        print(f"{path}: {table.num_rows:,} rows")


if __name__ == "__main__":
    main()
