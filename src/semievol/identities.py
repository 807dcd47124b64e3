"""What lies under the path of a model, by content: a path alone would stand for whatever was put there since.

Hashing gigabytes takes a while, so digests of large files are remembered, under the user's cache, by place, size, inode
and time of the last change.
"""

import os
from functools import lru_cache
from pathlib import Path

from semievol.artifacts import content_hash, file_hash, folder_hash

CACHE_VARIABLE = "SEMIEVOL_CACHE"
REMEMBERED_BYTES = 16 * 2**20
"""Smaller files are read again by each process."""


def cache_dir() -> Path:
    """`$SEMIEVOL_CACHE`, or else `~/.cache/semievol`."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "semievol")


def weights_identity(path: str) -> str | None:
    """SHA-256 over the weights and config files of a local folder; None for a hub id or the name of an API's model."""
    folder = Path(path)
    return folder_hash(folder, digest=_remembered_hash) if folder.is_dir() else None


def _remembered_hash(path: Path) -> str:
    found = path.stat()
    return _hash(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _hash(path: str, size: int, changed_ns: int, inode: int) -> str:
    if size < REMEMBERED_BYTES:
        return file_hash(Path(path))
    note = cache_dir() / "digests" / content_hash(path, size, changed_ns, inode)
    try:
        remembered = note.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        remembered = ""
    if len(remembered) == 64:
        return remembered
    digest = file_hash(Path(path))
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{note.name}.{os.getpid()}")
        part.write_text(digest, encoding="ascii")
        part.replace(note)
    except OSError:  # a home that cannot be written: the next process reads the weights again
        pass
    return digest
