"""Measures the model of a run, or any model, on a table with targets, as the evaluate stage of a run does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from semievol.answers import default_metric
from semievol.audit import measure, measure_calibration, measure_groups
from semievol.config import ChatGeneratorConfig, RunConfig, load_config
from semievol.drafts import MAX_SHOWN, Rejected
from semievol.errors import ConfigError
from semievol.loading import Known, LoadedData, load_examples
from semievol.predicting import RowAsker, uses_context
from semievol.runs import FinishedRun, open_run
from semievol.scoring import score_prediction
from semievol.stage import Reporter
from semievol.summary import percent
from semievol.types import EvalResult, Example, ModelRef, Prediction, TaskFacts


@dataclass(frozen=True, slots=True)
class EvaluateSummary:
    """How one model did on one table."""

    model: str
    test: str
    result: EvalResult
    groups: tuple[dict[str, Any], ...]
    """Score by group with its interval, largest groups first (`audit.group_lines`); empty where rows have no group."""
    calibration: dict[str, Any] | None
    """ece, brier, mean_entropy and mean_nll; None where there is no confidence."""
    n_rejected: int
    n_seen: int
    """Rows that stand among the labelled or unlabelled rows of the run too; 0 for a model without a run."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def render(self) -> Group:
        """The score, the groups and what to know about them."""
        r = self.result
        lines: list[Any] = [
            Text(
                f"{self.model} on {self.test}: {r.metric} {percent(r.value)}% "
                f"(95% {percent(r.ci_low)} to {percent(r.ci_high)}), {r.n:,} rows, {r.n_unparsed} unparsed"
            )
        ]
        if self.n_rejected:
            n = self.n_rejected + r.n
            lines.append(Text(f"{self.n_rejected:,} of {n:,} rows cannot be used and were left out"))
        if self.calibration is not None:
            shown = f"calibration error {self.calibration['ece']:.3f}, Brier score {self.calibration['brier']:.3f}"
            lines.append(Text(shown))
        if self.groups:
            table = Table(title="by group", title_justify="left", box=None, pad_edge=False)
            for name in ("group", f"{r.metric} %", "95% interval", "rows"):
                table.add_column(name, justify="left" if name == "group" else "right")
            for g in self.groups:
                interval = f"{percent(g['ci_low'])} to {percent(g['ci_high'])}"
                table.add_row(Text(g["group"]), percent(g["value"]), interval, str(g["n"]))
            lines.append(table)
        return Group(*lines, *(Text(note, style="dim") for note in self.notes))


def evaluate_file(target: str, test: str, *, config: Path | None = None, reporter: Reporter) -> EvaluateSummary:
    """Measure a model on the rows of a table.

    Args:
        target: A run folder (its evolved model), or a model: hub id, folder, or folder of a LoRA adapter.
        test: Table with targets.
        config: What describes the task where `target` is a model; its data section is read for the labels alone.
        reporter: What a person sees.

    Raises:
        ConfigError: If a model comes without a config, or a run with one.
        DataError: If rows of the table cannot be used (`data.max_bad_fraction` of the config applies).
        ArtifactError: If the run has not trained its model yet.
    """
    if (Path(target) / "config.resolved.json").is_file():
        if config is not None:
            raise ConfigError(f"--config: {target} is a run and carries its own; leave --config out")
        run = open_run(Path(target))
        return _evaluate(run.config, run.facts, run.model(), target, test, run, reporter)
    if config is None:
        raise ConfigError(
            f"{target} is not the folder of a run; for a model give --config with a config that says task and columns "
            f"(`semievol init {test} -o config.yaml` proposes one)"
        )
    settings, model = _model_config(load_config(config), target)
    return _evaluate(settings, _find_facts(settings), model, target, test, None, reporter)


def _model_config(config: RunConfig, target: str) -> tuple[RunConfig, ModelRef]:
    """The config for the model `target`; an adapter folder stands on the base that it names."""
    adapter = Path(target) / "adapter_config.json"
    base = target
    if adapter.is_file():
        import json

        named = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        base = named if named and (named == "pocket" or "/" in named) else config.model.path
    model = config.model.model_copy(
        update={"path": base, "revision": config.model.revision if base == config.model.path else None}
    )
    generator = config.generator
    if isinstance(generator, ChatGeneratorConfig) and base != config.model.path:
        generator = generator.model_copy(update={"model": None})  # the server is asked for the model by its own name
    return config.model_copy(update={"model": model, "generator": generator}), ModelRef(
        base, target if adapter.is_file() else None
    )


