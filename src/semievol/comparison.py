"""The record of a comparison: which arms ran on which splits and seeds, and how each run ended.

    comparison.json                                this record, written after every run
    rows/split-S-seed-N.sqlite                     answers that the runs of one split and seed share
    split-S/seed-N/<arm>/                          run folders; of a sweep <point>/split-S/seed-N/<arm>/

A run folder holds its stages like that of `semievol run`; files that runs share are hard links to one copy.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from semievol.artifacts import RunDir, content_hash
from semievol.errors import ArtifactError

SCHEMA_VERSION = 1
NAME = "comparison"
"""Of the artifact: comparison.json."""

Status = Literal["pending", "done", "failed"]


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """An arm, as tables show it."""

    name: str
    description: str
    uses_gold: bool
    """Whether it reads the sealed targets of the unlabelled rows, so that it bounds what is possible and competes with
    nothing."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One arm on one split with one seed, at one setting of a sweep."""

    arm: str
    split: int
    seed: int
    setting: str
    """`key=value,...` of a point of a sweep; empty in a plain comparison."""
    status: Status
    error: str | None
    """Why it failed; None unless it did."""
    folder: str
    """Run folder, relative to the folder of the comparison."""

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What tells the runs of a comparison apart."""
        return self.arm, self.split, self.seed, self.setting


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """What comparison.json says."""

    reference: str
    """Arm that the others are compared with."""
    use_gold: bool
    arms: tuple[ArmRecord, ...]
    seeds: tuple[int, ...]
    splits: tuple[int, ...]
    sweep: dict[str, list[Any]] | None
    """Values of each key of a sweep; None in a plain comparison."""
    runs: tuple[RunRecord, ...]
    config: dict[str, Any] | None = None
    """What all arms start from, without what the runs vary; None in comparisons that did not store it."""
    schema_version: int = SCHEMA_VERSION

    @property
    def failed(self) -> tuple[RunRecord, ...]:
        """Runs that ended with an error."""
        return tuple(run for run in self.runs if run.status == "failed")


def is_comparison(folder: Path) -> bool:
    """Whether `folder` holds a comparison."""
    return RunDir(folder).file(NAME, ".json").is_file()


def comparison_of(run_path: Path) -> Path | None:
    """The comparison that a run folder is a part of; None of a run of its own."""
    path = run_path.resolve()
    for folder in list(path.parents)[2:4]:  # split-S/seed-N/<arm>, of a sweep below <key=value>
        place = path.relative_to(folder).as_posix()
        if re.search(r"(^|/)split-\d+/seed-\d+/[^/]+$", place) and is_comparison(folder):
            try:
                runs = read_comparison(folder).runs
            except ArtifactError:  # a file of that name that is none of ours
                continue
            if any(run.folder == place for run in runs):
                return folder
    return None


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read comparison.json.

    Raises:
        ArtifactError: If there is none, or it is not such a record, or of another version of the schema.
    """
    if not is_comparison(folder):
        raise ArtifactError(f"{folder} is not the folder of a comparison: it has no {NAME}.json")
    stored = RunDir(folder).read_json(NAME)
    if not isinstance(stored, dict):
        raise ArtifactError(f"{folder}/{NAME}.json is not the record of a comparison")
    if stored.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder}/{NAME}.json has schema version {stored.get('schema_version')!r}, this version of semievol reads "
            f"{SCHEMA_VERSION}; run the comparison again in another folder"
        )
    try:
        record: ComparisonRecord = TypeAdapter(ComparisonRecord).validate_python(stored)
    except ValidationError as error:
        raise ArtifactError(f"{folder}/{NAME}.json is not the record of a comparison: {error}") from error
    return record


def write_comparison(folder: Path, record: ComparisonRecord) -> None:
    """Write comparison.json, atomically."""
    fields = asdict(record)
    RunDir(folder).write_json(NAME, {"schema_version": fields.pop("schema_version"), **fields})


def record_run(folder: Path, run: RunRecord) -> ComparisonRecord:
    """Put one run's end into comparison.json; processes that work on one comparison take turns."""
    with _turn(folder):
        before = read_comparison(folder)
        after = replace(before, runs=tuple(run if r.key == run.key else r for r in before.runs))
        write_comparison(folder, after)
    return after


