"""Works out a comparison before it runs: the config and steps of every run, what they share, and how long it takes."""

import difflib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from semievol.arms import ARMS, MATCHED, Arm, configure, plan_arm
from semievol.artifacts import DROPPED, RunDir
from semievol.comparison import ComparisonRecord, RunRecord, format_setting
from semievol.config import RunConfig
from semievol.errors import ConfigError
from semievol.pipeline import Step, fingerprint_steps, steps_to_run
from semievol.report_text import plural
from semievol.sft import TRAINED_IN
from semievol.stage import ROUND_STAGES, Backends

Setting = Callable[[RunConfig], RunConfig]
"""A point of a sweep: from the config of a split and seed to its own."""
Key = tuple[str, int, int, str]
"""Arm, split, seed and setting of a run."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One arm on one split with one seed, ready to run."""

    record: RunRecord
    config: RunConfig
    steps: tuple[Step, ...]

    @property
    def cell(self) -> tuple[int, int]:
        """Split and seed: runs that agree in both share their answers."""
        return self.record.split, self.record.seed


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """What is left to do after sharing."""

    n_runs: int
    n_runs_done: int
    n_steps: int
    """Steps of all runs, shared ones counted in each."""
    n_steps_shared: int
    """Those that another run of the same split does, or has done."""
    n_steps_done: int
    left: Mapping[str, int]
    """Steps that will run, by stage."""
    unmeasured: tuple[str, ...]
    """Stages among them whose time is unknown."""
    seconds: float
    """Estimate for the others, with all processes at work."""
    is_guess: bool
    """Whether it rests on a few timed steps of the model, for some stages, and not on finished steps of the folder."""
    steps_left: tuple[tuple[RunConfig, str], ...]
    """Config and stage of each step that will run."""

    def lines(self) -> list[str]:
        """For people."""
        left = ", ".join(f"{stage} {n}" for stage, n in self.left.items()) or "nothing"
        shared = f"{self.n_steps_shared} of them shared, {self.n_steps_done} done before"
        found = [
            f"{self.n_runs} runs, {self.n_runs_done} done before; {self.n_steps} steps, {shared}",
            f"left to run: {left}",
        ]
        return [*found, self.time_left()] if self.left else found

    def to_json(self, price: "WorkPrice | None") -> dict[str, Any]:
        """For programs; `seconds` is None where nothing is known, and leaves out the stages in `unmeasured`."""
        known = not self.left or set(self.unmeasured) != set(self.left)
        return {
            "n_runs": self.n_runs,
            "n_runs_done": self.n_runs_done,
            "n_steps": self.n_steps,
            "n_steps_shared": self.n_steps_shared,
            "n_steps_done": self.n_steps_done,
            "left": dict(self.left),
            "seconds": self.seconds if known else None,
            "is_guess": self.is_guess,
            "unmeasured": list(self.unmeasured),
            "price": price and {"low": price.low, "high": price.high, "without_price": list(price.unknown)},
        }

    def time_left(self) -> str:
        """What is known of it, and the stages that nothing is known of."""
        known = "" if set(self.unmeasured) == set(self.left) else f"about {format_seconds(self.seconds)}"
        if known and self.is_guess:
            known += " (from a few steps timed now, right within a factor of 1.6 or so)"
        unknown = f"not yet measured here: {', '.join(self.unmeasured)}" if self.unmeasured else ""
        return f"time left: {'; '.join(x for x in (known, unknown) if x)}"


def split_configs(config: RunConfig | Mapping[int, RunConfig], splits: Sequence[int]) -> dict[int, RunConfig]:
    """The config of each split."""
    return {s: _with_data_seed(config if isinstance(config, RunConfig) else config[s], s) for s in splits}


def refuse_equal_splits(points: Mapping[str, RunConfig], n_splits: int) -> None:
    """Raises ConfigError if several splits would be the same at one of the points, by setting."""
    for setting, point in points.items():
        data = point.data
        drawn = any((data.max_rows, data.max_labeled, data.max_unlabeled, data.max_test))
        if n_splits > 1 and data.path is None and not drawn:
            where = f" at {setting}" if setting else ""
            raise ConfigError(
                f"--splits: {n_splits} splits of separate files would all be the same{where}; give one file "
                "(data.path), or draw from the files (data.max_labeled, ...), or use one split and more seeds"
            )


