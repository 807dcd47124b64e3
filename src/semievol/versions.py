"""Versions of what computes, for results and reports."""

import platform
from importlib import metadata

from semievol import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "bm25s", "sentence-transformers")


def environment() -> dict[str, str]:
    """Versions of what computes."""
    versions = {"semievol": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