def can_join(new: ComparisonRecord, earlier: ComparisonRecord) -> bool:
    """Whether the runs of both can stand in one comparison.

    They start from the same config, and sweep the same keys, or other keys one at a time.
    """
    if earlier.config is None or earlier.config != new.config or (new.sweep is None) != (earlier.sweep is None):
        return False
    same = list(earlier.sweep or {}) == list(new.sweep or {})
    return same or (_is_one_at_a_time(new) and _is_one_at_a_time(earlier))


def join_records(new: ComparisonRecord, earlier: ComparisonRecord, kept: Sequence[RunRecord]) -> ComparisonRecord:
    """`new` with some runs of `earlier` that it does not have: a folder gains arms, seeds, splits and points."""
    if not kept:
        return new
    there = {run.arm for run in kept}
    sweep = None
    if new.sweep is not None:
        before = {key: _values_of(key, values, kept) for key, values in (earlier.sweep or {}).items()}
        joined = {key: _ordered([*before.get(key, ()), *new.sweep.get(key, ())]) for key in {**before, **new.sweep}}
        sweep = {key: values for key, values in joined.items() if values}
    arms = {arm.name: arm for arm in (*new.arms, *earlier.arms) if arm in new.arms or arm.name in there}
    return replace(
        new,
        use_gold=new.use_gold or earlier.use_gold,
        arms=tuple(arms.values()),
        seeds=tuple(_ordered([*new.seeds, *(run.seed for run in kept)])),
        splits=tuple(_ordered([*new.splits, *(run.split for run in kept)])),
        sweep=sweep,
        runs=(*new.runs, *kept),
    )


def _values_of(key: str, values: Sequence[Any], runs: Sequence[RunRecord]) -> list[Any]:
    """Those values of a swept key that one of the runs has."""
    settings = [f",{run.setting}," for run in runs]
    return [v for v in values if any(f",{format_setting({key: v})}," in setting for setting in settings)]


def _is_one_at_a_time(record: ComparisonRecord) -> bool:
    points = {format_setting({key: value}) for key, values in (record.sweep or {}).items() for value in values}
    return all(run.setting in points for run in record.runs)


_MISSING = object()


def changed_keys(new: Mapping[str, Any], earlier: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key in dict.fromkeys([*new, *earlier]):
        a, b = new.get(key, _MISSING), earlier.get(key, _MISSING)
        if isinstance(a, dict) and isinstance(b, dict):
            found += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Each value once; numbers by size, others as they come."""
    once = [value for i, value in enumerate(values) if value not in values[:i]]
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in once)
    return sorted(once) if are_numbers else once


def run_folder(arm: str, *, split: int, seed: int, setting: str = "") -> str:
    """Folder of a run, relative to the folder of the comparison."""
    inner = f"split-{split}/seed-{seed}/{arm}"
    return f"{setting_folder(setting)}/{inner}" if setting else inner


def setting_folder(setting: str) -> str:
    """A folder name for a point of a sweep; values that no file name can hold are told apart by a hash."""
    slug = re.sub(r"[^A-Za-z0-9._=,-]+", "-", setting)
    return slug if slug == setting and len(slug) <= 100 else f"{slug[:80]}-{content_hash(setting)[:8]}"


def format_setting(point: Mapping[str, Any]) -> str:
    """`key=value,...` in the order of the keys."""
    return ",".join(f"{key}={value}" for key, value in point.items())


def pending_runs(
    arms: Sequence[str], *, splits: Sequence[int], seeds: Sequence[int], settings: Sequence[str] = ("",)
) -> tuple[RunRecord, ...]:
    """Every run of a comparison, none of them begun: seed by seed, then setting by setting, then arm by arm."""
    return tuple(
        RunRecord(arm, split, seed, setting, "pending", None, run_folder(arm, split=split, seed=seed, setting=setting))
        for split in splits
        for seed in seeds
        for setting in settings
        for arm in arms
    )


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    with FileLock(folder / ".comparison.lock").acquire(timeout=60):
        yield
