"""/v1/fine_tuning/jobs. A job moves when it is looked at: each retrieval takes it one state on.

validating_files, queued, running (the engine trains), then succeeded once the training is done. Listing moves nothing.
"""

import asyncio
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from tests.emulator.chat import parse
from tests.emulator.engine import ALIASES, ServedModel, Trained, Training
from tests.emulator.errors import ApiError
from tests.emulator.files import add_file
from tests.emulator.pages import page
from tests.emulator.state import State, content_hash, now

MIN_CHATS = 10
ORGANIZATION = "emulator"
FINISHED = ("succeeded", "failed", "cancelled")
CHECKPOINTS_KEPT = 3
PATIENCE_SECONDS = 0.25
"""How long a retrieval waits for a training at work."""
AUTO = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0}


class Hyperparameters(BaseModel):
    """Of supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: int | str | None = "auto"
    batch_size: int | str | None = "auto"
    learning_rate_multiplier: float | str | None = "auto"


class Supervised(BaseModel):
    """The one method that is emulated."""

    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(BaseModel):
    """`method` of the body."""

    model_config = ConfigDict(extra="forbid")

    type: str
    supervised: Supervised = Supervised()


class JobBody(BaseModel):
    """What the route takes."""

    model_config = ConfigDict(extra="forbid")

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = Field(None, max_length=64)
    seed: int | None = Field(None, ge=0)
    metadata: dict[str, str] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: None = None


@dataclass
class Job:
    """A job at work."""

    entry: dict[str, Any]
    parent: ServedModel
    suffix: str
    chats: list[list[dict[str, Any]]]
    faults: set[str] = field(default_factory=set)
    resume_to: str = ""
    task: asyncio.Task[Trained] | None = None
    halted: threading.Event = field(default_factory=threading.Event)
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def halt(self) -> None:
        """Let a training at work end at its next step."""
        self.halted.set()


def routes(state: State) -> APIRouter:
    """Bind the routes to `state`."""
    router = APIRouter(prefix="/v1/fine_tuning/jobs")

    @router.post("")
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        return _create(state, body)

    @router.get("")
    async def list_jobs(request: Request) -> dict[str, Any]:
        query = request.query_params
        wanted = {k[9:-1]: v for k, v in query.items() if k.startswith("metadata[")}
        entries = [j.entry for j in state.jobs.values() if wanted.items() <= (j.entry["metadata"] or {}).items()]
        return page(entries, query)

    @router.get("/{job_id}")
    async def retrieve(job_id: str) -> dict[str, Any]:
        job = _find(state, job_id)
        await _advance(state, job)
        return job.entry

    @router.post("/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        job = _find(state, job_id)
        _refuse_finished(job, "cancel")
        job.halt()
        _end(state, job, "cancelled", "The job has been cancelled")
        return job.entry

    @router.post("/{job_id}/pause")
    async def pause(job_id: str) -> dict[str, Any]:
        job = _find(state, job_id)
        _refuse_finished(job, "pause")
        job.resume_to, job.entry["status"] = job.entry["status"], "paused"
        return job.entry

    @router.post("/{job_id}/resume")
    async def resume(job_id: str) -> dict[str, Any]:
        job = _find(state, job_id)
        if job.entry["status"] != "paused":
            raise ApiError(400, f"Job {job_id} is not paused.", code="invalid_job_state")
        job.entry["status"] = job.resume_to
        return job.entry

    @router.get("/{job_id}/events")
    async def events(job_id: str, request: Request) -> dict[str, Any]:
        listed = page(_find(state, job_id).events, request.query_params)
        return {k: v for k, v in listed.items() if k not in ("first_id", "last_id")}

    @router.get("/{job_id}/checkpoints")
    async def checkpoints(job_id: str, request: Request) -> dict[str, Any]:
        return page(_find(state, job_id).checkpoints, request.query_params, default_limit=10)

    return router


def _create(state: State, body: dict[str, Any]) -> dict[str, Any]:
    asked = parse(JobBody, body)
    parent = state.engine.models().get(ALIASES.get(asked.model, asked.model))
    if parent is None or not parent.tunable:
        message = f"Model {asked.model} is not available for fine-tuning or does not exist."
        raise ApiError(400, message, code="model_not_available", param="model")
    for param in ("training_file", "validation_file"):
        file_id = getattr(asked, param)
        if file_id is not None and file_id not in state.files:
            raise ApiError(400, f"invalid {param}: {file_id}", code=f"invalid_{param}", param=param)
    if asked.method is not None and asked.method.type != "supervised":
        raise ApiError(400, f"The method {asked.method.type} is not emulated.", param="method.type")
    chats = [json.loads(line) for line in state.files[asked.training_file][1].splitlines()]
    given = asked.method.supervised.hyperparameters if asked.method else asked.hyperparameters or Hyperparameters()
    settings = {k: AUTO[k] if v in (None, "auto") else v for k, v in given.model_dump().items()}
    entry: dict[str, Any] = {
        "id": state.new_id("ftjob-"),
        "object": "fine_tuning.job",
        "created_at": now(),
        "model": parent.id,
        "status": "validating_files",
        "training_file": asked.training_file,
        "validation_file": asked.validation_file,
        "seed": int(state.new_id("")[:6], 16) if asked.seed is None else asked.seed,
        "hyperparameters": settings,
        "method": {"type": "supervised", "supervised": {"hyperparameters": settings}},
        "metadata": asked.metadata,
        "organization_id": ORGANIZATION,
        "fine_tuned_model": None,
        "trained_tokens": None,
        "result_files": [],
        "error": None,
        "finished_at": None,
        "estimated_finish": None,
        "integrations": [],
    }
    job = Job(entry, parent, asked.suffix or "", [row.get("messages", []) for row in chats])
    kinds = ("job_failed", "job_stuck", "job_unknown_state")
    job.faults = {k for k in kinds if state.faults.strikes(k, "/v1/fine_tuning/jobs", content_hash(body))}
    state.jobs[entry["id"]] = job
    _log(state, job, f"Created fine-tuning job: {entry['id']}")
    _log(state, job, f"Validating training file: {asked.training_file}")
    return entry


def _find(state: State, job_id: str) -> Job:
    if job_id not in state.jobs:
        message = f"Could not find fine tune: {job_id}"
        raise ApiError(404, message, code="fine_tune_not_found", param="fine_tune_id")
    job: Job = state.jobs[job_id]
    return job


def _refuse_finished(job: Job, verb: str) -> None:
    if (status := job.entry["status"]) in FINISHED:
        raise ApiError(400, f"Cannot {verb} a job whose status is {status}.", code="invalid_job_state")


async def _advance(state: State, job: Job) -> None:
    status = job.entry["status"]
    if status == "validating_files":
        if fault := _fault_of(job.chats):
            _end(state, job, "failed", fault, code="invalid_training_file", param="training_file")
            return
        job.entry["status"] = "queued"
        _log(state, job, "Files validated, moving job to queued state")
    elif status == "queued" and "job_stuck" not in job.faults:
        unknown = "job_unknown_state" in job.faults
        job.faults.discard("job_unknown_state")
        job.entry["status"] = "awaiting_capacity" if unknown else "running"
        if not unknown:
            _start(state, job)
    elif status == "awaiting_capacity":
        job.entry["status"] = "running"
        _start(state, job)
    elif status == "running" and job.task is not None:
        await asyncio.wait({job.task}, timeout=PATIENCE_SECONDS)
        if job.task.done():
            _collect(state, job)


def _fault_of(chats: Sequence[Sequence[dict[str, Any]]]) -> str | None:
    if len(chats) < MIN_CHATS:
        return f"Training file has {len(chats)} example(s), but must have at least {MIN_CHATS} examples"
    for number, chat in enumerate(chats, 1):
        roles = [turn.get("role") for turn in chat]
        if not roles or roles[-1] != "assistant" or not all(isinstance(t.get("content"), str) for t in chat):
            return f"Line {number}: the last message must be from the assistant, and every message needs content"
    return None


def _start(state: State, job: Job) -> None:
    _log(state, job, "Fine-tuning job started")
    settings = job.entry["hyperparameters"]
    base = job.parent.id.split(":")[1] if job.parent.parent else job.parent.id
    name = f"ft:{base}:{ORGANIZATION}:{job.suffix}:{job.entry['id'][-8:]}"
    training = Training(
        job.parent,
        name,
        job.chats,
        settings["n_epochs"],
        settings["batch_size"],
        settings["learning_rate_multiplier"],
        job.entry["seed"],
        job.halted,
    )
    data = state.files[job.entry["training_file"]][1].decode() if job.entry["training_file"] in state.files else ""
    what = {"model": job.parent.id, "data": data, "settings": settings, "suffix": job.suffix, "seed": training.seed}
    state.counters.trainings[content_hash(what)] += 1
    job.task = asyncio.create_task(_train(state, training))
    job.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # a halted one is not looked at


async def _train(state: State, training: Training) -> Trained:
    if state.engine.blocking:
        return await asyncio.to_thread(state.engine.train, training)
    return state.engine.train(training)


def _collect(state: State, job: Job) -> None:
    assert job.task is not None
    if "job_failed" in job.faults:
        _end(state, job, "failed", "The job failed due to an internal error.", code="server_error")
        return
    if (error := job.task.exception()) is not None:
        _end(state, job, "failed", str(error), code="server_error")
        return
    trained = job.task.result()
    steps = len(trained.losses)
    rows = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for step, loss in trained.losses:
        metrics = {"step": step, "train_loss": loss, "total_steps": steps, "train_mean_token_accuracy": math.exp(-loss)}
        _log(state, job, f"Step {step}/{steps}: training loss={loss:.4f}", kind="metrics", data=metrics)
        rows.append(f"{step},{loss},{math.exp(-loss):.6f},,")
    for step, model in trained.checkpoints[-CHECKPOINTS_KEPT:]:
        checkpoint = {
            "id": state.new_id("ftckpt_"),
            "object": "fine_tuning.job.checkpoint",
            "created_at": now(),
            "fine_tuning_job_id": job.entry["id"],
            "fine_tuned_model_checkpoint": model.id,
            "step_number": step,
            "metrics": {"step": step, "train_loss": dict(trained.losses)[step]},
        }
        job.checkpoints.append(checkpoint)
    data = "\n".join(rows).encode()
    file = add_file(state, data, name="step_metrics.csv", purpose="fine-tune-results")
    job.entry["result_files"] = [file["id"]]
    job.entry["trained_tokens"] = trained.n_tokens
    job.entry["fine_tuned_model"] = trained.model.id
    state.counters.tokens["training"] += trained.n_tokens
    _log(state, job, f"New fine-tuned model created: {trained.model.id}")
    _end(state, job, "succeeded", "The job has successfully completed")


def _end(
    state: State, job: Job, status: str, message: str, *, code: str | None = None, param: str | None = None
) -> None:
    job.entry["status"] = status
    job.entry["finished_at"] = now()
    if code is not None:
        job.entry["error"] = {"code": code, "message": message, "param": param}
    _log(state, job, message, level="error" if code else "info")


def _log(
    state: State,
    job: Job,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    event = {
        "id": state.new_id("ftevent-"),
        "object": "fine_tuning.job.event",
        "created_at": now(),
        "level": level,
        "message": message,
        "type": kind,
        "data": data or {},
    }
    job.events.append(event)
