"""Pictures: which are shown, what is refused, and what the page may load."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import PIL.Image
import pytest
from hostile_catalog import ITEMS, small_config, small_embeddings, small_prepared
from item_tables import with_columns

from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.search import ExplorerConfig, image_origins
from pinsage_jax.core.errors import UserError
from pinsage_jax.explorer import explorer, images


def configured(folder, **settings):
    return dataclasses.replace(
        small_config(folder),
        data=DataConfig(data_dir=str(folder)),
        explorer=ExplorerConfig(**{"image_column": "picture", **settings}),
    )


def catalog(*values):
    return with_columns(small_prepared(), picture=[*values, *[None] * (ITEMS - len(values))])


def picture(path, size=(300, 200), **settings):
    PIL.Image.new("RGB", size, "#204060").save(path, **settings)
    return path


def test_addresses_at_named_hosts_alone(tmp_path, caplog):
    wanted = ["https://img.example.com/a.jpg", "http://10.0.0.1:80/b", "//img.example.com/c.png"]
    refused = [
        "https://evil.example.com/a.jpg", "http://img.example.com/a.jpg", "javascript:alert(1)",
        "https://img.example.com@evil.example.com/", "https://img.example.com:99x/", "data:,x",
        "file:///etc/passwd",
    ]  # fmt: skip
    config = configured(tmp_path, image_hosts="IMG.example.com, http://10.0.0.1:80")
    found = images.find_images(config, catalog(*wanted, *refused))
    assert found.addresses[:3] == [*wanted[:2], f"https:{wanted[2]}"]
    assert found.addresses[3:] == [None] * (ITEMS - 3) and not found.has_files
    assert found.origins == ("https://img.example.com", "http://10.0.0.1:80")
    assert f"{len(refused)} pictures are not shown, at a host" in caplog.text


@pytest.mark.parametrize("hosts", ["*.example.com", "https://a/b", "a b", "https://", "a;b", "'x'"])
def test_what_is_no_host(hosts):
    with pytest.raises(UserError, match=r"--image_hosts.* is no host"):
        image_origins(hosts)
    with pytest.raises(UserError, match="--image_hosts"):
        ExplorerConfig(image_column="picture", image_hosts=hosts).validate()


def test_hosts_need_a_column():
    with pytest.raises(UserError, match=r"--image_hosts=a\.example needs --image_column"):
        ExplorerConfig(image_hosts="a.example").validate()


def test_local_files_below_the_folder_alone(tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    inside = picture(folder / "a.png")
    outside = picture(tmp_path / "b.png")
    (folder / "link.png").symlink_to(outside)
    found = images.find_images(
        configured(folder), catalog("a.png", "../b.png", str(outside), "link.png", "none.png", "\0")
    )
    assert found.files == [inside, *[None] * (ITEMS - 1)]
    assert "3 pictures are not shown, outside" in caplog.text
    assert "2 pictures are not shown, in no file below" in caplog.text


def test_without_data_dir_files_lie_beside_the_item_table(tmp_path):
    inside = picture(tmp_path / "a.png")
    prepared = catalog("a.png")
    manifest = {**prepared.manifest, "inputs": {"items": str(tmp_path / "items.csv")}}
    config = dataclasses.replace(configured(tmp_path), data=DataConfig())
    found = images.find_images(config, dataclasses.replace(prepared, manifest=manifest))
    assert found.files[0] == inside


def test_a_thumbnail_is_small_upright_and_without_metadata(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where it was taken"
    data = images.thumbnail(picture(tmp_path / "a.jpg", exif=exif))
    assert b"where" not in data
    with PIL.Image.open(io.BytesIO(data)) as small:
        # Orientation 6 is turned by a quarter.
        assert small.format == "WEBP" and max(small.size) == 112 and small.height > small.width


def test_what_cannot_be_read_is_no_thumbnail(tmp_path, monkeypatch, caplog):
    for name, content in (("text.jpg", b"not a picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
    broken = picture(tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(broken[: len(broken) // 2])
    picture(tmp_path / "huge.png")
    picture(tmp_path / "good.png", (20, 20))
    monkeypatch.setattr(images, "_MAX_PIXELS", 1000)
    config = configured(tmp_path)
    found = images.find_images(
        config, catalog("text.jpg", "empty.png", "broken.png", "huge.png", "good.png")
    )
    shown = images.inlined(found, np.arange(ITEMS), 1.0, "picture", 2)
    assert [text is not None for text in shown[:5]] == [False] * 4 + [True]
    assert "4 pictures are not shown, in a file that is no readable picture" in caplog.text


def test_thumbnails_fit_the_limit_and_begin_with_the_first_wanted(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    found = images.find_images(configured(tmp_path), catalog("a.png", "b.png", "c.png"))
    order = np.array([2, 1, 0])
    one = len(images.inlined(found, order, 1.0, "picture", 1)[2])
    shown = images.inlined(found, order, 2.5 * one / 1e6, "picture", 1)
    assert [text is not None for text in shown[:3]] == [False, True, True]
    assert "thumbnails of 2 of 3 pictures fit" in caplog.text


def test_the_page_may_load_pictures_only_where_they_are_asked_for(tmp_path):
    picture(tmp_path / "a.png")
    values = ["a.png", "https://img.example.com/b.jpg", "https://img.example.com/c.jpg"]

    def page(config):
        path = explorer.write_explorer(config, catalog(*values), small_embeddings())
        text = path.read_text(encoding="utf-8")
        data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
        return re.search(r'Policy" content="([^"]*)"', text)[1], data["items"]

    policy, items = page(configured(tmp_path, image_hosts="img.example.com"))
    assert "img-src data: https://img.example.com" in policy
    addresses = items["addresses"]
    assert [addresses["prefix"] + rest for rest in addresses["rest"][1:3]] == values[1:]
    assert base64.b64decode(items["thumbnails"][0])[8:12] == b"WEBP"
    policy, items = page(configured(tmp_path, image_column=""))
    assert "img-src" not in policy and not {"addresses", "thumbnails"} & set(items)


@pytest.mark.parametrize(
    "column, message",
    [("pictur", "did you mean 'picture'"), ("price", "--image_column=price holds a number")],
)
def test_a_wrong_column_is_refused_before_anything_is_written(tmp_path, column, message):
    prepared = with_columns(small_prepared(), picture=["a"] * ITEMS, price=[1.0] * ITEMS)
    config = configured(tmp_path, image_column=column)
    with pytest.raises(UserError, match=message):
        explorer.write_explorer(config, prepared, small_embeddings())
    assert list(tmp_path.iterdir()) == []
