"""The lines of the report's tables and strips, from the content of results.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from semievol import metrics
from semievol.artifacts import RunDir
from semievol.figures import MODEL_LABELS
from semievol.types import choice_letter

SETS = {
    "all": "all",
    "kept": "kept",
    "dropped": "dropped",
    "consensus": "by consensus",
    "justified": "by justification",
    "cascade": "by cascade",
}
SIGNALS = {
    "mean_nll": "mean NLL",
    "entropy": "entropy",
    "max_probability": "probability of the answer",
    "agreement": "agreement of the samples",
    "sample_entropy": "entropy of the sampled answers",
}


MOST_P = 0.01
"""Largest p at which an answer counts as given more or less often than among the labelled rows."""


class Mark(NamedTuple):
    """A dot and its interval on a scale that all lines of a table share; percent of the scale's width."""

    low: float
    dot: float
    high: float
    zero: float | None


class ModelLine(NamedTuple):
    """One model on the test rows."""

    model: str
    label: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    n_unparsed: int
    ece: float | None
    mark: Mark


class DifferenceLine(NamedTuple):
    """One paired difference a - b."""

    a: str
    b: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    is_main: bool
    """Whether it is the comparison that the headline reads."""
    mark: Mark


class Part(NamedTuple):
    """Rows that went one way. `kind` names the colour."""

    label: str
    kind: str
    n: int
    fraction: float
    """Of all rows of the strip."""


class Strip(NamedTuple):
    """Where the rows of one pool went; the parts add up to `n`."""

    title: str
    n: int
    scale: float
    """Width against the widest strip of the same unit, in [0, 1]."""
    parts: tuple[Part, ...]


class PrecisionLine(NamedTuple):
    """How many pseudo-labels of one set are right."""

    round: int
    label: str
    value: float
    ci_low: float
    ci_high: float
    n: int


class GroupLine(NamedTuple):
    """One group of test rows under each model."""

    group: str
    n: int
    values: tuple[float | None, ...]
    """In the order of the models of the main table."""


class RoundLine(NamedTuple):
    """One round's selection."""

    round: int
    n_labels: int
    n_kept: int
    coverage: float
    agreement: float | None
    sources: str
    rule: str
    scarce: str
    """Answers that the selection all but took out; empty where there are none."""
    remedy: str
    """What would bring them back."""


class AnswerLine(NamedTuple):
    """How often one answer of a fixed set is given, as shares."""

    answer: str
    labeled: float
    rounds: tuple[tuple[float, float], ...]
    """(of the pseudo-labels, of the kept ones), in the order of the rounds."""
    differs: bool
    """Whether the first round's pseudo-labels have it more or less often than the labelled rows beyond chance."""


class CostLine(NamedTuple):
    """What one stage cost."""

    name: str
    seconds: float
    fraction: float
    model_seconds: float
    prompt_tokens: int
    completion_tokens: int
    train_tokens: int
    forward_passes: int
    memory: str


def model_lines(results: Mapping[str, Any]) -> list[ModelLine]:
    """The main table, in the order of the results."""
    entries = results["metrics"]
    errors = {entry["model"]: entry["ece"] for entry in results["calibration"]}
    marks = place_marks([(e["ci_low"], e["value"], e["ci_high"]) for e in entries])
    return [
        ModelLine(
            e["model"],
            MODEL_LABELS[e["model"]],
            e["value"],
            e["ci_low"],
            e["ci_high"],
            e["n"],
            e["n_unparsed"],
            errors.get(e["model"]),
            mark,
        )
        for e, mark in zip(entries, marks, strict=True)
    ]


def difference_lines(results: Mapping[str, Any]) -> list[DifferenceLine]:
    """The paired differences; zero is marked on their scale."""
    entries = results["comparisons"]
    marks = place_marks([(e["ci_low"], e["difference"], e["ci_high"]) for e in entries], zero=True)
    main = "sft_matched" if any(e["b"] == "sft_matched" for e in entries) else "sft"
    return [
        DifferenceLine(
            MODEL_LABELS[e["a"]],
            MODEL_LABELS[e["b"]],
            e["difference"],
            e["ci_low"],
            e["ci_high"],
            e["p_value"],
            (e["a"], e["b"]) == ("semievol", main),
            mark,
        )
        for e, mark in zip(entries, marks, strict=True)
    ]


