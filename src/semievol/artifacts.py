"""The run folder: typed JSONL artifacts written atomically, the manifest of finished stages, the row store, the lock.

A file of the folder is whole or absent: it is written beside its place, synced and renamed. What a killed stage had
finished row by row stands in the row store (SQLite, write-ahead log), keyed by the content of the request.
"""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from semievol.errors import ArtifactError, ConfigError, DiskFullError, SemiEvolError

Record = TypeVar("Record")

CONFIG = "config.resolved.json"
MANIFEST = "manifest.json"
ROWS = "rows.sqlite"
STATE = "hosted"
"""Folder for what hosted backends keep between processes: what a server can do, what was spent, embeddings."""
SEALED_GOLD = "data/sealed_gold"
DROPPED = "model_dropped"
"""Key in the manifest entry of a finished step whose trained model was deleted since."""


class RunDir:
    """The folder of one run. `path` is made when something is first written."""

    def __init__(self, path: Path, *, rows: Path | None = None) -> None:
        """`rows` is the file of the row store, which runs may share; None: one of its own, in the folder."""
        self.path = path
        self._rows = path / ROWS if rows is None else rows

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process.

        Raises:
            ArtifactError: At once, if another process holds it.
        """
        with clear_disk_errors(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
                raise ConfigError(
                    f"the folder {self.path} cannot be made ({error.strerror}); name another one"
                ) from error
        lock = FileLock(self.path / ".lock")
        try:
            with clear_disk_errors(self.path):
                held = lock.acquire(timeout=0)
            with held:
                yield
        except Timeout:
            raise ArtifactError(
                f"{self.path} is in use by another semievol process; wait for it, or give this run another output_dir"
            ) from None

    def file(self, artifact: str, suffix: str = ".jsonl") -> Path:
        """Path of an artifact such as `round-1/select/kept`."""
        return self.path / f"{artifact}{suffix}"

    def write_records(self, artifact: str, records: Iterable[object], kind: type) -> int:
        """Write records as JSONL, atomically; returns how many."""
        adapter = record_adapter(kind)
        n = 0
        with self.replacing(self.file(artifact)) as partial, partial.open("wb") as stream:
            for record in records:
                stream.write(adapter.dump_json(record) + b"\n")
                n += 1
        return n

    def read_records(self, artifact: str, kind: type[Record]) -> Iterator[Record]:
        """Stream the records of an artifact.

        Raises:
            ArtifactError: If it is not there, or a line is not such a record.
        """
        path = self.file(artifact)
        adapter = record_adapter(kind)
        try:
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    try:
                        yield adapter.validate_json(line)
                    except ValidationError as error:
                        raise ArtifactError(f"{path}, line {number}: not a {kind.__name__}: {error}") from error
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; run the stages before it again") from None

    def count_records(self, artifact: str) -> int:
        """Number of records of an artifact, without parsing them. Raises ArtifactError if it is not there."""
        path = self.file(artifact)
        try:
            with path.open("rb") as stream:
                return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; run the stages before it again") from None

    def write_json(self, artifact: str, value: Any) -> None:
        """Write one JSON document, atomically, keys in the given order."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(f"{artifact}.json", text + "\n")

    def read_json(self, artifact: str) -> Any:
        """Read one JSON document. Raises ArtifactError if it is missing or broken."""
        path = self.file(artifact, ".json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; is {self.path} the folder of a run?") from None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ArtifactError(f"{path} is damaged: not JSON: {error}") from error

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, atomically; `name` carries the suffix."""
        path = self.path / name
        with self.replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return path

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Give a path beside `path` to write to; sync and rename it at the end, remove it on an error."""
        partial = path.with_name(path.name + ".partial")
        with clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield partial
                with partial.open("rb") as stream:
                    os.fsync(stream.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def manifest(self) -> dict[str, dict[str, Any]]:
        """Finished stages: name -> {fingerprint, stats, cost}."""
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        loaded = self.read_json("manifest")
        if not isinstance(loaded, dict) or not all(isinstance(entry, dict) for entry in loaded.values()):
            raise ArtifactError(f"{path} is damaged: it is no manifest; remove it, and all stages run again")
        return loaded

    def record_stage(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note that a stage is done."""
        self.write_json("manifest", self.manifest() | {name: dict(entry)})

    def forget_stages(self, names: Sequence[str]) -> None:
        """Take stages out of the manifest, so that they run again."""
        known = self.manifest()
        kept = {name: entry for name, entry in known.items() if name not in set(names)}
        if len(kept) < len(known):
            self.write_json("manifest", kept)

    def rows(self) -> "RowStore":
        """Open the row store."""
        with clear_disk_errors(self._rows):
            self._rows.parent.mkdir(parents=True, exist_ok=True)
            try:
                return RowStore(self._rows)
            except sqlite3.DatabaseError as error:
                if "not a database" not in str(error) and "malformed" not in str(error):
                    raise
                raise ArtifactError(
                    f"{self._rows} is damaged ({error}); remove it, and the answers in it are asked for again"
                ) from error


class RowStore:
    """Finished requests by the hash of their content. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._set_journal()
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value TEXT NOT NULL)")

    def _set_journal(self) -> None:
        """WAL; SQLite does not wait where another process sets it at the same moment, so we do."""
        for left in reversed(range(100)):
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or not left:
                    raise
                time.sleep(0.05)
            else:
                return

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Values of those keys that are there."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), 500):
            block = list(keys[start : start + 500])
            marks = ",".join("?" * len(block))
            found.update(self._connection.execute(f"SELECT key, value FROM rows WHERE key IN ({marks})", block))
        return found

    def put(self, rows: Mapping[str, str]) -> None:
        """Add rows in one transaction: all of them are there afterwards, or none."""
        with clear_disk_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows.items())
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def content_hash(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of `parts` (sorted keys), hexadecimal."""
    text = _CANONICAL.encode(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def folder_hash(path: Path, *, digest: Callable[[Path], str] = file_hash) -> str:
    """SHA-256 over the weights and config files of a model folder (names and bytes, the latter by `digest`)."""
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json") and not p.name.startswith("fit_"))
    return content_hash([(p.name, digest(p)) for p in files])


def remove_folder(path: Path) -> None:
    """Delete a folder if it is there; no process ever sees a part of it in its place that looks whole.

    What says what the folder is, its JSON files, goes first where it cannot be moved away in one step.
    """
    removed = path.with_name(path.name + ".removed")
    shutil.rmtree(removed, ignore_errors=True)
    try:
        path.rename(removed)
    except FileNotFoundError:
        return
    except OSError:  # some layered file systems rename no folder
        for file in sorted(path.glob("*.json")):
            file.unlink(missing_ok=True)
        removed = path
    shutil.rmtree(removed, ignore_errors=True)


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return record_adapter(type(value)).dump_python(value, mode="json")


def record_adapter(kind: type) -> TypeAdapter[Any]:
    """The JSON codec of a record type, made once."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)


LEAST_FREE = 2**24
"""Bytes: with less of them free the disk counts as full when something fails, whatever the error says."""


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk and a missing permission into an ArtifactError that names the place and the remedy.

    The place is the file that the error names, or else `path`. Libraries that write weights report a full disk in words
    of their own, so any error on a full disk counts as one.
    """
    try:
        yield
    except SemiEvolError:
        raise
    except Exception as error:
        named = _named_file(error)
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
            if named is None and error.errno == errno.EACCES:  # of something that is no file
                raise
            raise ArtifactError(f"cannot open or write {named or path}: {error.strerror}") from error
        if says_disk_full(error) or is_disk_full(path):
            raise disk_full(named or _full_place(error, path)) from error
        raise


def disk_full(path: Path) -> DiskFullError:
    """The error of a full disk, with the remedy."""
    return DiskFullError(f"no space left on the disk of {path}: free some and run again; it goes on")


def is_disk_full(path: Path) -> bool:
    """Whether less than `LEAST_FREE` is left on the disk of `path`; False where that cannot be told."""
    try:
        place = next((p for p in (path, *path.absolute().parents) if p.exists()), Path())
        usage = shutil.disk_usage(place)
        return usage.total > 0 and usage.free < LEAST_FREE  # those of the system itself have no size
    except OSError:
        return False


def says_disk_full(error: Exception) -> bool:
    """Whether the error itself speaks of a full disk or a quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, sqlite3.OperationalError):
        return "full" in str(error)
    return "No space left on device" in str(error)


def _named_file(error: Exception) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) and name else None


def _full_place(error: Exception, path: Path) -> Path:
    """`path`, or the folder for temporary files where that alone is full."""
    if is_disk_full(path) or getattr(error, "errno", None) == errno.EDQUOT:
        return path
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:  # it looks for a folder that it can write
        return path
    return temporary if is_disk_full(temporary) else path
