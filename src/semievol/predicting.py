"""Answers new rows with the model of a finished run, in windows, so that memory does not grow with the table.

Every row of the input is a row of the output, in the same order, with its own columns and these:

    answer          the answer; of a choice row its letter; empty where there is none or it was abstained from
    answer_text     (choice) the option's text
    confidence      probability of the answer: within the closed set, else exp of the mean token log-probability
    entropy         (choice, label) of the exact answer distribution, nats
    abstained       whether the confidence lies under the threshold
    error           why a row has no answer, else empty

If the input has a column of one of these names, all of them get the prefix `predicted_`; if it has one of those too,
`predicted_2_`, and so on: no column of the input is ever overwritten.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, tee
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from semievol.answer_windows import cut_windows, run_ahead
from semievol.answered import ColumnTypes, check_output, needs_types, open_writer
from semievol.answering import answers_exactly, max_tokens, predict_exactly, predict_greedily, wanted_top_logprobs
from semievol.columns import Columns, FieldError, Fields, read_fields, resolve_columns
from semievol.config import AnswerType, ColumnsConfig, RunConfig
from semievol.drafts import Doubts
from semievol.errors import ConfigError, DataError
from semievol.prompts import PromptBuilder
from semievol.runs import FinishedRun, open_run
from semievol.stage import WINDOW, Backends, Reporter
from semievol.tables import read_table
from semievol.types import (
    BadRow,
    ChoiceRequest,
    ChoiceScores,
    Example,
    ModelRef,
    Prediction,
    RawRow,
    Request,
    Result,
    Sampling,
    TaskFacts,
    choice_letter,
)

ADDED: dict[str, type] = {
    "answer": str,
    "answer_text": str,
    "confidence": float,
    "entropy": float,
    "abstained": bool,
    "error": str,
}


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What became of the rows; n_rows = n_answered + n_abstained + n_unparsed + n_failed."""

    output: str
    n_rows: int
    n_answered: int
    n_abstained: int
    n_unparsed: int
    """Completions that give no answer, or more than one."""
    n_failed: int
    """Rows that could not be read or put to the model; their column `error` says why."""
    mean_confidence: float | None
    """Of the answers given and of those abstained from."""
    abstain_below: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def render(self) -> Group:
        """A few lines."""
        parts = [f"{self.n_answered:,} of {self.n_rows:,} rows answered"]
        if self.abstain_below is not None:
            parts.append(f"{self.n_abstained:,} under a confidence of {self.abstain_below:g} left empty")
        parts += [f"{n:,} {what}" for n, what in ((self.n_unparsed, "unparsable"), (self.n_failed, "failed")) if n]
        confidence = "" if self.mean_confidence is None else f"mean confidence {self.mean_confidence:.3f}; "
        rate = f"{self.n_rows / max(self.seconds, 1e-9):,.0f} rows/s"
        return Group(
            Text(", ".join(parts)), Text(f"{confidence}{self.seconds:,.1f} s, {rate}"), Text(f"wrote {self.output}")
        )


class _Item(NamedTuple):
    """A row on its way to an answer: what it said, and the example, or why there is none."""

    values: dict[str, Any]
    example: Example | None
    error: str | None


def predict_file(
    run_path: Path, input_path: str, output_path: Path, *, abstain_below: float | None, reporter: Reporter
) -> PredictSummary:
    """Answer the rows of a table with the evolved model of the last round.

    Args:
        run_path: Folder of a run whose last evolve stage is done.
        input_path: Any table that a run reads; targets are not needed and not looked at.
        output_path: CSV, JSONL or Parquet by its ending; replaced if it exists, whole or untouched.
        abstain_below: Answers with a smaller confidence, in [0, 1], are left empty and counted. None: all are given.
        reporter: What a person sees.

    Raises:
        ConfigError: If the output is the input or has an unknown ending, or the table lacks a column.
        DataError: If the table cannot be read.
        ArtifactError: If `run_path` is no run, or its model is not trained yet.
    """
    start = time.perf_counter()
    check_output(output_path, input_path)
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise ConfigError(f"--abstain-below {abstain_below}: a confidence lies between 0 and 1")
    run = open_run(run_path)
    model = run.model()
    types = ColumnTypes(input_path) if needs_types(output_path) else None
    names, n_rows, doubts = _scan(input_path, run.config, types)
    columns, task_type, notes = find_input_columns(run, names, input_path)
    for note in doubts + notes:
        reporter.note(note)
    prefix = _free_prefix(names)
    given = dict.fromkeys(names) | (types.find() if types is not None else {})
    added = {f"{prefix}{name}": kind for name, kind in ADDED.items() if name in _added(run.config)}
    asker = RowAsker(run.config, run.facts)
    tally = _Tally()
    try:
        with open_writer(output_path, given | added) as writer:
            advance = reporter.task("rows", n_rows, "rows")
            asked, items = tee(_read_items(run, input_path, columns, task_type, asker))
            predictions = asker.predict((item.example for item in asked if item.example is not None), model)
            for window in cut_windows(items, asker.window):
                writer.write([*_answer_window(window, predictions, run.config, abstain_below, prefix, tally)])
                advance(len(window))
    finally:
        asker.close()
    return tally.summary(str(output_path), abstain_below, time.perf_counter() - start)


