"""Fine-tuning jobs on a server: found again before they are created, stored before they are waited for.

A job is told by a fingerprint over the bytes of its files, its model and its settings. It travels in the metadata of
the job and in the names of its files, so a job that this machine lost track of (killed between the request and its
answer, a retry after a lost answer) is found on the server and taken up, never paid for twice.
"""

import base64
import csv
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from semievol.artifacts import RunDir, content_hash, record_adapter
from semievol.backends.notes import logger
from semievol.backends.openai_rows import TrainingFile
from semievol.backends.openai_server import Server, growing_waits
from semievol.errors import ArtifactError, TrainingError

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

JOB_FILE = "job"
"""Artifact of a partial folder that says which job it waits for."""
FINGERPRINT_KEY = "semievol_fingerprint"
ENDED = ("succeeded", "failed", "cancelled")
WAITING = ("validating_files", "queued", "running", "pausing", "paused")
"""States that are known to go on; an unknown one is waited for as well, and said."""
CREATE_ATTEMPTS = 6
CREATE_WAIT_SECONDS = 20.0
"""Longest wait between two attempts."""


class JobSpec(NamedTuple):
    """Everything that the weights of a hosted training depend on."""

    model: str
    training: TrainingFile
    validation: TrainingFile | None
    hyperparameters: dict[str, int | float | str]
    seed: int
    suffix: str | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the files' bytes, the model and the settings; the suffix only names the result."""
        files = [self.training.sha256, None if self.validation is None else self.validation.sha256]
        return content_hash("fine-tuning", self.model, files, self.hyperparameters, self.seed)

    def file_name(self, part: str) -> str:
        """Name of the file `part` (train or validation) on the server."""
        return _file_name(self.fingerprint, part)

    @property
    def name(self) -> str:
        """Suffix of the tuned model's name (18 characters at most, which every server takes)."""
        return self.suffix or f"semievol-{self.fingerprint[:8]}"


@dataclass(frozen=True)
class JobRecord:
    """What the folder of a training knows of its job. It is written before every step that costs something."""

    fingerprint: str
    base_url: str
    model: str
    training_sha256: str
    n_rows: int
    training_file: str | None = None
    validation_file: str | None = None
    job: str | None = None
    """None: the job may have been asked for, but its id is not known here."""
    status: str | None = None


class Event(NamedTuple):
    """One message of a job. `step`, `total_steps` and `train_loss` are there in metrics alone."""

    id: str
    created_at: int
    message: str
    step: int | None = None
    total_steps: int | None = None
    train_loss: float | None = None


def read_record(folder: RunDir) -> JobRecord | None:
    """The record of a partial folder, or None if there is none that can be read."""
    try:
        record: JobRecord = record_adapter(JobRecord).validate_python(folder.read_json(JOB_FILE))
    except (ArtifactError, ValueError):
        return None
    return record


def write_record(folder: RunDir, record: JobRecord) -> JobRecord:
    """Store the record, atomically."""
    folder.write_json(JOB_FILE, record_adapter(JobRecord).dump_python(record, mode="json"))
    return record


def start_job(server: Server, spec: JobSpec, folder: RunDir) -> JobRecord:
    """Find the job of `spec` on the server, or upload its files and create it. The record in `folder` is kept current.

    Raises:
        SemiEvolError: If a file is refused.
        openai.APIError: If the server cannot be reached, or refuses the job.
    """
    record = JobRecord(spec.fingerprint, server.address, spec.model, spec.training.sha256, spec.training.n_rows)
    found = find_job(server, spec)
    if found is None:
        record = replace(record, training_file=server.upload(spec.file_name("train"), spec.training.data, "fine-tune"))
        if spec.validation is not None:
            held_out = server.upload(spec.file_name("validation"), spec.validation.data, "fine-tune")
            record = replace(record, validation_file=held_out)
        write_record(folder, record)
        found = _create(server, spec, record)
        logger.info("fine-tuning job %s was created: %s on %d rows", found.id, spec.model, spec.training.n_rows)
    else:
        logger.info("fine-tuning job %s of an earlier try has the same rows and settings and is taken up", found.id)
    return write_record(folder, replace(record, job=found.id, status=found.status))


