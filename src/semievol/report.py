"""Draws the report of a run: one HTML file that needs no network and shows nothing that is not stored.

Text from data is escaped wherever it stands. The numbers are those of results.json; the figures come from the stored
predictions; the browsable rows from `report_rows`. The same run folder gives the same bytes.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import yaml
from markupsafe import Markup

from semievol import figures, report_tables, report_text
from semievol.answers import default_metric
from semievol.artifacts import RunDir
from semievol.audit import MODELS
from semievol.config import RunConfig
from semievol.drafts import Rejected
from semievol.duplicates import Duplicate
from semievol.figures import MODEL_LABELS
from semievol.report_rows import ShownRow, choose_rows
from semievol.report_text import GRADED_METRICS, METRIC_NAMES, Headline
from semievol.types import Prediction

TEMPLATE = "report.html.j2"
N_SHOWN = 5
"""Rejected and duplicate rows that are listed."""
MOST_RENDERED = 6000
"""Characters of the rendered training example."""
MOST_LOSSES = 250
"""Points of a loss curve; longer ones are drawn as means of equal stretches."""


class Training(NamedTuple):
    """One fine-tuning."""

    label: str
    model: str
    stage: str
    n_rows: int
    steps: int
    n_tokens: int
    last_loss: float | None
    precision: str | None
    """bf16 or fp32; None where a server trained."""


class Rendered(NamedTuple):
    """A training example as the model saw it, cut where the loss begins and ends."""

    before: str
    trained: str
    after: str


class Figures(NamedTuple):
    """Inline SVG, or an empty string where there is nothing to draw."""

    precision: Markup
    uncertainty: Markup
    uncertainty_title: str
    confidence: Markup
    groups: Markup
    losses: Markup


def draw_report(config: RunConfig, run_dir: RunDir, results: dict[str, Any]) -> str:
    """The page. `results` is the content of results.json.

    Raises:
        ArtifactError: If a part of the run folder is missing or broken.
    """
    page: str = page_environment().get_template(TEMPLATE).render(build_page(config, run_dir, results))
    return page


def page_environment() -> Any:
    """The templates of reports: text is escaped, and a value that is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("semievol"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": report_text.percent,
        "signed": report_text.signed,
        "count": report_text.count,
        "p_value": report_text.p_value,
        "value": report_tables.format_value,
    }
    environment.globals |= {"interval": report_text.interval, "plural": report_text.plural}
    return environment


