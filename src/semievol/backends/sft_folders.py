"""The folders of a training: where it works, from where it goes on, and how its result appears whole or not at all."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.artifacts import remove_folder
from semievol.backends.base import FIT_REPORT, FitReport, Progress
from semievol.backends.host_memory import peak_bytes
from semievol.config import TrlTrainerConfig
from semievol.errors import ArtifactError, TrainingError
from semievol.types import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from semievol.backends.sft_trainer import SftJob, SftOutcome

logger = logging.getLogger(__name__)

FINAL_DIR = "final"
REQUEST_FILE = "request.sha256"


@dataclass(frozen=True, slots=True)
class Request:
    """What one call of `fit` asks for, apart from its rows."""

    model: ModelRef
    config: TrlTrainerConfig
    seed: int
    output_dir: Path
    fingerprint: str
    progress: Progress | None
    opened: tuple[Path, Path | None] | None = None
    """Working folder and checkpoint, where the process that started this one has opened them."""

    @property
    def trained_model(self) -> ModelRef:
        """What the finished folder is opened as."""
        if self.config.method == "full":
            return ModelRef(str(self.output_dir))
        return ModelRef(self.model.base, str(self.output_dir))


def _partial_dir(output_dir: Path) -> Path:
    return output_dir.with_name(output_dir.name + ".partial")


def open_partial(output_dir: Path, fingerprint: str) -> tuple[Path, Path | None]:
    """The working folder, emptied where it belongs to another request, and its newest whole checkpoint."""
    partial_dir = _partial_dir(output_dir)
    request = partial_dir / REQUEST_FILE
    if partial_dir.exists() and not (request.exists() and request.read_text(encoding="utf-8") == fingerprint):
        logger.info("%s belongs to another training; starting over", partial_dir)
        shutil.rmtree(partial_dir)
    partial_dir.mkdir(parents=True, exist_ok=True)
    request.write_text(fingerprint, encoding="utf-8")
    checkpoint = _newest_checkpoint(partial_dir)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    return partial_dir, checkpoint


def _newest_checkpoint(partial_dir: Path) -> Path | None:
    """Newest checkpoint that was written to its end; others are removed.

    transformers writes `trainer_state.json` last, so a checkpoint in which it can be read is whole.
    """
    whole: list[tuple[int, Path]] = []
    for folder in partial_dir.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), folder))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
    return max(whole)[1] if whole else None


def read_finished(output_dir: Path, fingerprint: str) -> FitReport | None:
    """What a finished training of this fingerprint did, its working folder removed; None if there is none."""
    try:
        record = json.loads((output_dir / FIT_REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("fingerprint") != fingerprint:
        return None
    shutil.rmtree(_partial_dir(output_dir), ignore_errors=True)
    saved: dict[str, Any] = record["report"]
    full = saved["model"]["adapter"] is None
    # The folder may have been moved together with its run.
    model = ModelRef(str(output_dir)) if full else ModelRef(saved["model"]["base"], str(output_dir))
    losses = tuple((int(step), float(loss)) for step, loss in saved["losses"])
    return FitReport(**{**saved, "model": model, "losses": losses})


def publish(output_dir: Path) -> FitReport:
    """Make the finished training the output folder, which is whole or absent."""
    partial_dir = _partial_dir(output_dir)
    final = partial_dir / FINAL_DIR
    try:
        fingerprint = json.loads((final / FIT_REPORT).read_text(encoding="utf-8"))["fingerprint"]
    except OSError as error:
        raise TrainingError(f"the training ended without a word, but {final} is not whole; run again") from error
    final.replace(output_dir)
    report = read_finished(output_dir, fingerprint)
    assert report is not None
    return report


def remove_finished(output_dir: Path) -> None:
    """Remove the result of another training. Raises ArtifactError if the folder holds anything else."""
    if not output_dir.exists():
        return
    if any(output_dir.iterdir()) and not (output_dir / FIT_REPORT).exists():
        raise ArtifactError(f"{output_dir} exists and holds no training of ours: remove it or choose another folder")
    remove_folder(output_dir)


def make_report(outcome: "SftOutcome", job: "SftJob", model: ModelRef, *, n_rows: int, example: str) -> FitReport:
    """What the training did, with the peak of memory since it began."""
    if outcome.held_out_loss is not None:
        logger.info("loss on the held-out rows: %.4f nats per token", outcome.held_out_loss)
    return FitReport(
        model=model,
        optimizer_steps=outcome.optimizer_steps,
        train_seconds=outcome.train_seconds,
        n_rows=n_rows,
        n_tokens=outcome.n_tokens,
        losses=outcome.losses,
        rendered_example=example,
        peak_memory_bytes=peak_bytes(str(job.device)),
        precision="bf16" if job.bf16 else "fp32",
    )


def save_final(
    outcome: "SftOutcome",
    tokenizer: "PreTrainedTokenizerBase",
    partial_dir: Path,
    *,
    report: FitReport,
    request: Request,
) -> None:
    """Write everything to `final` in the working folder, the report last."""
    final = partial_dir / FINAL_DIR
    shutil.rmtree(final, ignore_errors=True)
    # Embeddings are never resized here; left to itself, PEFT asks the hub about them.
    options: dict[str, Any] = {"save_embedding_layers": False} if report.model.adapter else {}
    if outcome.state_dict is not None:
        options["state_dict"] = outcome.state_dict
    outcome.model.save_pretrained(final, **options)
    _sort_modules(final / "adapter_config.json")
    tokenizer.save_pretrained(final)
    base, kind = report.model.base, "LoRA adapter" if report.model.adapter else "Fine-tuned model"
    (final / "README.md").write_text(
        f"# {kind}\n\nTrained by semievol: {report.optimizer_steps} optimiser steps on {report.n_rows} rows"
        + (f", on top of `{base}`.\n" if report.model.adapter else ".\n"),
        encoding="utf-8",
    )
    record = {
        "fingerprint": request.fingerprint,
        "held_out_loss": outcome.held_out_loss,
        "report": {**report._asdict(), "model": {"base": base, "adapter": report.model.adapter}},
    }
    for file in final.iterdir():
        file.chmod((final / "README.md").stat().st_mode)  # safetensors leaves its files to their owner alone
    (final / FIT_REPORT).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sort_modules(path: Path) -> None:
    """Put the target modules in order: PEFT writes a set, whose order changes from process to process."""
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        modules = config.get("target_modules")
        config["target_modules"] = sorted(modules) if isinstance(modules, list) else modules
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