def place_marks(values: Sequence[tuple[float, float, float]], *, zero: bool = False) -> list[Mark]:
    """Put (low, value, high) triples on one scale with some room at both ends."""
    if not values:
        return []
    ends = [end for low, _, high in values for end in (low, high)] + ([0.0] if zero else [])
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 0.01
    low, width = low - room, high - low + 2 * room

    def place(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    return [Mark(place(a), place(b), place(c), place(0.0) if zero else None) for a, b, c in values]


def read_strip(rows: Mapping[str, Any]) -> Strip:
    """Every row that was read: where it went before the first stage. Rows that are in no place are shown as such."""
    parts = [
        ("labelled", "labeled", rows["n_labeled"]),
        ("unlabelled", "unlabeled", rows["n_unlabeled"]),
        ("test", "test", rows["n_test"]),
        ("not drawn", "idle", rows["n_not_drawn"]),
        ("duplicate, dropped", "duplicate", rows["n_duplicates_dropped"]),
        ("rejected", "bad", rows["n_rejected"]),
    ]
    n_placed = sum(n for _, _, n in parts)
    parts.append(("not accounted for", "bad", max(0, rows["n_read"] - n_placed)))
    return _strip("Rows read", parts, scale=1.0)


def round_strips(run_dir: RunDir, entries: Sequence[Mapping[str, Any]]) -> list[Strip]:
    """Where the unlabelled rows of each round went; those that were not kept are the next round's."""
    strips: list[Strip] = []
    widest = 0
    for entry in entries:
        number = entry["round"]
        n_failed = run_dir.count_records(f"round-{number}/propagate/failed")
        n_unparsable = run_dir.count_records(f"round-{number}/justify/dropped")
        parts = [
            ("kept", "kept", entry["n_kept"]),
            ("not confident enough", "dropped", entry["n_labels"] - entry["n_kept"]),
            ("no parsable answer", "unparsable", n_unparsable),
            ("request failed", "bad", n_failed),
        ]
        n = sum(part[2] for part in parts)
        widest = max(widest, n)
        title = "Unlabelled rows" if len(entries) == 1 else f"Unlabelled rows, round {number}"
        strips.append(_strip(title, parts, scale=n / widest if widest else 1.0))
    return strips


def fate_strip(rows: Mapping[str, Any]) -> Strip:
    """The end of every unlabelled row after all rounds."""
    kinds = {"kept": "kept", "select": "dropped", "justify": "unparsable", "propagate": "bad"}
    fates = sorted(
        rows["fates"], key=lambda f: (list(kinds).index(f["fate"]) if f["fate"] in kinds else len(kinds), f["reason"])
    )
    parts = [(f["reason"] if f["fate"] != "kept" else "kept", kinds.get(f["fate"], "bad"), f["n"]) for f in fates]
    return _strip("Unlabelled rows, at the end", parts, scale=1.0)


def precision_lines(entries: Sequence[Mapping[str, Any]]) -> list[PrecisionLine]:
    """Shares of right pseudo-labels, of those whose target was opened."""
    return [
        PrecisionLine(e["round"], SETS.get(k, k), p["value"], p["ci_low"], p["ci_high"], p["n"])
        for e in entries
        for k, p in e["precision"].items()
    ]


def group_lines(results: Mapping[str, Any]) -> list[GroupLine]:
    """The metric by group, groups in the order of the results."""
    found = {(g["group"], g["model"]): g for g in results["groups"]}
    models = [entry["model"] for entry in results["metrics"]]
    sizes = {g["group"]: g["n"] for g in results["groups"]}
    return [
        GroupLine(group, n, tuple(found[group, m]["value"] if (group, m) in found else None for m in models))
        for group, n in sizes.items()
    ]


def round_lines(entries: Sequence[Mapping[str, Any]], *, keep_fraction: float, apply_to: str) -> list[RoundLine]:
    """What was selected in each round, and by which rule."""
    return [
        RoundLine(
            e["round"],
            e["n_labels"],
            e["n_kept"],
            e["coverage"],
            e["mean_agreement"],
            ", ".join(f"{n:,} {source}" for source, n in e["n_by_source"].items()),
            _rule(e.get("threshold"), keep_fraction, apply_to),
            ", ".join(
                f"{answer} ({n_kept:,} of {n:,} labels kept)"
                for answer, (n, n_kept) in ((e.get("threshold") or {}).get("scarce") or {}).items()
            ),
            "; ".join(dict.fromkeys(((e.get("threshold") or {}).get("remedies") or {}).values())),
        )
        for e in entries
    ]


def answer_lines(results: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[AnswerLine]:
    """How often each answer is given, the most frequent first; empty where rows do not choose among the same answers.

    Differences between the labelled rows and the first round are tested by Fisher's exact test with Holm's correction
    over the answers, at 1%.
    """
    task = results["task"]
    labeled: Mapping[str, int] = results["rows"].get("targets", {}).get("labeled", {})
    rounds: list[Mapping[str, tuple[int, int]]] = [(e.get("threshold") or {}).get("answers") or {} for e in entries]
    if not (task["labels"] or task["shared_choices"]) or not labeled or not rounds or not all(rounds):
        return []
    first = rounds[0]
    answers = sorted({*labeled, *first}, key=lambda answer: (-first.get(answer, (0, 0))[0], answer))
    n_labeled, n_first = sum(labeled.values()), sum(n for n, _ in first.values())
    p_values = [
        metrics.fisher_p_value(first.get(answer, (0, 0))[0], n_first, labeled.get(answer, 0), n_labeled)
        for answer in answers
    ]
    adjusted = metrics.holm(p_values).tolist()
    named = {choice_letter(i): text for i, text in enumerate(task["shared_choices"])}
    return [
        AnswerLine(
            f"{answer} ({named[answer]})" if answer in named else answer,
            labeled.get(answer, 0) / n_labeled,
            tuple(_shares(found, answer) for found in rounds),
            p <= MOST_P,
        )
        for answer, p in zip(answers, adjusted, strict=True)
    ]


def _shares(found: Mapping[str, tuple[int, int]], answer: str) -> tuple[float, float]:
    n, n_kept = found.get(answer, (0, 0))
    total, total_kept = (sum(column) for column in zip(*found.values(), strict=True))
    return n / total, n_kept / max(1, total_kept)


def cost_lines(stages: Sequence[Mapping[str, Any]]) -> list[CostLine]:
    """Cost by stage, in the order in which they ran."""
    total = sum(stage["seconds"] for stage in stages) or 1.0
    return [
        CostLine(
            s["name"],
            s["seconds"],
            s["seconds"] / total,
            s["model_seconds"],
            s["prompt_tokens"],
            s["completion_tokens"],
            s["train_tokens"],
            s["forward_passes"],
            format_bytes(s["peak_memory_bytes"]),
        )
        for s in stages
    ]


def format_bytes(n: int) -> str:
    """Bytes with a binary unit; a dash for none."""
    if n <= 0:
        return "\N{EN DASH}"
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def format_value(value: Any) -> str:
    """A config value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _strip(title: str, parts: Sequence[tuple[str, str, int]], *, scale: float) -> Strip:
    n = sum(part[2] for part in parts)
    shown = tuple(Part(label, kind, size, size / n) for label, kind, size in parts if size > 0)
    return Strip(title, n, scale, shown)


def _rule(threshold: Mapping[str, Any] | None, keep_fraction: float, apply_to: str) -> str:
    if threshold is None:
        return ""
    whose = "all labels" if apply_to == "all" else "the labels without consensus"
    if threshold["uncertainty"] is None:
        return "all had consensus" if threshold["n_kept"] else "none reached the minimum"
    sign = (
        "\N{LESS-THAN OR EQUAL TO}"
        if threshold["signal"] in ("mean_nll", "entropy", "sample_entropy")
        else "\N{GREATER-THAN OR EQUAL TO}"
    )
    cuts = [t["uncertainty"] for t in threshold.get("by_answer", {}).values() if t["uncertainty"] is not None]
    ends = (min(cuts), max(cuts)) if cuts else (threshold["uncertainty"],)
    limits = dict.fromkeys(f"{abs(x):.4g}" for x in ends)
    limit = f"{SIGNALS[threshold['signal']]} {sign} {' to '.join(limits)}"
    of_each = " of each answer" if cuts else ""
    rule = f"{limit}, the surest {100 * keep_fraction:.4g}% of {whose}{of_each}"
    return rule if apply_to == "all" else f"consensus, or {rule}"