class RowAsker:
    """Puts rows to a model in the way in which the evaluation of a run does. `close` frees the device."""

    def __init__(self, config: RunConfig, facts: TaskFacts) -> None:
        self.config = config
        self.prompts = PromptBuilder(config.task, facts)
        self._backends = Backends(config)
        self._max_tokens = max_tokens(config, config.evaluate.max_tokens)

    @property
    def window(self) -> int:
        """Rows that are answered together: what a generator looks ahead, if it does."""
        return max(WINDOW, self._backends.look_ahead or 0)

    def fault(self, example: Example) -> str | None:
        """Why a row cannot be put to the model, or None."""
        tokens = self._backends.tokens
        n, limit = tokens.count_prompt(self.prompts.answer(example)), tokens.max_length - self._max_tokens
        if n <= limit:
            return None
        return f"the prompt has {n} tokens, {limit} fit; shorten the row"

    def predict(self, examples: Iterable[Example], model: ModelRef) -> Iterator[Prediction]:
        """Predictions in the order of the rows, without scores; rows are taken window by window."""
        generator = self._backends.generator

        def score(requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
            return self._in_order(requests, generator.score_choices)

        def generate(requests: Iterable[Request], sampling: Sampling) -> Iterator[Result]:
            return self._in_order(requests, lambda asked: generator.generate(asked, sampling))

        if answers_exactly(self.config, self.config.evaluate.answer_with, generator.exact_choice_scores):
            return predict_exactly(examples, self.prompts, model, score)
        top = wanted_top_logprobs(self.config, generator)
        return predict_greedily(examples, self.prompts, model, generate, max_tokens=self._max_tokens, top_logprobs=top)

    def close(self) -> None:
        """Free the device."""
        self._backends.close()

    def _in_order(self, requests: Iterable[Any], ask: Callable[[list[Any]], Iterator[Any]]) -> Iterator[Any]:
        """Backends answer in any order; callers want theirs."""
        windows = cut_windows(requests, self.window)
        for asked, answers in run_ahead(windows, lambda w: (w, ask(w)), n=self._backends.windows):
            found = {answer.id: answer for answer in answers}
            yield from (found[request.id] for request in asked)


def _added(config: RunConfig) -> tuple[str, ...]:
    closed = config.task.type in ("choice", "label")
    skipped = {"answer_text"} if config.task.type != "choice" else set()
    return tuple(name for name in ADDED if name not in skipped | (set() if closed else {"entropy"}))


def _free_prefix(names: Sequence[str]) -> str:
    """The first prefix under which no added column has the name of one of the input."""
    taken = set(names)

    def is_free(prefix: str) -> bool:
        return taken.isdisjoint(f"{prefix}{name}" for name in ADDED)

    if is_free(""):
        return ""
    return next(prefix for n in count(1) if is_free(prefix := "predicted_" if n == 1 else f"predicted_{n}_"))


def _scan(source: str, config: RunConfig, types: ColumnTypes | None) -> tuple[list[str], int, list[str]]:
    """All column names in their order, the number of rows, and notes; `types` sees every row that can be read."""
    names: dict[str, None] = {}
    n_rows, doubts = 0, Doubts(source)
    for window in cut_windows(read_table(source, hub_split=config.data.hub_split), WINDOW):
        n_rows += len(window)
        for row in window:
            doubts.see(row)
        values = [row.values for row in window if isinstance(row, RawRow)]
        names.update((name, None) for row in values for name in row)
        if types is not None:
            types.add(values)
    if not names:
        raise DataError(f"{source}: none of its {n_rows} rows can be read")
    return list(names), n_rows, doubts.notes()


def find_input_columns(run: FinishedRun, names: Sequence[str], source: str) -> tuple[Columns, AnswerType, list[str]]:
    """Which column holds what in a new table, and the type to read its rows as.

    A table without options is read as plain questions where all rows of the run had the same options. A context column
    counts only if the labelled rows of the run had a context, as they would have been another task otherwise.
    """
    task_type = run.config.task.type
    configured = without_target(run.config.data.columns, uses_context=uses_context(run))
    try:
        columns, notes = resolve_columns(names, configured, file=source, task_type=task_type)
    except ConfigError:
        if task_type != "choice" or not run.facts.shared_choices:
            raise
        task_type = "label"
        plain = configured.model_copy(update={"choices": ""})
        columns, notes = resolve_columns(names, plain, file=source, task_type=task_type)
        notes.append(f"{source} has no options; those of the run are used: {', '.join(run.facts.shared_choices)}")
    return columns, task_type, notes


def without_target(columns: ColumnsConfig, *, uses_context: bool) -> ColumnsConfig:
    """The configured columns, with the target switched off, and the context too where the task has none."""
    off = {"target": ""} | ({} if uses_context or columns.context else {"context": ""})
    return columns.model_copy(update=off)


def uses_context(run: FinishedRun) -> bool:
    """Whether any labelled row of the run has a context."""
    return any(example.context for example in run.run_dir.read_records("data/labeled", Example))


def _read_items(
    run: FinishedRun, source: str, columns: Columns, task_type: AnswerType, asker: RowAsker
) -> Iterator[_Item]:
    for number, row in enumerate(read_table(source, hub_split=run.config.data.hub_split)):
        if isinstance(row, BadRow):
            yield _Item({}, None, f"line {row.line}, {row.field}: {row.reason}; {row.remedy}")
            continue
        try:
            fields = read_fields(row.values, columns, task_type=task_type)
            example = _make_example(str(number), fields, run, task_type)
        except (FieldError, DataError) as error:
            remedy = f"; {error.remedy}" if isinstance(error, FieldError) else ""
            yield _Item(row.values, None, f"line {row.line}: {error}{remedy}")
            continue
        fault = asker.fault(example)
        yield _Item(row.values, None if fault else example, fault)


def _make_example(row_id: str, fields: Fields, run: FinishedRun, task_type: AnswerType) -> Example:
    given = task_type == run.config.task.type
    choices = fields.choices if given else run.facts.shared_choices
    return Example(row_id, fields.question, fields.context, choices, group=fields.group, history=fields.history)


class _Tally:
    """Counts what became of rows."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("answered", "abstained", "unparsed", "failed"), 0)
        self.confidence, self.n_confidence = 0.0, 0

    def add(self, fate: str, confidence: float | None) -> None:
        self.counts[fate] += 1
        if confidence is not None and fate in ("answered", "abstained"):
            self.confidence += confidence
            self.n_confidence += 1

    def summary(self, output: str, abstain_below: float | None, seconds: float) -> PredictSummary:
        return PredictSummary(
            output=output,
            n_rows=sum(self.counts.values()),
            **{f"n_{fate}": n for fate, n in self.counts.items()},
            mean_confidence=round(self.confidence / self.n_confidence, 6) if self.n_confidence else None,
            abstain_below=abstain_below,
            seconds=round(seconds, 3),
        )


def _answer_window(
    window: Sequence[_Item],
    predictions: Iterator[Prediction],
    config: RunConfig,
    abstain_below: float | None,
    prefix: str,
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    for item in window:
        if item.example is None:
            tally.add("failed", None)
            yield _row(item, prefix, None, config) | {f"{prefix}error": item.error}
            continue
        prediction = next(predictions)
        fate, error = "answered", None
        if prediction.answer is None:
            failed = prediction.mean_nll is None  # what was generated has a likelihood
            fate, error = ("failed", "the model gave no answer") if failed else ("unparsed", "the text gives no answer")
        elif abstain_below is not None and (prediction.confidence is None or prediction.confidence < abstain_below):
            fate = "abstained"
        tally.add(fate, prediction.confidence)
        row = _row(item, prefix, replace(prediction, answer=None) if fate == "abstained" else prediction, config)
        yield row | {f"{prefix}abstained": fate == "abstained", f"{prefix}error": error}


def _row(item: _Item, prefix: str, prediction: Prediction | None, config: RunConfig) -> dict[str, Any]:
    text = None
    if prediction is not None and prediction.answer is not None and item.example is not None:
        options = {choice_letter(i): option for i, option in enumerate(item.example.choices)}
        text = options.get(prediction.answer)
    added = {
        "answer": prediction and prediction.answer,
        "answer_text": text,
        "confidence": prediction and prediction.confidence,
        "entropy": prediction and prediction.entropy,
        "abstained": False,
        "error": None,
    }
    return item.values | {f"{prefix}{name}": added[name] for name in _added(config)}
