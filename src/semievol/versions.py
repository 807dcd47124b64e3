"""Versions of what computes, for results and reports."""

import platform
from functools import cache
from importlib import metadata

from semievol import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "bm25s", "sentence-transformers")


def environment() -> dict[str, str]:
    """Versions of what computes, and where."""
    here = {"semievol": __version__, "python": platform.python_version(), "platform": platform.platform(terse=True)}
    return here | package_versions()


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that compute, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
