"""Rewrites messages for Python: arguments in place of flags, methods in place of modes."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Collection, Iterator

from pinsage_jax.core.errors import UserError

_METHODS = {
    "prepare": "fit()", "train": "fit()", "embed": "fit()", "pipeline": "fit()",
    "evaluate": "evaluate()", "report": "report()", "neighbors": "similar_items()",
    "recommend": "recommend()",
}  # fmt: skip
# Arguments whose flags have other names.
_ARGUMENTS = {
    "item_column": "item", "item_id_column": "item", "collection_column": "collection",
    "weight_column": "weight", "time_column": "time", "title_column": "title",
    "text_columns": "text", "dense_columns": "dense", "numeric_columns": "numeric",
    "categorical_columns": "categorical", "image_columns": "image", "k": "n",
    "block_items": "block", "allow_items": "allow", "new_items": "items", "new_edges": "edges",
}  # fmt: skip
_TABLES = ("edges", "items", "train_pairs", "eval_pairs")


def as_library_message(message: str) -> str:
    """Rewrites a message of the program for a caller in Python."""
    for table in _TABLES:
        path = rf"\S*/inputs/{table}\.parquet"
        message = re.sub(rf"--{table}={path}", f"The table `{table}`", message)
        message = re.sub(path, f"the table `{table}`", message)
    message = re.sub(
        r"(?:(?:run|with) )?--mode=(\w+)", lambda m: f"call {_METHODS.get(m[1], m[1])}", message
    )
    message = re.sub(r"--(\w+)(: there is no)", r"There is no", message)
    return re.sub(r"--(\w+)", lambda m: _ARGUMENTS.get(m[1], m[1]), message)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Runs a stage without its printed tables; its errors name arguments and methods."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except UserError as error:
        raise UserError(as_library_message(str(error))) from None


def unknown_name(name: str, known: Collection[str], what: str) -> UserError:
    """The error for an unknown name; its message suggests the nearest known one."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "docs/flags.md lists all."
    return UserError(f"There is no {what} {name}; {hint}")