def _find_facts(config: RunConfig) -> TaskFacts:
    """As a run of the config would find them: prompts must not differ from those of a run."""
    if config.task.type == "label" and config.task.labels is not None:
        return TaskFacts(labels=config.task.labels)
    return load_examples(config).facts if config.task.type in ("choice", "label") else TaskFacts()


def _evaluate(
    config: RunConfig,
    facts: TaskFacts,
    model: ModelRef,
    name: str,
    test: str,
    run: FinishedRun | None,
    reporter: Reporter,
) -> EvaluateSummary:
    known = Known(facts.shared_choices, run is not None and _counts_from_zero(run))
    loaded = load_test(config, facts, test, known=known, with_context=run is None or uses_context(run))
    if run is None and config.task.type == "choice":
        facts = loaded.facts
    asker = RowAsker(config, facts)
    try:
        rows = list(loaded.labeled)
        predictions = _predict(asker, rows, model, reporter)
    finally:
        asker.close()
    metric = default_metric(config.task)
    n_seen = 0 if run is None else _count_seen(run, rows)
    seen = [f"{n_seen} of these rows stand among the labelled or unlabelled rows of the run"] if n_seen else []
    return EvaluateSummary(
        model=name,
        test=test,
        result=measure(name, metric, predictions, n_bootstrap=config.evaluate.n_bootstrap, seed=config.seed),
        groups=tuple(measure_groups(name, predictions)),
        calibration=measure_calibration(name, predictions),
        n_rejected=len(loaded.rejected),
        n_seen=n_seen,
        notes=(*seen, *(_describe_rejected(r) for r in loaded.rejected[:MAX_SHOWN]), *dict.fromkeys(loaded.notes)),
    )


def _counts_from_zero(run: FinishedRun) -> bool:
    data = run.config.data
    files = run.run_dir.read_json("data/counts").get("counts_from_zero", [])
    return any(source in files for source in (data.path, data.labeled, data.test))


def _describe_rejected(rejected: Rejected) -> str:
    r = rejected
    shown = f" {r.value!r}" if r.value else ""
    return f"left out: {r.file}, line {r.line}, {r.field}{shown}: {r.reason}; {r.remedy}"


def load_test(config: RunConfig, facts: TaskFacts, test: str, *, known: Known, with_context: bool) -> LoadedData:
    """Read a table with targets by the rules of a run; its rows come back as `labeled`, duplicates too."""
    columns = config.data.columns
    if not with_context and not columns.context:
        columns = columns.model_copy(update={"context": ""})
    limits = dict.fromkeys(("max_rows", "max_labeled", "max_unlabeled", "max_test"))
    sources: dict[str, str | None] = {"path": None, "labeled": test, "unlabeled": None, "test": None}
    settings = {"columns": columns, "duplicates": "keep", "near_duplicate_similarity": 1.0}
    data = config.data.model_copy(update={**limits, **sources, **settings})
    task = config.task.model_copy(update={"labels": facts.labels or config.task.labels})
    return load_examples(config.model_copy(update={"data": data, "task": task}), known=known)


def _predict(asker: RowAsker, rows: Sequence[Example], model: ModelRef, reporter: Reporter) -> list[Prediction]:
    """Rows that do not fit into the model count as unparsed, never as left out."""
    advance = reporter.task("test rows", len(rows), "rows")
    found: dict[str, Prediction] = {}
    fitting = []
    for row in rows:
        fault = asker.fault(row)
        if fault is None:
            fitting.append(row)
        else:
            reporter.note(f"row {row.id}: {fault}; counted as unparsed")
            found[row.id] = Prediction(row.id, None, None, None, group=row.group)
    for prediction in asker.predict(fitting, model):
        found[prediction.example_id] = prediction
        advance(1)
    score = partial(score_prediction, task=asker.config.task)
    return [score(found[row.id], row.target, row) for row in rows]


def _count_seen(run: FinishedRun, rows: Sequence[Example]) -> int:
    """Rows whose question, context and options stand among the rows that the model of the run could learn from."""
    asked = {_key(row) for row in rows}
    known: set[Any] = set()
    for artifact in ("data/labeled", "data/unlabeled"):
        known |= {key for e in run.run_dir.read_records(artifact, Example) if (key := _key(e)) in asked}
    return sum(_key(row) in known for row in rows)


def _key(example: Example) -> tuple[str, str, tuple[str, ...]]:
    return " ".join(example.question.casefold().split()), example.context or "", example.choices
