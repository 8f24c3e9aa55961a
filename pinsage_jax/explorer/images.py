"""Pictures of items: addresses at hosts that were named, or thumbnails of local files.

A page loads nothing from a host that --image_hosts does not name, which its content security
policy enforces as well.  Local files are read only from below --data_dir (or the folder
of --items), in plain formats, and become small WebP pictures inside the page, without metadata.

  N items
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import dataclasses
import functools
import io
import pathlib
import re
import urllib.parse

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.search import image_origins
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.encoders.pictures import local_file
from pinsage_jax.explorer.columns import require_column
from pinsage_jax.listing.values import TEXT, kind_of

# Formats that Pillow decodes itself, without another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_MAX_PIXELS = 64_000_000
_SIDE = 112
_QUALITY = 60
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")


@dataclasses.dataclass(frozen=True)
class Images:
    """Where the picture of each item is.

    Attributes:
      addresses: [N], address at an allowed host, or None.
      files: [N], local file, or None.
      origins: origins that the page may load pictures from.
    """

    addresses: list[str | None]
    files: list[pathlib.Path | None]
    origins: tuple[str, ...]

    @property
    def has_files(self) -> bool:
        """Whether any picture is a local file."""
        return any(path is not None for path in self.files)


def find_images(config: Config, prepared: Prepared, quiet: bool = False) -> Images | None:
    """The pictures that --image_column names; None without the flag.

    Those that may not be shown are counted in a warning, unless `quiet`.

    Raises:
      UserError: there is no such column, or it holds no text, or Pillow is missing.
    """
    name = config.explorer.image_column
    if not name:
        return None
    columns = prepared.item_columns
    require_column(columns, name, "image_column")
    if kind_of(columns.types[name]) != TEXT:
        raise UserError(
            f"--image_column={name} holds {kind_of(columns.types[name]) or 'other values'}; "
            "name a column with addresses or paths of pictures."
        )
    origins = image_origins(config.explorer.image_hosts)
    root = _folder(config, prepared)
    values = columns.column(name).to_pylist()
    images = Images([None] * len(values), [None] * len(values), origins)
    refused: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row, value in enumerate(values):
        value = (value or "").strip()
        if not value:
            continue
        if value.startswith("//") or _SCHEME.match(value):
            address = f"https:{value}" if value.startswith("//") else value
            if (origin := _origin(address)) in origins:
                images.addresses[row] = address
            else:
                refused["at a host that --image_hosts does not name"][origin or value[:40]] += 1
            continue
        path, reason = local_file(root, value)
        images.files[row] = path
        if reason:
            refused[reason][value] += 1
    if not quiet:
        warn_of_refused(name, refused)
    if images.has_files:
        require_pillow()
    return images


def _folder(config: Config, prepared: Prepared) -> pathlib.Path:
    """The folder of local pictures: --data_dir, or else that of the item table."""
    items = prepared.manifest.get("inputs", {}).get("items", "")
    beside = pathlib.Path(items).parent if items else pathlib.Path()
    return (config.data.path("") if config.data.data_dir else beside).resolve()


def require_pillow() -> None:
    """Raises UserError if Pillow, which reads local pictures, is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UserError(
            "--image_column names local files, which need Pillow: pip install "
            "'pinsage-jax[report]'."
        ) from None


def warn_of_refused(column: str, refused: dict[str, collections.Counter[str]]) -> None:
    """Warns of pictures that are not shown: the most frequent of each reason, as an example."""
    for reason, names in refused.items():
        total = sum(names.values())
        logging.warning(
            "--image_column=%s: %d picture%s not shown, %s (such as %s).",
            column, total, " is" if total == 1 else "s are", reason, names.most_common(1)[0][0],
        )  # fmt: skip


def _origin(address: str) -> str:
    """Scheme, host and port of an http address; "" for one that is not to be loaded."""
    try:
        parts = urllib.parse.urlsplit(address)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return ""
    return f"{parts.scheme.lower()}://{parts.hostname}{f':{port}' if port else ''}"


@functools.lru_cache(maxsize=1024)
def thumbnail(path: pathlib.Path) -> bytes | None:
    """A WebP picture of at most 112 pixels a side without metadata; None if it cannot be read."""
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                return None
            # A JPEG is decoded at a fraction of its size.
            picture.draft("RGB", (2 * _SIDE, 2 * _SIDE))
            small = PIL.ImageOps.exif_transpose(picture) or picture
            small.thumbnail((_SIDE, _SIDE))
            has_alpha = small.mode in ("RGBA", "LA", "PA") or "transparency" in small.info
            small = small.convert("RGBA" if has_alpha else "RGB")
            target = io.BytesIO()
            small.save(target, "WEBP", quality=_QUALITY, exif=b"", icc_profile=b"")
            return target.getvalue()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        # What Pillow raises for a file that is no picture, or a damaged one.
        return None


def inlined(
    images: Images, order: np.ndarray, limit_mb: float, column: str, threads: int
) -> list[str | None]:
    """Thumbnails of the local files in base64 [N], as many as fit the limit.

    Args:
      order: int [N], the rows whose thumbnails are most wanted first.
      limit_mb: megabytes of base64 in all.
      column: name of the column, for warnings.
      threads: host threads that read the files.
    """
    files = {row: path for row, path in enumerate(images.files) if path is not None}
    rows = [row for row in order.tolist() if row in files]
    result: list[str | None] = [None] * len(images.files)
    left, done, unreadable = int(limit_mb * 1e6), 0, collections.Counter[str]()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # In parts, so that no more files are read than fit.
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            for row, data in zip(part, pool.map(thumbnail, [files[row] for row in part])):
                if data is None:
                    unreadable[str(files[row])] += 1
                    continue
                text = base64.b64encode(data).decode("ascii")
                left -= len(text)
                if left >= 0:
                    result[row] = text
                    done += 1
            if left < 0:
                break
    if unreadable:
        warn_of_refused(column, {"in a file that is no readable picture": unreadable})
    if left < 0:
        logging.warning(
            "explorer: thumbnails of %d of %d pictures fit into the page, of the items in most "
            "collections; --mode=serve shows all.",
            done, len(rows),
        )  # fmt: skip
    return result
