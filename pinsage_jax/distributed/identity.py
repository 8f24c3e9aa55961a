"""What must be the same in all processes of a run, and how two of them are compared."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

# Packages whose versions must be the same in all processes: they affect the computed values.
_PACKAGES = ("pinsage-jax", "jax", "jaxlib", "numpy", "numba")
# Settings that may differ between processes; only process 0 reads the input tables.
_LOCAL_SECTIONS = ("distributed", "data")
_LOCAL_SETTINGS = ("threads", "producers", "prefetch")


def run_identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes: settings and package versions.

    Args:
      settings: the fields of a Config by name; a section is a dictionary.
    """
    sections = {}
    for name, value in settings.items():
        if name in _LOCAL_SECTIONS or name in _LOCAL_SETTINGS:
            continue
        if isinstance(value, dict):
            value = {key: each for key, each in value.items() if key not in _LOCAL_SETTINGS}
        sections[name] = value
    return {"settings": sections, "versions": {name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Describes the first difference between two run identities; None if they are equal."""
    for package, version in ours["versions"].items():
        if (other := theirs["versions"].get(package)) != version:
            return f"it has {package} {other}, not {version}"
    for section, value in ours["settings"].items():
        other = theirs["settings"].get(section)
        if not isinstance(value, dict):
            value, other = {section: value}, {section: other}
        elif not isinstance(other, dict):
            return f"it has no settings of {section}"
        for name, setting in value.items():
            # Hosts may mount the workdir at different paths; `join` checks that it is shared.
            if name != "workdir" and other.get(name) != setting:
                return f"it has --{name}={other.get(name)}, not {setting}"
    return None
