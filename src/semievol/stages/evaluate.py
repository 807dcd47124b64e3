"""Measure every model on the test rows, and audit the pseudo-labels against the sealed targets.

Reads   data/*, the models and the kept and dropped rows of every round; alone among the stages data/sealed_gold
Writes  evaluate/predictions_<model>, evaluate/fates, evaluate/results

All models answer the same rows in the same way: exact scores over closed answer sets, greedy completions otherwise.
Every difference is paired over rows. The reference is the control with as many optimiser steps.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

from semievol.answering import answers_exactly, max_tokens, predict_exactly, predict_greedily, wanted_top_logprobs
from semievol.answers import default_metric, score_answer
from semievol.artifacts import SEALED_GOLD
from semievol.audit import (
    MODELS,
    Fate,
    audit_pseudo_labels,
    compare,
    measure,
    measure_calibration,
    measure_groups,
    precision_curve,
    row_fates,
)
from semievol.config import TaskConfig
from semievol.errors import DataError
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import AuditedRow, Dropped, Example, Gold, ModelRef, Prediction, PseudoLabel

COMPARED = (("semievol", "sft_matched"), ("semievol", "sft"), ("semievol", "base"), ("sft", "base"))


def models_to_measure(ctx: StageContext) -> dict[str, ModelRef]:
    """The models of a run by their name in tables."""
    models = {"base": ctx.base_model, "sft": ctx.read_model("warmup/model")}
    if ctx.config.control.enabled:
        models["sft_matched"] = ctx.read_model("control/model")
    models["semievol"] = ctx.read_model("evolve/model", round=ctx.config.rounds)
    return models


def predict(ctx: StageContext, model: ModelRef, name: str, rows: list[Example]) -> Iterator[Prediction]:
    """Answer and score the rows, in order. Targets are used for the score alone."""
    config, prompts = ctx.config, ctx.prompts()
    targets = {e.id: e.target for e in rows}
    asked = [replace(e, target=None) for e in rows]
    text = f"test rows, {name}"
    if answers_exactly(config, config.evaluate.answer_with, ctx.backends.generator.exact_choice_scores):
        predictions = predict_exactly(asked, prompts, model, partial(ctx.score_choices, total=len(rows), text=text))
    else:
        generate = partial(ctx.generate, total=len(rows), text=text)
        n_tokens = max_tokens(config, config.evaluate.max_tokens)
        top = wanted_top_logprobs(config, ctx.backends.generator)
        predictions = predict_greedily(asked, prompts, model, generate, max_tokens=n_tokens, top_logprobs=top)
    return (score_prediction(p, targets[p.example_id], e, config.task) for p, e in zip(predictions, rows, strict=True))


def score_prediction(prediction: Prediction, target: str | None, example: Example, task: TaskConfig) -> Prediction:
    """Put the target and the score beside an answer. Raises DataError if the row has no target."""
    if target is None:
        raise DataError(f"evaluate: test row {prediction.example_id} has no target")
    return replace(prediction, target=target, score=score_answer(prediction.answer, target, example, task))


class Audit(NamedTuple):
    """What the sealed targets and the kept and dropped rows say."""

    entries: list[dict[str, Any]]
    """Quality of the pseudo-labels, one entry a round."""
    curves: list[dict[str, Any]]
    """Precision against coverage, one curve a round."""
    fates: list[Fate]
    """The end of every unlabelled row."""
    rows: list[AuditedRow]
    """Rows whose target was there, in the order of U."""


def audit_rounds(ctx: StageContext) -> Audit:
    """Open the sealed targets and hold the pseudo-labels against them."""
    gold = {g.example_id: g.target for g in ctx.read(SEALED_GOLD, Gold)}
    examples = {e.id: e for e in ctx.read("data/unlabeled", Example)}
    entries, curves = [], []
    kept: dict[str, int] = {}
    dropped: list[Dropped] = []
    is_right: dict[str, bool] = {}
    for number in range(1, ctx.config.rounds + 1):
        labels = list(ctx.read("justify/pseudo_labels", PseudoLabel, round=number))
        kept_here = {x.example_id for x in ctx.read("select/kept", PseudoLabel, round=number)}
        correct = {
            x.example_id: score_answer(x.answer, gold[x.example_id], examples[x.example_id], ctx.config.task) == 1.0
            for x in labels
            if x.example_id in gold
        }
        is_right |= correct
        entries.append(audit_pseudo_labels(labels, kept_here, correct, round=number))
        entries[-1]["threshold"] = ctx.read_json("select/threshold", round=number)
        curves.append({"round": number, "points": precision_curve(labels, correct)})
        kept |= dict.fromkeys(kept_here, number)
        for artifact in ("propagate/failed", "justify/dropped", "select/dropped"):
            dropped += [replace(d, round=number) for d in ctx.read(artifact, Dropped, round=number)]
    rows = [AuditedRow(i, gold[i], is_right.get(i)) for i in examples if i in gold]
    return Audit(entries, curves, row_fates(examples, kept, dropped), rows)


def measure_models(ctx: StageContext, rows: list[Example], metric: str) -> dict[str, Any]:
    """Predict with every model, store the predictions, and put them side by side."""
    n_bootstrap, seed = ctx.config.evaluate.n_bootstrap, ctx.config.seed
    found: dict[str, list[Prediction]] = {}
    for name, model in models_to_measure(ctx).items():
        found[name] = list(predict(ctx, model, name, rows))
        ctx.write(f"evaluate/predictions_{name}", found[name], Prediction)
    pairs = [(a, b) for a, b in COMPARED if a in found and b in found]
    return {
        "metrics": [asdict(measure(name, metric, found[name], n_bootstrap=n_bootstrap, seed=seed)) for name in found],
        "comparisons": [asdict(compare(a, b, metric, found, n_bootstrap=n_bootstrap, seed=seed)) for a, b in pairs],
        "groups": [row for name in found for row in measure_groups(name, found[name])],
        "calibration": [row for name in found if (row := measure_calibration(name, found[name])) is not None],
    }


def count_rows(ctx: StageContext, fates: Iterable[Fate]) -> dict[str, Any]:
    """How many rows went where; the rows of a split add up to those read for it."""
    counts: dict[str, Any] = dict(ctx.read_json("data/counts"))
    reasons = Counter((f.fate, f.reason) for f in fates)
    counts["fates"] = [{"fate": fate, "reason": reason, "n": n} for (fate, reason), n in sorted(reasons.items())]
    return counts


def run(ctx: StageContext) -> StageStats:
    """Measure, audit, write."""
    rows = list(ctx.read("data/test", Example))
    audit = audit_rounds(ctx)
    metric = ctx.config.task.metric or default_metric(ctx.config.task)
    results: dict[str, Any] = {"metric": metric, "metrics": [], "comparisons": [], "groups": [], "calibration": []}
    if rows:
        results |= measure_models(ctx, rows, metric)
    else:
        ctx.reporter.note("no test rows: nothing to measure (data.test or data.split.test gives some)")
    results |= {"pseudo_labels": audit.entries, "precision_curves": audit.curves}
    results |= {"rows": count_rows(ctx, audit.fates)}
    ctx.write("evaluate/fates", audit.fates, Fate)
    ctx.write("evaluate/audited", audit.rows, AuditedRow)
    ctx.write_json("evaluate/results", results)
    return {m["model"]: round(m["value"], 4) for m in results["metrics"]}


STAGE = Stage(
    "evaluate",
    reads=(
        "data/test",
        "data/unlabeled",
        "data/task",
        "data/counts",
        SEALED_GOLD,
        "warmup/model",
        "control/model",
        "evolve/model",
        "propagate/failed",
        "justify/pseudo_labels",
        "justify/dropped",
        "select/kept",
        "select/dropped",
        "select/threshold",
    ),
    writes=(
        *(f"evaluate/predictions_{name}" for name in MODELS),
        "evaluate/fates",
        "evaluate/audited",
        "evaluate/results",
    ),
    sections=("task", "model", "generator", "evaluate", "control", "rounds", "seed"),
    run=run,
)