def base_config(config: RunConfig | Mapping[int, RunConfig]) -> dict[str, Any]:
    """What the results of all runs depend on, as plain values: no seeds, and no files where each split has its own."""
    one = config if isinstance(config, RunConfig) else next(iter(config.values()))
    plain = {key: value for key, value in one.lasting().items() if key not in ("seed", "output_dir", "report")}
    plain["data"].pop("seed")
    if not isinstance(config, RunConfig):
        plain["data"] = {key: value for key, value in plain["data"].items() if key not in _FILES}
    return plain


_FILES = ("path", "labeled", "unlabeled", "test")


def choose_reference(reference: str | None, arms: Sequence[str]) -> str:
    """The arm that the others are compared with. Raises ConfigError if it is asked for and not run."""
    if reference is not None and reference not in (*ARMS, *arms):
        near = difflib.get_close_matches(reference, ARMS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"arms: {', '.join(ARMS)}"
        raise ConfigError(f"--reference {reference}: there is no such arm; {hint}")
    if reference is not None and reference not in arms:
        raise ConfigError(f"--reference {reference}: it is not among the arms {', '.join(arms)}; add it to --arms")
    return reference or next((name for name in (MATCHED, "sft") if name in arms), arms[0])


def plan_runs(
    record: ComparisonRecord, arms: Sequence[Arm], configs: Mapping[int, RunConfig], settings: Mapping[str, Setting]
) -> list[PlannedRun]:
    """Config and steps of every run of the record. Raises ConfigError if one cannot be made."""
    by_name = {arm.name: arm for arm in arms}
    planned = []
    for run in record.runs:
        seeded = configs[run.split].model_copy(update={"seed": run.seed})
        config = configure(by_name[run.arm], settings[run.setting](seeded))
        steps = plan_arm(by_name[run.arm], config, use_gold=record.use_gold)
        planned.append(PlannedRun(run, config, tuple(steps)))
    return planned


def find_fixed(runs: Sequence[PlannedRun], sweep: Mapping[str, Sequence[object]]) -> list[str]:
    """A line for each swept key that an arm sets itself, so that all its points are the same; one key at a time."""
    lines = []
    for key, values in sweep.items():
        points = {format_setting({key: value}) for value in values}
        seen: dict[str, set[str]] = {}
        for run in (run for run in runs if run.record.setting in points):
            seen.setdefault(run.record.arm, set()).add(run.config.model_copy(update={"seed": 0}).model_dump_json())
        n_splits = len({run.record.split for run in runs})
        fixed = [arm for arm, configs in seen.items() if len(points) > 1 and len(configs) == n_splits]
        if fixed:
            lines.append(f"{key} changes nothing of {', '.join(fixed)}: the arm sets it itself")
    return lines


def fingerprint_run(run: PlannedRun, folder: Path, backends: Callable[[RunConfig], Backends]) -> dict[str, str]:
    """Fingerprint of each step of a run."""
    return fingerprint_steps(run.config, RunDir(folder / run.record.folder), backends(run.config), run.steps)


def plan_work(
    folder: Path,
    runs: Sequence[PlannedRun],
    prints: Mapping[Key, Mapping[str, str]],
    *,
    n_runs_done: int,
    jobs: int = 1,
    guesses: Mapping[str, float] | None = None,
) -> WorkPlan:
    """Count what will run, and estimate the time of `jobs` processes.

    A step takes the mean of the finished ones of its stage in this folder; where there are none, what `guesses` says
    (`guess_seconds`).
    """
    seconds = measured_seconds(folder)
    guessed = dict.fromkeys(LIGHT, 0.0) | dict(guesses) if guesses else {}
    n_done = n_shared = 0
    total = 0.0
    left: list[tuple[RunConfig, str]] = []
    known = {split: finished_steps(folder, split) for split in {run.record.split for run in runs}}
    for run in runs:
        run_dir = RunDir(folder / run.record.folder)
        to_run = steps_to_run(run.config, run_dir, run.steps, prints[run.record.key])
        for step in run.steps:
            found = (step.name, prints[run.record.key][step.name])
            if step.name not in to_run:
                n_done += 1
            elif found in known[run.record.split]:
                n_shared += 1
            else:
                left.append((run.config, step.stage.name))
                known[run.record.split].add(found)
                total += seconds.get(step.stage.name, guessed.get(step.stage.name, 0.0) * _size(step, run.config))
    counts = Counter(stage for _, stage in left)
    new = [stage for stage in counts if stage not in seconds]
    return WorkPlan(
        n_runs=len(runs),
        n_runs_done=n_runs_done,
        n_steps=n_done + n_shared + len(left),
        n_steps_shared=n_shared,
        n_steps_done=n_done,
        left=dict(counts),
        unmeasured=tuple(stage for stage in new if stage not in guessed),
        seconds=total / jobs,
        is_guess=any(stage in guessed and stage not in LIGHT for stage in new),
        steps_left=tuple(left),
    )


LIGHT = ("data", "retrieve", "select", "audit", "oracle_select", "oracle_full")
"""Stages that need no language model: next to nothing beside the others."""


def guess_seconds(config: RunConfig) -> dict[str, float]:
    """Seconds of a step of each stage, from a few real steps of the model, as `semievol check --measure` times them.

    Of propagate those of one configuration. Empty for what is not a local model with a local trainer, and where the
    check finds a fault, which the run will then name.
    """
    if config.generator.type != "transformers" or config.trainer.type != "trl":
        return {}
    from semievol.checking import check_run  # it opens the model

    timing = check_run(config, measure=True).timing
    if timing is None:
        return {}
    found = {stage["stage"]: (stage["low"] + stage["high"]) / 2 for stage in timing["stages"]}
    found = {stage: s / config.rounds if stage in ROUND_STAGES else s for stage, s in found.items()}
    found["propagate"] /= _n_configurations(config)
    found["measure"] = found.pop("evaluate") / (4 if config.control.enabled else 3)
    for stage in ("control", "adapt", "distill"):  # trainings about as long as evolve
        found.setdefault(stage, found["evolve"])
    return found


class WorkPrice(NamedTuple):
    """What the steps that are left may cost, in US dollars."""

    low: float
    high: float
    unknown: tuple[str, ...]
    """Models whose price is not known; what they cost is not in the sums."""

    def line(self) -> str:
        """For people."""
        without = f", without {', '.join(self.unknown)}, whose price is not known" if self.unknown else ""
        return (
            f"cost: about ${self.low:,.2f} to ${self.high:,.2f}{without}; generator.max_cost and max_requests hold for "
            "each run, not for all together"
        )


def price_work(plan: WorkPlan) -> WorkPrice | None:
    """Price the steps that are left, each with the config of its run, as `semievol check` prices those of one run.

    None for what sends nothing to a server. Stages that a plain run lacks count as the like of them (measuring as
    evaluation, adapt and distill as evolve); a few-shot arm's longer prompts and what the row store saves do not count.
    """
    from semievol.money import is_hosted

    groups: dict[str, tuple[RunConfig, Counter[str]]] = {}
    same: Any = {"seed": True, "output_dir": True, "data": {"seed"}, "measure": {"model"}}
    for config, stage in plan.steps_left:
        if is_hosted(config):
            key = config.model_dump_json(exclude=same)
            groups.setdefault(key, (config, Counter()))[1][stage] += 1
    low = high = 0.0
    unknown: dict[str, None] = {}
    for config, left in groups.values():
        least, most, models = _price_steps(config, left)
        low, high = low + least, high + most
        unknown |= dict.fromkeys(models)
    return WorkPrice(low, high, tuple(unknown)) if groups else None


def _price_steps(config: RunConfig, left: Mapping[str, int]) -> tuple[float, float, tuple[str, ...]]:
    """Least and most dollars of steps of one config, by stage, and the models without a price."""
    from semievol.checking import check_run

    control = config.control.model_copy(update={"enabled": True})  # an arm may train it where a plain run does not
    money = check_run(config.model_copy(update={"control": control})).money
    if money is None:
        return 0.0, 0.0, ()
    prices = {stage.stage: (stage.low or 0.0, stage.high or 0.0) for stage in money.stages}
    low = high = 0.0
    for stage, n in left.items():
        like = {"measure": "evaluate", "adapt": "evolve", "distill": "evolve"}.get(stage, stage)
        times = n / (config.rounds if like in ROUND_STAGES else 1)
        if like == "evaluate":  # that of a run asks four models
            times = n * config.measure.n_samples / 4
        least, most = prices.get(like, (0.0, 0.0))
        low, high = low + times * least, high + times * most
    return low, high, money.unknown


def models_line(plan: WorkPlan, folder: Path, *, jobs: int = 1, keep_models: bool = True) -> str | None:
    """Room on the disk that the models of a plan take where all are kept, and their checkpoints meanwhile, for people.

    None where nothing is trained here, or where the size of a base cannot be told.
    """
    from semievol.costs import checkpoint_bytes

    groups: dict[tuple[str, ...], list[RunConfig]] = defaultdict(list)
    for config, stage in plan.steps_left:
        if stage in TRAINING and config.trainer.type == "trl":
            key = (config.model.model_dump_json(), config.generator.type, config.trainer.model_dump_json())
            groups[key].append(config)
    sizes = [(configs[0], _trained_weights(configs[0]), len(configs)) for configs in groups.values()]
    known = [(config, size, n) for config, size, n in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return None
    n_trainings = sum(n for _, _, n in known)
    models = sum(4 * size * n for _, size, n in known)
    checkpoints = min(jobs, n_trainings) * max(checkpoint_bytes(config, size) for config, size, _ in known)
    free = shutil.disk_usage(next(p for p in (folder, *folder.resolve().parents) if p.exists())).free
    parts = [f"{models / 1e9:,.1f} GB of models"] if keep_models else []
    parts += [f"up to {checkpoints / 1e9:,.1f} GB of checkpoints", f"{free / 1e9:,.1f} GB free"]
    line = f"disk: {plural(n_trainings, 'training')}, {', '.join(parts)}"
    if checkpoints > free:
        return f"{line}: too little; free some, or choose another --output-dir"
    if keep_models and models + checkpoints > free:
        return f"{line}: too little; --no-keep-models keeps what they predict alone"
    return line


def _trained_weights(config: RunConfig) -> int | None:
    """Weights that a training of this config changes; None where its base cannot be told."""
    from semievol.surroundings import check_model

    size = check_model(config)[2]
    return None if size is None else size.n_adapter


TRAINING = ("adapt", "warmup", "distill", "evolve", "control")
"""Stages that leave a model."""


def _size(step: Step, config: RunConfig) -> int:
    return _n_configurations(config) if step.stage.name == "propagate" else 1


def _n_configurations(config: RunConfig) -> int:
    return config.propagate.draw or len(config.propagate.configurations)


def measured_seconds(folder: Path) -> dict[str, float]:
    """Mean seconds of the steps that have run in a comparison, by stage."""
    found: dict[str, list[float]] = defaultdict(list)
    for place in run_folders(folder):
        for name, entry in RunDir(place).manifest().items():
            if "shared_from" not in entry and TRAINED_IN not in entry["stats"]:
                found[name.rpartition("/")[2]].append(entry["cost"]["seconds"])
    return {stage: sum(values) / len(values) for stage, values in found.items()}


def format_seconds(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_done(folder: Path, run: PlannedRun, fingerprints: Mapping[str, str]) -> bool:
    """Whether a run's folder holds all of its steps."""
    manifest = RunDir(folder / run.record.folder).manifest()
    return all(manifest.get(name, {}).get("fingerprint") == value for name, value in fingerprints.items())


def share_tokenizers() -> Callable[[RunConfig], Backends]:
    """Opens each tokenizer once: the arms of a comparison nearly all have the same."""
    opened: dict[str, Backends] = {}

    def backends(config: RunConfig) -> Backends:
        key = config.model.model_dump_json() + config.generator.model_dump_json()
        return opened.setdefault(key, Backends(config))

    return backends


def run_folders(folder: Path, split: int | None = None) -> list[Path]:
    """Run folders of a comparison, of any seed and setting; with `split` those of one split.

    What does not depend on the seed is the same for all of a split.
    """
    place = f"split-{'*' if split is None else split}/seed-*/*/manifest.json"
    return sorted(path.parent for pattern in (place, f"*/{place}") for path in folder.glob(pattern))


def finished_steps(folder: Path, split: int) -> set[tuple[str, str]]:
    """Name and fingerprint of the steps that some run folder of a split holds whole."""
    return {
        (name, entry["fingerprint"])
        for place in run_folders(folder, split)
        for name, entry in RunDir(place).manifest().items()
        if DROPPED not in entry
    }


def _with_data_seed(config: RunConfig, split: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"seed": split})})
