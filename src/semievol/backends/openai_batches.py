"""Batches on a server: written down before they are sent, found again after a crash, waited for side by side.

A batch's record holds the ids of its lines. A new process that wants one of these lines waits for that batch, and sends
nothing twice. Records lie in the run folder, or in the user's state folder where there is no run.
"""

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.artifacts import RunDir, record_adapter
from semievol.backends.notes import logger
from semievol.backends.openai_batch_files import Line, Outcome, Reading, chat_url, read_outcomes
from semievol.backends.openai_client import to_exception
from semievol.backends.openai_server import Server, growing_waits
from semievol.errors import ArtifactError, GenerationError

if TYPE_CHECKING:
    from openai.types import Batch

FOLDER = "batches"
NAME_KEY = "semievol_batch"
ENDED = ("completed", "failed", "expired", "cancelled")
GOING_ON = ("validating", "in_progress", "finalizing", "cancelling")
"""States that are known to go on; an unknown one is waited for as well, and said."""
CREATE_ATTEMPTS = 6
CREATE_WAIT_SECONDS = 20.0
DOWNLOADS = 3
"""Times that a result file with broken or missing lines is fetched."""


@dataclass(frozen=True)
class BatchRecord:
    """What is known here of one batch."""

    name: str
    """Unique; the batch carries it in its metadata and in the name of its file."""
    base_url: str
    model: str
    custom_ids: tuple[str, ...]
    batch: str | None = None
    """None: it may have been asked for, but its id is not known here."""
    status: str | None = None