def build_page(config: RunConfig, run_dir: RunDir, results: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template is given."""
    entries = results["pseudo_labels"]
    metric = default_metric(config.task)
    rows: list[ShownRow] = choose_rows(config, run_dir)
    headline: Headline = report_text.write_headline(results, metric=metric)
    return {
        "title": config.report.title or "SemiEvol run",
        "results": results,
        "config": config,
        "headline": headline,
        "metric": METRIC_NAMES[metric],
        "graded": metric in GRADED_METRICS,
        "labels": {name: MODEL_LABELS[name] for name in MODELS if any(m["model"] == name for m in results["metrics"])},
        "models": report_tables.model_lines(results),
        "differences": report_tables.difference_lines(results),
        "read": report_tables.read_strip(results["rows"]),
        "strips": report_tables.round_strips(run_dir, entries),
        "groups": report_tables.group_lines(results),
        "end": report_tables.fate_strip(results["rows"]) if config.rounds > 1 else None,
        "precisions": report_tables.precision_lines(entries),
        "rounds": report_tables.round_lines(
            entries, keep_fraction=config.select.keep_fraction, apply_to=config.select.apply_to
        ),
        "answers": report_tables.answer_lines(results, entries),
        "cascades": results.get("cascade", []),
        "figures": draw_figures(run_dir, results, metric=METRIC_NAMES[metric]),
        "trainings": [_training(entry, config) for entry in results["training"]],
        "rendered": split_rendered(results["training"]),
        "rows": rows,
        "costs": report_tables.cost_lines(results["stages"]),
        "rejected": list(islice(run_dir.read_records("data/rejected", Rejected), N_SHOWN)),
        "duplicates": list(islice(run_dir.read_records("data/duplicates", Duplicate), N_SHOWN)),
        "n_duplicates": run_dir.count_records("data/duplicates"),
        "resolved": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
    }


def draw_figures(run_dir: RunDir, results: dict[str, Any], *, metric: str) -> Figures:
    """All figures; each is empty where its numbers are missing."""
    found = {
        m["model"]: list(run_dir.read_records(f"evaluate/predictions_{m['model']}", Prediction))
        for m in results["metrics"]
    }
    spread, title = _values(found, "entropy"), "Entropy of the answer distribution (nats)"
    if not spread:
        spread, title = _values(found, "mean_nll"), "Mean NLL of the answer (nats per token)"
    confidence = _values(found, "confidence")
    curves = {c["round"]: c["points"] for c in results["precision_curves"] if c["points"]}
    groups = [
        figures.GroupValue(g["model"], g["group"], g["value"], g["ci_low"], g["ci_high"]) for g in results["groups"]
    ]
    losses = _loss_curves(results["training"])
    return Figures(
        precision=_markup(curves and figures.draw_precision_curves("precision", curves, _kept_points(results))),
        uncertainty=_markup(
            spread and figures.draw_histograms("uncertainty", spread, x_label=title, x_range=_range(spread))
        ),
        uncertainty_title=title,
        confidence=_markup(
            confidence
            and figures.draw_histograms(
                "confidence", confidence, x_label="Confidence in the answer", x_range=(0.0, 1.0)
            )
        ),
        groups=_markup(groups and figures.draw_groups("groups", groups, x_label=f"{metric} (%)")),
        losses=_markup(losses and figures.draw_losses("losses", losses)),
    )


def split_rendered(training: Sequence[dict[str, Any]]) -> Rendered | None:
    """The first training's example, cut at the marks that the trainer put around what carries the loss."""
    text = next((entry["rendered_example"] for entry in training if entry["rendered_example"]), None)
    if text is None:
        return None
    before, mark, rest = text.rpartition("\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}")
    if not mark:
        return Rendered(text[:MOST_RENDERED], "", "")
    trained, _, after = rest.partition("\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}")
    cut = f"… ({len(before) - MOST_RENDERED:,} characters before)\n" if len(before) > MOST_RENDERED else ""
    return Rendered(cut + before[-MOST_RENDERED:], trained[:MOST_RENDERED], after)


def _values(found: dict[str, list[Prediction]], name: str) -> list[figures.Scored]:
    """Rows that carry the value, by model; models without any are left out."""
    rows = []
    for model, predictions in found.items():
        rated = [
            (getattr(p, name), p.score) for p in predictions if getattr(p, name) is not None and p.score is not None
        ]
        if rated:
            values = np.array(rated, dtype=np.float64)
            rows.append(figures.Scored(model, values[:, 0], values[:, 1]))
    return rows


def _range(rows: Sequence[figures.Scored]) -> tuple[float, float]:
    """From 0 to what nearly all rows stay below; the rest is counted in the last bin."""
    top = float(np.quantile(np.concatenate([row.values for row in rows]), 0.995))
    return 0.0, max(top, 1e-3)


def _kept_points(results: dict[str, Any]) -> list[figures.KeptPoint]:
    points = []
    for entry in results["pseudo_labels"]:
        kept = entry["precision"].get("kept")
        if kept is not None:
            points.append(
                figures.KeptPoint(entry["round"], entry["coverage"], kept["value"], kept["ci_low"], kept["ci_high"])
            )
    return points


def _trained_model(stage: str) -> str:
    return {"warmup": "sft", "control": "sft_matched"}.get(stage, "semievol")


def _training_label(stage: str, rounds: int) -> str:
    label = MODEL_LABELS[_trained_model(stage)]
    folder, _, name = stage.partition("/")
    return f"{label}, {folder.replace('-', ' ')}" if name and rounds > 1 else label


def _training(entry: dict[str, Any], config: RunConfig) -> Training:
    stage = entry["stage"]
    return Training(
        _training_label(stage, config.rounds),
        _trained_model(stage),
        stage,
        entry["n_rows"],
        entry["optimizer_steps"],
        entry["n_tokens"],
        entry["last_loss"],
        entry.get("precision"),
    )


def _loss_curves(training: Sequence[dict[str, Any]]) -> list[figures.LossCurve]:
    rounds = sum(entry["stage"].endswith("/evolve") for entry in training)
    curves = []
    for entry in training:
        if not entry["losses"]:
            continue
        points = np.array(entry["losses"], dtype=np.float64)
        stretches = np.array_split(points, min(len(points), MOST_LOSSES))
        steps, losses = np.array([stretch.mean(axis=0) for stretch in stretches]).T.tolist()
        faded = entry["stage"].startswith("round-") and entry["stage"] != f"round-{rounds}/evolve"
        curves.append(figures.LossCurve(_trained_model(entry["stage"]), steps, losses, faded))
    return curves


def _markup(svg: Any) -> Markup:
    """SVG of our own making, in which `figures` has escaped all text."""
    return Markup(svg) if svg else Markup("")
