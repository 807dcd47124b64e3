"""The sentences of the report: what a run found, read honestly, and numbers as text.

A difference is called one only where its 95% interval leaves out zero and its test rejects at 5%; otherwise the
sentence says what could have been seen. The interval covers the draw of the test rows, not the chance of training, and
the report says so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from semievol.figures import MODEL_LABELS

MINUS = "\N{MINUS SIGN}"
LEVEL = 0.05
"""Largest p-value at which a difference is called one."""

METRIC_NAMES = {"accuracy": "accuracy", "exact_match": "exact match", "token_f1": "token F1", "rouge_l": "ROUGE-L"}
GRADED_METRICS = ("token_f1", "rouge_l")
"""Metrics that give a row a share; a pseudo-label counts as right where the share is 1."""


class Headline(NamedTuple):
    """The result in a sentence, and what to know before believing it."""

    sentence: str
    remarks: tuple[str, ...]


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{_points(value):.1f}"


def signed(value: float) -> str:
    """A difference of shares in points, with its sign."""
    text = f"{_points(value):+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def interval(low: float, high: float) -> str:
    """Both ends of an interval of shares, in percent."""
    return f"[{_end(low)}, {_end(high)}]"


def p_value(value: float) -> str:
    """`p = 0.013`, with two significant digits and nothing below 0.001."""
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.2f}" if value >= 0.095 else f"p = {value:.3f}"


def count(value: int) -> str:
    """A number of things, with thousands marked."""
    return f"{value:,}"


def plural(value: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def write_headline(results: dict[str, Any], *, metric: str) -> Headline:
    """Read the result off the measured numbers; `metric` is the task's."""
    remarks = _pseudo_label_remarks(results, metric)
    measured = {entry["model"]: entry for entry in results["metrics"]}
    if "semievol" not in measured:
        sentence = "Nothing was measured: this run has no test rows."
        return Headline(
            sentence, ("Give test rows with data.test, or data.split.test, to see what was gained.", *remarks)
        )
    control = "sft_matched" if "sft_matched" in measured else "sft"
    comparison = next((c for c in results["comparisons"] if (c["a"], c["b"]) == ("semievol", control)), None)
    sentence = _measured_sentence(measured["semievol"], metric)
    if comparison is not None:
        sentence += _difference_sentence(comparison, _control_name(control, results))
        remarks = _difference_remarks(comparison, control) + remarks
    return Headline(sentence, (*remarks, *_parse_remarks(results["metrics"])))


def _points(value: float) -> float:
    """In percent, without what floating point leaves: 0.7875 is rounded alike however it was worked out."""
    return round(100 * value, 9)


def _end(value: float) -> str:
    text = f"{_points(value):.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", MINUS)


def _measured_sentence(entry: dict[str, Any], metric: str) -> str:
    value, bounds = percent(entry["value"]), interval(entry["ci_low"], entry["ci_high"])
    rows = plural(entry["n"], "test row")
    if metric in GRADED_METRICS:
        return f"SemiEvol scores {value} {bounds} of 100 in {METRIC_NAMES[metric]} on {rows}"
    return f"SemiEvol answers {value}% {bounds} of {rows} right"


def _control_name(control: str, results: dict[str, Any]) -> str:
    rows = results["rows"].get("n_labeled")
    labelled = "the labelled rows" if rows is None else f"the {plural(rows, 'labelled row')}"
    return f"fine-tuning on {labelled} alone" + (" for as many steps" if control == "sft_matched" else "")


def _difference_sentence(comparison: dict[str, Any], control: str) -> str:
    low, high = comparison["ci_low"], comparison["ci_high"]
    size = f"{abs(100 * comparison['difference']):.1f} points"
    difference = f"{signed(comparison['difference'])} points {interval(low, high)}"
    if not low <= 0 <= high and comparison["p_value"] > LEVEL:
        return f". Whether that differs from {control} cannot be told ({difference}, {p_value(comparison['p_value'])})."
    if low > 0:
        return f", {size} {interval(low, high)} more than {control}."
    if high < 0:
        return f", {size} {interval(-high, -low)} less than {control}."
    return f". No difference from {control} was seen ({difference})."


def _difference_remarks(comparison: dict[str, Any], control: str) -> list[str]:
    remarks = []
    detectable = comparison["detectable"]
    if comparison["n_differing"] == 0:
        remarks.append("Both models have the same score on every test row.")
    if comparison["ci_low"] <= 0 <= comparison["ci_high"] or comparison["p_value"] > LEVEL:
        rows = plural(comparison["n"], "test row")
        remarks.append(
            f"With these {rows} a true difference of about {100 * detectable:.1f} points would be found four times in "
            "five; a smaller one may well be missed."
            if detectable < 1
            else f"{rows} are too few to show a difference, however large."
        )
    if control == "sft":
        remarks.append(
            "The control with as many optimiser steps was switched off, so a difference may come from longer training."
        )
    remarks.append(
        "Brackets hold 95% intervals over the draw of the test rows. One run with one seed says nothing about the "
        "chance in training."
    )
    return remarks


def _pseudo_label_remarks(results: dict[str, Any], metric: str) -> list[str]:
    entries = results["pseudo_labels"]
    total = results["rows"].get("n_unlabeled", 0)
    if not entries or not total:
        return []
    text = f"{count(sum(e['n_kept'] for e in entries))} of {plural(total, 'unlabelled row')} became training data"
    kept = [e["precision"]["kept"] for e in entries if "kept" in e["precision"]]
    if not kept:
        return [f"{text}; how many carry the right answer is not known, since no unlabelled row came with a target."]
    reached = f"score 100 in {METRIC_NAMES[metric]}" if metric in GRADED_METRICS else "carry the right answer"
    n = sum(k["n"] for k in kept)
    right = sum(k["value"] * k["n"] for k in kept) / n
    whose = "these" if n == sum(e["n_kept"] for e in entries) else f"the {count(n)} with a target"
    return [f"{text}; {percent(right)}% of {whose} {reached}."]


def _parse_remarks(entries: Sequence[dict[str, Any]]) -> list[str]:
    worst = [e for e in entries if e["n_unparsed"] > 0.02 * e["n"]]
    return [
        f"{MODEL_LABELS[e['model']]}: {count(e['n_unparsed'])} of {count(e['n'])} answers could not be parsed; "
        "they count as wrong."
        for e in worst
    ]
