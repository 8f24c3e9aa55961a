"""Which encoders a catalog was prepared with, and whether a command gives them.

The manifest of a prepared catalog says of each encoder what tells it from others: a name to show,
and its fingerprint.  What a command runs, the command names (data/encoders/loading.py).
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.encoders.blocks import ENCODED, EncodedBlock
from pinsage_jax.data.encoders.encoder import IMAGE, TEXT, Encoder, same_fingerprint
from pinsage_jax.data.encoders.loading import open_encoders
from pinsage_jax.data.features import FeatureTransform

_KINDS = {kind.flag: kind for kind in ENCODED.values()}


def load_transform(config: Config) -> FeatureTransform:
    """The transform of WORKDIR/prepared, with the encoders that the command names.

    Raises:
      UserError: there is none, or an encoder is not that of the catalog.
    """
    folder = pathlib.Path(config.workdir) / "prepared" / "features"
    return FeatureTransform.load(folder, open_encoders(config.encoders))


def saved_encoders(folder: pathlib.Path) -> dict[str, EncodedBlock]:
    """What a prepared folder says of its encoders, by flag; {} if it is not there or damaged."""
    found: dict[str, EncodedBlock] = {}
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        manifest = files.read_checked_json(folder / "manifest.json")
        for flag, about in manifest["features"].get("encoders", {}).items():
            found[flag] = _KINDS[flag].restored([], about["name"], about["fingerprint"])
    return found


def encoder_identity(config: Config, folder: pathlib.Path) -> dict[str, tuple[float, ...]]:
    """Fingerprints of the encoders of a command by flag, for that of its inputs.

    Where the command names no encoder, or that of the prepared `folder`, it is the folder's.
    """
    found = {flag: block.fingerprint for flag, block in saved_encoders(folder).items()}
    for flag, encoder in _given(config).items():
        if encoder is not None and not same_fingerprint(encoder.fingerprint, found.get(flag, ())):
            found[flag] = encoder.fingerprint
    return found


def require_encoders(config: Config, folder: pathlib.Path) -> None:
    """Refuses to encode a table again without the encoders of the prepared `folder`.

    Raises:
      UserError: the command does not name one.
    """
    given = _given(config)
    for flag, block in saved_encoders(folder).items():
        if given[flag] is None:
            raise UserError(f"The tables of {folder} are read again, and {block.needed()}")


def refuse_other_encoders(config: Config, folder: pathlib.Path) -> None:
    """Refuses other encoders than those of the prepared `folder`, on which a model was trained.

    Raises:
      UserError: the command names another one, or one where there was none.
    """
    saved = saved_encoders(folder)
    for flag, encoder in _given(config).items():
        if encoder is None or not (folder / "manifest.json").exists():
            continue
        if flag not in saved:
            raise UserError(
                f"{encoder.label}: the model in {folder.parent} was trained without --{flag}; "
                "train a new one in its place with --retrain, or choose another --workdir."
            )
        saved[flag].given(encoder)


def encoders_line(manifest: dict[str, Any]) -> str:
    """The encoders of a prepared catalog for sentences: flags and dimensions; "" for none."""
    encoders = manifest.get("features", {}).get("encoders", {})
    return ", ".join(
        f"--{flag} ({len(about['fingerprint'])} dimensions)" for flag, about in encoders.items()
    )


def _given(config: Config) -> dict[str, Encoder | None]:
    encoders = open_encoders(config.encoders)
    return {TEXT: encoders.text, IMAGE: encoders.image}
