"""Measure every model on the test rows, and audit the pseudo-labels against the sealed targets.

Reads   data/*, the models and the kept and dropped rows of every round; alone of the stages of a run data/sealed_gold
Writes  evaluate/predictions_<model>, evaluate/fates, evaluate/results

All models answer the same rows in the same way: exact scores over closed answer sets, greedy completions otherwise.
Every difference is paired over rows. The reference is the control with as many optimiser steps.
"""

from dataclasses import asdict
from typing import Any

from semievol.answers import default_metric
from semievol.audit import MODELS, Fate, Fates, compare, measure, measure_calibration, measure_groups
from semievol.auditing import AUDIT_READS, audit_rounds, read_audited, read_fates, unused_selections
from semievol.scoring import predict_rows
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import AuditedRow, Example, ModelRef, Prediction

COMPARED = (("semievol", "sft_matched"), ("semievol", "sft"), ("semievol", "base"), ("sft", "base"))


def models_to_measure(ctx: StageContext) -> dict[str, ModelRef]:
    """The models of a run by their name in tables."""
    models = {"base": ctx.base_model, "sft": ctx.read_model("warmup/model")}
    if ctx.config.control.enabled:
        models["sft_matched"] = ctx.read_model("control/model")
    models["semievol"] = ctx.read_model("evolve/model", round=ctx.config.rounds)
    return models


def measure_models(ctx: StageContext, rows: list[Example], metric: str) -> dict[str, Any]:
    """Predict with every model, store the predictions, and put them side by side."""
    n_bootstrap, seed = ctx.config.evaluate.n_bootstrap, ctx.config.seed
    found: dict[str, list[Prediction]] = {}
    for name, model in models_to_measure(ctx).items():
        found[name] = list(predict_rows(ctx, model, rows, text=f"test rows, {name}"))
        ctx.write(f"evaluate/predictions_{name}", found[name], Prediction)
    pairs = [(a, b) for a, b in COMPARED if a in found and b in found]
    return {
        "metrics": [asdict(measure(name, metric, found[name], n_bootstrap=n_bootstrap, seed=seed)) for name in found],
        "comparisons": [asdict(compare(a, b, metric, found, n_bootstrap=n_bootstrap, seed=seed)) for a, b in pairs],
        "groups": [row for name in found for row in measure_groups(name, found[name])],
        "calibration": [row for name in found if (row := measure_calibration(name, found[name])) is not None],
    }


def count_rows(ctx: StageContext, fates: Fates) -> dict[str, Any]:
    """How many rows went where; the rows of a split add up to those read for it."""
    return {**ctx.read_json("data/counts"), "fates": fates.count()}


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
    ctx.write("evaluate/fates", read_fates(ctx, audit), Fate)
    ctx.write("evaluate/audited", read_audited(ctx, audit), AuditedRow)
    ctx.write_json("evaluate/results", results)
    return {m["model"]: round(m["value"], 4) for m in results["metrics"]}


STAGE = Stage(
    "evaluate",
    reads=(
        "data/test",
        "data/task",
        "data/counts",
        *AUDIT_READS,
        "warmup/model",
        "control/model",
        "evolve/model",
    ),
    writes=(
        *(f"evaluate/predictions_{name}" for name in MODELS),
        "evaluate/fates",
        "evaluate/audited",
        "evaluate/results",
    ),
    sections=("task", "model", "generator", "evaluate", "control", "rounds", "seed"),
    run=run,
    unused=unused_selections,
)
