"""Finished steps and trainings of other run folders: found by fingerprint, taken over as hard links.

A fingerprint covers all that a step's result depends on, so an equal one means equal artifacts. That of a step goes by
what comes before it; that of a training by the rows themselves, so steps that differ may have the same training: a
selection that keeps the same answers for another reason, a control beside another method. Files of a run folder are
replaced and never changed in place, so a link is as good as a copy and costs no room.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from semievol.artifacts import DROPPED, RunDir, remove_folder
from semievol.backends.base import FIT_REPORT

Failures = dict[tuple[str, str], str]
"""Why steps failed, by name and fingerprint."""

LOCKS = ".trainings"
"""Folder under the root with a lock for each training that is done; not needed when no process is left."""
ORIGIN = ".origin.json"
"""What is put behind the name of a model's folder, for the file that says which step trained it."""


class SharedSteps:
    """The finished steps of several run folders under one root."""

    def __init__(self, root: Path, folders: Iterable[Path] = (), failures: Failures | None = None) -> None:
        """`failures` are those of other processes; failures noted here are added to it."""
        self._root = root
        self._folders: dict[tuple[str, str], list[Path]] = {}
        self._errors = {} if failures is None else failures
        for folder in folders:
            self.add(RunDir(folder))

    def add(self, run_dir: RunDir) -> None:
        """Make what is finished in a run folder known to the others, but for steps whose model was deleted."""
        for name, entry in run_dir.manifest().items():
            if DROPPED in entry:
                continue
            known = self._folders.setdefault((name, entry["fingerprint"]), [])
            if run_dir.path not in known:
                known.append(run_dir.path)

    def find(self, name: str, fingerprint: str) -> RunDir | None:
        """A run folder in which this step is finished, or None."""
        for folder in self._folders.get((name, fingerprint), ()):
            # The folder may have been run again since with another configuration.
            if RunDir(folder).manifest().get(name, {}).get("fingerprint") == fingerprint:
                return RunDir(folder)
        return None

    def take_over(self, source: RunDir, target: RunDir, name: str, *, artifacts: Iterable[str]) -> bool:
        """Link a finished step's artifacts and its model, and note in the manifest whom it is shared with.

        Args:
            source: Run folder that holds the step.
            target: Run folder that lacks it.
            name: Of the step, such as `round-1/evolve`.
            artifacts: Places of all that the step may write, without suffix.

        Returns:
            False, and the step counts as not done, if another process began to run the source again meanwhile, or its
            artifacts are gone.
        """
        entry: dict[str, Any] | None = source.manifest().get(name)
        if entry is None:
            return False
        names = [(artifact, suffix) for artifact in artifacts for suffix in (".json", ".jsonl")]
        there = [name for name in names if source.file(*name).exists()]
        if not there:
            return False
        for name_there in there:
            _link_file(source.file(*name_there), target.file(*name_there))
        if (source.path / name / "adapter").is_dir():
            _link_folder(source.path / name / "adapter", target.path / name / "adapter")
        if source.manifest().get(name) != entry:  # a step leaves the manifest before its files change
            return False
        shared = entry.get("shared_from") or source.path.relative_to(self._root).as_posix()
        target.record_stage(name, entry | {"shared_from": shared})
        return True

    @contextmanager
    def hold_training(self, fingerprint: str, folder: Path, *, note: Callable[[str], None]) -> Iterator["HeldTraining"]:
        """Hold a training, so that no two processes do it, and link it to `folder` where it is finished elsewhere.

        Args:
            fingerprint: `Trainer.fingerprint`.
            folder: Where it is to stand.
            note: Told when another process has it in hand, before the wait for that process.
        """
        path = self._root / LOCKS / f"{fingerprint[:32]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, start = FileLock(path), time.perf_counter()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note("another process has the same training in hand; waiting for it")
            lock.acquire()
        waited = time.perf_counter() - start
        try:
            if _is_trained(folder, fingerprint):
                origin = _read_origin(folder, fingerprint)  # linked by a run that was killed then
            else:
                origin = self._link_training(fingerprint, folder)
            yield HeldTraining(origin, waited)
        finally:
            lock.release()

    def _link_training(self, fingerprint: str, folder: Path) -> str | None:
        for source in self._trained_models():
            if not _is_trained(source, fingerprint):
                continue
            step = source.parent.relative_to(self._root).as_posix()
            _write_origin(folder, fingerprint, step)
            try:
                _link_folder(source, folder)
            except FileNotFoundError:
                continue  # deleted meanwhile
            if _is_trained(source, fingerprint):  # a folder goes as a whole, so all of it was there
                return step
            remove_folder(folder)
        _origin_file(folder).unlink(missing_ok=True)
        return None

    def _trained_models(self) -> Iterator[Path]:
        """Folders of trained models under the root; other processes may add and remove folders meanwhile."""
        for place, names, _ in os.walk(self._root):
            if "adapter" in names:
                yield Path(place, "adapter")
            names[:] = sorted(name for name in names if name != "adapter" and not name.startswith((".", "adapter.")))

    def note_failure(self, name: str, fingerprint: str, error: str) -> None:
        """Remember that a step failed: with the same inputs it would fail again."""
        self._errors[name, fingerprint] = error

    def failure(self, name: str, fingerprint: str) -> str | None:
        """Why this step failed in another run; None if it did not."""
        return self._errors.get((name, fingerprint))


class HeldTraining(NamedTuple):
    """What became of the wish for a training."""

    trained_in: str | None
    """Step that did it, from the root, such as `split-0/seed-0/semievol/round-1/evolve`; None if it has to be done or
    stands in its place already."""
    waited_seconds: float
    """Time that another process had it in hand."""


def _is_trained(folder: Path, fingerprint: str) -> bool:
    return _read_json(folder / FIT_REPORT).get("fingerprint") == fingerprint


def _origin_file(folder: Path) -> Path:
    """Beside a linked training: what it is, and which step did it."""
    return folder.with_name(folder.name + ORIGIN)


def _write_origin(folder: Path, fingerprint: str, step: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _origin_file(folder).with_suffix(".partial")
    partial.write_text(json.dumps({"fingerprint": fingerprint, "trained_in": step}) + "\n", encoding="utf-8")
    partial.replace(_origin_file(folder))


def _read_origin(folder: Path, fingerprint: str) -> str | None:
    found = _read_json(_origin_file(folder))
    return found.get("trained_in") if found.get("fingerprint") == fingerprint else None


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _link_file(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return  # renaming a link onto another link to the same file would leave both
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, partial)
    partial.replace(target)


def _link_folder(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".linking")
    remove_folder(partial)
    try:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            _link_file(path, partial / path.relative_to(source))
        remove_folder(target)
        partial.replace(target)
    except BaseException:
        remove_folder(partial)
        raise
