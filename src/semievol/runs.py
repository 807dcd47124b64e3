"""Opens finished runs: their configuration, the facts of their task and the models they trained."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from semievol.artifacts import DROPPED, RunDir
from semievol.config import RunConfig
from semievol.errors import ArtifactError, ConfigError
from semievol.summary import read_run_config
from semievol.types import ModelRef, TaskFacts

TRAINED = ("sft", "sft_matched", "semievol")
"""Models of a run, as tables name them."""


class FinishedRun(NamedTuple):
    """What is needed to use or to describe the models of a run."""

    run_dir: RunDir
    config: RunConfig
    facts: TaskFacts

    @property
    def is_arm(self) -> bool:
        """Whether it is a run of a comparison: it then has one model, and no results of its own."""
        return "measure" in self.run_dir.manifest()

    def model(self, name: str | None = None) -> ModelRef:
        """The model `name` (see TRAINED), or the final one: of a run semievol, of an arm the one that it measured.

        Raises:
            ConfigError: If there is no such name, the run has the control switched off, or it is an arm that answers in
                another way than with one model's own answer.
            ArtifactError: If the stage that trains it is not done, or the model was deleted since.
        """
        if name is None and self.is_arm:
            measure = self.config.measure
            if measure.k or measure.n_samples > 1:
                how = f"{measure.k} demonstrations" if measure.k else f"a majority of {measure.n_samples} samples"
                raise ConfigError(f"{self.run_dir.path}: this arm answers with {how}, which a comparison alone does")
            if measure.model == "base":
                return ModelRef(self.config.model.path)
            step = step_of_model(measure.model, self.config)
        else:
            step = _step_of(name or "semievol", self.config)
        entry = self.run_dir.manifest().get(step)
        if entry is None:
            raise ArtifactError(
                f"{self.run_dir.path}: {step} is not done, so there is no {name or 'final'} model yet; "
                f"run it again to go on (semievol status {self.run_dir.path} shows where it stands)"
            )
        if DROPPED in entry:
            raise ArtifactError(f"{self.run_dir.path}: the model of {step} was deleted (--no-keep-models)")
        stored: dict[str, Any] = self.run_dir.read_json(f"{step}/model")
        adapter = stored["adapter"]
        return ModelRef(self._inside(stored["base"]), None if adapter is None else self._inside(adapter))

    def _inside(self, path: str) -> str:
        """Folders of the run are stored relative to it."""
        return str(self.run_dir.path.resolve() / path) if path.startswith("./") else path


def open_run(path: Path) -> FinishedRun:
    """Open a run folder. Raises ArtifactError if it is none, or its data stage is not done."""
    config = read_run_config(path)
    run_dir = RunDir(path)
    facts: TaskFacts = TypeAdapter(TaskFacts).validate_python(run_dir.read_json("data/task"))
    return FinishedRun(run_dir, config, facts)


def public_base(path: str) -> str:
    """What a base is called outside this machine: the hub id, `pocket`, or the last part of a folder's path."""
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def step_of_model(name: str, config: RunConfig) -> str:
    """The step that trains what `measure.model` names."""
    steps = {"warm": "warmup", "adapted": "adapt", "distilled": "distill", "control": "control"}
    return steps.get(name, f"round-{config.rounds}/evolve")


def _step_of(name: str, config: RunConfig) -> str:
    if name not in TRAINED:
        raise ConfigError(f"no model {name!r} in a run; choose one of {', '.join(TRAINED)}")
    if name == "sft_matched" and not config.control.enabled:
        raise ConfigError("this run has control.enabled: false, so it trained no sft_matched model")
    return {"sft": "warmup", "sft_matched": "control", "semievol": f"round-{config.rounds}/evolve"}[name]
