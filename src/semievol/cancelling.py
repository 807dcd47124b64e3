"""Stops what a run has under way at servers: its fine-tuning jobs and its batches.

It needs no lock: the process that waits for them sees them end and stops with an error. What was finished stays; the
next run starts other jobs, and sends the requests that a cancelled batch left out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from semievol.artifacts import STATE, RunDir
from semievol.backends import openai_batches, openai_jobs
from semievol.backends.openai_client import address, to_exception
from semievol.backends.openai_server import Server, open_server
from semievol.config import EndpointConfig
from semievol.errors import SemiEvolError
from semievol.summary import read_run_config

JOB_RECORDS = "*.partial/job.json"


@dataclass(frozen=True)
class Stopped:
    """One job or batch, and what became of it."""

    kind: str
    """`job` or `batch`"""
    id: str
    model: str
    status: str
    """As the server gives it afterwards."""
    is_cancelled: bool
    """False: it had ended before, or belongs to another server than the run's config names."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def render(self) -> str:
        """One line."""
        return f"{self.kind} {self.id} ({self.model}): {'cancelled, now ' if self.is_cancelled else ''}{self.status}"


def cancel_run(run_path: Path) -> list[Stopped]:
    """Cancel what a run waits for, jobs first; empty if there is nothing.

    Raises:
        ArtifactError: If `run_path` is not the folder of a run.
        ConfigError: If the key is missing or refused.
        GenerationError: If the server cannot be reached.
    """
    config = read_run_config(run_path)
    found: list[Stopped] = []
    if isinstance(config.trainer, EndpointConfig):
        folders = [path.parent for path in sorted(run_path.rglob(JOB_RECORDS))]
        found += _with_server(config.trainer, folders, _cancel_jobs)
    if isinstance(config.generator, EndpointConfig):
        found += _with_server(config.generator, [run_path / STATE], _cancel_batches)
    return found


def _with_server(config: EndpointConfig, folders: list[Path], cancel: Any) -> list[Stopped]:
    if not any(folder.is_dir() for folder in folders):
        return []
    with open_server(config) as server:
        try:
            return [stopped for folder in folders for stopped in cancel(server, folder)]
        except SemiEvolError:
            raise
        except Exception as error:
            raise to_exception(server.fault(error, "this run")) from None


def _cancel_jobs(server: Server, folder: Path) -> Iterator[Stopped]:
    """The job of a record, and all others of the same fingerprint: its id may never have arrived here."""
    record = openai_jobs.read_record(RunDir(folder))
    if record is None:
        return
    if record.base_url != address(server.config):
        yield Stopped("job", record.job or "of unknown id", record.model, f"is at {record.base_url}", False)
        return
    jobs = {job.id: job for job in openai_jobs.jobs_of(server, record.fingerprint)}
    if record.job is not None and record.job not in jobs:
        jobs[record.job] = server.client.fine_tuning.jobs.retrieve(record.job)
    for job in jobs.values():
        is_over = job.status in openai_jobs.ENDED
        status = job.status if is_over else _cancel(server, "job", job.id)
        if job.id == record.job and status == "cancelled":
            openai_jobs.write_record(RunDir(folder), replace(record, status=status))
        if not is_over or job.id == record.job:
            yield Stopped("job", job.id, record.model, str(status), not is_over and status == "cancelled")


def _cancel_batches(server: Server, state_dir: Path) -> Iterator[Stopped]:
    for record in openai_batches.BatchRecords(state_dir).read():
        if record.base_url != address(server.config):
            yield Stopped("batch", record.batch or "of unknown id", record.model, f"is at {record.base_url}", False)
            continue
        if record.batch is None:
            batch = openai_batches.find_batch(server, record)
        else:
            batch = server.client.batches.retrieve(record.batch)
        if batch is None:
            continue
        is_over = batch.status in openai_batches.ENDED
        status = batch.status if is_over else _cancel(server, "batch", batch.id)
        yield Stopped(
            "batch", batch.id, record.model, str(status), status in ("cancelling", "cancelled") and not is_over
        )


def _cancel(server: Server, kind: str, name: str) -> str:
    """State afterwards; one that ended in the meantime cannot be cancelled, and that is no fault."""
    from openai import BadRequestError, ConflictError

    api = server.client.fine_tuning.jobs if kind == "job" else server.client.batches
    try:
        return str(api.cancel(name).status)
    except (BadRequestError, ConflictError):
        return str(api.retrieve(name).status)
