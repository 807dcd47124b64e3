"""Fine-tunes on a server that speaks OpenAI's `/fine_tuning/jobs`: OpenAI, Azure, or any other.

Folders of one training:

    <output_dir>.partial/   job.json (which job is waited for), and at the very end final/
    <output_dir>/           final/ renamed: job.json, events.jsonl, fit_report.json

There are no weights: the model stays on the server, and `ModelRef.base` is its name there. The server counts epochs,
not optimiser steps. Where a number of steps is asked for (the control has to train for as many as evolve), the training
file holds just as many rows as these steps take, in whole shuffled passes, and is trained on for one epoch.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.artifacts import RunDir, remove_folder
from semievol.backends import openai_jobs as jobs
from semievol.backends import openai_rows
from semievol.backends.base import FIT_REPORT, FitReport, Progress
from semievol.backends.notes import logger
from semievol.backends.openai_client import redact
from semievol.backends.openai_dates import explain_refusal, fine_tuning_notice
from semievol.backends.openai_jobs import Event, JobRecord, JobSpec
from semievol.backends.openai_server import Server, open_server
from semievol.config import ModelConfig, OpenAITrainerConfig, TrainerConfig
from semievol.errors import ArtifactError, ConfigError, TrainingError
from semievol.prices import base_name, price_of
from semievol.types import ModelRef, SftRow

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

GUESSED_EPOCHS = 3
GUESSED_BATCH_SIZE = 8
"""What progress counts with while the server keeps its own choice (`auto`) to itself."""
MAX_SEED = 2**31 - 1


class OpenAITrainer:
    """Supervised fine-tuning of one hosted model."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        today: Callable[[], date] = date.today,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model_config = model
        self._today, self._sleep = today, sleep

    def count_steps(self, n_rows: int, config: TrainerConfig) -> int:
        """Optimiser steps that `fit` takes over `n_rows` rows; a guess where batch size or epochs are `auto`."""
        settings = _own_section(config)
        if n_rows == 0:
            return 0
        if settings.max_steps is not None:
            return settings.max_steps
        n_epochs, batch_size = _n_epochs(settings), settings.batch_size
        n_train = n_rows - openai_rows.count_held_out(n_rows, settings.eval_fraction)
        n_batches = -(-n_train // (GUESSED_BATCH_SIZE if isinstance(batch_size, str) else batch_size))
        return n_batches * (GUESSED_EPOCHS if isinstance(n_epochs, str) else n_epochs)

    def fingerprint(self, model: ModelRef, train: Sequence[SftRow], *, config: TrainerConfig, seed: int) -> str:
        """SHA-256 over the files that `fit` would upload, the model and the settings."""
        return self._spec(model, train, _own_section(config), seed=seed).fingerprint

    def fit(
        self,
        model: ModelRef,
        train: Sequence[SftRow],
        output_dir: Path,
        *,
        config: TrainerConfig,
        seed: int,
        progress: Progress | None = None,
    ) -> FitReport:
        """Have `model` fine-tuned and wait for it (see `base.Trainer`).

        A killed call is called again: it waits for the job that was started, whatever had happened to it.

        Raises:
            ConfigError: If the server refuses to tune this model, or a setting is one that a server does not take.
            TrainingError: On too few or too long rows; when the job fails, is cancelled, or is not done in time.
            ArtifactError: If `output_dir` holds something that no training of ours wrote.
        """
        settings = _own_section(config)
        if model.adapter is not None:
            raise ConfigError(
                f"trainer.type: openai cannot train the local adapter {model.adapter}; start from the base"
            )
        spec, n_given = self._spec(model, train, settings, seed=seed), len(train)
        with open_server(settings, sleep=self._sleep) as server:
            finished = _read_finished(output_dir, spec.fingerprint, server.address)
            if finished is not None:
                if progress is not None:
                    progress(finished.optimizer_steps)
                return finished
            _remove_finished(output_dir)
            folder = RunDir(_partial_dir(output_dir))
            record = self._started(server, spec, folder)
            job, events = self._wait(server, record, folder, settings, progress)
            report = _report(server, job, events, spec, n_rows=n_given, example=openai_rows.render_example(train[0]))
        if progress is not None:
            progress(max(0, report.optimizer_steps - max((e.step or 0 for e in events), default=0)))
        _save(report, replace(record, status=str(job.status)), events, folder.path, output_dir)
        return report

    def _spec(self, model: ModelRef, train: Sequence[SftRow], settings: OpenAITrainerConfig, *, seed: int) -> JobSpec:
        rows, held_out = openai_rows.hold_out(train, settings.eval_fraction, seed=seed) if train else ([], [])
        n_epochs = _n_epochs(settings)
        if settings.max_steps is not None and rows:
            if settings.batch_size == "auto":
                raise ConfigError(
                    f"the server chooses the batch size (trainer.batch_size: auto), so it cannot train for "
                    f"{settings.max_steps} optimiser steps: set trainer.batch_size to a number, or "
                    "control.enabled: false"
                )
            rows = openai_rows.repeat_rows(rows, settings.max_steps * settings.batch_size, seed=seed)
            n_epochs = 1
        openai_rows.check_rows(rows, max_length=settings.max_length)
        training = openai_rows.build_training_file(rows)
        validation = openai_rows.build_training_file(held_out) if held_out else None
        openai_rows.check_size(training)
        hyperparameters: dict[str, int | float | str] = {
            "n_epochs": n_epochs,
            "batch_size": settings.batch_size,
            "learning_rate_multiplier": settings.learning_rate_multiplier,
        }
        return JobSpec(model.base, training, validation, hyperparameters, seed % MAX_SEED, settings.suffix)

    def _started(self, server: Server, spec: JobSpec, folder: RunDir) -> JobRecord:
        """The record of the job to wait for: stored, found on the server, or created now."""
        from openai import APIError

        try:
            record = _stored_job(server, spec, folder)
            if record is not None:
                return record
            self._announce(spec, server.address)
            return jobs.start_job(server, spec, folder)
        except (APIError, JSONDecodeError) as error:
            fault = server.fault(error, spec.model)
            if fault.kind == "transient":
                raise TrainingError(f"no fine-tuning job could be started: {fault.text}; run again to go on") from None
            raise ConfigError(explain_refusal(server.address, spec.model, self._today(), fault.text)) from None

    def _announce(self, spec: JobSpec, base_url: str) -> None:
        n_epochs = spec.hyperparameters["n_epochs"]
        passes = f"{n_epochs} epochs" if n_epochs != 1 else "1 epoch"
        logger.info(
            "%s: %d rows of about %d tokens in all (estimated at %d bytes each), %s",
            spec.model,
            spec.training.n_rows,
            spec.training.n_tokens,
            openai_rows.BYTES_A_TOKEN,
            passes,
        )
        notice = fine_tuning_notice(base_url, spec.model, self._today())
        if notice is not None:
            logger.info(notice)

    def _wait(
        self,
        server: Server,
        record: JobRecord,
        folder: RunDir,
        settings: OpenAITrainerConfig,
        progress: Progress | None,
    ) -> "tuple[FineTuningJob, list[Event]]":
        from openai import APIError

        job_id, events, shown = str(record.job), list[Event](), 0

        def show(event: Event) -> None:
            nonlocal shown
            events.append(event)
            if event.step is None:
                logger.info("job %s: %s", job_id, event.message)
            elif event.step > shown:
                if progress is not None:
                    progress(event.step - shown)
                shown = event.step

        try:
            job = jobs.wait_for_job(
                server,
                record,
                poll_seconds=settings.poll_seconds,
                deadline_seconds=settings.deadline_hours * 3600,
                on_event=show,
            )
        except (APIError, JSONDecodeError) as error:
            fault = server.fault(error, record.model)
            raise TrainingError(f"fine-tuning job {job_id} cannot be looked at: {fault.text}") from None
        except KeyboardInterrupt:
            logger.info("job %s goes on on the server; `semievol cancel RUN` stops it", job_id)
            raise
        if job.status != "succeeded":
            # Noted, so that the next run starts another job in the place of this one.
            jobs.write_record(folder, replace(record, status=str(job.status)))
            words = redact(jobs.failure_text(job), settings)
            raise TrainingError(f"{words}; running again starts a new job")
        return job, events


def _own_section(config: TrainerConfig) -> OpenAITrainerConfig:
    if not isinstance(config, OpenAITrainerConfig):
        raise ConfigError(f"trainer.type: the openai trainer got a section of type {config.type}")
    if getattr(config, "learning_rate", None) is not None:
        raise ConfigError(
            "a server takes no learning_rate: leave it out of warmup and evolve, and set "
            "trainer.learning_rate_multiplier"
        )
    return config


def _n_epochs(settings: OpenAITrainerConfig) -> int | str:
    n_epochs = settings.num_train_epochs
    if isinstance(n_epochs, str):
        return n_epochs
    if n_epochs != int(n_epochs) or n_epochs < 1:
        raise ConfigError(f"num_train_epochs: {n_epochs:g}: a server trains for whole epochs, from 1 on")
    return int(n_epochs)


def _stored_job(server: Server, spec: JobSpec, folder: RunDir) -> JobRecord | None:
    """The record of the job that an earlier call of `fit` waited for, if the server still knows it."""
    from openai import NotFoundError

    record = jobs.read_record(folder)
    if record is None or record.job is None or record.status in ("failed", "cancelled"):
        return None
    if (record.fingerprint, record.base_url) != (spec.fingerprint, server.address):
        logger.info("job %s was started for other rows or settings and is no longer waited for", record.job)
        return None
    try:
        server.client.fine_tuning.jobs.retrieve(record.job)
    except NotFoundError:
        logger.info("the server no longer knows job %s; looking for another", record.job)
        return None
    logger.info("going on with fine-tuning job %s", record.job)
    return record


def _partial_dir(output_dir: Path) -> Path:
    return output_dir.with_name(output_dir.name + ".partial")


def _read_finished(output_dir: Path, fingerprint: str, base_url: str) -> FitReport | None:
    try:
        stored = json.loads((output_dir / FIT_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if (stored.get("fingerprint"), stored.get("base_url")) != (fingerprint, base_url):
        return None
    shutil.rmtree(_partial_dir(output_dir), ignore_errors=True)
    saved: dict[str, Any] = stored["report"]
    losses = tuple((int(step), float(loss)) for step, loss in saved["losses"])
    return FitReport(**{**saved, "model": ModelRef(saved["model"]), "losses": losses})


def _remove_finished(output_dir: Path) -> None:
    if not output_dir.exists():
        return
    if any(output_dir.iterdir()) and not (output_dir / FIT_REPORT).exists():
        raise ArtifactError(f"{output_dir} exists and holds no training of ours: remove it or choose another folder")
    remove_folder(output_dir)


def _report(
    server: Server, job: "FineTuningJob", events: Sequence[Event], spec: JobSpec, *, n_rows: int, example: str
) -> FitReport:
    n_steps = jobs.optimizer_steps(job, spec.training.n_rows, events)
    if n_steps is None:
        logger.info("job %s does not say how many optimiser steps it took; 0 stands for unknown", job.id)
    return FitReport(
        model=ModelRef(str(job.fine_tuned_model)),
        optimizer_steps=n_steps or 0,
        train_seconds=float(max(0, (job.finished_at or job.created_at) - job.created_at)),
        n_rows=n_rows,
        n_tokens=job.trained_tokens or 0,
        losses=jobs.training_losses(server, job, events),
        rendered_example=example,
        dollars=_dollars(spec.model, job.trained_tokens or 0),
    )


def _dollars(model: str, n_tokens: int) -> float:
    """By the price table; the tokens that a server counts hold all epochs. 0 where the price is unknown."""
    price = price_of(base_name(model))
    return 0.0 if price is None or price.training is None else round(price.training * n_tokens / 1e6, 6)


def _save(report: FitReport, record: JobRecord, events: Sequence[Event], partial_dir: Path, output_dir: Path) -> None:
    """Write everything to a folder beside and rename it, so that `output_dir` is whole or absent."""
    final = RunDir(partial_dir / "final")
    shutil.rmtree(final.path, ignore_errors=True)
    jobs.write_record(final, record)
    final.write_records("events", events, Event)
    final.write_json(
        FIT_REPORT.removesuffix(".json"),
        {
            "fingerprint": record.fingerprint,
            "base_url": record.base_url,
            "report": {**report._asdict(), "model": report.model.base, "losses": [list(x) for x in report.losses]},
        },
    )
    final.path.replace(output_dir)
    shutil.rmtree(partial_dir)
