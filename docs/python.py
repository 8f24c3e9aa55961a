"""Writes the page of pinsage_jax.PinSage from its docstrings.

python docs/python.py > docs/python.md
"""

from __future__ import annotations

import inspect
import re

from pinsage_jax.estimator.model import PinSage

_METHODS = (
    "__init__", "fit", "similar_items", "recommend", "embed", "evaluate", "report", "save", "load",
    "get_params", "set_params",
)  # fmt: skip
_HEADING = re.compile(r"(Args|Returns|Raises|Attributes of a fitted model):")
_ENTRY = re.compile(r"([\w, ]+): (.*)")


def text() -> str:
    """The page in Markdown."""
    parts = [
        "# The object `pinsage_jax.PinSage`",
        "This page is made from the docstrings by `docs/python.py`; the tests run its examples. "
        "[library.md](library.md) says where the object stands beside the functions.",
        _markdown(inspect.getdoc(PinSage) or ""),
    ]
    for name in _METHODS:
        function = inspect.unwrap(getattr(PinSage, name))
        # Annotations are text, which is shown in quotation marks.
        signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
        signature = re.sub(r"\((cls|self)(, )?", "(", re.sub(r" -> [^)]*$", "", signature))
        shown = "PinSage" if name == "__init__" else name
        parts += [f"## {shown}", f"```python\n{shown}{_wrapped(signature)}\n```"]
        parts.append(_markdown(inspect.getdoc(function) or ""))
    return "\n\n".join(parts) + "\n"


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