def find_job(server: Server, spec: JobSpec) -> "FineTuningJob | None":
    """The job of `spec` that is done or under way: a finished one first, then the oldest."""
    found = [job for job in jobs_of(server, spec.fingerprint) if job.status not in ("failed", "cancelled")]
    found = [job for job in found if job.status != "succeeded" or _model_answers(server, job)]
    if len(found) > 1:
        logger.info("%d jobs have the same rows and settings: %s", len(found), ", ".join(job.id for job in found))
    return min(found, key=lambda job: (job.status != "succeeded", job.created_at, job.id), default=None)


def jobs_of(server: Server, fingerprint: str) -> "list[FineTuningJob]":
    """All jobs on the server that carry the fingerprint."""
    from openai import BadRequestError

    with suppress(BadRequestError):  # of servers that cannot filter
        listed = server.client.fine_tuning.jobs.list(limit=100, metadata={FINGERPRINT_KEY: fingerprint})
        marked = [j for j in islice(listed, 300) if (j.metadata or {}).get(FINGERPRINT_KEY) == fingerprint]
        if marked:
            return marked
    # A server that drops metadata still knows which file a job was trained on.
    files = server.find_files(_file_name(fingerprint, "train"), "fine-tune")
    if not files:
        return []
    ids, oldest = {f.id for f in files}, min(f.created_at for f in files) - 60
    jobs = islice(server.client.fine_tuning.jobs.list(limit=100), 10_000)  # newest first
    return [job for job in takewhile(lambda j: j.created_at >= oldest, jobs) if job.training_file in ids]


def _model_answers(server: Server, job: "FineTuningJob") -> bool:
    """Whether the tuned model is still there. A server without the route is believed."""
    from openai import NotFoundError

    try:
        server.client.models.retrieve(str(job.fine_tuned_model))
    except NotFoundError:
        with suppress(NotFoundError):
            server.client.models.retrieve(job.model)
            logger.info("job %s has the same rows and settings, but its model was deleted", job.id)
            return False
    return True


def _create(server: Server, spec: JobSpec, record: JobRecord) -> "FineTuningJob":
    """Create the job once: after a lost answer it is looked for before it is asked for again."""
    arguments: dict[str, Any] = {
        "model": spec.model,
        "training_file": record.training_file,
        "seed": spec.seed,
        "suffix": spec.name,
        "metadata": {FINGERPRINT_KEY: spec.fingerprint},
        "method": {"type": "supervised", "supervised": {"hyperparameters": spec.hyperparameters}},
    }
    if record.validation_file is not None:
        arguments["validation_file"] = record.validation_file
    once = server.client.with_options(max_retries=0)  # the client's own retries would create a second job
    for attempt, wait in enumerate(growing_waits(CREATE_WAIT_SECONDS), 1):
        try:
            return once.fine_tuning.jobs.create(**arguments)
        except Exception as error:
            fault = server.fault(error, spec.model)
            if _leave_out_unknown(arguments, fault.text):
                continue
            if fault.kind != "transient" or attempt == CREATE_ATTEMPTS:
                raise
            logger.info("creating the job failed (%s); looking for it before asking again", fault.text)
            server.sleep(max(wait, fault.retry_after_seconds or 0.0))
        found = find_job(server, spec)
        if found is not None:
            return found
    raise AssertionError("growing_waits does not end")


def _leave_out_unknown(arguments: dict[str, Any], said: str) -> bool:
    """Take out what an older server complains of by name; whether there was such a thing."""
    if "metadata" in arguments and re.search(r"\bmetadata\b", said):
        del arguments["metadata"]  # the name of the file still tells the job
        return True
    if "method" in arguments and re.search(r"\bmethod\b", said):
        arguments["hyperparameters"] = arguments.pop("method")["supervised"]["hyperparameters"]
        return True
    return False


