"""Opens the encoders that a command names: a callable of Python, or a model folder.

The name comes from the command line, or from the call in Python, alone: nothing that lies in a
workdir, a prepared folder or a checkpoint is ever asked for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from pinsage_jax.config.data import EncoderConfig
from pinsage_jax.core.errors import UserError, described
from pinsage_jax.data.encoders.encoder import IMAGE, TEXT, Encoder

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_MODULES = "modules.json"
_OWN_TYPES = "sentence_transformers."


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The encoders of a command; None: it names none."""

    text: Encoder | None = None
    image: Encoder | None = None

    def check(self, has_text: bool, pictures: tuple[str, ...], label: str) -> None:
        """Checks that there is something to encode, and an encoder for pictures.

        Args:
          has_text: whether there are text columns; pictures: those of --image_columns.
          label: name of the table.

        Raises:
          UserError: there is nothing, or none.
        """
        if self.text is not None and not has_text:
            raise UserError(
                f"{self.text.label}: {label} has no column of text; name one with --text_columns."
            )
        if self.image is not None and not pictures:
            raise UserError(
                f"{self.image.label}: name the column of {label} that holds the pictures with "
                "--image_columns."
            )
        if pictures and self.image is None:
            raise UserError(
                f"--image_columns={','.join(pictures)} needs --image_encoder, which makes vectors "
                "of the pictures (--image_column shows them in the explorer)."
            )


def open_encoders(config: EncoderConfig) -> Encoders:
    """Imports or loads the encoders that the settings name.

    Raises:
      UserError: there is no such module, function or folder, or it cannot be loaded.
    """
    return Encoders(_opened(config.text_encoder, TEXT), _opened(config.image_encoder, IMAGE))


def name_of(function: Any) -> str:
    """A name for a callable, such as module:function."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def _opened(value: str | Callable[..., Any], flag: str) -> Encoder | None:
    if not isinstance(value, str):
        return Encoder(value, name_of(value), flag)
    return _named(value, flag) if value else None


@functools.cache
def _named(value: str, flag: str) -> Encoder:
    """The encoder of a name; loaded once, since a server asks for it with every reload."""
    if flag == TEXT and (folder := EncoderConfig(text_encoder=value).text_folder):
        return Encoder(_sentence_transformer(pathlib.Path(folder), flag), value, flag)
    if not _NAME.fullmatch(value):
        folder = ", nor the folder of a model" if flag == TEXT else ""
        raise UserError(f"--{flag}={value} is not MODULE:FUNCTION{folder}.")
    return Encoder(_imported(value, flag), value, flag)


def _imported(value: str, flag: str) -> Callable[..., Any]:
    """The callable of MODULE:FUNCTION; modules of the current folder come last."""
    name, _, attribute = value.partition(":")
    try:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            # As with `python -m`, whose first place is the current folder.
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
        found: Any = importlib.import_module(name)
    # Whatever the module does when it is imported.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"--{flag}={value}: there is no module {error.name}, neither installed nor in "
                f"{os.getcwd()} or PYTHONPATH."
            ) from None
        raise UserError(
            f"--{flag}={value}: the module {name} cannot be imported ({described(error)})."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            functions = [name for name in dir(found) if inspect.isfunction(getattr(found, name))]
            near = difflib.get_close_matches(part, functions, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"--{flag}={value}: {name} has no {attribute}{hint}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, type):
        kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise UserError(
            f"--{flag}={value} is {kind}; name a function, or an object that can be called."
        )
    return found


def _sentence_transformer(folder: pathlib.Path, flag: str) -> Callable[[list[str]], Any]:
    """The encoder of a sentence-transformers model on disk (extra text-encoder).

    Code that lies in the folder is not run, weights in a pickle are not read, and nothing is
    downloaded.
    """
    label = f"--{flag}={folder}"
    _check_model(folder, label)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(
            f"{label} needs sentence-transformers: pip install 'pinsage-jax[text-encoder]'."
        ) from None
    try:
        model = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{label} cannot be loaded ({described(error)}).") from error
    return lambda texts: model.encode(texts, convert_to_numpy=True, show_progress_bar=False)


def _check_model(folder: pathlib.Path, label: str) -> None:
    try:
        modules = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
        types = [str(module["type"]) for module in modules]
    except FileNotFoundError:
        raise UserError(
            f"{label} has no {_MODULES}; name the folder that SentenceTransformer.save wrote."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{label}: {_MODULES} cannot be read ({described(error)}).") from None
    if strange := [name for name in types if not name.startswith(_OWN_TYPES)]:
        raise UserError(
            f"{label} asks for code of its own ({strange[0]}), which is not run; name a function "
            f"of yours that uses it, as --{TEXT}=MODULE:FUNCTION."
        )
    for path in sorted(folder.rglob("*.bin")):
        if not any(path.parent.glob("*.safetensors")):
            raise UserError(
                f"{label} has its weights in a pickle ({path.name}); save the model with "
                "safe_serialization=True."
            )