class BatchRecords:
    """The records of one folder, each in a file of its own."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = RunDir(folder / FOLDER if folder is not None else user_state_dir() / FOLDER)

    def read(self) -> list[BatchRecord]:
        """All records that can be read, by name."""
        found = []
        for path in sorted(self._folder.path.glob("*.json")):
            try:
                found.append(record_adapter(BatchRecord).validate_python(self._folder.read_json(path.stem)))
            except (ArtifactError, ValueError):
                logger.info("%s is no record of a batch and is left alone", path)
        return found

    def write(self, record: BatchRecord) -> BatchRecord:
        """Store a record, atomically."""
        self._folder.write_json(record.name, record_adapter(BatchRecord).dump_python(record, mode="json"))
        return record

    def remove(self, record: BatchRecord) -> None:
        """Forget a batch."""
        self._folder.file(record.name, ".json").unlink(missing_ok=True)


def user_state_dir() -> Path:
    """Where programs keep state that outlives them (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "semievol"


def submit(server: Server, lines: Sequence[Line], model: str, records: BatchRecords) -> BatchRecord:
    """Upload the lines and create their batch; the record is stored before and after.

    Raises:
        SemiEvolError: If the server refuses the file or the batch, or cannot be reached.
    """
    name = f"semievol-{uuid.uuid4().hex[:24]}"
    record = records.write(BatchRecord(name, server.address, model, tuple(line.custom_id for line in lines)))
    try:
        file_id = server.upload(f"{name}.jsonl", b"".join(line.data for line in lines), "batch")
        batch = _create(server, file_id, record)
    except Exception as error:
        fault = server.fault(error, model)
        if fault.kind != "transient":
            records.remove(record)
            raise to_exception(fault) from None
        raise GenerationError(f"no batch could be sent to {server.address}: {fault.text}; run again to go on") from None
    logger.info("batch %s was created: %d requests to %s", batch.id, len(lines), model)
    return records.write(replace(record, batch=batch.id, status=batch.status))


def _create(server: Server, file_id: str, record: BatchRecord) -> "Batch":
    """Create the batch once: after a lost answer it is looked for before it is asked for again."""
    once = server.client.with_options(max_retries=0)  # the client's own retries would create a second batch
    for attempt, wait in enumerate(growing_waits(CREATE_WAIT_SECONDS), 1):
        try:
            return once.batches.create(
                input_file_id=file_id,
                endpoint=chat_url(server.config),
                completion_window="24h",
                metadata={NAME_KEY: record.name},
            )
        except Exception as error:
            fault = server.fault(error, record.model)
            if fault.kind != "transient" or attempt == CREATE_ATTEMPTS:
                raise
            logger.info("creating the batch failed (%s); looking for it before asking again", fault.text)
            server.sleep(max(wait, fault.retry_after_seconds or 0.0))
        found = find_batch(server, record)
        if found is not None:
            return found
    raise AssertionError("growing_waits does not end")


def find_batch(server: Server, record: BatchRecord) -> "Batch | None":
    """The batch of a record whose id is not known here; None if it was never created."""
    files = server.find_files(f"{record.name}.jsonl", "batch")
    if not files:
        return None
    ids, oldest = {file.id for file in files}, min(file.created_at for file in files) - 60
    batches = islice(server.client.batches.list(limit=100), 10_000)  # newest first
    recent = takewhile(lambda batch: batch.created_at >= oldest, batches)
    return next((batch for batch in recent if batch.input_file_id in ids), None)


def wait_for_batches(
    server: Server, records: Iterable[BatchRecord], *, poll_seconds: float, deadline_seconds: float
) -> "Iterator[tuple[BatchRecord, Batch | None]]":
    """Yield each batch as it ends; at the deadline those that have not, with None."""
    waiting, end = {record.name: record for record in records}, time.monotonic() + deadline_seconds
    said: dict[str, str] = {}
    for wait in growing_waits(poll_seconds):
        for record in list(waiting.values()):
            batch = _look(server, record)
            if batch is None:
                continue
            if batch.status in ENDED:
                del waiting[record.name]
                yield record, batch
            elif said.get(record.name) != (status := _progress(batch)):
                known = "" if batch.status in GOING_ON else ", a state that is not known here; waiting on"
                logger.info("batch %s is %s%s", batch.id, status, known)
                said[record.name] = status
        if not waiting or time.monotonic() + wait > end:
            break
        try:
            server.sleep(wait)
        except KeyboardInterrupt:
            logger.info("%d batches go on on the server; `semievol cancel RUN` stops them", len(waiting))
            raise
    for record in waiting.values():
        yield record, None


def _look(server: Server, record: BatchRecord) -> "Batch | None":
    try:
        return server.client.batches.retrieve(str(record.batch))
    except Exception as error:
        fault = server.fault(error, record.model)
        if fault.kind != "transient":
            raise to_exception(fault) from None
        logger.info("batch %s cannot be looked at (%s); waiting on", record.batch, fault.text)
        return None


def _progress(batch: "Batch") -> str:
    """State and, in coarse steps so that it is not said too often, how far it is."""
    counts = batch.request_counts
    if batch.status != "in_progress" or counts is None or not counts.total:
        return str(batch.status)
    return f"{batch.status}, {10 * (10 * (counts.completed + counts.failed) // counts.total)}% of {counts.total:,}"


def read_results(server: Server, batch: "Batch", model: str) -> list[Outcome]:
    """What both files of an ended batch say of its lines, in any order.

    Raises:
        SemiEvolError: If a file cannot be fetched.
    """
    counts = batch.request_counts
    outcomes: list[Outcome] = []
    for file_id, n_expected in ((batch.output_file_id, counts.completed if counts else 0), (batch.error_file_id, 0)):
        if file_id is not None:
            outcomes += _download(server, file_id, model, n_expected).outcomes
    return outcomes


def _download(server: Server, file_id: str, model: str, n_expected: int) -> Reading:
    """Fetch a file; again where lines are broken or fewer than the server counts, as after a cut connection."""
    best = Reading([], 0)
    for _ in range(DOWNLOADS):
        try:
            reading = read_outcomes(server.client.files.content(file_id).read())
        except Exception as error:
            fault = server.fault(error, model)
            if fault.kind != "transient":
                raise to_exception(fault) from None
            raise GenerationError(f"results {file_id} cannot be fetched: {fault.text}; run again to go on") from None
        best = max(best, reading, key=lambda r: len(r.outcomes))
        if not reading.n_broken and len({o.custom_id for o in reading.outcomes}) >= n_expected:
            break
    return best


def failure_of(batch: "Batch") -> str:
    """Why a batch as a whole came to nothing, in its own words."""
    listed: list[Any] = list((batch.errors.data if batch.errors is not None else None) or [])
    words = "; ".join(f"{e.code}: {e.message}" + (f" (line {e.line})" if e.line else "") for e in listed[:3])
    return f"batch {batch.id} {batch.status}: {words or 'the server gives no reason'}"
