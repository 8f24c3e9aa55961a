"""Writes the page of the Python interface from its docstrings.

python docs/python.py > docs/python.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pinsage_jax
from pinsage_jax.estimator.model import PinSage

_METHODS = (
    "__init__", "fit", "similar_items", "recommend", "embed", "evaluate", "report", "save", "load",
    "get_params", "set_params",
)  # fmt: skip
_FUNCTIONS = (
    "settings", "load_graph", "train", "embed", "embeddings", "neighbors", "evaluate", "explain",
    "compare", "doctor",
)  # fmt: skip
_HEADING = re.compile(r"(Args|Returns|Raises|Attributes of a fitted model):")
_ENTRY = re.compile(r"([\w, ]+): (.*)")


def text() -> str:
    """The page in Markdown."""
    parts = [
        "# The Python interface, call by call",
        "This page is made from the docstrings by `docs/python.py`; the tests run the examples of "
        "the object. [library.md](library.md) says when to use the object and when the functions.",
        "## The object PinSage",
        _markdown(inspect.getdoc(PinSage) or ""),
    ]
    for name in _METHODS:
        shown = "PinSage" if name == "__init__" else name
        parts += _documented(shown, inspect.unwrap(getattr(PinSage, name)))
    parts += [
        "## The functions",
        "Each takes the settings of a run, and reads and writes its workdir.",
    ]
    for name in _FUNCTIONS:
        parts += _documented(name, inspect.unwrap(getattr(pinsage_jax, name)))
    return "\n\n".join(parts) + "\n"


def _documented(shown: str, function: Callable) -> list[str]:
    """A heading, the signature and the docstring of a function."""
    # Annotations are text, which is shown in quotation marks.
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    signature = re.sub(r"\((cls|self)(, )?", "(", re.sub(r" -> [^)]*$", "", signature))
    return [
        f"### {shown}",
        f"```python\n{shown}{_wrapped(signature)}\n```",
        _markdown(inspect.getdoc(function) or ""),
    ]


def _wrapped(signature: str) -> str:
    """A signature, one argument a line if it is long."""
    if len(signature) < 80:
        return signature
    arguments = re.split(r", (?![^\[(]*[\])])", signature[1:-1])
    return "(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def _markdown(docstring: str) -> str:
    """A docstring: examples as code, sections as lists."""
    out: list[str] = []
    in_code = in_section = False
    for line in docstring.splitlines():
        if line.startswith(">>>") and not in_code:
            out.append("```python")
            in_code = True
        elif not line and in_code:
            out.append("```")
            in_code = False
        if in_code:
            out.append(line)
        elif found := _HEADING.fullmatch(line):
            out += [f"**{found[1]}**", ""]
            in_section = True
        elif in_section and line.startswith("  "):
            entry = _ENTRY.fullmatch(line.strip())
            if not line.startswith("   ") and entry:
                out.append(f"- `{entry[1]}`: {entry[2]}")
            elif not line.startswith("   ") and (not out or not out[-1]):
                out.append(line.strip())
            else:
                out.append(f"  {line.strip()}")
        else:
            out.append(line)
            in_section = in_section and not line
    return "\n".join([*out, *(["```"] if in_code else [])])


if __name__ == "__main__":
    print(text(), end="")