def wait_for_job(
    server: Server,
    record: JobRecord,
    *,
    poll_seconds: float,
    deadline_seconds: float,
    on_event: Callable[[Event], None],
) -> "FineTuningJob":
    """Poll until the job has ended, handing on its new events, oldest first.

    Raises:
        TrainingError: If it has not ended after `deadline_seconds`; it goes on on the server.
        openai.APIStatusError: If the server no longer knows the job, or refuses the key.
    """
    job_id, end = str(record.job), time.monotonic() + deadline_seconds
    seen: set[str] = set()
    said, status = "", "unknown"
    for wait in growing_waits(poll_seconds):
        try:
            job = server.client.fine_tuning.jobs.retrieve(job_id)
            for event in _new_events(server, job_id, seen):
                on_event(event)
        except Exception as error:
            fault = server.fault(error, record.model)
            if fault.kind != "transient":
                raise
            logger.info("job %s cannot be looked at (%s); waiting on", job_id, fault.text)
        else:
            status = str(job.status)
            if status in ENDED and (status != "succeeded" or job.fine_tuned_model):
                return job
            if status != said:
                known = "" if status in (*WAITING, *ENDED) else ", a state that is not known here; waiting on"
                logger.info("job %s is %s%s", job_id, status, known)
                said = status
        if time.monotonic() + wait > end:
            break
        server.sleep(wait)
    raise TrainingError(
        f"fine-tuning job {job_id} is still {status} after {deadline_seconds / 3600:.2g} hours of waiting. It goes on "
        "on the server: run again to wait for it, raise trainer.deadline_hours to wait longer, or stop it with "
        "`semievol cancel RUN`"
    )


def _new_events(server: Server, job_id: str, seen: set[str]) -> list[Event]:
    """Events that are not in `seen`, oldest first; none where the server has no such route."""
    from openai import NotFoundError

    fresh: list[Event] = []
    try:
        for event in server.client.fine_tuning.jobs.list_events(job_id, limit=100):  # newest first
            if event.id in seen:
                break
            data = event.data if isinstance(event.data, dict) else {}
            loss = data.get("train_loss")
            numbers = _whole(data.get("step")), _whole(data.get("total_steps"))
            known_loss = float(loss) if isinstance(loss, int | float) else None
            fresh.append(Event(event.id, event.created_at, event.message, *numbers, known_loss))
    except NotFoundError:
        return []
    seen.update(event.id for event in fresh)
    fresh.reverse()
    fresh.sort(key=lambda event: event.created_at)
    return fresh


def training_losses(server: Server, job: "FineTuningJob", events: Iterable[Event]) -> tuple[tuple[int, float], ...]:
    """(step, loss) as the events tell, or as the job's result file does where they tell nothing."""
    losses = {e.step: e.train_loss for e in events if e.step is not None and e.train_loss is not None}
    if not losses:
        losses = dict(_result_losses(server, job))
    return tuple(sorted(losses.items()))


def _result_losses(server: Server, job: "FineTuningJob") -> Iterator[tuple[int, float]]:
    from openai import APIError

    for file in job.result_files or []:
        try:
            content = server.client.files.content(file).read()
        except APIError as error:
            logger.info("result file %s cannot be read: %s", file, server.fault(error, job.model).text)
            continue
        if not content.startswith(b"step"):
            with suppress(ValueError):  # OpenAI serves this file in base64
                content = base64.b64decode(content, validate=True)
        for row in csv.DictReader(io.StringIO(content.decode("utf-8", "replace"))):
            with suppress(KeyError, TypeError, ValueError):
                yield int(row["step"]), float(row["train_loss"])


def optimizer_steps(job: "FineTuningJob", n_rows: int, events: Iterable[Event]) -> int | None:
    """Steps that the job took: as it says itself, or from its epochs and batch size; None where neither is told."""
    told = [n for e in events for n in (e.total_steps, e.step) if n is not None]
    if told:
        return max(told)
    supervised = job.method.supervised if job.method is not None else None
    used: Any = (supervised.hyperparameters if supervised is not None else None) or job.hyperparameters
    n_epochs, batch_size = getattr(used, "n_epochs", None), getattr(used, "batch_size", None)
    if not isinstance(n_epochs, int) or not isinstance(batch_size, int):
        return None
    return n_epochs * -(-n_rows // batch_size)


def failure_text(job: "FineTuningJob") -> str:
    """Why a job ended without a model, in its own words."""
    if job.error is None or not job.error.message:
        return f"fine-tuning job {job.id} is {job.status}, and the server gives no reason"
    about = f" ({job.error.param})" if job.error.param else ""
    return f"fine-tuning job {job.id} is {job.status}: {job.error.code}: {job.error.message}{about}"


def _file_name(fingerprint: str, part: str) -> str:
    return f"semievol-{fingerprint[:24]}-{part}.jsonl"


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None
